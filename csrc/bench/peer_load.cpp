// What bench/peers.py runs: one node fetches from another (a process of its own) over loopback, by the peer tier or by
// bare sockets. One line of JSON at the end.
//
//   peer_load raw|fetch SOCKETS PAYLOAD_BYTES COUNT IN_FLIGHT [CA CERT KEY]
//
// raw: each socket is sent its share of COUNT payloads as fast as send() takes them, and reads them into buffers of
// their own. fetch: batches of 4 MiB (or one payload) through the peer tier, IN_FLIGHT at one time, verified; with the
// files of a certificate by TLS. Connections are made before the clock starts.
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "core/peers/peer_server.h"
#include "core/peers/peer_tier.h"
#include "core/xxh3.h"

namespace {

using namespace kvcommons;
using namespace kvcommons::peers;

constexpr std::uint64_t kBatchBytes = 4ull << 20;
constexpr std::uint32_t kLongMs = 120'000;

struct Case {
  bool raw = false;
  std::uint32_t sockets = 0;
  std::uint64_t payload_bytes = 0, count = 0, in_flight = 0;
  std::optional<TlsConfig> tls;
};

Case parse(int argc, char** argv) {
  if (argc != 6 && argc != 9) throw std::invalid_argument("usage: see the head of peer_load.cpp");
  Case c;
  c.raw = std::strcmp(argv[1], "raw") == 0;
  c.sockets = static_cast<std::uint32_t>(std::stoul(argv[2]));
  c.payload_bytes = std::stoull(argv[3]);
  c.count = std::stoull(argv[4]);
  c.in_flight = std::stoull(argv[5]);
  if (argc == 9) c.tls = TlsConfig{argv[6], argv[7], argv[8]};
  return c;
}

// As an arena: a memfd, mapped and populated.
std::byte* make_arena(std::uint64_t bytes) {
  const int fd = ::memfd_create("peer-load", MFD_CLOEXEC);
  if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(bytes)) != 0) throw std::runtime_error("no memory for an arena");
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  if (at == MAP_FAILED) throw std::runtime_error("no memory for an arena");
  return static_cast<std::byte*>(at);
}

Key key_of(std::uint64_t number) {
  Key key;
  for (std::size_t i = 0; i < kKeyBytes; i += 8) {
    const std::uint64_t part = xxh3_64(&number, sizeof number, i);
    std::memcpy(key.bytes.data() + i, &part, sizeof part);
  }
  return key;
}
Key fingerprint() { return key_of(1'000'000'007); }
constexpr Rect kRect{0, 4, 0, 1};

void fill(std::byte* arena, const Case& c) {
  std::uint64_t word = 1;
  for (std::uint64_t i = 0; i < c.payload_bytes * c.count; i += 8) {
    word = word * 6'364'136'223'846'793'005ull + 1'442'695'040'888'963'407ull;
    std::memcpy(arena + i, &word, 8);
  }
}

// An owner whose memory holds everything that is asked for.
class ArenaSource final : public PeerSource {
 public:
  ArenaSource(const std::byte* arena, const Case& c) : arena_(arena), payload_bytes_(c.payload_bytes) {
    for (std::uint64_t i = 0; i < c.count; ++i) {
      numbers_[key_of(i)] = i;
      checksums_.push_back(xxh3_64(arena + i * c.payload_bytes, c.payload_bytes));
    }
  }
  void locate(const wire::LocateRequest& request, wire::LocatedReply* out) override {
    out->head.chunks = static_cast<std::uint32_t>(request.keys.size());
    out->places.assign(request.keys.size(), {payload_bytes_, 1, 0});
  }
  wire::Answer lend(const Key& of, const wire::Item& item, Lent* out) override {
    const std::uint64_t i = numbers_.at(item.key);
    out->meta = {{of, item.key, item.rect}, {}, 0, payload_bytes_, checksums_[i], 256, 0, {}};
    out->data = arena_ + i * payload_bytes_;
    out->hold = std::make_shared<int>(0);
    return wire::Answer::Ok;
  }
  wire::Answer take(const wire::ShardHead&, Room*) override { return wire::Answer::Denied; }
  std::uint64_t remove(const wire::RemoveRequest&) override { return 0; }

 private:
  const std::byte* arena_;
  std::uint64_t payload_bytes_;
  std::unordered_map<Key, std::uint64_t, KeyHash> numbers_;
  std::vector<std::uint64_t> checksums_;
};

void tell(int pipe, std::uint64_t value) {
  if (::write(pipe, &value, sizeof value) != sizeof value) ::_exit(1);
}
std::uint64_t hear(int pipe) {
  std::uint64_t value = 0;
  if (::read(pipe, &value, sizeof value) != sizeof value) throw std::runtime_error("the other process is gone");
  return value;
}

// Its share of the payloads on each connection, once a byte has asked for it.
void serve_raw(const Case& c, const std::byte* arena, int tells) {
  std::uint16_t port = 0;
  const UniqueFd listener = tcp_listen("127.0.0.1", 0, &port);
  tell(tells, port);
  std::vector<std::thread> threads;
  for (std::uint32_t n = 0; n < c.sockets; ++n) {
    (void)wait_until(listener.get(), 1, in_ms(kLongMs));
    threads.emplace_back([&c, arena, n, fd = tcp_accept(listener.get()).release()] {
      PlainStream stream{UniqueFd(fd)};
      std::byte go{};
      if (!stream.read({&go, 1}, in_ms(kLongMs))) ::_exit(1);
      for (std::uint64_t i = n; i < c.count; i += c.sockets) {
        if (!stream.write({arena + i * c.payload_bytes, c.payload_bytes}, in_ms(kLongMs))) ::_exit(1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

[[noreturn]] void serve(const Case& c, int tells, int hears) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::byte* arena = make_arena(c.payload_bytes * c.count);
  fill(arena, c);
  if (c.raw) {
    serve_raw(c, arena, tells);
    (void)hear(hears);
    ::_exit(0);
  }
  ArenaSource source(arena, c);
  PeerServerConfig config;
  config.tls = c.tls;
  config.send_ms_max = kLongMs;
  PeerServer server(config, &source);
  server.set_epoch(1);
  tell(tells, server.port());
  (void)hear(hears);
  tell(tells, server.stats().sent_bytes_zero_copy.load());
  ::_exit(0);
}

double fetch_raw(const Case& c, std::byte* arena, std::uint16_t port) {
  std::vector<std::unique_ptr<PlainStream>> streams;
  for (std::uint32_t n = 0; n < c.sockets; ++n) {
    streams.push_back(std::make_unique<PlainStream>(tcp_connect("127.0.0.1", port, in_ms(kLongMs))));
  }
  const auto begun = Clock::now();
  std::vector<std::thread> threads;
  for (std::uint32_t n = 0; n < c.sockets; ++n) {
    threads.emplace_back([&, n] {
      const std::byte go{};
      bool good = streams[n]->write({&go, 1}, in_ms(kLongMs));
      for (std::uint64_t i = n; i < c.count && good; i += c.sockets) {
        good = streams[n]->read({arena + i * c.payload_bytes, c.payload_bytes}, in_ms(kLongMs));
      }
      if (!good) ::_exit(1);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return std::chrono::duration<double>(Clock::now() - begun).count();
}

// Finds everything, as lookups would.
void locate_all(PeerTier& tier, const Case& c) {
  const std::vector<ShardSpec> shards{{kRect, c.payload_bytes}};
  std::vector<Key> keys;
  for (std::uint64_t i = 0; i < c.count; ++i) keys.push_back(key_of(i));
  for (std::size_t at = 0; at < keys.size();) {
    const ShardId id{fingerprint(), keys[at], kRect};
    std::uint64_t bytes = 0;
    tier.find(std::span(&id, 1), std::span(&bytes, 1));
    if (bytes != 0) {
      ++at;
      continue;
    }
    (void)tier.seek({fingerprint(), 256, shards, std::span(keys).subspan(at), 0});
    for (const Question& question : tier.questions(16)) tier.answer(question.id, {{1, 1, 1}});
    std::this_thread::yield();
  }
}

class Fetcher {
 public:
  Fetcher(PeerTier* tier, const Case& c, std::byte* arena) : tier_(tier), case_(c), arena_(arena) {}
  double run(std::uint64_t count) {
    const std::uint64_t each = std::max<std::uint64_t>(1, kBatchBytes / case_.payload_bytes);
    const auto begun = Clock::now();
    for (std::uint64_t at = 0; at < count; at += each) {
      std::vector<GetItem> batch;
      for (std::uint64_t i = at; i < std::min(count, at + each); ++i) {
        batch.push_back({{fingerprint(), key_of(i), kRect}, arena_ + i * case_.payload_bytes, case_.payload_bytes});
      }
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return under_way_ < case_.in_flight; });
      ++under_way_;
      lock.unlock();
      const bool taken = tier_->get(std::move(batch), [this](std::span<const GetResult> results) {
        const std::lock_guard ended(mutex_);
        for (const GetResult& result : results) good_ &= result.status == TierStatus::Ok;
        --under_way_;
        changed_.notify_all();
      });
      if (!taken) throw std::runtime_error("a batch was refused");
    }
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return under_way_ == 0; });
    if (!good_) throw std::runtime_error("a payload was not fetched");
    return std::chrono::duration<double>(Clock::now() - begun).count();
  }

 private:
  PeerTier* tier_;
  const Case& case_;
  std::byte* arena_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t under_way_ = 0;
  bool good_ = true;
};

double fetch_by_tier(const Case& c, std::byte* arena, std::uint16_t port) {
  PeerTierConfig config;
  config.sockets_per_peer = c.sockets;
  config.tls = c.tls;
  config.fetch_ms_max = config.locate_ms_max = config.location_ms = config.connect_ms_max = kLongMs;
  config.gate = false;
  config.on_questions = [] {};
  PeerTier tier(config);
  tier.set_peers({{1, 1, "owner", "127.0.0.1", port}});
  locate_all(tier, c);
  Fetcher fetcher(&tier, c, arena);
  (void)fetcher.run(std::min<std::uint64_t>(c.count, 8ull * c.sockets));  // connections
  return fetcher.run(c.count);
}

}  // namespace

int main(int argc, char** argv) try {
  const Case c = parse(argc, argv);
  int to_us[2], to_it[2];
  if (::pipe(to_us) != 0 || ::pipe(to_it) != 0) return 1;
  const pid_t child = ::fork();
  if (child < 0) return 1;
  if (child == 0) serve(c, to_us[1], to_it[0]);
  std::byte* arena = make_arena(c.payload_bytes * c.count);
  const auto port = static_cast<std::uint16_t>(hear(to_us[0]));
  const double seconds = c.raw ? fetch_raw(c, arena, port) : fetch_by_tier(c, arena, port);
  tell(to_it[1], 1);
  const std::uint64_t zero_copy = c.raw ? 0 : hear(to_us[0]);
  (void)::waitpid(child, nullptr, 0);
  std::printf("{\"seconds\": %.6f, \"bytes\": %llu, \"zero_copy_bytes\": %llu}\n", seconds,
              static_cast<unsigned long long>(c.payload_bytes * c.count), static_cast<unsigned long long>(zero_copy));
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "peer_load: %s\n", error.what());
  return 1;
}
