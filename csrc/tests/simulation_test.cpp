// Several nodes, with everything real but time: stores, disks in files, peers over sockets, a store far away that they
// share, arenas that are resized, and faults of all of them. After every step: nothing wrong is served, nothing is lost
// that should not be; at the end nothing is left.
//
// A run is made of its seed alone: each step has a draw of its own, so that steps can be left out. The seed is printed.
//   KVCOMMONS_SEED=N repeats a run, KVCOMMONS_ROUNDS=N makes N of them, KVCOMMONS_STEPS=N of so many steps;
//   KVCOMMONS_SHRINK=1 looks for the fewest steps that still fail, and prints them; KVCOMMONS_KEEP=3,17,20 takes those.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <sstream>

#include "simulation_node.h"

using namespace kvcommons;
using namespace kvcommons::testing;
using namespace kvcommons::testing::simulation;

namespace {

constexpr std::uint64_t kNodes = 3, kChains = 12;
constexpr const char* kPolicies[] = {"lru", "s3fifo", "cost", "auto"};

std::uint64_t setting(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

std::uint64_t mixed(std::uint64_t a, std::uint64_t b) { return xxh3_64(&a, sizeof a, b); }

std::size_t open_files() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

// What a run came across: one that never met a fault or a tier would prove nothing.
struct Met {
  std::uint64_t read = 0, promoted = 0, written = 0, evicted = 0, refused = 0, failed = 0, restarts = 0, moves = 0,
                fetched = 0;
  void add(const SimNode& node) {
    const TierManagerStats moved = node.manager->stats();
    promoted += moved.promoted;
    written += moved.written;
    refused += moved.write_refused;
    failed += moved.read_failed;
    evicted += node.world.store->stats().evicted;
    if (node.peer) fetched += node.peer->tier->peer_stats().fetched;
  }
};

class Simulation {
 public:
  // Half of the runs let everything come to rest after each step; what each step finds is then the same in each run.
  // The others have peers, too, whose sockets nobody can bring to rest.
  explicit Simulation(std::uint64_t seed) : seed_(seed), quiet_(seed % 2 == 0), rots_(seed % 3 == 0) {
    tiers::MemoryTierConfig far;
    far.capacity_bytes = kFarBytes;
    far_ = std::make_shared<MemoryTier>(far);
    for (std::uint64_t i = 0; i < kNodes; ++i) {
      nodes_.push_back(std::make_unique<SimNode>(far_, i != kNodes - 1, !quiet_, seed * 10 + i, &clock_ms_,
                                                 kPolicies[(seed / 2 + i) % std::size(kPolicies)]));
    }
    meet();
  }

  void step(std::uint64_t index) {
    random_.seed(mixed(seed_, index));
    SimNode& node = *nodes_[pick(kNodes)];
    switch (pick(16)) {
      case 0:
        clock_ms_ += pick(4) == 0 ? 40'000 : pick(200);
        node.world.store->expire_leases();
        break;
      case 1:
        if (pick(8) == 0) clear(node);
        break;
      case 2:
        break_something(node);
        break;
      case 3:
        if (pick(4) == 0) restart(node);
        break;
      case 4:
        if (pick(2) == 0) engine_dies(node);
        break;
      case 5:
        prove_dead(node);
        break;
      case 6:
      case 7:
        finish_reading(node);
        break;
      case 8:
      case 9:
      case 10:
        store(node);
        break;
      default:
        ask(node);
    }
    if (quiet_) {
      for (const auto& one : nodes_) one->settle();
    }
    answer_questions();
    check();
  }

  Met met;

  // Faults end, everybody goes away and proves it: nothing may stay behind.
  void finish() {
    for (const auto& node : nodes_) {
      met.add(*node);
      heal(*node);
      for (auto& [key, engine] : node->engines) node->gone.push_back(engine.id);
      for (const SessionId id : node->gone) node->world.store->resolve_session(id);
      for (const SessionId id : node->world.store->unresolved_sessions()) node->world.store->resolve_session(id);
      node->settle();
      clock_ms_ += 20'000;  // and what a dead node was reading has ended
      await([&] {
        std::uint64_t unused = 0;
        node->settle();
        node->manager->clear(nullptr, &unused);
        return node->world.store->stats().used_bytes == 0;
      });
      check_empty(*node->world.store);
      const TierManagerStats moved = node->manager->stats();
      CHECK_EQ(moved.write_waiting + moved.write_in_flight_bytes + moved.read_in_flight_bytes, 0u);
      node->check_folder();
    }
    CHECK_EQ(far_->stats().used_bytes, 0u);
  }

 private:
  std::uint64_t pick(std::uint64_t n) { return random_() % n; }

  // All nodes are told who is there now.
  void meet() {
    for (std::uint32_t me = 0; me < kNodes; ++me) {
      std::vector<peers::PeerAddress> others;
      for (std::uint32_t i = 0; i < kNodes; ++i) {
        if (i != me && nodes_[i]->peer) others.push_back(nodes_[i]->peer->address(i));
      }
      if (nodes_[me]->peer) nodes_[me]->peer->tier->set_peers(others);
    }
  }
  // As the index does, which now and then tells of what is long gone.
  void answer_questions() {
    for (const auto& node : nodes_) {
      if (!node->peer) continue;
      for (const peers::Question& question : node->peer->tier->questions(16)) {
        std::vector<peers::Candidate> candidates;
        for (std::uint32_t i = 0; i < kNodes; ++i) {
          if (nodes_[i] == node) continue;
          const std::uint32_t has = nodes_[i]->world.store->lookup_any(question.fingerprint, question.keys);
          const auto all = static_cast<std::uint32_t>(question.keys.size());
          candidates.push_back({i, nodes_[i]->peer->epoch(), pick(8) == 0 ? all : has});
        }
        node->peer->tier->answer(question.id, candidates);
      }
      // Sometimes the answers are there before the next step.
      for (int left = pick(2) == 0 ? 2'000 : 0; left > 0; --left) {
        const peers::PeerTierStats stats = node->peer->tier->peer_stats();
        if (stats.located + stats.nowhere + stats.unanswered >= stats.questions) break;
        std::this_thread::yield();
      }
    }
  }

  void store(SimNode& node) {
    const auto fp = static_cast<std::uint32_t>(pick(kFingerprints));
    const std::uint64_t chain = pick(kChains);
    const std::size_t from = pick(2) == 0 ? 0 : pick(kChainLength), to = from + 1 + pick(kChainLength - from);
    const auto keys = keys_of(fp, chain, from, to);
    const Key parent = from == 0 ? Key{} : make_key(number_of(fp, chain, from - 1));
    const std::vector<std::uint64_t> text{chain};
    for (std::uint32_t rank = 0; rank < kLayouts[fp].ranks; ++rank) {
      const Engine& engine = node.engine(fp, rank);
      const auto granted = engine.reserve(keys, parent, eviction::Hints::unpacked(hints()), fp);
      const std::uint64_t bytes = kLayouts[fp].slot_bytes;
      std::vector<CommitItem> items;
      std::vector<SlotRef> given_up;
      for (std::size_t i = 0; i < keys.size(); ++i) {
        if (granted[i].status != ReserveStatus::Granted) continue;
        fill_shard(node.at(granted[i].slot), bytes, keys[i], rank);
        const std::uint64_t fate = pick(20);
        if (fate == 0) {
          given_up.push_back(granted[i].slot);
        } else if (fate == 1) {
          node.held.push_back({engine.id, granted[i].slot});
        } else {
          items.push_back({granted[i].slot, pick(2) == 0 ? 0 : xxh3_64(node.at(granted[i].slot), bytes), text});
        }
      }
      std::uint32_t accepted = 0;
      CHECK_EQ(node.world.store->commit(engine.id, items, &accepted), Status::Ok);
      CHECK_EQ(node.world.store->abort(engine.id, given_up), Status::Ok);
    }
  }
  std::uint32_t hints() { return pick(4) == 0 ? static_cast<std::uint32_t>(random_()) : 0; }

  // As a request does: what is there is read, and checked; the rest is asked of the tiers.
  void ask(SimNode& node) {
    const auto fp = static_cast<std::uint32_t>(pick(kFingerprints));
    const auto keys = keys_of(fp, pick(kChains), 0, 1 + pick(kChainLength));
    const Engine& scheduler = node.engine(fp, 0);
    const LookupResult found = scheduler.lease(keys);
    (void)node.manager->wanted(scheduler.id, fp, keys, found.hit_chunks);
    if (found.lease == 0) return;
    for (std::uint32_t rank = 0; rank < kLayouts[fp].ranks; ++rank) {
      Reading reading{node.engine(fp, rank).id, found.lease, fp, rank, {}, {}, node.world.arena->base()};
      const Status status = node.engine(fp, rank).begin(found.lease, &reading.slots);
      if (status != Status::Ok) {
        CHECK_EQ(status, Status::Gone);
        std::erase_if(node.readings, [&](const Reading& r) { return r.lease == found.lease; });
        node.world.store->release(scheduler.id, found.lease);
        return;
      }
      reading.keys.assign(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(reading.slots.size()));
      check_reading(reading);
      met.read += reading.slots.size();
      node.readings.push_back(reading);
    }
    if (pick(3) != 0) finish_reading(node);
  }
  static void check_reading(const Reading& reading) {
    for (std::size_t i = 0; i < reading.slots.size(); ++i) {
      check_shard(reading.arena + reading.slots[i].offset_bytes, kLayouts[reading.fp].slot_bytes, reading.keys[i],
                  reading.rank);
    }
  }
  void finish_reading(SimNode& node) {
    while (!node.readings.empty() && pick(6) != 0) {
      const Reading reading = node.readings.back();
      node.readings.pop_back();
      check_reading(reading);
      node.world.store->release(reading.session, reading.lease);
    }
  }

  void clear(SimNode& node) {
    std::uint64_t removed = 0;
    const Key fingerprint = make_key(pick(kFingerprints) + 0xf000'0000);
    node.manager->clear(pick(3) == 0 ? nullptr : &fingerprint, &removed);
  }

  void engine_dies(SimNode& node) {
    if (node.engines.empty()) return;
    auto it = node.engines.begin();
    std::advance(it, static_cast<std::ptrdiff_t>(pick(node.engines.size())));
    const SessionId id = it->second.id;
    node.engines.erase(it);
    node.world.store->close_session(id);
    node.gone.push_back(id);
  }
  void prove_dead(SimNode& node) {
    for (const SessionId id : node.gone) {
      std::erase_if(node.readings, [&](const Reading& r) { return r.session == id; });
      std::erase_if(node.held, [&](const Held& h) { return h.session == id; });
      node.world.store->resolve_session(id);
    }
    node.gone.clear();
  }

  void heal(SimNode& node) {
    node.faults.set({});
    node.faults.hold(false);
    node.network->set_rates({});
    node.network->set_health(TierHealth::Serving);
    if (node.disk) node.disk->set_rates({});
    if (!node.peer) return;
    node.peer->source.set({});
    if (node.peer->server) return;
    node.peer->appear();
    meet();
  }
  void break_something(SimNode& node) {
    const std::uint64_t draw = random_();
    switch (pick(10)) {
      case 0:  // a medium that refuses some operations, always the same ones
        node.faults.set([draw](const IoOp& op, std::size_t) {
          const bool bad = mixed(draw, op.offset_bytes) % 6 == 0;
          return !bad ? 0 : op.kind == IoOp::Kind::Write && draw % 2 == 0 ? ENOSPC : EIO;
        });
        break;
      case 1:
        if (node.disk) node.disk->set_rates({60, 60, 60, 60, 60, 60, 60});
        break;
      case 2:
        node.network->set_rates({200, 0, 100, 200, 0, 100, 100});
        break;
      case 3:
        node.network->set_health(TierHealth::Gone);  // a partition
        break;
      case 4:
        if (rots_) node.rot(draw);
        break;
      case 5:
        if (!quiet_) node.faults.hold(pick(2) == 0);  // a device that hangs: what waits for it is not waited for
        break;
      case 6:  // cut off from its peers, or lying to them
        if (!node.peer) break;
        if (draw % 2 == 0) node.peer->vanish();
        node.peer->source.set({100, 100, 50, 200});
        break;
      default:
        heal(node);
    }
  }

  void restart(SimNode& node) {
    const auto ids = all_shards();
    const bool exact = quiet_ && !node.rotten;
    const auto before = exact ? node.on_disk(ids) : std::vector<ShardId>{};
    met.add(node);
    ++met.restarts;
    for (const auto& [key, engine] : node.engines) node.gone.push_back(engine.id);
    const std::uint64_t arena_before = node.arena_bytes();
    const std::uint64_t arena_bytes = pick(3) == 0 ? kMiB << pick(3) : arena_before;
    met.moves += arena_bytes == arena_before ? 0 : 1;
    std::set<std::uint64_t> chunks;  // what was being brought in until the end may have cost others their place
    node.kill_and_restart(arena_bytes, [&] {
      apply_events(node);
      chunks = node.chunks;
    });
    meet();
    if (exact) CHECK(node.on_disk(before).size() == before.size());
    // What could be hit can be hit again, unless what it follows was not whole, or it no longer fits.
    for (const std::uint64_t number : chunks) {
      const auto fp = static_cast<std::uint32_t>(number / 1'000'000);
      const std::uint64_t chain = number % 1'000'000 / 1'000;
      const std::size_t length = number % 1'000;
      const auto keys = keys_of(fp, chain, 0, length);
      const Key fingerprint = make_key(fp + 0xf000'0000);
      bool whole = arena_bytes >= arena_before;
      for (std::size_t i = 0; i < length; ++i) whole = whole && chunks.contains(number_of(fp, chain, i));
      if (whole) CHECK_EQ(node.world.store->lookup_any(fingerprint, keys), length);
    }
    bool gap = false;
    (void)node.world.store->drain_events(100'000, &gap);
    node.chunks.clear();
    for (const std::uint64_t number : all_numbers()) {
      const auto fp = static_cast<std::uint32_t>(number / 1'000'000);
      const Key fingerprint = make_key(fp + 0xf000'0000), key = make_key(number);
      if (node.world.store->lookup_any(fingerprint, std::span(&key, 1)) == 1) node.chunks.insert(number);
    }
  }

  static const std::vector<std::uint64_t>& all_numbers() {
    static const std::vector<std::uint64_t> all = [] {
      std::set<std::uint64_t> numbers;
      for (std::uint32_t fp = 0; fp < kFingerprints; ++fp) {
        for (std::uint64_t chain = 0; chain < kChains; ++chain) {
          for (std::size_t i = 0; i < kChainLength; ++i) numbers.insert(number_of(fp, chain, i));
        }
      }
      return std::vector<std::uint64_t>(numbers.begin(), numbers.end());
    }();
    return all;
  }
  static const std::vector<ShardId>& all_shards() {
    static const std::vector<ShardId> all = [] {
      std::vector<ShardId> ids;
      for (const std::uint64_t number : all_numbers()) {
        const auto fp = static_cast<std::uint32_t>(number / 1'000'000);
        for (std::uint32_t rank = 0; rank < kLayouts[fp].ranks; ++rank) {
          const auto own = static_cast<std::uint16_t>(rank);
          ids.push_back({make_key(fp + 0xf000'0000), make_key(number), shard(own, kLayouts[fp].slot_bytes).rect});
        }
      }
      return ids;
    }();
    return all;
  }

  void apply_events(SimNode& node) {
    static const auto numbers = [] {
      std::unordered_map<Key, std::uint64_t, KeyHash> out;
      for (const std::uint64_t number : all_numbers()) out[make_key(number)] = number;
      return out;
    }();
    bool gap = false;
    for (const Event& event : node.world.store->drain_events(100'000, &gap)) {
      if (event.kind == Event::Kind::Committed) CHECK(node.chunks.insert(numbers.at(event.key)).second);
      if (event.kind == Event::Kind::Freed) CHECK_EQ(node.chunks.erase(numbers.at(event.key)), 1u);
    }
    CHECK(!gap);
  }

  void check() {
    for (const auto& node : nodes_) {
      for (const Reading& reading : node->readings) check_reading(reading);
      apply_events(*node);
      const StoreStats stats = node->world.store->stats();
      CHECK_LE(stats.used_bytes, stats.arena_bytes);
      CHECK_EQ(stats.checksum_failures, 0u);  // of memory nothing ever went wrong
      if (!quiet_) continue;
      CHECK_EQ(stats.chunks, node->chunks.size());
      for (const std::uint64_t number : node->chunks) {
        const Key fingerprint = make_key(number / 1'000'000 + 0xf000'0000), key = make_key(number);
        CHECK_EQ(node->world.store->lookup_any(fingerprint, std::span(&key, 1)), 1u);
      }
    }
  }

  std::uint64_t seed_;
  bool quiet_, rots_;
  std::mt19937_64 random_;
  std::atomic<std::uint64_t> clock_ms_{1'000'000};
  std::shared_ptr<MemoryTier> far_;
  std::vector<std::unique_ptr<SimNode>> nodes_;
};

Met simulate(std::uint64_t seed, const std::vector<std::uint64_t>& steps) {
  const std::size_t files = open_files();
  Met met;
  {
    Simulation simulation(seed);
    for (const std::uint64_t step : steps) simulation.step(step);
    simulation.finish();
    met = simulation.met;
  }
  CHECK_EQ(open_files(), files);
  return met;
}

// In a process of its own, which may abort.
bool fails(std::uint64_t seed, const std::vector<std::uint64_t>& steps) {
  const pid_t child = ::fork();
  CHECK(child >= 0);
  if (child == 0) {
    CHECK(std::freopen("/dev/null", "w", stderr) != nullptr);
    simulate(seed, steps);
    ::_exit(0);
  }
  int status = 0;
  CHECK_EQ(::waitpid(child, &status, 0), child);
  return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

// Leaves out half of the steps, quarters, eighths ... as long as what is left still fails.
std::vector<std::uint64_t> shrunk(std::uint64_t seed, std::vector<std::uint64_t> steps) {
  for (std::size_t piece = steps.size() / 2; piece != 0; piece /= 2) {
    for (std::size_t at = 0; at < steps.size();) {
      auto fewer = steps;
      const auto first = fewer.begin() + static_cast<std::ptrdiff_t>(at);
      fewer.erase(first, first + static_cast<std::ptrdiff_t>(std::min(piece, fewer.size() - at)));
      if (fails(seed, fewer)) {
        steps = std::move(fewer);
      } else {
        at += piece;
      }
    }
  }
  return steps;
}

std::vector<std::uint64_t> steps_wanted() {
  std::vector<std::uint64_t> steps;
  if (const char* kept = std::getenv("KVCOMMONS_KEEP")) {
    std::istringstream in(kept);
    for (std::string one; std::getline(in, one, ',');) steps.push_back(std::stoull(one));
    return steps;
  }
  for (std::uint64_t i = 0; i < setting("KVCOMMONS_STEPS", 600); ++i) steps.push_back(i);
  return steps;
}

}  // namespace

TEST(nodes_that_break_in_every_way_serve_nothing_wrong_and_lose_and_leak_nothing) {
  const std::uint64_t first = setting("KVCOMMONS_SEED", std::random_device{}());
  const std::uint64_t rounds = setting("KVCOMMONS_ROUNDS", std::getenv("KVCOMMONS_SEED") != nullptr ? 1 : 6);
  Met all;
  for (std::uint64_t seed = first; seed < first + rounds; ++seed) {
    std::fprintf(stderr, "seed %llu\n", static_cast<unsigned long long>(seed));
    const auto steps = steps_wanted();
    if (setting("KVCOMMONS_SHRINK", 0) == 0) {
      const Met met = simulate(seed, steps);
      std::fprintf(stderr,
                   "  read %llu, promoted %llu, written %llu, evicted %llu, refused %llu, failed %llu, restarts %llu, "
                   "moves %llu, fetched %llu\n",
                   static_cast<unsigned long long>(met.read), static_cast<unsigned long long>(met.promoted),
                   static_cast<unsigned long long>(met.written), static_cast<unsigned long long>(met.evicted),
                   static_cast<unsigned long long>(met.refused), static_cast<unsigned long long>(met.failed),
                   static_cast<unsigned long long>(met.restarts), static_cast<unsigned long long>(met.moves),
                   static_cast<unsigned long long>(met.fetched));
      all.read += met.read;
      all.promoted += met.promoted;
      all.written += met.written;
      all.evicted += met.evicted;
      all.refused += met.refused;
      all.restarts += met.restarts;
      all.moves += met.moves;
      all.fetched += met.fetched;
    } else if (fails(seed, steps)) {
      std::string text;
      for (const std::uint64_t step : shrunk(seed, steps)) text += (text.empty() ? "" : ",") + std::to_string(step);
      fail("KVCOMMONS_SEED", 0, std::to_string(seed) + " fails with KVCOMMONS_KEEP=" + text);
    }
  }
  if (rounds < 5 || setting("KVCOMMONS_SHRINK", 0) != 0) return;
  CHECK_GT(all.read, 100 * rounds);
  CHECK_GT(all.promoted, rounds);
  CHECK_GT(all.evicted, rounds);
  CHECK_GT(all.refused, rounds);
  CHECK_GT(all.restarts, rounds);
  CHECK_GT(all.moves, rounds / 2);
  CHECK_GT(all.fetched, 0u);
}

TEST_MAIN()
