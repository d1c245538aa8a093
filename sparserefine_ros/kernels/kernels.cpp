// SPDX-License-Identifier: Apache-2.0
// C interface of the CPU kernels. All pointers are to C-contiguous memory unless a pitch is given.

#include "cover.h"
#include "fuse.h"
#include "gradient.h"
#include "normalise.h"
#include "plan.h"
#include "sampling.h"
#include "winograd.h"

// Raised whenever a function, a structure or the layout of weights changes; see `kernels/library.py`.
constexpr int64_t kInterface = 9;

extern "C" {

int64_t sr_interface() { return kInterface; }

int64_t sr_block() { return sr::BLOCK; }

int64_t sr_quad_words() {
#ifdef __AVX512F__
  return sr::QUAD_WORDS;
#else
  return 0;
#endif
}

void sr_convolve(const SrStep *steps, int64_t count, int64_t threads) {
  sr::convolve(steps, count, threads);
}

void sr_weight_gradient(const SrWeightGradient *gradient) { sr::weight_gradient(*gradient); }

void sr_norm_moments(const float *x, const float *pivot, int64_t count, int64_t channels,
                     double *sums, int64_t parts) {
  sr::norm_moments(x, pivot, count, channels, sums, parts);
}

void sr_norm_apply(const float *x, const float *scale, const float *shift, int64_t count,
                   int64_t channels, float *y, int64_t parts) {
  sr::norm_apply(x, scale, shift, count, channels, y, parts);
}

void sr_norm_gradient_moments(const float *x, const float *y, const float *g, const float *mean,
                              int64_t count, int64_t channels, double *sums, int64_t parts) {
  sr::norm_gradient_moments(x, y, g, mean, count, channels, sums, parts);
}

void sr_norm_gradient(const float *x, const float *y, const float *g, const float *coefficients,
                      int64_t count, int64_t channels, float *out, int64_t parts) {
  sr::norm_gradient(x, y, g, coefficients, count, channels, out, parts);
}

void sr_summarise(const float *logits, int64_t classes, int64_t count, int64_t pitch,
                  const SrSummary *out, int64_t threads) {
  sr::summarise(logits, classes, count, pitch, *out, threads);
}

void sr_fuse(const SrGate *gate, const float *dense, int64_t dense_pitch, const float *refined,
             int64_t refined_pitch, int64_t classes, int64_t count, const SrSummary *out,
             int64_t threads) {
  sr::fuse(*gate, dense, dense_pitch, refined, refined_pitch, classes, count, *out, threads);
}

void sr_index_map(const int64_t *sites, int64_t count, int64_t batches, int64_t height,
                  int64_t width, int32_t *map, int64_t threads) {
  sr::index_map(sites, count, batches, {height, width}, map, threads);
}

void sr_same_table(const int64_t *sites, int64_t count, int64_t height, int64_t width,
                   const int32_t *map, int32_t *table, int64_t threads) {
  sr::same_table(sites, count, {height, width}, map, table, threads);
}

int64_t sr_tiles(const int64_t *sites, int64_t count, int64_t height, int64_t width,
                 int32_t *tiles) {
  return sr::tiles_of(sites, count, {height, width}, tiles);
}

int64_t sr_strided_sites(const int64_t *sites, int64_t count, int64_t batches, int64_t height,
                         int64_t width, int64_t coarse_height, int64_t coarse_width, int64_t *out) {
  return sr::strided_sites(sites, count, batches, {height, width}, {coarse_height, coarse_width},
                           out);
}

void sr_down_table(const int64_t *coarse_sites, int64_t count, int64_t coarse_height,
                   int64_t coarse_width, int64_t height, int64_t width, const int32_t *fine_map,
                   int32_t *table, int64_t threads) {
  sr::down_table(coarse_sites, count, {coarse_height, coarse_width}, {height, width}, fine_map,
                 table, threads);
}

void sr_up_tables(const int64_t *fine_sites, int64_t count, int64_t height, int64_t width,
                  int64_t coarse_height, int64_t coarse_width, const int32_t *coarse_map,
                  int64_t *const *rows, int32_t *const *tables, int64_t *found, int64_t threads) {
  sr::up_tables(fine_sites, count, {height, width}, {coarse_height, coarse_width}, coarse_map, rows,
                tables, found, threads);
}

int64_t sr_expand_mask(const uint8_t *mask, int64_t low_height, int64_t low_width, int64_t height,
                       int64_t width, int64_t *pixels, int64_t *low_pixels) {
  return sr::expand_mask(mask, low_height, low_width, height, width, pixels, low_pixels);
}

int64_t sr_find_blocks(const uint8_t *mask, int64_t cells, const int64_t *pixel_cells,
                       int64_t count, int64_t *blocks, int32_t *block_of, int64_t threads) {
  return sr::find_blocks(mask, cells, pixel_cells, count, blocks, block_of, threads);
}

void sr_sample_rows(const SrMap *maps, int64_t map_count, int64_t blocks, int64_t pitch,
                    int64_t bfloat16, void *rows, int64_t threads) {
  if (bfloat16)
    sr::sample_rows(maps, map_count, blocks, pitch, static_cast<uint16_t *>(rows), threads);
  else
    sr::sample_rows(maps, map_count, blocks, pitch, static_cast<float *>(rows), threads);
}

void sr_repeat_rows(const void *rows, int64_t pitch, int64_t bfloat16, const int32_t *block_of,
                    int64_t count, const SrColours *colours, void *out, int64_t threads) {
  if (bfloat16)
    sr::repeat_rows(static_cast<const uint16_t *>(rows), pitch, block_of, count, *colours,
                    static_cast<uint16_t *>(out), threads);
  else
    sr::repeat_rows(static_cast<const float *>(rows), pitch, block_of, count, *colours,
                    static_cast<float *>(out), threads);
}
}
