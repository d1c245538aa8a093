// SPDX-License-Identifier: Apache-2.0
// What a convolution is given: its inputs, and what becomes of its sums.
//
// Inputs and weights are words of 32 bits: a float32, or two bfloat16 of neighbouring channels.
// Either way a word of a row meets a word of each output's weights, and the sum is float32.

#pragma once

#include "lanes.h"

extern "C" {

// One input of a convolution: `taps` rows of `features` for each output row.
struct SrSource {
  const float *features;  // words [rows, pitch]
  const float *none;      // words [channels] of zeros, what a missing link points to
  const int32_t *table;   // [count, taps], `rows` for "none"; null for "row m feeds output m"
  const float *weights;   // words [outputs / BLOCK, taps, channels, BLOCK]; the last BLOCK may be
                          // narrower: the outputs that are left
  int64_t rows;
  int64_t pitch;     // words
  int64_t taps;
  int64_t channels;  // words
  int64_t pairs;     // whether a word is two bfloat16
  int64_t winograd;  // whether `weights` are those of `winograd.h`, with 36 taps; `taps` is 9 then
};

// max(0, scale * x + shift), written for whatever reads the result next; `out` null for none.
struct SrActivation {
  void *out;  // [rows, pitch], float32 or bfloat16
  const float *scale;
  const float *shift;
  int64_t pitch;
  int64_t bfloat16;
};

struct SrConvolution {
  const SrSource *sources;
  int64_t source_count;
  const float *bias;      // [outputs]; null for none
  const float *residual;  // [rows, pitch]; null for none
  int64_t residual_pitch;
  void *raw;  // [rows, pitch], float32 or bfloat16; null when only the activations are wanted
  int64_t raw_pitch;
  int64_t raw_bfloat16;
  SrActivation activations[2];
  const int64_t *rows;   // [count] output rows; null for all in order
  const int32_t *tiles;  // [tile_count, 16] of `tiles.h`; null without such a source
  int64_t tile_count;
  int64_t count;
  int64_t outputs;  // a multiple of 16
  int64_t quads;    // whether the weights' last block is of 16 outputs and laid out as in `quads.h`
};

// Convolutions that share the rows of an output among them, in ascending order each, and one of each
// row by itself on what they wrote (null for none).
struct SrStep {
  const SrConvolution *parts;
  int64_t part_count;
  const SrConvolution *then;
};
}

namespace sr {

// Vectors of outputs worked on together, and registers for their sums and weights.
#ifdef __AVX512F__
constexpr int MOST_WIDTH = 4, REGISTERS = 30;
#else
constexpr int MOST_WIDTH = 2, REGISTERS = 15;
#endif

// Outputs whose weights lie side by side: those worked on together. Wider, the weights in use would
// be strewn over the first-level cache and fill a part of its sets only.
constexpr int64_t BLOCK = MOST_WIDTH * LANES;

// Weights that stay in the first-level cache while a chunk of rows passes by, in words.
constexpr int64_t RESIDENT = 8192;

// Rows that share the resident weights, at most; their sums and inputs stay in the second-level
// cache. Steps are of whole tiles, however wide.
constexpr int64_t STEP = 24, CHUNK = 22 * STEP;

// Output rows worked on together: accumulators, a vector of weights each and an input.
template <int WIDTH>
constexpr int tile_rows() {
  constexpr int rows = (REGISTERS - WIDTH) / WIDTH;
  return rows < 1 ? 1 : rows > 8 ? 8 : rows;
}

// Sources of a convolution whose last outputs are in quads, and taps of a source.
constexpr int64_t MOST_SOURCES = 4, MOST_TAPS = 9;

// Some taps and channels of one source.
struct Piece {
  const SrSource *source;
  int64_t first_tap, end_tap;
  int64_t first_channel, end_channel;
};

// One pass over some rows and columns of the output.
struct Pass {
  const Piece *pieces;
  int count;
  bool first, last;
};

// The weights of a tap's channel for WIDTH vectors of outputs; those of the next channel lie behind
// them, for no other outputs share their block.
template <int WIDTH>
static inline const float *weights_of(const SrSource &s, int64_t column, int64_t tap,
                                      int64_t channel) {
  const int64_t block = column / BLOCK * BLOCK;
  return s.weights + block * s.taps * s.channels + (tap * s.channels + channel) * WIDTH * LANES;
}

// Where the rows of a piece lie.
struct Inputs {
  const SrSource &s;
  const float *const features;
  const int64_t pitch, none;  // bytes; `none` is from the features on

  explicit Inputs(const SrSource &source, int64_t channel = 0)
      : s(source),
        features(s.features + channel),
        pitch(s.pitch * int64_t(sizeof(float))),
        none(reinterpret_cast<intptr_t>(s.none) - reinterpret_cast<intptr_t>(s.features)) {}

  const float *at(int64_t offset) const {
    return reinterpret_cast<const float *>(reinterpret_cast<const char *>(features) + offset);
  }
  // Without a branch, for where links are missing cannot be guessed.
  int64_t offset(int64_t row) const {
    int64_t there = row * pitch;
    asm("" : "+r"(there));
    return row < s.rows ? there : none;
  }
};

static inline void write(void *to, bool bfloat16, int64_t at, Lanes value) {
  if (bfloat16)
    store_bfloat16(static_cast<uint16_t *>(to) + at, value);
  else
    store(static_cast<float *>(to) + at, value);
}

// Makes of the sums of a row what is wanted.
template <int WIDTH>
static inline void finish(const SrConvolution &c, const Lanes (&sum)[WIDTH], int64_t row,
                          int64_t column) {
  for (int v = 0; v < WIDTH; ++v) {
    const int64_t at = column + v * LANES;
    Lanes x = sum[v];
    if (c.residual) x += load(c.residual + row * c.residual_pitch + at);
    if (c.raw) write(c.raw, c.raw_bfloat16, row * c.raw_pitch + at, x);
    for (const SrActivation &a : c.activations) {
      if (!a.out) continue;
      const Lanes y = maximum(x * load(a.scale + at) + load(a.shift + at), Lanes{});
      write(a.out, a.bfloat16, row * a.pitch + at, y);
    }
  }
}

static inline Lanes bias(const SrConvolution &c, int64_t at) {
  return c.bias ? load(c.bias + at) : Lanes{};
}

// Some rows of the output: those listed, or a range.
struct Rows {
  const int64_t *list;
  int64_t begin, count;
  int64_t operator[](int64_t i) const { return list ? list[i] : begin + i; }
  Rows part(int64_t first, int64_t size) const {
    return list ? Rows{list + first, 0, size} : Rows{nullptr, begin + first, size};
  }
};

template <typename Value>
static inline void write_rows(void *to, bool bfloat16, int64_t pitch, int64_t column,
                              const int64_t *row, int64_t count, const Value &value) {
  if (bfloat16) {
    uint16_t *const at = static_cast<uint16_t *>(to) + column;
    for (int64_t i = 0; i < count; ++i) store_bfloat16(at + row[i] * pitch, value(i));
  } else {
    float *const at = static_cast<float *>(to) + column;
    for (int64_t i = 0; i < count; ++i) store(at + row[i] * pitch, value(i));
  }
}

// A vector of outputs of at most MOST rows; their `sums` [rows, LANES] may be changed. Here what is to
// be done is decided once for all rows.
template <int64_t MOST>
static inline void finish(const SrConvolution &c, const Rows &rows, int64_t column, float *sums) {
  int64_t row[MOST];
  for (int64_t i = 0; i < rows.count; ++i) row[i] = c.rows ? c.rows[rows[i]] : rows[i];
  const auto sum = [&](int64_t i) { return load(sums + i * LANES); };
  if (c.residual)
    for (int64_t i = 0; i < rows.count; ++i)
      store(sums + i * LANES, sum(i) + load(c.residual + row[i] * c.residual_pitch + column));
  if (c.raw) write_rows(c.raw, c.raw_bfloat16, c.raw_pitch, column, row, rows.count, sum);
  for (const SrActivation &a : c.activations) {
    if (!a.out) continue;
    const Lanes scale = load(a.scale + column), shift = load(a.shift + column);
    const auto active = [&](int64_t i) { return maximum(sum(i) * scale + shift, Lanes{}); };
    write_rows(a.out, a.bfloat16, a.pitch, column, row, rows.count, active);
  }
}

// Asks for the memory that some rows will be finished with. (Inlined, or compilers drop the call of a
// function that seems to do nothing.)
__attribute__((always_inline)) static inline void prefetch(const SrConvolution &c, const Rows &rows,
                                                           int64_t first, int64_t end,
                                                           int64_t column, int64_t columns) {
  const bool run = !c.rows && !rows.list;
  const auto ask = [&](const void *to, int64_t pitch, int64_t size) __attribute__((always_inline)) {
    const char *at = static_cast<const char *>(to) + column * size;
    pitch *= size;
    const int64_t part = columns * size;
    if (run && pitch == part) {  // one after another without a gap, several to a cache line
      at += rows[first] * pitch;
      for (int64_t i = 0; i < (end - first) * pitch; i += 64) __builtin_prefetch(at + i, 1);
      return;
    }
    for (int64_t row = first; row < end; ++row) {
      const char *there = at + (c.rows ? c.rows[rows[row]] : rows[row]) * pitch;
      for (int64_t i = 0; i < part; i += 64) __builtin_prefetch(there + i, 1);
    }
  };
  if (c.residual) ask(c.residual, c.residual_pitch, 4);
  if (c.raw && c.raw != c.residual) ask(c.raw, c.raw_pitch, c.raw_bfloat16 ? 2 : 4);
  for (const SrActivation &a : c.activations)
    if (a.out) ask(a.out, a.pitch, a.bfloat16 ? 2 : 4);
}

}  // namespace sr
