// Copies between an engine's paged KV and the arena, in the background, by native threads that own the whole way:
// load = begin the lease, copy layer by layer, release; store = reserve, copy, checksum, commit. Python only submits.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client.h"
#include "device.h"
#include "lease_port.h"

namespace kvcommons {

// One layer's paged KV as registered by the engine. A block is `runs` equally long pieces of `run_bytes`,
// `run_stride_bytes` apart, the first at base + block_id * block_stride_bytes (+ second plane at plane_stride_bytes for
// layouts that keep K and V apart: planes = 2). A chunk's bytes in a slot are, layer by layer, block by block, plane by
// plane, run by run.
struct LayerLayout {
  std::uintptr_t base = 0;
  std::uint64_t blocks = 0;
  std::uint64_t block_stride_bytes = 0;
  std::uint32_t planes = 1;
  std::uint64_t plane_stride_bytes = 0;
  std::uint32_t runs = 1;
  std::uint64_t run_stride_bytes = 0;
  std::uint64_t run_bytes = 0;
  [[nodiscard]] std::uint64_t block_bytes() const noexcept { return std::uint64_t{planes} * runs * run_bytes; }
};

struct TransferConfig {
  std::uint32_t blocks_per_chunk = 0;
  std::vector<LayerLayout> layers;
  std::uint32_t copy_threads = 1;
  std::shared_ptr<Device> device = nullptr;  // whose memory the layers are in; none: the host's
  std::uint32_t jobs_max = 1'024;            // queued; a store over it is dropped and counted, a load over it fails
};

struct StoreJob {
  std::uint64_t job = 0;
  std::uint64_t tenant = 0;
  Key parent;
  std::vector<Key> keys;                              // consecutive complete chunks
  std::vector<std::uint32_t> block_ids;               // keys.size() * blocks_per_chunk
  std::vector<std::vector<std::uint64_t>> text_keys;  // empty, or one list a key
  std::uint32_t hints = 0;                            // for eviction, packed
  std::uintptr_t stream = 0;  // of the engine, on a device: what it was given so far is waited for first
};

struct LoadJob {
  std::uint64_t job = 0;
  LeaseId lease = 0;
  std::uint32_t first_block = 0;  // in blocks from the first leased chunk: what the engine has already is skipped
  std::vector<std::uint32_t> block_ids;  // destination of blocks first_block, first_block + 1, ...
  std::uintptr_t stream = 0;             // as a store's
  // Nobody waits for its layers, but somebody for its end: copied in its turn, the oldest first, when no forward waits.
  bool whole = false;
};

struct JobResult {
  std::uint64_t job = 0;
  Status status = Status::Ok;
  std::uint64_t bytes = 0;
  std::uint32_t chunks = 0;  // stores: chunks committed
};

class Transfer {
 public:
  // Throws std::invalid_argument on a bad layout, or one whose slots are not those that the client declared.
  Transfer(std::shared_ptr<Client> client, TransferConfig config);
  Transfer(std::shared_ptr<LeasePort> port, TransferConfig config);
  ~Transfer();  // waits for copies in flight, drops what is queued
  Transfer(const Transfer&) = delete;

  // Begins the lease on the caller's thread (so that a refusal is known at once), then copies in the background.
  // Not Ok: nothing was touched, the caller reports a failed load. Block ids that no layer has are the caller's error:
  // std::invalid_argument. TooLarge: more blocks than the lease covers.
  Status load(LoadJob job);
  // Returns when every load submitted so far, but the whole ones, has finished `layer`, or failed; copies what nobody
  // has begun to copy.
  // GIL-free in the binding. TimedOut after ms_max: the copies go on, and wait_load tells when they have ended.
  Status wait_layer(std::uint32_t layer, std::uint32_t ms_max);
  // The load's own status once it has ended, also after it was taken (the last 1,024 are remembered); Gone if unknown.
  Status wait_load(std::uint64_t job, std::uint32_t ms_max);

  Status store(StoreJob job);  // Full when jobs_max is reached: dropped and counted
  // Blocks until none of `jobs` reads its source any more (committed, dropped or failed).
  void wait_stores(std::span<const std::uint64_t> jobs);
  void wait_all_stores();

  std::vector<JobResult> take_finished_loads();
  std::vector<JobResult> take_finished_stores();

  struct Stats {
    std::uint64_t load_bytes, load_ns, loads, loads_failed, store_bytes, store_ns, stores, stores_failed,
        stores_dropped, store_chunks, store_exists, store_full, store_busy, queued;
  };
  [[nodiscard]] Stats stats() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvcommons
