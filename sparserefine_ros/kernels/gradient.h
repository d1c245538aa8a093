// SPDX-License-Identifier: Apache-2.0
// Gradient of a sparse convolution's weights: for each tap, the sum over the output rows of the
// outer product of the row's input and its gradient, held in registers over a chunk of rows. Rows
// without a link through the tap are left out.

#pragma once

#include <algorithm>

#include "lanes.h"
#include "shares.h"

extern "C" {

struct SrWeightGradient {
  const float *features;   // [inputs, pitch]
  const int32_t *table;    // [count, taps], `inputs` for "none"
  const float *gradients;  // [rows, gradient_pitch]
  const int64_t *rows;     // [count] rows of `gradients`; null for all in order
  float *out;              // [threads, taps, channels, outputs], zero at first
  int64_t inputs;
  int64_t pitch;
  int64_t gradient_pitch;
  int64_t count;
  int64_t taps;
  int64_t channels;
  int64_t outputs;  // a multiple of 16
  int64_t threads;  // the caller sums over their results
};
}

namespace sr {

// Sums in registers: channels of the input times vectors of outputs.
#ifdef __AVX512F__
constexpr int SUMS_IN_REGISTERS = 16;
#else
constexpr int SUMS_IN_REGISTERS = 8;
#endif

// Few enough rows that inputs and gradients stay in the second-level cache for every tile.
constexpr int64_t GRADIENT_CHUNK = 512;

// Rows of a chunk that have a link through one tap, and what is there.
struct GradientPairs {
  const float *input[GRADIENT_CHUNK];
  const float *gradient[GRADIENT_CHUNK];
  int64_t count;

  void find(const SrWeightGradient &g, int64_t begin, int64_t end, int64_t tap) {
    count = 0;
    for (int64_t m = begin; m < end; ++m) {  // without a branch, for links cannot be guessed
      const int64_t row = g.table[m * g.taps + tap];
      input[count] = g.features + row * g.pitch;
      gradient[count] = g.gradients + (g.rows ? g.rows[m] : m) * g.gradient_pitch;
      count += row < g.inputs;
    }
  }
};

template <int CHANNELS, int WIDTH>
static void gradient_tile(const GradientPairs &pairs, int64_t channel, int64_t column,
                          int64_t pitch, float *to) {
  Lanes sum[CHANNELS][WIDTH];
  for (int c = 0; c < CHANNELS; ++c)
    for (int v = 0; v < WIDTH; ++v) sum[c][v] = load(to + c * pitch + v * LANES);
  for (int64_t i = 0; i < pairs.count; ++i) {
    const float *const input = pairs.input[i] + channel, *const gradient = pairs.gradient[i] + column;
    Lanes slope[WIDTH];
    for (int v = 0; v < WIDTH; ++v) slope[v] = load(gradient + v * LANES);
    for (int c = 0; c < CHANNELS; ++c)
      for (int v = 0; v < WIDTH; ++v) sum[c][v] += slope[v] * input[c];
  }
  for (int c = 0; c < CHANNELS; ++c)
    for (int v = 0; v < WIDTH; ++v) store(to + c * pitch + v * LANES, sum[c][v]);
}

// WIDTH vectors of outputs from `column` on, of all channels; `out` [channels, outputs].
template <int WIDTH>
static void gradient_columns(const GradientPairs &pairs, int64_t channels, int64_t outputs,
                             int64_t column, float *out) {
  constexpr int CHANNELS = SUMS_IN_REGISTERS / WIDTH;
  int64_t channel = 0;
  for (; channel + CHANNELS <= channels; channel += CHANNELS)
    gradient_tile<CHANNELS, WIDTH>(pairs, channel, column, outputs,
                                   out + channel * outputs + column);
  for (; channel < channels; ++channel)
    gradient_tile<1, WIDTH>(pairs, channel, column, outputs, out + channel * outputs + column);
}

static void weight_gradient(const SrWeightGradient &g) {
  const int64_t size = g.channels * g.outputs;
#pragma omp parallel for schedule(static, 1) num_threads(g.threads) if (g.threads > 1)
  for (int64_t part = 0; part < g.threads; ++part) {
    const int64_t behind = share_of(g.count, part + 1, g.threads);
    for (int64_t begin = share_of(g.count, part, g.threads); begin < behind;
         begin += GRADIENT_CHUNK) {
      const int64_t end = std::min(begin + GRADIENT_CHUNK, behind);
      GradientPairs pairs;
      for (int64_t tap = 0; tap < g.taps; ++tap) {
        float *out = g.out + (part * g.taps + tap) * size;
        pairs.find(g, begin, end, tap);
        int64_t column = 0;
        for (; column + 2 * LANES <= g.outputs; column += 2 * LANES)
          gradient_columns<2>(pairs, g.channels, g.outputs, column, out);
        for (; column < g.outputs; column += LANES)
          gradient_columns<1>(pairs, g.channels, g.outputs, column, out);
      }
    }
  }
}

}  // namespace sr
