// A node of the simulation: a real store over real memory, a real disk tier in a real file, peers over real sockets, a
// store far away that all nodes share, the manager between them; and what breaks: the device, the network, the node.
#pragma once

#include <filesystem>
#include <map>
#include <set>

#include "arena_move.h"
#include "core/tiers/faulty_tier.h"
#include "core/tiers/manager.h"
#include "core/tiers/memory_tier.h"
#include "core/xxh3.h"
#include "disk_fixture.h"
#include "simulation_peers.h"
#include "store_fixture.h"

namespace kvcommons::testing::simulation {

using tiers::FaultRates;
using tiers::FaultyTier;
using tiers::MemoryTier;

struct SimLayout {
  std::uint64_t slot_bytes;
  std::uint32_t ranks;
};
inline constexpr SimLayout kLayouts[] = {{60'000, 1}, {30'000, 2}};
inline constexpr std::uint32_t kFingerprints = 2;
inline constexpr std::size_t kChainLength = 8;
inline constexpr std::uint64_t kArenaBytes = 2 * kMiB, kDiskBytes = 8 * kMiB, kFarBytes = 4 * kMiB;

// A chunk's number; the first two chunks are shared by all chains of a fingerprint: a tree.
inline std::uint64_t number_of(std::uint32_t fp, std::uint64_t chain, std::size_t i) {
  return fp * 1'000'000 + (i < 2 ? 0 : chain) * 1'000 + i + 1;
}
inline std::vector<Key> keys_of(std::uint32_t fp, std::uint64_t chain, std::size_t from, std::size_t to) {
  std::vector<Key> keys;
  for (std::size_t i = from; i < to; ++i) keys.push_back(make_key(number_of(fp, chain, i)));
  return keys;
}

// What a shard holds is a function of its key and its rank, here and on every other node.
inline void fill_shard(std::byte* at, std::uint64_t bytes, const Key& key, std::uint32_t rank) {
  std::uint64_t x = key.prefix64() + rank * 77;
  for (std::uint64_t i = 0; i < bytes; i += 8) {
    x = (x ^ (x >> 30)) * 0xbf58'476d'1ce4'e5b9ULL + i;
    std::memcpy(at + i, &x, std::min<std::uint64_t>(8, bytes - i));
  }
}
inline void check_shard(const std::byte* at, std::uint64_t bytes, const Key& key, std::uint32_t rank) {
  std::vector<std::byte> right(bytes);
  fill_shard(right.data(), bytes, key, rank);
  CHECK(std::memcmp(right.data(), at, bytes) == 0);
}

// A read that somebody is in the middle of: its bytes must not change until it is over.
struct Reading {
  SessionId session = 0;
  LeaseId lease = 0;
  std::uint32_t fp = 0, rank = 0;
  std::vector<Key> keys;
  std::vector<SlotRef> slots;
  const std::byte* arena = nullptr;  // a former one, after a move: who reads has that one mapped
};

struct Held {  // granted to a session that has neither committed nor given up
  SessionId session = 0;
  SlotRef slot;
};

class SimNode {
 public:
  SimNode(std::shared_ptr<MemoryTier> far, bool has_disk, bool has_peers, std::uint64_t seed,
          std::atomic<std::uint64_t>* clock, const std::string& eviction)
      : far_(std::move(far)),
        has_disk_(has_disk),
        has_peers_(has_peers),
        seed_(seed),
        clock_(clock),
        world(kArenaBytes, kMiB, 3, eviction) {
    world.config.now_ms = [this] { return clock_->load(); };
    world.open();
    folder_ = std::make_unique<Folder>();
    start();
  }
  ~SimNode() { stop(); }
  SimNode(const SimNode&) = delete;  // owns threads and files

  // Killed: what the disk has at this moment is what the next life finds; the memory's holder keeps the rest. The next
  // life may be configured with another arena, into which what fits is moved. at_end: when nothing moves any more.
  void kill_and_restart(std::uint64_t arena_bytes, const std::function<void()>& at_end) {
    faults.set({});
    auto left = std::make_unique<Folder>();
    if (has_disk_) std::filesystem::copy_file(folder_->file(), left->file());
    stop();
    at_end();
    folder_ = std::move(left);
    engines.clear();
    if (arena_bytes == world.config.arena_bytes) {
      world.crash_and_adopt();
    } else {
      move_arena_to(arena_bytes);
    }
    start();
  }
  [[nodiscard]] bool busy() const { return !manager->idle(); }
  void settle() {
    await([this] { return !busy(); });
  }

  // An engine's session of this rank, opened when it is first asked for.
  Engine& engine(std::uint32_t fp, std::uint32_t rank) {
    const auto key = std::pair(fp, rank);
    if (!engines.contains(key)) {
      engines.emplace(key, Engine(world, fp, kLayouts[fp].slot_bytes, kLayouts[fp].ranks, rank));
    }
    return engines.at(key);
  }
  std::byte* at(const SlotRef& slot) const { return world.arena->base() + slot.offset_bytes; }
  [[nodiscard]] std::uint64_t arena_bytes() const { return world.config.arena_bytes; }

  // Flips a bit of the device's medium.
  void rot(std::uint64_t draw) {
    if (!has_disk_) return;
    std::fstream file(folder_->file(), std::ios::binary | std::ios::in | std::ios::out);
    const auto place = static_cast<std::streamoff>(draw % kDiskBytes);
    file.seekg(place);
    const int byte = file.get();
    file.seekp(place);
    file.put(static_cast<char>(byte ^ (1 << (draw >> 40) % 8)));
    file.flush();
    CHECK(file.good());
    rotten = true;
  }
  [[nodiscard]] std::vector<ShardId> on_disk(const std::vector<ShardId>& ids) const {
    std::vector<ShardId> out;
    if (!disk) return out;
    std::vector<std::uint64_t> bytes(ids.size());
    disk->find(ids, bytes);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (bytes[i] != 0) out.push_back(ids[i]);
    }
    return out;
  }
  // Nothing but its one file, whatever happened.
  void check_folder() const {
    std::size_t files = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder_->path())) ++files;
    CHECK_EQ(files, has_disk_ ? 1u : 0u);
    if (has_disk_) CHECK_LE(std::filesystem::file_size(folder_->file()), kDiskBytes);
  }

 private:
  void move_arena_to(std::uint64_t arena_bytes) {
    world.store.reset();
    const std::unique_ptr<Memory> records = std::move(world.records);
    former_.push_back(std::move(world.arena));
    world.config.arena_bytes = arena_bytes;
    world.arena = std::make_unique<Memory>(arena_bytes);
    world.records = std::make_unique<Memory>(Store::records_bytes(world.config));
    CHECK(move_arena({former_.back()->fd(), records->fd(), world.arena->fd(), world.records->fd()}, world.config));
    world.open();
  }
  void start() {
    std::vector<std::shared_ptr<Tier>> tiers;
    if (has_disk_) {
      DiskConfig config = disk_config(*folder_, kDiskBytes, DiskEngine::Threads);
      config.now_ms = [this] { return clock_->load(); };
      config.wrap_io = faults.wrapper();
      config.write_retry_ms = 50;
      disk = std::make_shared<FaultyTier>(make_disk_tier(config), seed_);
      tiers.push_back(disk);
    }
    if (has_peers_) {
      peer = std::make_unique<SimPeer>(world.arena->base(), world.store.get(), seed_ + 2, ++epoch_,
                                       [this] { return clock_->load(); });
      tiers.push_back(peer->tier);
    }
    network = std::make_shared<FaultyTier>(far_, seed_ + 1);
    tiers.push_back(network);
    TierManagerConfig config;
    config.arena_bytes = arena_bytes();
    config.arena = world.arena->base();
    config.now_ms = [this] { return clock_->load(); };
    config.stop_ms_max = 0;
    config.failed_ms = 10;
    manager = std::make_unique<TierManager>(config, world.store.get(), tiers);
    manager->start();
  }
  void stop() {
    faults.hold(false);
    if (peer) {
      peer->vanish();
      peer->tier.reset();
    }
    disk.reset();
    network.reset();
    manager.reset();
    peer.reset();
  }

  std::shared_ptr<MemoryTier> far_;
  bool has_disk_, has_peers_;
  std::uint64_t seed_;
  std::atomic<std::uint64_t>* clock_;
  std::unique_ptr<Folder> folder_;
  std::uint32_t epoch_ = 0;                      // of this node's life, as the index has it
  std::vector<std::unique_ptr<Memory>> former_;  // arenas of lives before a move

 public:
  World world;
  Faults faults;  // of the device's operations
  std::shared_ptr<FaultyTier> disk, network;
  std::unique_ptr<SimPeer> peer;  // null: it has none
  std::unique_ptr<TierManager> manager;
  std::map<std::pair<std::uint32_t, std::uint32_t>, Engine> engines;
  std::vector<Reading> readings;
  std::vector<Held> held;
  std::vector<SessionId> gone;     // closed, and not proven dead yet
  std::set<std::uint64_t> chunks;  // that can be hit, as its events said
  bool rotten = false;             // its file may have lost anything
};

}  // namespace kvcommons::testing::simulation
