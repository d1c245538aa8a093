// SPDX-License-Identifier: Apache-2.0
// Batch norm over rows with its ReLU, forwards and backwards: two passes over memory each.
//
// Every array is [count, channels] without padding; `channels` is a multiple of 16.

#pragma once

#include <algorithm>

#include "lanes.h"
#include "shares.h"

namespace sr {

constexpr int64_t NORM_CHUNK = 512;

// For each part: sums of (x - pivot) and of its square, float64 [2, channels].
static void norm_moments(const float *x, const float *pivot, int64_t count, int64_t channels,
                         double *sums, int64_t parts) {
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
  for (int64_t part = 0; part < parts; ++part) {
    double *first = sums + part * 2 * channels, *second = first + channels;
    const int64_t behind = share_of(count, part + 1, parts);
    for (int64_t begin = share_of(count, part, parts); begin < behind; begin += NORM_CHUNK) {
      const int64_t end = std::min(begin + NORM_CHUNK, behind);
      for (int64_t c = 0; c < channels; c += LANES) {
        const Lanes middle = load(pivot + c);
        Lanes sum{}, square{};
        for (int64_t row = begin; row < end; ++row) {
          const Lanes d = load(x + row * channels + c) - middle;
          sum += d;
          square += d * d;
        }
        for (int lane = 0; lane < LANES; ++lane) {
          first[c + lane] += double(sum[lane]);
          second[c + lane] += double(square[lane]);
        }
      }
    }
  }
}

// y = max(0, scale * x + shift)
static void norm_apply(const float *x, const float *scale, const float *shift, int64_t count,
                       int64_t channels, float *y, int64_t parts) {
#pragma omp parallel for schedule(static) num_threads(parts) if (parts > 1)
  for (int64_t row = 0; row < count; ++row)
    for (int64_t c = 0; c < channels; c += LANES) {
      const int64_t at = row * channels + c;
      store(y + at, maximum(load(x + at) * load(scale + c) + load(shift + c), Lanes{}));
    }
}

// For each part: sums of g and of g * (x - mean) where y > 0, float64 [2, channels].
static void norm_gradient_moments(const float *x, const float *y, const float *g,
                                  const float *mean, int64_t count, int64_t channels, double *sums,
                                  int64_t parts) {
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
  for (int64_t part = 0; part < parts; ++part) {
    double *first = sums + part * 2 * channels, *second = first + channels;
    const int64_t behind = share_of(count, part + 1, parts);
    for (int64_t begin = share_of(count, part, parts); begin < behind; begin += NORM_CHUNK) {
      const int64_t end = std::min(begin + NORM_CHUNK, behind);
      for (int64_t c = 0; c < channels; c += LANES) {
        const Lanes middle = load(mean + c);
        Lanes sum{}, product{};
        for (int64_t row = begin; row < end; ++row) {
          const int64_t at = row * channels + c;
          const Lanes slope = load(y + at) > Lanes{} ? load(g + at) : Lanes{};
          sum += slope;
          product += slope * (load(x + at) - middle);
        }
        for (int lane = 0; lane < LANES; ++lane) {
          first[c + lane] += double(sum[lane]);
          second[c + lane] += double(product[lane]);
        }
      }
    }
  }
}

// out = a * (g where y > 0) + b * x + c, the coefficients per channel.
static void norm_gradient(const float *x, const float *y, const float *g,
                          const float *coefficients, int64_t count, int64_t channels, float *out,
                          int64_t parts) {
  const float *a = coefficients, *b = a + channels, *offset = b + channels;
#pragma omp parallel for schedule(static) num_threads(parts) if (parts > 1)
  for (int64_t row = 0; row < count; ++row)
    for (int64_t c = 0; c < channels; c += LANES) {
      const int64_t at = row * channels + c;
      const Lanes slope = load(y + at) > Lanes{} ? load(g + at) : Lanes{};
      store(out + at, slope * load(a + c) + load(x + at) * load(b + c) + load(offset + c));
    }
}

}  // namespace sr
