// What the tests of the socket share: a short temporary directory, a node in this or in another process, frames sent
// raw.
#pragma once

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/client.h"
#include "core/codec.h"
#include "core/memory.h"
#include "core/node_core.h"

namespace kvcommons::testing {

// Socket paths have 107 bytes at most, so this stays short.
class TempDir {
 public:
  TempDir() {
    char name[] = "/tmp/kvcXXXXXX";
    CHECK(::mkdtemp(name) != nullptr);
    path_ = name;
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  TempDir(const TempDir&) = delete;  // removes its directory
  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// Asks again each millisecond until `holds`; fails the test after 20 s.
inline void wait_until(const std::function<bool()>& holds, const char* what) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!holds()) {
    if (std::chrono::steady_clock::now() > deadline) fail(what, 0, "did not come true in 20 s");
    ::poll(nullptr, 0, 1);
  }
}

inline Key key_of(std::uint64_t number) {
  Key key;
  std::mt19937_64 random(number);
  for (std::size_t i = 0; i < kKeyBytes; i += 8) {
    const std::uint64_t part = random();
    std::memcpy(key.bytes.data() + i, &part, sizeof part);
  }
  return key;
}

inline std::vector<Key> keys_of(std::uint64_t first, std::size_t count) {
  std::vector<Key> keys;
  for (std::size_t i = 0; i < count; ++i) keys.push_back(key_of(first + i));
  return keys;
}

inline constexpr std::uint64_t kSlotBytes = 16'384;
inline constexpr std::uint64_t kTestArenaBytes = 16ull << 20;

inline NodeConfig node_config(const TempDir& directory, std::uint64_t arena_bytes = kTestArenaBytes) {
  NodeConfig config;
  config.socket_path = directory.file("n");
  config.node_id = "node-1";
  config.namespace_secret = key_of(4711);
  config.store.arena_bytes = arena_bytes;
  return config;
}

inline ClientConfig client_config(const std::string& socket_path, wire::Role role = wire::Role::Worker) {
  ClientConfig config;
  config.socket_path = socket_path;
  config.role = role;
  config.reconnect_ms_min = 1;
  config.reconnect_ms_max = 20;
  config.call_ms_max = 5'000;  // sanitizers and a busy machine
  if (role == wire::Role::Tool) return config;
  config.fingerprint = key_of(1);
  config.chunk_tokens = 256;
  config.shards = {{{0, 2, 0, 4}, kSlotBytes}};
  if (role == wire::Role::Worker) config.own_shard = 0;
  return config;
}

// Reserves, fills each slot with its index + 1, and commits.
inline void store_chunks(Client& client, const std::vector<Key>& keys) {
  std::vector<Reservation> slots;
  client.copy_started();
  CHECK(client.reserve(1, Key{}, keys, &slots) == Status::Ok);
  std::vector<CommitItem> items;
  const Client::ArenaRef arena = client.arena();
  for (std::size_t i = 0; i < slots.size(); ++i) {
    CHECK(slots[i].status == ReserveStatus::Granted);
    std::memset(arena.get() + slots[i].slot.offset_bytes, static_cast<int>(i + 1), kSlotBytes);
    items.push_back({slots[i].slot, 0, {}});
  }
  std::uint32_t accepted = 0;
  CHECK(client.commit(items, &accepted) == Status::Ok);
  client.copy_finished();
  CHECK_EQ(accepted, keys.size());
}

inline std::uint32_t hits(Client& client, const std::vector<Key>& keys) {
  Client::Hit hit;
  const Status status = client.lookup(keys, 1, false, &hit);
  if (status != Status::Ok) fail("lookup", static_cast<int>(status), client.last_error());
  return hit.hit_chunks;
}

// One counter of the node, asked for over the socket.
inline std::uint64_t counter(Client& client, const std::string& name) {
  std::string json;
  CHECK(client.stat(&json) == Status::Ok);
  const auto at = json.find("\"" + name + "\":");
  CHECK(at != std::string::npos);
  return std::strtoull(json.c_str() + at + name.size() + 3, nullptr, 10);
}

// A process of its own that runs `work` and is killed with this object, or when the test dies.
class Process {
 public:
  explicit Process(const std::function<void()>& work) {
    std::fflush(nullptr);
    pid_ = ::fork();
    CHECK(pid_ >= 0);
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    try {
      work();
    } catch (const std::exception& error) {
      fail("child process", 0, error.what());
    }
    ::_exit(0);
  }
  ~Process() { kill(); }
  Process(const Process&) = delete;  // reaped once

  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    wait();
  }
  // The exit status, or -1 if it was killed.
  int wait() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  [[nodiscard]] pid_t pid() const noexcept { return pid_; }

 private:
  pid_t pid_ = -1;
};

// A node in a process of its own, serving when this is made.
inline std::unique_ptr<Process> node_process(const NodeConfig& config) {
  int ready[2];
  CHECK(::pipe(ready) == 0);
  auto process = std::make_unique<Process>([&] {
    ::close(ready[0]);
    NodeCore node(config);
    node.start();
    CHECK(::write(ready[1], "1", 1) == 1);
    for (;;) ::pause();
  });
  ::close(ready[1]);
  char byte = 0;
  CHECK(::read(ready[0], &byte, 1) == 1);
  ::close(ready[0]);
  return process;
}

inline std::unique_ptr<Process> holder_process(const std::string& path, std::uint32_t idle_seconds_max = 60) {
  auto process = std::make_unique<Process>([&] { holder_serve(path, idle_seconds_max, {}); });
  wait_until([&] { return static_cast<bool>(unix_connect(path, SOCK_SEQPACKET)); }, "the holder listens");
  return process;
}

// Frames as nobody's client would send them.
class RawClient {
 public:
  explicit RawClient(const std::string& path) : socket_(unix_connect(path, SOCK_STREAM)) { CHECK(socket_); }
  // What the socket takes at once: false when it takes no more, or the node has closed it.
  bool send(std::span<const std::byte> bytes) {
    return ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT) ==
           static_cast<ssize_t>(bytes.size());
  }
  // The next whole reply's status, or Disconnected.
  Status receive() {
    wire::Frame frame;
    in_.consume(consumed_);
    consumed_ = 0;
    while (wire::parse_reply(in_.bytes(), &frame) != wire::Parse::Complete) {
      CHECK(wait_for(socket_.get(), POLLIN, 20'000));
      const auto room = in_.room(65'536);
      const ssize_t got = ::recv(socket_.get(), room.data(), room.size(), 0);
      if (got <= 0) return Status::Disconnected;
      in_.filled(static_cast<std::size_t>(got));
    }
    consumed_ = frame.bytes();
    payload_.assign(frame.payload.begin(), frame.payload.end());
    return static_cast<Status>(frame.header.status);
  }
  // Closed by the node, whatever it said before.
  bool closed_by_node() {
    while (receive() != Status::Disconnected) {
    }
    return true;
  }
  Status hello(const wire::HelloRequest& request) {
    ByteBuffer out;
    wire::encode_hello(&out, 1, request);
    CHECK(send(out.bytes()));
    return receive();
  }
  [[nodiscard]] const std::vector<std::byte>& payload() const { return payload_; }
  [[nodiscard]] int fd() const { return socket_.get(); }

 private:
  UniqueFd socket_;
  ByteBuffer in_;
  std::size_t consumed_ = 0;
  std::vector<std::byte> payload_;
};

inline wire::HelloRequest worker_hello() {
  const ClientConfig config = client_config("");
  wire::HelloRequest hello;
  hello.role = wire::Role::Worker;
  hello.version_min = wire::kVersionMin;
  hello.version_max = wire::kVersionMax;
  hello.spec.fingerprint = config.fingerprint;
  hello.spec.chunk_tokens = config.chunk_tokens;
  hello.spec.shards = config.shards;
  hello.spec.own_shard = 0;
  return hello;
}

}  // namespace kvcommons::testing
