// SPDX-License-Identifier: Apache-2.0
// Sparse convolution as one implicit matrix product: rows are read where they lie, nothing is
// gathered into memory first, and what follows a convolution is applied while it is in registers.

#pragma once

#include "lanes.h"

extern "C" {

// One input of a convolution: `taps` rows of `features` for each output row.
struct SrSource {
  const float *features;  // [rows, pitch]
  const float *none;      // [channels] zeros, what a missing link points to
  const int32_t *table;   // [count, taps], `rows` for "none"; null for "row m feeds output m"
  const float *weights;   // [taps, channels, outputs]
  int64_t rows;
  int64_t pitch;
  int64_t taps;
  int64_t channels;
};

// max(0, scale * x + shift), written for whatever reads the result next; `out` null for none.
struct SrActivation {
  float *out;  // [rows, pitch]
  const float *scale;
  const float *shift;
  int64_t pitch;
};

struct SrConvolution {
  const SrSource *sources;
  int64_t source_count;
  const float *bias;      // [outputs]; null for none
  const float *residual;  // [rows, pitch]; null for none
  int64_t residual_pitch;
  float *raw;  // [rows, pitch]; null when only the activations are wanted
  int64_t raw_pitch;
  SrActivation activations[2];
  const int64_t *rows;  // [count] output rows; null for all in order
  int64_t count;
  int64_t outputs;  // a multiple of 16
  int64_t relu;     // whether `raw` is max(0, .)
  int64_t threads;
};
}

namespace sr {

#ifdef __AVX512F__
constexpr int REGISTERS = 28;
#else
constexpr int REGISTERS = 6;  // a vector takes two or four registers here
#endif

// Output rows worked on together: accumulators and a few weight vectors fill the registers.
template <int WIDTH>
constexpr int tile_rows() {
  constexpr int rows = (REGISTERS - 2 * WIDTH) / WIDTH;
  return rows < 1 ? 1 : rows > 12 ? 12 : rows;
}

template <int ROWS, int WIDTH>
static inline void accumulate(Lanes (&sum)[ROWS][WIDTH], const SrSource &source, int64_t outputs,
                              int64_t column, const int64_t (&site)[ROWS]) {
  const int64_t channels = source.channels;
  const float *weights = source.weights + column;
  for (int64_t tap = 0; tap < source.taps; ++tap) {
    const float *input[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      const int64_t row =
          source.table ? int64_t(source.table[site[r] * source.taps + tap]) : site[r];
      input[r] = row < source.rows ? source.features + row * source.pitch : source.none;
    }
    int64_t i = 0;
    for (; i + 2 <= channels; i += 2, weights += 2 * outputs) {
      Lanes first[WIDTH], second[WIDTH];
      for (int v = 0; v < WIDTH; ++v) {
        first[v] = load(weights + v * LANES);
        second[v] = load(weights + outputs + v * LANES);
      }
      for (int r = 0; r < ROWS; ++r) {
        for (int v = 0; v < WIDTH; ++v) sum[r][v] += first[v] * input[r][i];
        for (int v = 0; v < WIDTH; ++v) sum[r][v] += second[v] * input[r][i + 1];
      }
    }
    for (; i < channels; ++i, weights += outputs) {
      for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < WIDTH; ++v) sum[r][v] += load(weights + v * LANES) * input[r][i];
    }
  }
}

// Rows first .. first + ROWS of the output, of which `valid` exist, columns of WIDTH vectors.
template <int ROWS, int WIDTH>
static void convolve_tile(const SrConvolution &c, int64_t first, int valid, int64_t column) {
  int64_t site[ROWS];
  for (int r = 0; r < ROWS; ++r) site[r] = first + (r < valid ? r : valid - 1);
  Lanes sum[ROWS][WIDTH];
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < WIDTH; ++v)
      sum[r][v] = c.bias ? load(c.bias + column + v * LANES) : Lanes{};
  for (int64_t s = 0; s < c.source_count; ++s)
    accumulate<ROWS, WIDTH>(sum, c.sources[s], c.outputs, column, site);
  for (int r = 0; r < valid; ++r) {
    const int64_t row = c.rows ? c.rows[site[r]] : site[r];
    for (int v = 0; v < WIDTH; ++v) {
      const int64_t at = column + v * LANES;
      Lanes x = sum[r][v];
      if (c.residual) x += load(c.residual + row * c.residual_pitch + at);
      if (c.relu) x = maximum(x, Lanes{});
      if (c.raw) store(c.raw + row * c.raw_pitch + at, x);
      for (const SrActivation &a : c.activations)
        if (a.out)
          store(a.out + row * a.pitch + at,
                maximum(x * load(a.scale + at) + load(a.shift + at), Lanes{}));
    }
  }
}

template <int WIDTH>
static void convolve_rows(const SrConvolution &c, int64_t begin, int64_t end, int64_t column) {
  constexpr int ROWS = tile_rows<WIDTH>();
  for (int64_t first = begin; first < end; first += ROWS) {
    const int64_t left = end - first;
    convolve_tile<ROWS, WIDTH>(c, first, int(left < ROWS ? left : ROWS), column);
  }
}

static void convolve(const SrConvolution &c) {
  // Few enough rows that their inputs are still in the second-level cache for the next columns.
  constexpr int64_t CHUNK = 1024;
  const int64_t chunks = (c.count + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(dynamic) num_threads(c.threads) if (chunks > 1)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = chunk * CHUNK;
    const int64_t end = begin + CHUNK < c.count ? begin + CHUNK : c.count;
    int64_t column = 0;
    for (; column + 4 * LANES <= c.outputs; column += 4 * LANES)
      convolve_rows<4>(c, begin, end, column);
    switch ((c.outputs - column) / LANES) {
      case 3: convolve_rows<3>(c, begin, end, column); break;
      case 2: convolve_rows<2>(c, begin, end, column); break;
      case 1: convolve_rows<1>(c, begin, end, column); break;
    }
  }
}

}  // namespace sr
