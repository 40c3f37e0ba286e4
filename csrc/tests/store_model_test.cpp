// Random operations of several engines, with crashes, against a simple model that is told only by replies and events.
// The seed is printed; KVCOMMONS_SEED=N repeats a run, KVCOMMONS_ROUNDS=N makes it longer.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <random>
#include <set>

#include "store_fixture.h"

using namespace kvcommons;
using namespace kvcommons::testing;

namespace {

struct Layout {
  std::uint64_t slot_bytes;
  std::uint32_t ranks;
};
// Small slots, two ranks, large slots, and slots that need two slabs.
constexpr Layout kLayouts[] = {{20'000, 1}, {60'000, 2}, {300'000, 1}, {1'500'000, 1}};
constexpr const char* kPolicies[] = {"lru", "s3fifo", "cost", "auto"};
constexpr std::uint32_t kFingerprints = 4;
constexpr std::size_t kChainLength = 6;
constexpr std::uint64_t kChains = 5;

struct ModelSession {
  SessionId id = 0;
  std::uint32_t fp = 0;
  std::uint32_t rank = 0;
  bool open = true;
  bool former = false;
};
struct ModelChunk {
  std::map<std::uint32_t, SlotRef> sealed;
  std::uint64_t parent = 0;  // number of the key, 0 = none
  std::uint32_t fp = 0;
  bool announced = false;
  bool pinned = false;
};
struct ModelFilling {
  SlotRef slot;
  SessionId owner = 0;
  std::uint64_t key = 0;
  std::uint32_t fp = 0, rank = 0;
  bool cancelled = false;
};
struct ModelLease {
  LeaseId id = 0;
  std::uint32_t fp = 0;
  SessionId session = 0;
  std::uint64_t created = 0;
  std::vector<std::uint64_t> keys;
  bool voided = false;
  std::set<std::uint32_t> pending;
  std::map<std::uint32_t, SessionId> copying;
  [[nodiscard]] bool live() const { return !pending.empty() || !copying.empty(); }
};
struct ModelRead {  // a place that somebody copies from
  std::uint64_t begin = 0, end = 0;
  SessionId session = 0;
  LeaseId lease = 0;
  bool former = false;
};

class Run {
 public:
  explicit Run(std::uint64_t seed) : rng_(seed), world_(8 * kMiB, kMiB, 0, kPolicies[seed % std::size(kPolicies)]) {
    if (seed % 3 == 0) {  // the same must hold where tenants have shares
      world_.config.tenant_percent_max = 30;
      world_.open();
    }
    open_session();
  }

  void step() {
    forced_ = false;
    switch (pick(20)) {
      case 0:
        open_session();
        break;
      case 1:
        if (pick(3) == 0) close_session();
        break;
      case 2:
        resolve();
        break;
      case 3:
        if (pick(4) == 0) clear();
        break;
      case 4:
        pin();
        break;
      case 5:
        if (pick(3) == 0) expire();
        break;
      case 6:
        if (pick(8) == 0) crash();
        break;
      case 7:
        abort();
        break;
      case 8:
      case 9:
      case 10:
        begin();
        break;
      case 11:
      case 12:
        release();
        break;
      case 13:
      case 14:
      case 15:
        lookup();
        break;
      case 16:
      case 17:
        commit();
        break;
      default:
        reserve();
        break;
    }
    apply_events();
    check_stats();
  }
  // Everybody goes away and proves it: nothing may stay behind.
  void finish() {
    forced_ = true;
    for (auto& s : sessions_) {
      if (pick(2) == 0) world_.store->close_session(s.id);
      world_.store->resolve_session(s.id);
    }
    world_.store->clear(nullptr);
    check_empty(*world_.store);
  }

 private:
  static std::uint64_t number(std::uint32_t fp, std::uint64_t chain, std::size_t i) {
    // The first two chunks are shared by all chains of a fingerprint: a tree.
    const std::uint64_t c = i < 2 ? 0 : chain;
    return fp * 1'000'000 + c * 1'000 + i + 1;
  }
  std::uint64_t pick(std::uint64_t n) { return rng_() % n; }
  ModelSession* any(bool open) {
    std::vector<ModelSession*> all;
    for (auto& s : sessions_) {
      if (s.open == open) all.push_back(&s);
    }
    return all.empty() ? nullptr : all[pick(all.size())];
  }
  std::vector<std::uint64_t> chain_of(std::uint32_t fp, std::uint64_t chain, std::size_t n) {
    std::vector<std::uint64_t> out;
    for (std::size_t i = 0; i < n; ++i) out.push_back(number(fp, chain, i));
    return out;
  }
  static std::vector<Key> keys_of(const std::vector<std::uint64_t>& numbers) {
    std::vector<Key> out;
    for (const auto n : numbers) out.push_back(make_key(n));
    return out;
  }

  void open_session() {
    if (sessions_.size() > 12) return;
    ModelSession s;
    s.fp = static_cast<std::uint32_t>(pick(kFingerprints));
    s.rank = static_cast<std::uint32_t>(pick(kLayouts[s.fp].ranks));
    s.id = Engine(world_, s.fp, kLayouts[s.fp].slot_bytes, kLayouts[s.fp].ranks, s.rank).id;
    sessions_.push_back(s);
  }
  void revoke(ModelLease& lease) { lease.pending.clear(); }
  void close_session() {
    ModelSession* s = any(true);
    if (s == nullptr) return;
    world_.store->close_session(s->id);
    s->open = false;
    for (auto& l : leases_) {
      if (l.session == s->id) revoke(l);
    }
    for (auto& f : fillings_) {
      if (f.owner == s->id) f.cancelled = true;
    }
  }
  void resolve() {
    ModelSession* s = any(false);
    if (s == nullptr) return;
    const SessionId id = s->id;
    world_.store->resolve_session(id);
    std::erase_if(sessions_, [&](const auto& x) { return x.id == id; });
    std::erase_if(fillings_, [&](const auto& f) { return f.owner == id; });
    std::erase_if(reads_, [&](const auto& r) { return r.session == id && !r.former; });
    former_readers_.erase(id);
    if (former_readers_.empty()) std::erase_if(reads_, [](const auto& r) { return r.former; });
    for (auto& l : leases_) {
      std::erase_if(l.copying, [&](const auto& c) { return c.second == id; });
    }
  }
  void clear() {
    forced_ = true;
    const auto fp = static_cast<std::uint32_t>(pick(kFingerprints));
    const Key key = make_key(fp + 0xf000'0000);
    world_.store->clear(&key);
    for (auto& f : fillings_) f.cancelled = f.cancelled || f.fp == fp;
    for (auto& l : leases_) l.voided = l.voided || l.fp == fp;
    std::erase_if(chunks_, [&](const auto& c) { return c.second.fp == fp && !c.second.announced; });
  }
  void pin() {
    if (chunks_.empty()) return;
    auto it = chunks_.begin();
    std::advance(it, static_cast<std::ptrdiff_t>(pick(chunks_.size())));
    if (!it->second.announced) return;
    const bool pinned = pick(3) == 0;
    CHECK_EQ(world_.store->pin(keys_of({it->first}), pinned), 1u);
    it->second.pinned = pinned;
  }
  void expire() {
    world_.clock_ms += pick(40'000);
    world_.store->expire_leases();
    for (auto& l : leases_) {
      if (l.created + world_.config.lease_pending_ms_max <= world_.clock_ms) revoke(l);
    }
  }
  void lookup() {
    ModelSession* s = any(true);
    if (s == nullptr) return;
    const auto numbers = chain_of(s->fp, pick(kChains), 1 + pick(kChainLength));
    std::size_t expected = 0;
    while (expected < numbers.size() && chunks_.contains(numbers[expected]) && chunks_[numbers[expected]].announced) {
      ++expected;
    }
    const bool lease = pick(2) == 0;
    const auto result = world_.store->lookup(s->id, keys_of(numbers), lease);
    CHECK_EQ(result.hit_chunks, expected);
    CHECK_EQ(result.lease != 0, lease && expected != 0);
    if (result.lease == 0) return;
    ModelLease l{result.lease, s->fp, s->id, world_.clock_ms, numbers, false, {}, {}};
    l.keys.resize(expected);
    for (std::uint32_t r = 0; r < kLayouts[s->fp].ranks; ++r) l.pending.insert(r);
    leases_.push_back(l);
  }
  void begin() {
    ModelSession* s = any(true);
    if (s == nullptr || leases_.empty()) return;
    ModelLease& l = leases_[pick(leases_.size())];
    std::vector<SlotRef> slots;
    const Status status = world_.store->begin(s->id, l.id, &slots);
    if (!l.live()) {
      CHECK_EQ(status, Status::Gone);
    } else if (l.fp != s->fp) {
      CHECK_EQ(status, Status::Denied);
    } else if (l.copying.contains(s->rank) && l.copying[s->rank] == s->id) {
      CHECK_EQ(status, Status::Busy);
    } else if (!l.pending.contains(s->rank)) {
      CHECK_EQ(status, Status::Gone);
    } else {
      CHECK_EQ(status, l.voided ? Status::Gone : Status::Ok);
      l.pending.erase(s->rank);
      if (status != Status::Ok) return;
      CHECK_EQ(slots.size(), l.keys.size());
      l.copying[s->rank] = s->id;
      for (std::size_t i = 0; i < slots.size(); ++i) {
        CHECK(slots[i] == chunks_.at(l.keys[i]).sealed.at(s->rank));
        const std::uint64_t at = slots[i].offset_bytes;
        reads_.push_back({at, at + kLayouts[s->fp].slot_bytes, s->id, l.id, false});
      }
    }
  }
  void release() {
    ModelSession* s = any(true);
    if (s == nullptr || leases_.empty()) return;
    ModelLease& l = leases_[pick(leases_.size())];
    const bool live = l.live();
    CHECK_EQ(world_.store->release(s->id, l.id), live ? Status::Ok : Status::Gone);
    const bool copied = std::erase_if(l.copying, [&](const auto& c) { return c.second == s->id; }) != 0;
    std::erase_if(reads_, [&](const auto& r) { return r.session == s->id && r.lease == l.id && !r.former; });
    if (l.session == s->id) {
      revoke(l);
    } else if (!copied && l.fp == s->fp) {
      l.pending.erase(s->rank);
    }
  }
  void reserve() {
    ModelSession* s = any(true);
    if (s == nullptr) return;
    const std::uint64_t chain = pick(kChains);
    const auto all = chain_of(s->fp, chain, kChainLength);
    const std::size_t from = pick(2) == 0 ? 0 : pick(kChainLength);
    const std::size_t to = from + 1 + pick(kChainLength - from);
    const std::vector<std::uint64_t> numbers(all.begin() + static_cast<std::ptrdiff_t>(from),
                                             all.begin() + static_cast<std::ptrdiff_t>(to));
    std::vector<Reservation> out;
    const Key parent = from == 0 ? Key{} : make_key(all[from - 1]);
    const auto hints = eviction::Hints::unpacked(pick(2) == 0 ? 0 : static_cast<std::uint32_t>(rng_()));
    CHECK_EQ(world_.store->reserve(s->id, s->fp % 2, parent, keys_of(numbers), &out, hints), Status::Ok);
    apply_events();  // evictions come before the grants that they made room for
    forget_evicted_partials();
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      note_reservation(*s, numbers[i], from + i == 0 ? 0 : all[from + i - 1], out[i]);
    }
  }
  bool is_filled(std::uint64_t key, std::uint32_t rank) const {
    return std::any_of(fillings_.begin(), fillings_.end(),
                       [&](const auto& f) { return f.key == key && f.rank == rank && !f.cancelled; });
  }
  void note_reservation(const ModelSession& s, std::uint64_t key, std::uint64_t parent, const Reservation& r) {
    if (r.status == ReserveStatus::Full) return;  // the rest of a call is, once one chunk found no room
    const auto chunk = chunks_.find(key);
    const bool announced = chunk != chunks_.end() && chunk->second.announced;
    const bool sealed = chunk != chunks_.end() && chunk->second.sealed.contains(s.rank);
    if (announced) CHECK_EQ(r.status, ReserveStatus::Exists);
    if (is_filled(key, s.rank)) CHECK_EQ(r.status, ReserveStatus::Busy);
    if (r.status == ReserveStatus::Exists) CHECK(sealed);
    if (r.status != ReserveStatus::Granted) return;
    CHECK(!sealed);
    const std::uint64_t begin = r.slot.offset_bytes;
    const std::uint64_t end = begin + kLayouts[s.fp].slot_bytes;
    CHECK_LE(end, world_.config.arena_bytes);
    check_unused(begin, end);
    fillings_.push_back({r.slot, s.id, key, s.fp, s.rank, false});
    parents_[key] = parent;
  }
  // A chunk that was never complete is evicted without an event; unpinning tells whether anything of it is left.
  void forget_evicted_partials() {
    std::erase_if(chunks_, [&](const auto& c) {
      return !c.second.announced && world_.store->pin(keys_of({c.first}), false) == 0;
    });
  }
  // The heart of it: nothing that somebody writes, reads or may find lies where a slot is granted.
  void check_unused(std::uint64_t begin, std::uint64_t end) const {
    const auto apart = [&](std::uint64_t b, std::uint64_t e) { CHECK(e <= begin || b >= end); };
    for (const auto& f : fillings_) apart(f.slot.offset_bytes, f.slot.offset_bytes + kLayouts[f.fp].slot_bytes);
    for (const auto& r : reads_) apart(r.begin, r.end);
    for (const auto& [key, c] : chunks_) {
      if (!c.announced) continue;
      for (const auto& [rank, slot] : c.sealed) {
        apart(slot.offset_bytes, slot.offset_bytes + kLayouts[c.fp].slot_bytes);
      }
    }
  }
  void commit() {
    ModelSession* s = any(true);
    if (s == nullptr) return;
    std::vector<CommitItem> items;
    std::uint32_t expected = 0;
    std::vector<ModelFilling> kept;
    for (const auto& f : fillings_) {
      if (f.owner != s->id || pick(4) == 0) {
        kept.push_back(f);
        continue;
      }
      items.push_back({f.slot, 0, {}});
      if (f.cancelled) continue;
      ++expected;
      ModelChunk& c = chunks_[f.key];
      c.fp = f.fp;
      c.parent = parents_[f.key];
      c.sealed[f.rank] = f.slot;
    }
    std::uint32_t accepted = 0;
    CHECK_EQ(world_.store->commit(s->id, items, &accepted), Status::Ok);
    CHECK_EQ(accepted, expected);
    fillings_ = kept;
  }
  void abort() {
    ModelSession* s = any(true);
    if (s == nullptr) return;
    std::vector<SlotRef> refs;
    std::erase_if(fillings_, [&](const auto& f) {
      if (f.owner != s->id || pick(2) == 0) return false;
      refs.push_back(f.slot);
      return true;
    });
    CHECK_EQ(world_.store->abort(s->id, refs), Status::Ok);
  }
  bool has_child(std::uint64_t key) const {
    return std::any_of(chunks_.begin(), chunks_.end(),
                       [&](const auto& c) { return c.second.parent == key && c.second.announced; });
  }
  void apply_events() {
    bool gap = false;
    std::map<Key, std::uint64_t, decltype([](const Key& a, const Key& b) { return a.bytes < b.bytes; })> numbers;
    for (const auto& [n, c] : chunks_) numbers[make_key(n)] = n;
    for (const Event& e : world_.store->drain_events(1'000'000, &gap)) {
      if (e.kind == Event::Kind::Committed) {
        ModelChunk& c = chunks_.at(numbers.at(e.key));
        CHECK(!c.announced);
        CHECK_EQ(c.sealed.size(), kLayouts[c.fp].ranks);
        c.announced = true;
      } else if (e.kind == Event::Kind::Freed) {
        const std::uint64_t n = numbers.at(e.key);
        CHECK(chunks_.at(n).announced);
        if (!forced_) check_evictable(n);
        chunks_.erase(n);
      }
    }
    CHECK(!gap);
  }
  void check_evictable(std::uint64_t n) const {
    CHECK(!chunks_.at(n).pinned);
    CHECK(!has_child(n));
    for (const auto& l : leases_) {
      CHECK(!l.live() || l.voided || std::find(l.keys.begin(), l.keys.end(), n) == l.keys.end());
    }
    for (const auto& r : reads_) {
      for (const auto& [rank, slot] : chunks_.at(n).sealed) CHECK_NE(slot.offset_bytes, r.begin);
    }
  }
  void crash() {
    std::set<SessionId> holding;
    for (const auto& f : fillings_) holding.insert(f.owner);
    for (auto& r : reads_) {
      if (!r.former) {
        holding.insert(r.session);
        former_readers_.insert(r.session);
      }
      r.former = true;
    }
    holding.insert(former_readers_.begin(), former_readers_.end());
    world_.crash_and_adopt();
    CHECK(world_.store->adopted());
    const auto unresolved = world_.store->unresolved_sessions();
    CHECK(std::set<SessionId>(unresolved.begin(), unresolved.end()) == holding);
    std::erase_if(sessions_, [&](const auto& s) { return !holding.contains(s.id); });
    for (auto& s : sessions_) {
      s.open = false;
      s.former = true;
    }
    for (auto& f : fillings_) f.cancelled = true;
    leases_.clear();
    drop_orphans();
  }
  // A chunk whose prefix was being filled at the crash is reached by no chain any more.
  void drop_orphans() {
    for (bool changed = true; changed;) {
      changed = std::erase_if(chunks_, [&](const auto& c) {
                  return c.second.parent != 0 && !chunks_.contains(c.second.parent);
                }) != 0;
    }
  }
  void check_stats() const {
    const StoreStats s = world_.store->stats();
    std::uint64_t announced = 0, pinned = 0, quarantined = 0;
    for (const auto& [n, c] : chunks_) {
      announced += c.announced ? 1 : 0;
      pinned += c.announced && c.pinned ? 1 : 0;
    }
    for (const auto& f : fillings_) {
      const auto owner =
          std::find_if(sessions_.begin(), sessions_.end(), [&](const auto& x) { return x.id == f.owner; });
      quarantined += owner->open ? 0 : 1;
    }
    CHECK_EQ(s.chunks, announced);
    CHECK_EQ(s.pinned_chunks, pinned);
    CHECK_EQ(s.slots_quarantined, quarantined);
    CHECK_EQ(s.slots_filling, fillings_.size() - quarantined);
    CHECK_LE(s.used_bytes, s.arena_bytes);
    std::uint64_t pending = 0, copying = 0;
    for (const auto& l : leases_) {
      pending += l.pending.empty() ? 0 : 1;
      copying += l.copying.empty() ? 0 : 1;
    }
    CHECK_EQ(s.leases_pending, pending);
    CHECK_EQ(s.leases_copying, copying);
  }

  std::mt19937_64 rng_;
  World world_;
  bool forced_ = false;  // this operation may remove what eviction may not
  std::vector<ModelSession> sessions_;
  std::map<std::uint64_t, ModelChunk> chunks_;
  std::map<std::uint64_t, std::uint64_t> parents_;
  std::vector<ModelFilling> fillings_;
  std::vector<ModelLease> leases_;
  std::vector<ModelRead> reads_;
  std::set<SessionId> former_readers_;
};

std::uint64_t number_from(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

}  // namespace

TEST(the_store_does_what_a_simple_model_does) {
  const std::uint64_t first = number_from("KVCOMMONS_SEED", std::random_device{}());
  const std::uint64_t rounds = number_from("KVCOMMONS_ROUNDS", 40);
  for (std::uint64_t seed = first; seed < first + rounds; ++seed) {
    std::fprintf(stderr, "seed %llu\n", static_cast<unsigned long long>(seed));
    Run run(seed);
    for (int i = 0; i < 1'500; ++i) run.step();
    run.finish();
  }
}

TEST_MAIN()
