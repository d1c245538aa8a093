// SPDX-License-Identifier: Apache-2.0
// Sparse convolution as one implicit matrix product: rows are read where they lie, nothing is
// gathered into memory first, and what follows a convolution is applied to the sums at once.

#pragma once

#include "quads.h"

namespace sr {

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
  const Inputs inputs(*piece.source, piece.first_channel);
  const SrSource &s = *piece.source;
  for (int64_t tap = piece.first_tap; tap < piece.end_tap; ++tap) {
    const float *input[ROWS];
    for (int r = 0; r < ROWS; ++r)
      input[r] = inputs.at(inputs.offset(s.table ? s.table[site[r] * s.taps + tap] : site[r]));
    multiply_rows<PAIRS, ROWS, WIDTH>(sum, input, piece.end_channel - piece.first_channel,
                                      weights_of<WIDTH>(s, column, tap, piece.first_channel));
  }
}

// ROWS of the rows from `first` on, as far as they exist; `sums` [ROWS, WIDTH * LANES] are theirs,
// from the pass before and for the pass behind.
template <int ROWS, int WIDTH>
static void convolve_tile(const SrConvolution &c, const Pass &pass, const Rows &rows, int64_t first,
                          int64_t column, float *sums) {
  const int64_t left = rows.count - first;
  const int valid = int(left < ROWS ? left : ROWS);
  int64_t site[ROWS];
  for (int r = 0; r < ROWS; ++r) site[r] = rows[first + (r < valid ? r : valid - 1)];
  if (pass.last && pass.count) prefetch(c, rows, first, first + valid, column, WIDTH * LANES);
  Lanes sum[ROWS][WIDTH];
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < WIDTH; ++v)
      sum[r][v] = pass.first ? bias(c, column + v * LANES) : load(sums + (r * WIDTH + v) * LANES);
  for (int p = 0; p < pass.count; ++p) {
    const Piece &piece = pass.pieces[p];
    if (piece.source->pairs)
      accumulate<true>(sum, piece, column, site);
    else
      accumulate<false>(sum, piece, column, site);
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
  if (WIDTH == 1 && c.quads) return convolve_in_quads(c, rows, column, started ? sums : nullptr);
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
