// kill -9 of the node, of clients and of both, each in a process of its own: what was committed is served again, no
// slot leaks, nothing is held twice. The test's own process starts no thread, so that it may fork.
#include <sys/stat.h>

#include <fstream>
#include <random>
#include <set>

#include "check.h"
#include "core/arena_mapping.h"
#include "node_fixture.h"

namespace {

using namespace kvcommons;
using namespace kvcommons::testing;

// A holder and a node that can be killed and started again.
struct Pool {
  explicit Pool(std::uint64_t arena_bytes = kTestArenaBytes) : config(node_config(directory, arena_bytes)) {
    config.holder_socket = directory.file("h");
    holder = holder_process(config.holder_socket);
    node = node_process(config);
  }
  void restart() {
    node->kill();
    node = node_process(config);
  }
  TempDir directory;
  NodeConfig config;
  std::unique_ptr<Process> holder, node;
};

std::uint64_t held_slots(Client& tool) {
  std::string json;
  if (tool.stat(&json) != Status::Ok) return ~0ull;
  return counter(tool, "slots_filling") + counter(tool, "slots_quarantined") + counter(tool, "slots_draining") +
         counter(tool, "leases_pending") + counter(tool, "leases_copying");
}

// The inodes of all arenas that a process has mapped or holds open.
std::set<std::string> arenas_of(pid_t pid, bool mapped_only) {
  std::set<std::string> inodes;
  const std::string proc = "/proc/" + std::to_string(pid);
  std::ifstream maps(proc + "/maps");
  for (std::string line; std::getline(maps, line);) {
    std::istringstream words(line);
    std::string range, rights, offset, device, inode, name;
    words >> range >> rights >> offset >> device >> inode >> name;
    if (name.find("kvcommons-arena") != std::string::npos) inodes.insert(inode);
  }
  if (mapped_only) return inodes;
  for (const auto& entry : std::filesystem::directory_iterator(proc + "/fd")) {
    std::error_code error;
    const std::string target = std::filesystem::read_symlink(entry.path(), error).string();
    struct stat info{};
    if (target.find("kvcommons-arena") == std::string::npos || ::stat(entry.path().c_str(), &info) != 0) continue;
    inodes.insert(std::to_string(info.st_ino));
  }
  return inodes;
}

std::uint64_t rounds(std::uint64_t otherwise) {
  const char* text = std::getenv("KVCOMMONS_KILL_ROUNDS");
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

}  // namespace

TEST(a_restarted_node_serves_what_was_committed_and_clients_attach_by_themselves) {
  Pool pool;
  Client client(client_config(pool.config.socket_path));
  const auto keys = keys_of(100, 16);
  store_chunks(client, keys);
  const Client::ArenaRef before = client.arena();
  for (std::uint64_t life = 2; life < 5; ++life) {
    pool.restart();
    CHECK_EQ(hits(client, keys), 16u);
    CHECK_EQ(client.attach_count(), life);
    CHECK(client.arena() == before);  // the same arena is not mapped again
    Client::Hit hit;
    CHECK(client.lookup(keys, 1, true, &hit) == Status::Ok);
    std::vector<SlotRef> slots;
    CHECK(client.begin(hit.lease, &slots) == Status::Ok);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      const std::byte* slot = before.get() + slots[i].offset_bytes;
      CHECK(slot[0] == static_cast<std::byte>(i + 1) && slot[kSlotBytes - 1] == slot[0]);
    }
    CHECK(client.release(hit.lease) == Status::Ok);
  }
}

TEST(what_a_session_held_when_the_node_was_killed_is_freed_once_its_copies_have_ended) {
  Pool pool;
  Client client(client_config(pool.config.socket_path));
  Client tool(client_config(pool.config.socket_path, wire::Role::Tool));
  client.copy_started();
  std::vector<Reservation> slots;
  CHECK(client.reserve(1, Key{}, keys_of(100, 8), &slots) == Status::Ok);
  pool.restart();
  CHECK_EQ(hits(client, keys_of(1, 1)), 0u);  // attached again, while the copy still runs
  CHECK_EQ(client.attach_count(), 2u);
  CHECK_EQ(held_slots(tool), 8u);
  std::uint32_t accepted = 0;
  const CommitItem stale{slots[0].slot, 0, {}};
  const Status late = client.commit(std::span(&stale, 1), &accepted);
  CHECK(late != Status::Ok || accepted == 0);  // another session's slots are not this one's to publish
  CHECK_EQ(hits(client, keys_of(100, 1)), 0u);
  client.copy_finished();
  CHECK_EQ(held_slots(tool), 0u);
}

TEST(a_client_that_dies_while_the_node_is_down_leaves_nothing_behind) {
  Pool pool;
  const auto client = std::make_unique<Process>([&] {
    Client own(client_config(pool.config.socket_path));
    std::vector<Reservation> slots;
    CHECK(own.reserve(1, Key{}, keys_of(100, 8), &slots) == Status::Ok);
    for (;;) ::pause();
  });
  Client tool(client_config(pool.config.socket_path, wire::Role::Tool));
  wait_until([&] { return counter(tool, "slots_filling") == 8; }, "the client holds its slots");
  pool.node->kill();
  client->kill();
  pool.node = node_process(pool.config);
  wait_until([&] { return held_slots(tool) == 0; }, "the dead client's slots are free");
}

TEST(a_client_that_dies_after_the_nodes_restart_is_proven_dead_by_the_holders_pidfd) {
  Pool pool;
  const auto client = std::make_unique<Process>([&] {
    Client own(client_config(pool.config.socket_path));
    std::vector<Reservation> slots;
    CHECK(own.reserve(1, Key{}, keys_of(100, 8), &slots) == Status::Ok);
    for (;;) ::pause();  // never attaches again
  });
  Client tool(client_config(pool.config.socket_path, wire::Role::Tool));
  wait_until([&] { return counter(tool, "slots_filling") == 8; }, "the client holds its slots");
  pool.restart();
  CHECK_EQ(held_slots(tool), 8u);
  CHECK_EQ(counter(tool, "sessions_former"), 1u);
  CHECK_EQ(counter(tool, "sessions_unproven"), 0u);
  client->kill();
  wait_until([&] { return held_slots(tool) == 0; }, "the dead client's slots are free");
}

TEST(a_stranger_cannot_declare_another_process_drained) {
  Pool pool;
  int told[2];
  CHECK(::pipe(told) == 0);
  const auto client = std::make_unique<Process>([&] {
    RawClient raw(pool.config.socket_path);
    CHECK(raw.hello(worker_hello()) == Status::Ok);
    wire::HelloAnswer answer;
    CHECK(wire::decode_hello_reply(raw.payload(), &answer));
    ByteBuffer out;
    wire::encode_reserve(&out, 2, {1, Key{}, keys_of(100, 8)});
    CHECK(raw.send(out.bytes()));
    CHECK(raw.receive() == Status::Ok);
    CHECK(::write(told[1], &answer.fixed.session, sizeof(SessionId)) == sizeof(SessionId));
    for (;;) ::pause();
  });
  SessionId session = 0;
  CHECK(::read(told[0], &session, sizeof session) == sizeof session);
  RawClient stranger(pool.config.socket_path);
  wire::HelloRequest hello = worker_hello();
  hello.drained_session = session;
  CHECK(stranger.hello(hello) == Status::Ok);
  Client tool(client_config(pool.config.socket_path, wire::Role::Tool));
  CHECK_EQ(held_slots(tool), 8u);
}

// A native client is killed with leases and reservations held, at a point of its work that the seed chooses.
TEST(no_slot_leaks_however_often_a_client_is_killed_with_leases_and_reservations) {
  Pool pool;
  const auto keys = keys_of(100, 16);
  Client tool(client_config(pool.config.socket_path, wire::Role::Tool));
  {
    Client writer(client_config(pool.config.socket_path));
    store_chunks(writer, keys);
  }
  std::mt19937_64 random(11);
  const std::uint64_t count = rounds(1'000);
  std::fprintf(stderr, "seed 11, %llu rounds\n", static_cast<unsigned long long>(count));
  for (std::uint64_t round = 0; round < count; ++round) {
    const auto steps = random() % 5;
    int done[2];
    CHECK(::pipe(done) == 0);
    Process client([&] {
      Client own(client_config(pool.config.socket_path));
      Client::Hit hit;
      std::vector<SlotRef> read;
      std::vector<Reservation> written;
      if (steps > 0) CHECK(own.lookup(keys, 1, true, &hit) == Status::Ok);
      if (steps > 1) CHECK(own.reserve(1, Key{}, keys_of(10'000 + round * 8, 4), &written) == Status::Ok);
      if (steps > 2) CHECK(own.begin(hit.lease, &read) == Status::Ok);
      if (steps > 3) CHECK(own.reserve(1, Key{}, keys_of(10'004 + round * 8, 4), &written) == Status::Ok);
      CHECK(::write(done[1], "1", 1) == 1);
      for (;;) ::pause();
    });
    ::close(done[1]);
    char byte = 0;
    if (round % 4 != 0) CHECK(::read(done[0], &byte, 1) == 1);  // else anywhere
    ::close(done[0]);
    client.kill();
    if (round % 100 == 99) pool.restart();
  }
  wait_until([&] { return held_slots(tool) == 0 && counter(tool, "sessions_former") == 0; },
             "nothing is held any more");
  CHECK_EQ(counter(tool, "sessions"), 0u);
  Client reader(client_config(pool.config.socket_path));
  CHECK_EQ(hits(reader, keys), 16u);
}

// kill -9 in the middle of whatever the node was doing for a client that stores and loads without pause.
TEST(a_node_killed_in_the_middle_of_requests_serves_only_what_was_whole) {
  Pool pool;
  ClientConfig config = client_config(pool.config.socket_path);
  Client client(config);
  std::mt19937_64 random(5);
  for (std::uint64_t round = 0; round < 20; ++round) {
    const auto delay_us = random() % 20'000;
    Process killer([&] {
      ::usleep(static_cast<useconds_t>(delay_us));  // where in the work it strikes is the point
      ::kill(pool.node->pid(), SIGKILL);
    });
    for (std::uint64_t i = 0; client.connected() || i == 0; ++i) {
      const auto keys = keys_of(1'000 + (round * 1'000 + i) * 4, 4);
      std::vector<Reservation> slots;
      client.copy_started();
      if (client.reserve(1, Key{}, keys, &slots) == Status::Ok) {
        std::vector<CommitItem> items;
        for (std::size_t k = 0; k < slots.size(); ++k) {
          if (slots[k].status != ReserveStatus::Granted) continue;
          std::memcpy(client.arena().get() + slots[k].slot.offset_bytes, keys[k].bytes.data(), kKeyBytes);
          items.push_back({slots[k].slot, 0, {}});
        }
        std::uint32_t accepted = 0;
        (void)client.commit(items, &accepted);
      }
      client.copy_finished();
      Client::Hit hit;
      std::vector<SlotRef> read;
      client.copy_started();
      if (client.lookup(keys, 1, true, &hit) == Status::Ok && hit.lease != 0 &&
          client.begin(hit.lease, &read) == Status::Ok) {
        for (std::size_t k = 0; k < read.size(); ++k) {
          CHECK(std::memcmp(client.arena().get() + read[k].offset_bytes, keys[k].bytes.data(), kKeyBytes) == 0);
        }
        (void)client.release(hit.lease);
      }
      client.copy_finished();
    }
    killer.wait();
    pool.node->kill();
    pool.node = node_process(pool.config);
    wait_until([&] { return client.ensure_connected(); }, "the client attaches again");
  }
  Client tool(client_config(pool.config.socket_path, wire::Role::Tool));
  wait_until([&] { return held_slots(tool) == 0; }, "nothing is held any more");
}

TEST(the_arenas_memory_exists_once_through_restarts) {
  Pool pool;
  Client client(client_config(pool.config.socket_path));
  store_chunks(client, keys_of(100, 4));
  for (int life = 0; life < 3; ++life) {
    const auto nodes = arenas_of(pool.node->pid(), false);
    CHECK_EQ(nodes.size(), 1u);
    CHECK(arenas_of(pool.holder->pid(), false) == nodes);
    CHECK(arenas_of(pool.holder->pid(), true).empty());  // kept, but never mapped
    CHECK(arenas_of(::getpid(), true) == nodes);
    pool.restart();
    CHECK_EQ(hits(client, keys_of(100, 4)), 4u);
  }
}

TEST(an_arena_of_another_size_is_mapped_anew_with_what_it_held_and_a_copy_under_way_reads_the_former_one) {
  Pool pool;
  Client client(client_config(pool.config.socket_path));
  const auto keys = keys_of(100, 4);
  store_chunks(client, keys);
  const Client::ArenaRef before = client.arena();
  Client::Hit hit;
  std::vector<SlotRef> slots;
  CHECK(client.lookup(keys, 1, true, &hit) == Status::Ok);
  client.copy_started();
  CHECK(client.begin(hit.lease, &slots) == Status::Ok);
  CHECK_EQ(slots.size(), 4u);
  pool.config.store.arena_bytes *= 2;
  pool.restart();
  CHECK_EQ(hits(client, keys), 4u);
  CHECK(client.arena() != before);
  CHECK_EQ(client.arena_bytes(), 2 * kTestArenaBytes);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    CHECK(before.get()[slots[i].offset_bytes] == static_cast<std::byte>(i + 1));
  }
  client.copy_finished();
  store_chunks(client, keys_of(200, 4));
  CHECK_EQ(arenas_of(pool.holder->pid(), false).size(), 1u);
  CHECK_EQ(arenas_of(pool.node->pid(), false).size(), 1u);
}

TEST(a_holder_that_is_restarted_gets_everything_again) {
  Pool pool;
  Client client(client_config(pool.config.socket_path));
  store_chunks(client, keys_of(100, 4));
  Client tool(client_config(pool.config.socket_path, wire::Role::Tool));
  pool.holder->kill();
  wait_until([&] { return counter(tool, "holder_connected") == 0; }, "the node notices");
  pool.holder = holder_process(pool.config.holder_socket);
  wait_until([&] { return counter(tool, "holder_connected") == 1; }, "the node attaches again");
  std::vector<Reservation> slots;
  CHECK(client.reserve(1, Key{}, keys_of(500, 8), &slots) == Status::Ok);
  pool.restart();
  CHECK_EQ(counter(tool, "sessions_unproven"), 0u);
  CHECK_EQ(hits(client, keys_of(100, 4)), 4u);
  wait_until([&] { return held_slots(tool) == 0; }, "the former session is drained");
}

TEST_MAIN()
