// SPDX-License-Identifier: Apache-2.0
// Gradient of a sparse convolution's weights: for each tap, the sum over the output rows of the
// outer product of the row's input and its gradient, held in registers over a chunk of rows.

#pragma once

#include <algorithm>

#include "lanes.h"
#include "shares.h"

extern "C" {

struct SrWeightGradient {
  const float *features;   // [inputs, pitch]
  const float *none;       // [channels] zeros, what a missing link points to
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

#ifdef __AVX512F__
constexpr int GRADIENT_CHANNELS = 8, GRADIENT_WIDTH = 2;
#else
constexpr int GRADIENT_CHANNELS = 4, GRADIENT_WIDTH = 2;  // half as many registers
#endif

template <int CHANNELS, int WIDTH>
static void gradient_tile(const SrWeightGradient &g, int64_t begin, int64_t end, int64_t tap,
                          int64_t channel, int64_t column, float *out) {
  Lanes sum[CHANNELS][WIDTH];
  float *to = out + (tap * g.channels + channel) * g.outputs + column;
  for (int c = 0; c < CHANNELS; ++c)
    for (int v = 0; v < WIDTH; ++v) sum[c][v] = load(to + c * g.outputs + v * LANES);
  for (int64_t m = begin; m < end; ++m) {
    const int64_t row = g.table[m * g.taps + tap];
    const float *input = (row < g.inputs ? g.features + row * g.pitch : g.none) + channel;
    const float *gradient = g.gradients + (g.rows ? g.rows[m] : m) * g.gradient_pitch + column;
    Lanes slope[WIDTH];
    for (int v = 0; v < WIDTH; ++v) slope[v] = load(gradient + v * LANES);
    for (int c = 0; c < CHANNELS; ++c)
      for (int v = 0; v < WIDTH; ++v) sum[c][v] += slope[v] * input[c];
  }
  for (int c = 0; c < CHANNELS; ++c)
    for (int v = 0; v < WIDTH; ++v) store(to + c * g.outputs + v * LANES, sum[c][v]);
}

template <int WIDTH>
static void gradient_columns(const SrWeightGradient &g, int64_t begin, int64_t end, int64_t tap,
                             int64_t column, float *out) {
  int64_t channel = 0;
  for (; channel + GRADIENT_CHANNELS <= g.channels; channel += GRADIENT_CHANNELS)
    gradient_tile<GRADIENT_CHANNELS, WIDTH>(g, begin, end, tap, channel, column, out);
  for (; channel < g.channels; ++channel)
    gradient_tile<1, WIDTH>(g, begin, end, tap, channel, column, out);
}

static void weight_gradient(const SrWeightGradient &g) {
  // Few enough rows that inputs and gradients stay in the second-level cache for every tile.
  constexpr int64_t CHUNK = 512;
  const int64_t size = g.taps * g.channels * g.outputs;
#pragma omp parallel for schedule(static, 1) num_threads(g.threads) if (g.threads > 1)
  for (int64_t part = 0; part < g.threads; ++part) {
    const int64_t behind = share_of(g.count, part + 1, g.threads);
    for (int64_t begin = share_of(g.count, part, g.threads); begin < behind; begin += CHUNK) {
      const int64_t end = std::min(begin + CHUNK, behind);
      for (int64_t tap = 0; tap < g.taps; ++tap) {
        int64_t column = 0;
        for (; column + GRADIENT_WIDTH * LANES <= g.outputs; column += GRADIENT_WIDTH * LANES)
          gradient_columns<GRADIENT_WIDTH>(g, begin, end, tap, column, g.out + part * size);
        for (; column < g.outputs; column += LANES)
          gradient_columns<1>(g, begin, end, tap, column, g.out + part * size);
      }
    }
  }
}

}  // namespace sr
