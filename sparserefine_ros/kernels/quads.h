// SPDX-License-Identifier: Apache-2.0
// Products for 16 outputs, which are one vector: to be spread over all lanes, a word of a row would
// be read for a single product. In quads a register holds eight words of two rows; each is spread
// over four lanes, in place, and meets four vectors of weights of four outputs each.

#pragma once

#include <algorithm>

#include "source.h"

namespace sr {

#ifdef __AVX512F__

// Words of a row that a register takes, in two halves; channels come in multiples of it. The weights
// of a tap, by words [channels / QUAD_WORDS, halves 2, words 4, quads 4, outputs 4], are laid out
// [channels / QUAD_WORDS, words 4, vectors 4, halves 2, outputs 4]: vectors 0 and 1 meet the first
// half with quads 0 and 1, the second with 1 and 0, and 2 and 3 alike, which saves work at the end.
constexpr int64_t QUAD_WORDS = 8;

// Sums of two rows: four vectors, as the weights have them. Their lanes are [rows 2, halves of the
// words 2, outputs 4].
struct Quads {
  Lanes sum[4] = {};

  // Of the rows, all 16 outputs.
  void unfold(Lanes &first, Lanes &second) const {
    const __m512 a = halves_added(sum[0], sum[1]), b = halves_added(sum[2], sum[3]);
    first = (Lanes)_mm512_insertf32x8(a, _mm512_castps512_ps256(b), 1);
    second = (Lanes)_mm512_shuffle_f32x4(a, b, 0xee);
  }

 private:
  // Lanes [rows 2, quads 2, outputs 4]: `b` has the other half of each quad in the other place.
  static __m512 halves_added(Lanes a, Lanes b) {
    return (__m512)a + (__m512)_mm512_permutex_pd((__m512d)b, 0x4e);
  }
};

// QUAD_WORDS of two rows.
static inline __m512 load_two(const float *first, const float *second) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(first)), _mm256_loadu_ps(second),
                            1);
}

// Adds the products of the WORD'th word of each half with its weights
// [vectors 4, halves 2, outputs 4].
template <bool PAIRS, int WORD, int COUNT>
static inline void multiply_word(Quads (&quads)[COUNT], const __m512 (&rows)[COUNT],
                                 const float *weights) {
  Lanes w[4];
  for (int v = 0; v < 4; ++v)
    w[v] = (Lanes)_mm512_broadcast_f32x8(_mm256_loadu_ps(weights + v * QUAD_WORDS));
  for (int i = 0; i < COUNT; ++i) {
    const Lanes spread = (Lanes)_mm512_permute_ps(rows[i], WORD * 0x55);
    for (int v = 0; v < 4; ++v)
      quads[i].sum[v] = multiply_add<PAIRS>(quads[i].sum[v], w[v], spread);
  }
}

// Adds the products of two rows each with the weights of a tap, of so many channels.
template <bool PAIRS, int ROWS>
static inline void multiply_quads(Quads (&quads)[ROWS / 2], const float *const (&input)[ROWS],
                                  int64_t channels, const float *weights) {
  for (int64_t i = 0; i < channels; i += QUAD_WORDS, weights += QUAD_WORDS * LANES) {
    __m512 rows[ROWS / 2];
    for (int p = 0; p < ROWS / 2; ++p) rows[p] = load_two(input[2 * p] + i, input[2 * p + 1] + i);
    multiply_word<PAIRS, 0>(quads, rows, weights);
    multiply_word<PAIRS, 1>(quads, rows, weights + 2 * LANES);
    multiply_word<PAIRS, 2>(quads, rows, weights + 4 * LANES);
    multiply_word<PAIRS, 3>(quads, rows, weights + 6 * LANES);
  }
}

// The same with all taps of a source; `links` [ROWS, taps] are rows of its features.
template <bool PAIRS, int ROWS>
static inline void accumulate(Quads (&quads)[ROWS / 2], const SrSource &s, int64_t column,
                              const int32_t *links, int64_t taps) {
  const Inputs inputs(s);
  const float *weights = weights_of<1>(s, column, 0, 0);
  for (int64_t tap = 0; tap < taps; ++tap, weights += s.channels * LANES) {
    const float *input[ROWS];
    for (int r = 0; r < ROWS; ++r) input[r] = inputs.at(inputs.offset(links[r * taps + tap]));
    multiply_quads<PAIRS, ROWS>(quads, input, s.channels, weights);
  }
}

// The same with rows of a source that lie one after another.
template <bool PAIRS, int ROWS>
static inline void accumulate(Quads (&quads)[ROWS / 2], const SrSource &s, int64_t column,
                              int64_t first) {
  const float *input[ROWS];
  for (int r = 0; r < ROWS; ++r) input[r] = s.features + (first + r) * s.pitch;
  multiply_quads<PAIRS, ROWS>(quads, input, s.channels, weights_of<1>(s, column, 0, 0));
}

// The links of a tile of rows, source by source; null where they are the rows themselves, in order.
template <int ROWS>
class TileLinks {
 public:
  void find(const SrConvolution &c, const Rows &rows, int64_t first, int64_t valid) {
    const bool run = !rows.list && valid >= ROWS;
    for (int64_t i = 0; i < c.source_count; ++i) {
      const SrSource &s = c.sources[i];
      if (run) {
        links_[i] = s.table ? s.table + rows[first] * s.taps : nullptr;
        continue;
      }
      int32_t *to = copies_[i];
      links_[i] = to;
      for (int64_t r = 0; r < ROWS; ++r) {
        // The last row stands there for those that are missing.
        const int64_t site = rows[first + (r < valid ? r : valid - 1)];
        if (!s.table)
          *to++ = int32_t(site);
        else
          to = std::copy_n(s.table + site * s.taps, s.taps, to);
      }
    }
  }
  const int32_t *of(int64_t source) const { return links_[source]; }

 private:
  const int32_t *links_[MOST_SOURCES];
  int32_t copies_[MOST_SOURCES][ROWS * MOST_TAPS];
};

// Sums for 16 outputs of some rows, with room for a tile more. (A function that does nothing else,
// for compilers to keep the sums in registers.)
template <bool PAIRS>
static void multiply_in_quads(const SrConvolution &c, const Rows &rows, int64_t column,
                              float *sums) {
  constexpr int ROWS = 8;
  TileLinks<ROWS> links;
  for (int64_t first = 0; first < rows.count; first += ROWS, sums += ROWS * LANES) {
    links.find(c, rows, first, rows.count - first);
    prefetch(c, rows, first, std::min(first + ROWS, rows.count), column, LANES);
    Quads quads[ROWS / 2];
    for (int64_t i = 0; i < c.source_count; ++i) {
      const SrSource &s = c.sources[i];
      if (s.winograd) continue;
      if (!links.of(i))
        accumulate<PAIRS, ROWS>(quads, s, column, rows[first]);
      else if (s.taps == MOST_TAPS)
        accumulate<PAIRS, ROWS>(quads, s, column, links.of(i), MOST_TAPS);
      else
        accumulate<PAIRS, ROWS>(quads, s, column, links.of(i), s.taps);
    }
#pragma GCC unroll 4
    for (int i = 0; i < ROWS / 2; ++i) {
      Lanes upper, lower;
      quads[i].unfold(upper, lower);
      store(sums + 2 * i * LANES, upper), store(sums + (2 * i + 1) * LANES, lower);
    }
  }
}

// 16 outputs of some rows, from `column` on; `started` [rows, 16] is added, null for the bias.
static void convolve_in_quads(const SrConvolution &c, const Rows &rows, int64_t column,
                              const float *started) {
  constexpr int64_t MOST = 64;
  alignas(64) float sums[(MOST + 8) * LANES];
  bool pairs = false;
  for (int64_t i = 0; i < c.source_count; ++i)
    pairs |= !c.sources[i].winograd && c.sources[i].pairs;
  for (int64_t first = 0; first < rows.count; first += MOST) {
    const Rows some = rows.part(first, std::min(MOST, rows.count - first));
    if (pairs)
      multiply_in_quads<true>(c, some, column, sums);
    else
      multiply_in_quads<false>(c, some, column, sums);
    if (started || c.bias)
      for (int64_t i = 0; i < some.count; ++i) {
        float *const sum = sums + i * LANES;
        store(sum, load(sum) + (started ? load(started + (first + i) * LANES) : bias(c, column)));
      }
    finish<MOST>(c, some, column, sums);
  }
}

#else

static void convolve_in_quads(const SrConvolution &, const Rows &, int64_t, const float *) {}

#endif

}  // namespace sr
