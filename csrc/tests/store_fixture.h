// A store over two memfds that outlive it, a clock that only the test moves, and engines with short names.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "check.h"
#include "store.h"

namespace kvcommons::testing {

inline constexpr std::uint64_t kMiB = 1 << 20;

// Distinct keys whose every byte varies, as those of a hash do.
inline Key make_key(std::uint64_t n) {
  Key k;
  std::uint64_t x = n * 0x9e37'79b9'7f4a'7c15ULL + 1;
  for (std::size_t i = 0; i < 4; ++i) {
    x = (x ^ (x >> 30)) * 0xbf58'476d'1ce4'e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d0'49bb'1331'11ebULL;
    x ^= x >> 31;
    const std::uint64_t v = x + n + i;
    std::memcpy(k.bytes.data() + i * 8, &v, 8);
  }
  return k;
}

inline std::vector<Key> make_chain(std::uint64_t chain, std::size_t length) {
  std::vector<Key> keys;
  for (std::size_t i = 0; i < length; ++i) {
    keys.push_back(make_key(chain * 1'000'000 + i + 1));
  }
  return keys;
}

class Memory {
 public:
  explicit Memory(std::uint64_t bytes) : bytes_(bytes), fd_(memfd_create("kvcommons-test", MFD_CLOEXEC)) {
    CHECK(fd_ >= 0);
    CHECK_EQ(ftruncate(fd_, static_cast<off_t>(bytes)), 0);
    base_ = static_cast<std::byte*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0));
    CHECK(base_ != MAP_FAILED);
  }
  ~Memory() {
    munmap(base_, bytes_);
    close(fd_);
  }
  Memory(const Memory&) = delete;  // owns the fd
  Memory& operator=(const Memory&) = delete;
  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] std::byte* base() const { return base_; }

 private:
  std::uint64_t bytes_;
  int fd_;
  std::byte* base_;
};

class World {
 public:
  explicit World(std::uint64_t arena_bytes, std::uint64_t slab_bytes = kMiB, std::uint32_t verify_one_in = 0,
                 const std::string& eviction = "lru") {
    config.eviction = eviction;
    config.arena_bytes = arena_bytes;
    config.slab_bytes = slab_bytes;
    config.verify_one_in = verify_one_in;
    config.sessions_max = 64;
    config.now_ms = [this] { return clock_ms.load(); };
    open();
  }
  void open() {
    if (!arena) {
      arena = std::make_unique<Memory>(config.arena_bytes);
      records = std::make_unique<Memory>(Store::records_bytes(config));
    }
    store.reset();
    store = std::make_unique<Store>(config, arena->fd(), records->fd());
  }
  // The daemon is killed and another one opens what it left.
  void crash_and_adopt() { open(); }

  StoreConfig config;
  std::atomic<std::uint64_t> clock_ms{1'000'000};
  std::unique_ptr<Memory> arena, records;
  std::unique_ptr<Store> store;
};

inline ShardSpec shard(std::uint16_t rank, std::uint64_t slot_bytes) {
  return {{0, 4, rank, static_cast<std::uint16_t>(rank + 1)}, slot_bytes};
}

// One engine's connection.
struct Engine {
  Store* store = nullptr;
  SessionId id = 0;

  Engine() = default;
  Engine(World& w, std::uint64_t fingerprint, std::uint64_t slot_bytes, std::uint32_t ranks = 1,
         std::optional<std::uint32_t> own = 0)
      : store(w.store.get()) {
    SessionSpec spec;
    spec.fingerprint = make_key(fingerprint + 0xf000'0000);
    spec.chunk_tokens = 256;
    for (std::uint32_t r = 0; r < ranks; ++r) {
      spec.shards.push_back(shard(static_cast<std::uint16_t>(r), slot_bytes));
    }
    spec.own_shard = own;
    CHECK_EQ(store->open_session(spec, &id), Status::Ok);
  }
  std::vector<Reservation> reserve(const std::vector<Key>& keys, const Key& parent = {},
                                   const eviction::Hints& hints = {}, std::uint64_t tenant = 0) const {
    std::vector<Reservation> out;
    CHECK_EQ(store->reserve(id, tenant, parent, keys, &out, hints), Status::Ok);
    CHECK_EQ(out.size(), keys.size());
    return out;
  }
  std::uint32_t commit(const std::vector<Reservation>& slots, const std::vector<std::uint64_t>& text = {},
                       std::uint64_t checksum = 0) const {
    std::vector<CommitItem> items;
    for (const Reservation& r : slots) {
      if (r.status == ReserveStatus::Granted) {
        items.push_back({r.slot, checksum, text});
      }
    }
    std::uint32_t accepted = 0;
    CHECK_EQ(store->commit(id, items, &accepted), Status::Ok);
    return accepted;
  }
  std::uint32_t put(const std::vector<Key>& keys, const Key& parent = {}, const eviction::Hints& hints = {},
                    std::uint64_t tenant = 0) const {
    return commit(reserve(keys, parent, hints, tenant));
  }
  std::uint32_t hits(const std::vector<Key>& keys) const { return store->lookup(id, keys, false).hit_chunks; }
  [[nodiscard]] LookupResult lease(const std::vector<Key>& keys) const { return store->lookup(id, keys, true); }
  [[nodiscard]] Status begin(LeaseId lease_id, std::vector<SlotRef>* out = nullptr) const {
    std::vector<SlotRef> own;
    return store->begin(id, lease_id, out != nullptr ? out : &own);
  }
  Status release(LeaseId lease_id) const { return store->release(id, lease_id); }
};

inline void check_empty(const Store& store) {
  const StoreStats s = store.stats();
  CHECK_EQ(s.used_bytes, 0u);
  CHECK_EQ(s.slots_filling + s.slots_sealed + s.slots_draining + s.slots_quarantined, 0u);
  CHECK_EQ(s.leases_pending + s.leases_copying, 0u);
  CHECK_EQ(s.slabs_free, s.slabs);
}

inline std::vector<Event> events_of(Store& store, Event::Kind kind) {
  bool gap = false;
  std::vector<Event> out;
  for (Event& e : store.drain_events(1'000'000, &gap)) {
    if (e.kind == kind) {
      out.push_back(std::move(e));
    }
  }
  return out;
}

}  // namespace kvcommons::testing
