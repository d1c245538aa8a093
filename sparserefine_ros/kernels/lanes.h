// SPDX-License-Identifier: Apache-2.0
// Sixteen float32 at a time, and the functions of them that the kernels need.
//
// GCC's vector extension lowers to whatever the compiled-for processor has: AVX-512, AVX2, NEON.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace sr {

constexpr int64_t LANES = 16;

typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t IntLanes __attribute__((vector_size(64)));

static inline Lanes load(const float *from) {
  Lanes value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

static inline void store(float *to, Lanes value) { std::memcpy(to, &value, sizeof value); }

static inline Lanes broadcast(float value) { return Lanes{} + value; }

static inline Lanes maximum(Lanes a, Lanes b) { return a > b ? a : b; }

// exp(x) for x <= 0, relative error below 2e-7; 0 from -87.3 on downwards.
static inline Lanes exp_negative(Lanes x) {
  const Lanes lowest = broadcast(-87.3f);
  const IntLanes vanishes = x < lowest;
  x = maximum(x, lowest);
  // Adding 1.5 * 2^23 rounds to an integer, which then sits in the low bits of the sum.
  const Lanes magic = broadcast(12582912.0f);
  const Lanes shifted = x * 1.44269504f + magic;
  const Lanes whole = shifted - magic;
  Lanes r = x - whole * 0.693359375f;
  r = r - whole * -2.12194440e-4f;
  Lanes y = broadcast(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  IntLanes bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  const IntLanes exponent = bits << 23;
  IntLanes result;
  std::memcpy(&result, &y, sizeof result);
  result = vanishes ? IntLanes{} : result + exponent;
  std::memcpy(&y, &result, sizeof y);
  return y;
}

// log(x) for normal x > 0, absolute error below 2e-7 around 1, relative elsewhere.
static inline Lanes log_positive(Lanes x) {
  IntLanes bits;
  std::memcpy(&bits, &x, sizeof bits);
  // Mantissa in [sqrt(1/2), sqrt(2)).
  const IntLanes offset = bits - 0x3f3504f3;
  const IntLanes exponent = offset >> 23;
  const IntLanes mantissa = bits - (exponent << 23);
  Lanes m;
  std::memcpy(&m, &mantissa, sizeof m);
  const Lanes r = m - 1.0f, square = r * r;
  Lanes y = broadcast(7.0376836292e-2f);
  y = y * r - 1.1514610310e-1f;
  y = y * r + 1.1676998740e-1f;
  y = y * r - 1.2420140846e-1f;
  y = y * r + 1.4249322787e-1f;
  y = y * r - 1.6668057665e-1f;
  y = y * r + 2.0000714765e-1f;
  y = y * r - 2.4999993993e-1f;
  y = y * r + 3.3333331174e-1f;
  const Lanes power = __builtin_convertvector(exponent, Lanes);
  return r + (r * square * y - 0.5f * square + power * -2.12194440e-4f) + power * 0.693359375f;
}

}  // namespace sr
