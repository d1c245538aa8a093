// SPDX-License-Identifier: Apache-2.0
// As many float32 at a time as a register holds, and the functions of them that the kernels need.
//
// GCC's vector extension lowers to whatever the compiled-for processor has: AVX-512, AVX2, SSE2,
// NEON. Vectors wider than a register would be lowered to single numbers, a hundred times slower.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace sr {

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
#elif defined(__AVX__)
constexpr int64_t LANES = 8;
#else
constexpr int64_t LANES = 4;
#endif

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t IntLanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t UnsignedLanes __attribute__((vector_size(4 * LANES)));
typedef int16_t HalfLanes __attribute__((vector_size(2 * LANES)));
typedef uint8_t ByteLanes __attribute__((vector_size(LANES)));

static inline Lanes load(const float *from) {
  Lanes value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

static inline void store(float *to, Lanes value) { std::memcpy(to, &value, sizeof value); }

static inline Lanes broadcast(float value) { return Lanes{} + value; }

// NaN where `a` is NaN; NaN in `b` is passed over.
static inline Lanes maximum(Lanes a, Lanes b) {
#ifdef __AVX512F__
  return (Lanes)_mm512_max_ps((__m512)b, (__m512)a);
#else
  return b > a ? b : a;
#endif
}

// sum + weight * input, lane by lane. PAIRS: all words are two bfloat16, the lower channel in the
// lower half, and both products are added.
template <bool PAIRS>
static inline Lanes multiply_add(Lanes sum, Lanes weight, Lanes input) {
  if constexpr (!PAIRS) return sum + weight * input;
#ifdef __AVX512BF16__
  return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weight, (__m512bh)input);
#else
  const IntLanes w = (IntLanes)weight, x = (IntLanes)input, upper = IntLanes{} + int32_t(0xffff0000);
  return sum + (Lanes)(w << 16) * (Lanes)(x << 16) + (Lanes)(w & upper) * (Lanes)(x & upper);
#endif
}

// The same with one word for all lanes.
template <bool PAIRS>
static inline Lanes multiply_add(Lanes sum, Lanes weight, const float *input) {
  if constexpr (!PAIRS) return sum + weight * *input;
#ifdef __AVX512BF16__
  int32_t word;
  std::memcpy(&word, input, sizeof word);
  return multiply_add<PAIRS>(sum, weight, (Lanes)_mm512_set1_epi32(word));
#else
  IntLanes words;
  uint32_t word;
  std::memcpy(&words, &weight, sizeof words);
  std::memcpy(&word, input, sizeof word);
  const uint32_t low = word << 16, high = word & 0xffff0000u;
  float lower, upper;
  std::memcpy(&lower, &low, sizeof lower);
  std::memcpy(&upper, &high, sizeof upper);
  return sum + Lanes(words << 16) * lower + Lanes(words & int32_t(0xffff0000)) * upper;
#endif
}

// Rounds to nearest, ties to even.
static inline void store_bfloat16(uint16_t *to, Lanes value) {
#ifdef __AVX512BF16__
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)value);
  std::memcpy(to, &rounded, sizeof rounded);
#else
  UnsignedLanes bits;
  std::memcpy(&bits, &value, sizeof bits);
  const UnsignedLanes rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const auto halves = __builtin_convertvector(rounded, HalfLanes);
  std::memcpy(to, &halves, sizeof halves);
#endif
}

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
