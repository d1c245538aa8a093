// SPDX-License-Identifier: Apache-2.0
// How chunks of work are divided among threads.

#pragma once

#include <omp.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace sr {

// Where the share of a thread begins; that of the next is its end.
constexpr int64_t share_of(int64_t count, int64_t thread, int64_t threads) {
  return count * thread / threads;
}

// Each thread works through a share of its own, one after another; whoever is done takes from the
// ends of the others' shares. Unless threads share the columns of a layer, a thread has the same part
// of the picture in every step: what it reads is in its own caches, for it wrote it itself. From
// another core it would come slower, by far where cores do not share a cache.
class Shares {
 public:
  Shares(int64_t count, int64_t threads) : shares_(static_cast<size_t>(threads)) {
    for (int64_t t = 0; t < threads; ++t)
      shares_[size_t(t)].chunks = pack(share_of(count, t, threads), share_of(count, t + 1, threads));
  }

  // The next chunk for the thread that calls; false when none is left.
  bool take(int64_t &chunk) {
    const size_t me = size_t(omp_get_thread_num()), threads = shares_.size();
    for (size_t i = 0; i < threads; ++i)
      if (take_of(shares_[(me + i) % threads], i > 0, chunk)) return true;
    return false;
  }

 private:
  // A cache line for each, or threads would wait for one another's.
  struct alignas(64) Share {
    std::atomic<uint64_t> chunks;  // the first, and behind the last
  };

  static uint64_t pack(int64_t begin, int64_t end) { return uint64_t(begin) << 32 | uint64_t(end); }

  static bool take_of(Share &share, bool last, int64_t &chunk) {
    uint64_t now = share.chunks.load(std::memory_order_relaxed), rest;
    do {
      const int64_t begin = int64_t(now >> 32), end = int64_t(uint32_t(now));
      if (begin >= end) return false;
      chunk = last ? end - 1 : begin;
      rest = last ? pack(begin, end - 1) : pack(begin + 1, end);
    } while (!share.chunks.compare_exchange_weak(now, rest, std::memory_order_relaxed));
    return true;
  }

  std::vector<Share> shares_;
};

}  // namespace sr
