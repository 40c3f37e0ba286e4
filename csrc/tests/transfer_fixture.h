// A transfer over a scripted node, and what its tests ask of it.
#pragma once

#include <cstring>
#include <memory>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "paged_kv.h"
#include "scripted_port.h"
#include "transfer.h"

namespace kvcommons::testing {

inline constexpr std::uint32_t kMs = 20'000;  // more than anything here takes, less than the test's own limit
using Ids = std::vector<std::uint32_t>;

inline Key key_of(std::uint64_t number) {
  Key key;
  std::memcpy(key.bytes.data(), &number, sizeof number);
  return key;
}

inline std::vector<Key> keys_of(std::uint64_t first, std::size_t count) {
  std::vector<Key> keys;
  for (std::size_t i = 0; i < count; ++i) keys.push_back(key_of(first + i));
  return keys;
}

// Two layers, one of two planes; four blocks a chunk.
struct Fixture {
  static constexpr std::uint32_t kBlocksPerChunk = 4;
  PagedKv kv{
      32, {{.runs = 2, .run_bytes = 192, .run_gap = 64}, {.planes = 2, .run_bytes = 128, .planes_apart = true}}, 3};
  std::uint64_t slot = slot_bytes_of(kv.layers(), kBlocksPerChunk);
  std::shared_ptr<ScriptedPort> port = std::make_shared<ScriptedPort>(std::uint64_t{1} << 20, slot);

  std::unique_ptr<Transfer> start(std::uint32_t jobs_max = 16, std::shared_ptr<Device> device = nullptr) {
    return std::make_unique<Transfer>(port, TransferConfig{.blocks_per_chunk = kBlocksPerChunk,
                                                           .layers = kv.layers(),
                                                           .copy_threads = 1,
                                                           .device = std::move(device),
                                                           .jobs_max = jobs_max});
  }
  static Ids blocks(std::uint32_t first, std::size_t chunks) {
    Ids ids(chunks * kBlocksPerChunk);
    std::iota(ids.begin(), ids.end(), first);
    return ids;
  }
  static StoreJob job(std::uint64_t number, std::size_t chunks) {
    StoreJob store;
    store.job = number;
    store.parent = key_of(99);
    store.keys = keys_of(100, chunks);
    store.block_ids = blocks(0, chunks);
    return store;
  }
};

inline JobResult only_result(std::vector<JobResult> results) {
  CHECK_EQ(results.size(), 1u);
  return results.front();
}

// wait_stores returns before the commit, so the result may be a moment away.
inline JobResult store_result(Transfer& transfer) {
  for (;;) {
    auto results = transfer.take_finished_stores();
    if (!results.empty()) return only_result(std::move(results));
    std::this_thread::yield();
  }
}

}  // namespace kvcommons::testing
