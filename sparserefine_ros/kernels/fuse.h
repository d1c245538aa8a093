// SPDX-License-Identifier: Apache-2.0
// Softmax, entropy and class of each pixel, and the gated fusion; sixteen pixels side by side.

#pragma once

#include <algorithm>
#include <vector>

#include "lanes.h"
#include "shares.h"

extern "C" {

struct SrSummary {
  float *entropy;
  uint8_t *labels;
  float *top;  // probability of the label
};

// Two perceptrons of one hidden layer; weights are [outputs, inputs] as torch stores them.
struct SrGate {
  const float *gate_in, *gate_in_bias;    // [hidden, 2 * (classes + 1)], [hidden]
  const float *gate_out, *gate_out_bias;  // difference of the two outputs: [hidden], [1]
  const float *mix_in, *mix_in_bias;      // [hidden, classes], [hidden]
  const float *mix_out, *mix_out_bias;    // [classes, hidden], [classes]
  int64_t hidden;
};
}

namespace sr {

constexpr float LOG_PROBABILITY_FLOOR = -11.512925465f;  // log(1e-5)

// Probabilities and entropy of logits x[classes]; returns the top probability.
static inline Lanes softmax(const Lanes *x, int64_t classes, Lanes *probabilities, Lanes *entropy) {
  Lanes best = x[0];
  for (int64_t k = 1; k < classes; ++k) best = maximum(best, x[k]);
  // Compensated: many unlikely classes next to 1.0 would be rounded away one by one.
  Lanes total{}, lost{};
  for (int64_t k = 0; k < classes; ++k) {
    probabilities[k] = exp_negative(x[k] - best);
    const Lanes term = probabilities[k] - lost, sum = total + term;
    lost = (sum - total) - term;
    total = sum;
  }
  const Lanes shift = log_positive(total), top = 1.0f / total;
  const Lanes floor = broadcast(LOG_PROBABILITY_FLOOR);
  Lanes negative{};
  for (int64_t k = 0; k < classes; ++k) {
    probabilities[k] *= top;
    negative += probabilities[k] * maximum(x[k] - best - shift, floor);
  }
  // A difference, for the negative of 0 would be -0.
  *entropy = maximum(Lanes{} - negative, Lanes{});
  return top;
}

// The first lanes of a vector, to or from memory; nearly always all of them, which is a single move.
template <typename Value, typename Vector>
static inline void copy_lanes(Value *to, const Vector *from, int64_t valid) {
  constexpr size_t SIZE = std::min(sizeof(Value), sizeof(Vector));  // of a lane
  if (valid == LANES)
    std::memcpy(to, from, LANES * SIZE);
  else
    std::memcpy(to, from, size_t(valid) * SIZE);
}

// `scratch` holds `classes` vectors. Ties go to the lower class id.
static inline void summarise_lanes(const Lanes *x, int64_t classes, Lanes *scratch,
                                   const SrSummary &out, int64_t at, int64_t valid) {
  Lanes best = x[0];
  IntLanes label{};
  for (int64_t k = 1; k < classes; ++k) {
    const IntLanes better = x[k] > best;
    label = better ? IntLanes{} + int32_t(k) : label;
    best = better ? x[k] : best;
  }
  Lanes entropy;
  const Lanes top = softmax(x, classes, scratch, &entropy);
  const ByteLanes bytes = __builtin_convertvector(label, ByteLanes);
  copy_lanes(out.labels + at, &bytes, valid);
  copy_lanes(out.entropy + at, &entropy, valid);
  copy_lanes(out.top + at, &top, valid);
}

static void summarise(const float *logits, int64_t classes, int64_t count, int64_t pitch,
                      const SrSummary &out, int64_t threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<Lanes> x(static_cast<size_t>(classes)), scratch(x.size());
#pragma omp for schedule(static)
    for (int64_t at = 0; at < count; at += LANES) {
      const int64_t valid = count - at < LANES ? count - at : LANES;
      for (int64_t k = 0; k < classes; ++k) {
        x[k] = Lanes{};
        copy_lanes(&x[k], logits + k * pitch + at, valid);
      }
      summarise_lanes(x.data(), classes, scratch.data(), out, at, valid);
    }
  }
}

// Vectors of pixels that share each weight, and units that share each input.
#ifdef __AVX512F__
constexpr int64_t SHARED = 4, UNITS = 6;
#else
constexpr int64_t SHARED = 2, UNITS = 4;
#endif

// SHARED vectors for each of `outputs` units: bias + weights x, without activation.
template <typename Use>
static inline void dense_layer(const float *weights, const float *bias, int64_t inputs,
                               int64_t outputs, const Lanes *x, Use use) {
  for (int64_t first = 0; first < outputs; first += UNITS) {
    const int64_t units = outputs - first < UNITS ? outputs - first : UNITS;
    const float *row[UNITS];
    Lanes sum[UNITS][SHARED];
    for (int64_t u = 0; u < UNITS; ++u) {
      const int64_t unit = first + (u < units ? u : 0);
      row[u] = weights + unit * inputs;
      for (int64_t p = 0; p < SHARED; ++p) sum[u][p] = broadcast(bias[unit]);
    }
    for (int64_t i = 0; i < inputs; ++i)
      for (int64_t u = 0; u < UNITS; ++u)
        for (int64_t p = 0; p < SHARED; ++p) sum[u][p] += x[i * SHARED + p] * row[u][i];
    for (int64_t u = 0; u < units; ++u) use(first + u, sum[u]);
  }
}

// Logits of some pixels from rows [count, pitch] into x[classes][SHARED].
static inline void load_columns(const float *rows, int64_t pitch, int64_t classes, int64_t first,
                                int64_t count, Lanes *x) {
  float *flat = reinterpret_cast<float *>(x);
  for (int64_t lane = 0; lane < SHARED * LANES; ++lane) {
    const int64_t row = first + lane < count ? first + lane : count - 1;
    for (int64_t k = 0; k < classes; ++k)
      flat[k * SHARED * LANES + lane] = rows[row * pitch + k];
  }
}

struct Scratch {
  std::vector<Lanes> dense, refined, evidence, hidden, fused, one, other;
  Scratch(int64_t classes, int64_t hidden_units)
      : dense(size_t(SHARED * classes)),
        refined(size_t(SHARED * classes)),
        evidence(size_t(SHARED * 2 * (classes + 1))),
        hidden(size_t(SHARED * hidden_units)),
        fused(size_t(SHARED * classes)),
        one(size_t(classes)),
        other(size_t(classes) + 1) {}
};

static inline void add_evidence(const std::vector<Lanes> &logits, int64_t classes, int64_t start,
                                Scratch &s) {
  for (int64_t p = 0; p < SHARED; ++p) {
    for (int64_t k = 0; k < classes; ++k) s.one[k] = logits[k * SHARED + p];
    softmax(s.one.data(), classes, s.other.data(), &s.other[classes]);
    for (int64_t k = 0; k <= classes; ++k) s.evidence[(start + k) * SHARED + p] = s.other[k];
  }
}

static inline void fuse_pixels(const SrGate &g, int64_t classes, Scratch &s) {
  add_evidence(s.dense, classes, 0, s);
  add_evidence(s.refined, classes, classes + 1, s);
  Lanes preference[SHARED];
  for (Lanes &value : preference) value = broadcast(g.gate_out_bias[0]);
  dense_layer(g.gate_in, g.gate_in_bias, 2 * (classes + 1), g.hidden, s.evidence.data(),
              [&](int64_t unit, const Lanes *sum) {
                for (int64_t p = 0; p < SHARED; ++p)
                  preference[p] += maximum(sum[p], Lanes{}) * g.gate_out[unit];
              });
  for (int64_t p = 0; p < SHARED; ++p) {
    // Sigmoid from exp of a negative number, on either side.
    const Lanes d = preference[p], e = exp_negative(d > 0.0f ? -d : d), share = 1.0f / (1.0f + e);
    const Lanes of_dense = d > 0.0f ? share : 1.0f - share;
    for (int64_t k = 0; k < classes; ++k) {
      const Lanes refined = s.refined[k * SHARED + p];
      s.refined[k * SHARED + p] = refined + of_dense * (s.dense[k * SHARED + p] - refined);
    }
  }
  dense_layer(g.mix_in, g.mix_in_bias, classes, g.hidden, s.refined.data(),
              [&](int64_t unit, const Lanes *sum) {
                for (int64_t p = 0; p < SHARED; ++p)
                  s.hidden[unit * SHARED + p] = maximum(sum[p], Lanes{});
              });
  dense_layer(g.mix_out, g.mix_out_bias, g.hidden, classes, s.hidden.data(),
              [&](int64_t unit, const Lanes *sum) {
                for (int64_t p = 0; p < SHARED; ++p) s.fused[unit * SHARED + p] = sum[p];
              });
}

static void fuse(const SrGate &g, const float *dense, int64_t dense_pitch, const float *refined,
                 int64_t refined_pitch, int64_t classes, int64_t count, const SrSummary &out,
                 int64_t threads) {
  constexpr int64_t TOGETHER = SHARED * LANES, CHUNK = 32 * TOGETHER;
  Shares shares((count + CHUNK - 1) / CHUNK, threads);
#pragma omp parallel num_threads(threads)
  {
    Scratch s(classes, g.hidden);
    const auto fuse_together = [&](int64_t first) {
      load_columns(dense, dense_pitch, classes, first, count, s.dense.data());
      load_columns(refined, refined_pitch, classes, first, count, s.refined.data());
      fuse_pixels(g, classes, s);
      for (int64_t p = 0; p < SHARED; ++p) {
        const int64_t at = first + p * LANES, left = count - at;
        for (int64_t k = 0; k < classes; ++k) s.one[k] = s.fused[k * SHARED + p];
        if (left > 0)
          summarise_lanes(s.one.data(), classes, s.other.data(), out, at,
                          left < LANES ? left : LANES);
      }
    };
    for (int64_t chunk; shares.take(chunk);) {
      const int64_t end = std::min((chunk + 1) * CHUNK, count);
      for (int64_t first = chunk * CHUNK; first < end; first += TOGETHER) fuse_together(first);
    }
  }
}

}  // namespace sr
