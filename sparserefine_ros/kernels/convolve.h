// SPDX-License-Identifier: Apache-2.0
// Sparse convolution as one implicit matrix product: rows are read where they lie, nothing is
// gathered into memory first, and what follows a convolution is applied to the sums at once.
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
  int64_t threads;
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

// Some taps and channels of one source.
struct Piece {
  const SrSource *source;
  int64_t first_tap, end_tap;
  int64_t first_channel, end_channel;
};

// Cuts the sources of a convolution into pieces, and pieces into passes over the rows. Sources of
// Winograd's are left out.
class Passes {
 public:
  Passes(const SrConvolution &c, int64_t columns) : c_(c), words_(RESIDENT / columns) { skip(); }

  // The pieces of the next pass, at most MOST of them; false after the last.
  static constexpr int MOST = 4;
  bool next(Piece (&pieces)[MOST], int &count) {
    int64_t room = words_;
    for (count = 0; count < MOST && source_ < c_.source_count && room > 0;) {
      const SrSource &s = c_.sources[source_];
      Piece &piece = pieces[count];
      piece = {&s, tap_, tap_ + 1, channel_, s.channels};
      if (channel_ == 0 && s.channels <= room) {
        const int64_t taps = room / s.channels, left = s.taps - tap_;
        piece.end_tap = tap_ + (taps < left ? taps : left);
      } else if (s.channels - channel_ > room) {
        if (count && room < words_ / 2) break;
        piece.end_channel = channel_ + room;
      }
      room -= (piece.end_tap - tap_) * (piece.end_channel - channel_);
      channel_ = piece.end_channel == s.channels ? 0 : piece.end_channel;
      if (channel_ == 0) tap_ = piece.end_tap;
      if (tap_ == s.taps) ++source_, tap_ = 0, skip();
      ++count;
    }
    return count > 0;
  }

  bool done() const { return source_ == c_.source_count; }

 private:
  void skip() {
    while (source_ < c_.source_count && c_.sources[source_].winograd) ++source_;
  }

  const SrConvolution &c_;
  const int64_t words_;
  int64_t source_ = 0, tap_ = 0, channel_ = 0;
};

// The weights of a tap's channel for WIDTH vectors of outputs; those of the next channel lie behind
// them, for no other outputs share their block.
template <int WIDTH>
static inline const float *weights_of(const SrSource &s, int64_t column, int64_t tap,
                                      int64_t channel) {
  const int64_t block = column / BLOCK * BLOCK;
  return s.weights + block * s.taps * s.channels + (tap * s.channels + channel) * WIDTH * LANES;
}

// Adds the products of ROWS inputs, each of so many channels, with their weights.
template <bool PAIRS, int ROWS, int WIDTH>
static inline void multiply_rows(Lanes (&sum)[ROWS][WIDTH], const float *const (&input)[ROWS],
                                 int64_t channels, const float *weights) {
#pragma GCC unroll 2
  for (int64_t i = 0; i < channels; ++i) {
    Lanes w[WIDTH];
    for (int v = 0; v < WIDTH; ++v) w[v] = load(weights + (i * WIDTH + v) * LANES);
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < WIDTH; ++v)
        sum[r][v] = multiply_add<PAIRS>(sum[r][v], w[v], input[r] + i);
  }
}

template <bool PAIRS, int ROWS, int WIDTH>
static inline void accumulate(Lanes (&sum)[ROWS][WIDTH], const Piece &piece, int64_t column,
                              const int64_t (&site)[ROWS]) {
  const SrSource s = *piece.source;
  const float *const features = s.features + piece.first_channel;
  // From the features on, so that no branch is needed where a link is missing.
  const int64_t none = reinterpret_cast<intptr_t>(s.none) - reinterpret_cast<intptr_t>(s.features);
  const int64_t pitch = s.pitch * int64_t(sizeof(float));
  for (int64_t tap = piece.first_tap; tap < piece.end_tap; ++tap) {
    const float *input[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      const int64_t row = s.table ? int64_t(s.table[site[r] * s.taps + tap]) : site[r];
      const int64_t offset = row < s.rows ? row * pitch : none;
      input[r] = reinterpret_cast<const float *>(reinterpret_cast<const char *>(features) + offset);
    }
    multiply_rows<PAIRS, ROWS, WIDTH>(sum, input, piece.end_channel - piece.first_channel,
                                      weights_of<WIDTH>(s, column, tap, piece.first_channel));
  }
}

static inline void write(void *to, bool bfloat16, int64_t at, Lanes value) {
  if (bfloat16)
    store_bfloat16(static_cast<uint16_t *>(to) + at, value);
  else
    store(static_cast<float *>(to) + at, value);
}

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
};

// One pass over some rows and columns of the output.
struct Pass {
  const Piece *pieces;
  int count;
  bool first, last;
};

// ROWS of the rows from `first` on, as far as they exist; `sums` [ROWS, WIDTH * LANES] are theirs,
// from the pass before and for the pass behind.
template <int ROWS, int WIDTH>
static void convolve_tile(const SrConvolution &c, const Pass &pass, const Rows &rows, int64_t first,
                          int64_t column, float *sums) {
  const int64_t left = rows.count - first;
  const int valid = int(left < ROWS ? left : ROWS);
  int64_t site[ROWS];
  for (int r = 0; r < ROWS; ++r) site[r] = rows[first + (r < valid ? r : valid - 1)];
  Lanes sum[ROWS][WIDTH];
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < WIDTH; ++v)
      sum[r][v] = pass.first ? bias(c, column + v * LANES) : load(sums + (r * WIDTH + v) * LANES);
  for (int p = 0; p < pass.count; ++p) {
    if (pass.pieces[p].source->pairs)
      accumulate<true, ROWS, WIDTH>(sum, pass.pieces[p], column, site);
    else
      accumulate<false, ROWS, WIDTH>(sum, pass.pieces[p], column, site);
  }
  if (pass.last) {
    for (int r = 0; r < valid; ++r)
      finish<WIDTH>(c, sum[r], c.rows ? c.rows[site[r]] : site[r], column);
  } else {
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < WIDTH; ++v) store(sums + (r * WIDTH + v) * LANES, sum[r][v]);
  }
}

// Sums [rows, WIDTH * LANES], with room for another tile of rows; `started` when they hold a part.
template <int WIDTH>
static void convolve_columns(const SrConvolution &c, const Rows &rows, int64_t column, float *sums,
                             bool started) {
  constexpr int ROWS = tile_rows<WIDTH>();
  Piece pieces[Passes::MOST];
  Passes passes(c, WIDTH * LANES);
  Pass pass{pieces, 0, !started, false};
  do {
    passes.next(pieces, pass.count);
    pass.last = passes.done();
    for (int64_t first = 0; first < rows.count; first += ROWS)
      convolve_tile<ROWS, WIDTH>(c, pass, rows, first, column, sums + first * WIDTH * LANES);
    pass.first = false;
  } while (!pass.last);
}

// Calls work.run<WIDTH>(column) for as many columns at a time as there are.
template <typename Work>
static inline void by_columns(int64_t column, int64_t end, const Work &work) {
  for (; column + MOST_WIDTH * LANES <= end; column += MOST_WIDTH * LANES)
    work.template run<MOST_WIDTH>(column);
  switch ((end - column) / LANES) {
    case 3: work.template run<3>(column); break;
    case 2: work.template run<2>(column); break;
    case 1: work.template run<1>(column); break;
  }
}

// Room for the sums of so many rows and a tile more.
constexpr int64_t sums_size(int64_t rows) { return (rows + 8) * MOST_WIDTH * LANES; }

}  // namespace sr
