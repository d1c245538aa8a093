// SPDX-License-Identifier: Apache-2.0
// Sparse convolution over chunks of rows. Where many links are missing, each tap works on the rows
// only that have one.

#pragma once

#include <algorithm>

#include "convolve.h"
#include "shares.h"

namespace sr {

// The rows of a chunk that have a link, tap by tap.
class Links {
 public:
  // Those in the first table among the sources; false where leaving out the links that are missing
  // would save less than it costs.
  bool find(const SrConvolution &c, int64_t begin, int64_t rows) {
    const SrSource *source = nullptr;
    for (int64_t i = 0; i < c.source_count && !source; ++i)
      if (c.sources[i].table) source = &c.sources[i];
    if (!source || source->taps > MOST_TAPS) return false;
    table_ = source->table, inputs_ = source->rows;
    const int32_t *table = table_ + begin * source->taps;
    const int64_t all = rows * source->taps;
    const int32_t none = int32_t(source->rows);
    int32_t missing = 0;
    for (int64_t i = 0; i < all; ++i) missing += table[i] >= none;
    const int64_t vectors = c.outputs / LANES;
    if (int64_t(missing) * source->channels * vectors <= all * (SUMS * vectors + LIST)) return false;
    std::fill(count_, count_ + MOST_TAPS, 0);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t tap = 0; tap < source->taps; ++tap) {
        list_[tap][count_[tap]] = uint16_t(row);
        count_[tap] += *table++ < none;
      }
    return true;
  }

  bool of(const SrSource &s) const { return s.table == table_ && s.rows == inputs_; }
  int64_t count(int64_t tap) const { return count_[tap]; }
  const uint16_t *list(int64_t tap) const { return list_[tap]; }

 private:
  // What it costs for each link, in products of a word and a vector: to read and write a vector of
  // the sums once more, and to list the row.
  static constexpr int64_t SUMS = 2, LIST = 4;

  const int32_t *table_;
  int64_t inputs_;
  int64_t count_[MOST_TAPS];
  uint16_t list_[MOST_TAPS][CHUNK];
  static_assert(CHUNK <= UINT16_MAX);
};

// A chunk of rows, whose sums are in `sums` and have room for a tile more.
struct DirectChunk {
  const SrConvolution &c;
  const Rows rows;
  const Links *links;  // null to work on all rows
  float *sums;

  template <int WIDTH>
  void run(int64_t column) const {
    if (!links || (WIDTH == 1 && c.quads)) return convolve_columns<WIDTH>(c, rows, column, sums, false);
    for (int64_t i = 0; i < rows.count; ++i)
      for (int v = 0; v < WIDTH; ++v)
        store(sums + (i * WIDTH + v) * LANES, bias(c, column + v * LANES));
    for (int64_t i = 0; i < c.source_count; ++i) {
      const SrSource &s = c.sources[i];
      for (int64_t tap = 0; tap < s.taps; ++tap) {
        if (s.pairs)
          run_tap<true, WIDTH>(s, tap, column);
        else
          run_tap<false, WIDTH>(s, tap, column);
      }
    }
    for (int64_t i = 0; i < rows.count; ++i) {
      Lanes sum[WIDTH];
      for (int v = 0; v < WIDTH; ++v) sum[v] = load(sums + (i * WIDTH + v) * LANES);
      finish<WIDTH>(c, sum, c.rows ? c.rows[rows[i]] : rows[i], column);
    }
  }

  template <bool PAIRS, int WIDTH>
  void run_tap(const SrSource &s, int64_t tap, int64_t column) const {
    constexpr int ROWS = tile_rows<WIDTH>();
    constexpr int64_t MOST = RESIDENT / (WIDTH * LANES);
    const bool linked = links->of(s);
    const int64_t count = linked ? links->count(tap) : rows.count;
    for (int64_t channel = 0; channel < s.channels; channel += MOST) {
      const int64_t channels = std::min(s.channels - channel, MOST);
      for (int64_t first = 0; first < count; first += ROWS) {
        const float *input[ROWS];
        float *at[ROWS];
        for (int r = 0; r < ROWS; ++r) {
          const int64_t place = std::min(first + r, count - 1);
          const int64_t i = linked ? links->list(tap)[place] : place;
          const int64_t row = s.table ? s.table[rows[i] * s.taps + tap] : rows[i];
          input[r] = (row < s.rows ? s.features + row * s.pitch : s.none) + channel;
          at[r] = sums + i * WIDTH * LANES;
        }
        Lanes sum[ROWS][WIDTH];
        for (int r = 0; r < ROWS; ++r)
          for (int v = 0; v < WIDTH; ++v) sum[r][v] = load(at[r] + v * LANES);
        multiply_rows<PAIRS, ROWS, WIDTH>(sum, input, channels,
                                          weights_of<WIDTH>(s, column, tap, channel));
        // The last row of a tile that is not full stands there several times, with the same sum.
        for (int r = 0; r < ROWS; ++r)
          for (int v = 0; v < WIDTH; ++v) store(at[r] + v * LANES, sum[r][v]);
      }
    }
  }
};

// `sums` have room for a chunk.
static void convolve_chunk(const SrConvolution &c, const Rows &rows, float *sums) {
  Links links;
  const bool narrow = c.quads && c.outputs == LANES;
  const bool linked = !narrow && links.find(c, rows.begin, rows.count);
  by_columns(0, c.outputs, DirectChunk{c, rows, linked ? &links : nullptr, sums});
}

// Which of the rows listed by a convolution are some rows of the output. (Where it lists none, there
// is no list either.)
static Rows rows_within(const SrConvolution &c, int64_t begin, int64_t end) {
  if (c.count == 0) return {nullptr, 0, 0};
  const int64_t *const first = std::lower_bound(c.rows, c.rows + c.count, begin);
  return {nullptr, first - c.rows, std::lower_bound(first, c.rows + c.count, end) - first};
}

// How the rows of an output are divided.
struct Chunks {
  int64_t rows, size, count;

  Chunks(const SrStep &step, int64_t threads) : rows(0) {
    for (int64_t i = 0; i < step.part_count; ++i) rows += step.parts[i].count;
    // A few chunks are made of one size, as many for each thread.
    constexpr int64_t FEW = 8;
    const int64_t turns = (rows + CHUNK * threads - 1) / (CHUNK * threads);
    const int64_t even = turns ? (rows + turns * threads - 1) / (turns * threads) : 0;
    size = turns > FEW ? CHUNK : std::max((even + STEP - 1) / STEP * STEP, STEP);
    count = (rows + size - 1) / size;
  }
};

// All convolutions of a step work on a chunk of rows while it is in the cache. Called by all threads.
static void convolve_directly(const SrStep &step, int64_t threads, Shares &shares) {
  const Chunks chunks(step, threads);
  for (int64_t chunk; shares.take(chunk);) {
    const int64_t begin = chunk * chunks.size, end = std::min(begin + chunks.size, chunks.rows);
    const Rows all{nullptr, begin, end - begin};
    alignas(64) float sums[sums_size(CHUNK)];
    for (int64_t i = 0; i < step.part_count; ++i) {
      const SrConvolution &c = step.parts[i];
      const Rows rows = step.part_count == 1 ? all : rows_within(c, begin, end);
      if (rows.count) convolve_chunk(c, rows, sums);
    }
    if (step.then) convolve_chunk(*step.then, all, sums);
  }
}

}  // namespace sr
