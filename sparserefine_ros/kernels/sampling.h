// SPDX-License-Identifier: Apache-2.0
// What the refiner sees: of each selected pixel the maps of its block, and its own colours.

#pragma once

#include <algorithm>
#include <vector>

#include "lanes.h"

extern "C" {

// Some channels of the rows.
struct SrMap {
  const float *values;    // [channels, size]
  const int64_t *places;  // [blocks], of `size`
  int64_t channels, size;
  int64_t column;  // of the rows, the first of these channels
};

// Three channels of the rows: the pixels' bytes, looked up.
struct SrColours {
  const uint8_t *image;    // [pixels, 3]
  const int64_t *pixels;   // [rows], of the image
  const float *tables;     // [3, 256], for each column of the rows
  int64_t channels[3];     // of the image, for each column
  const int64_t *columns;  // first of three, each time they are wanted
  int64_t times;
};
}

namespace sr {

// The cells that are active, in order, and which of them each pixel's is; returns how many there are.
static int64_t find_blocks(const uint8_t *mask, int64_t cells, const int64_t *pixel_cells,
                           int64_t count, int64_t *blocks, int32_t *block_of, int64_t threads) {
  std::vector<int32_t> number(static_cast<size_t>(cells));
  int64_t found = 0;
  for (int64_t i = 0; i < cells; ++i) {
    number[size_t(i)] = int32_t(found);
    blocks[found] = i;
    found += mask[i] != 0;
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t n = 0; n < count; ++n) block_of[n] = number[size_t(pixel_cells[n])];
  return found;
}

template <typename Value>
static inline Value value_of(float value) {
  return value;
}

template <>
inline uint16_t value_of<uint16_t>(float value) {
  // Rounds to nearest, ties to even; NaN stays NaN.
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Rows [blocks, pitch] of the maps, with zeros where there is none.
template <typename Value>
static void sample_rows(const SrMap *maps, int64_t map_count, int64_t blocks, int64_t pitch,
                        Value *rows, int64_t threads) {
  // Blocks that are read from a channel one after another, while their rows are in the cache.
  constexpr int64_t TOGETHER = 32;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t first = 0; first < blocks; first += TOGETHER) {
    const int64_t end = std::min(first + TOGETHER, blocks);
    std::fill(rows + first * pitch, rows + end * pitch, Value{});
    for (const SrMap *map = maps; map < maps + map_count; ++map)
      for (int64_t channel = 0; channel < map->channels; ++channel) {
        const float *const values = map->values + channel * map->size;
        Value *to = rows + first * pitch + map->column + channel;
        for (int64_t i = first; i < end; ++i, to += pitch) *to = value_of<Value>(values[map->places[i]]);
      }
  }
}

// To each of `count` rows of `out` its block's row, and its colours.
template <typename Value>
static void repeat_rows(const Value *rows, int64_t pitch, const int32_t *block_of, int64_t count,
                        const SrColours &colours, Value *out, int64_t threads) {
  Value looked_up[3][256];
  if (colours.times)
    for (int c = 0; c < 3; ++c)
      for (int i = 0; i < 256; ++i) looked_up[c][i] = value_of<Value>(colours.tables[c * 256 + i]);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t n = 0; n < count; ++n) {
    Value *const to = out + n * pitch;
    std::memcpy(to, rows + block_of[n] * pitch, size_t(pitch) * sizeof(Value));
    for (int64_t i = 0; i < colours.times; ++i) {
      const uint8_t *const pixel = colours.image + 3 * colours.pixels[n];
      for (int c = 0; c < 3; ++c)
        to[colours.columns[i] + c] = looked_up[c][pixel[colours.channels[c]]];
    }
  }
}

}  // namespace sr
