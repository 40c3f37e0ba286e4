// The client against nodes that are away, mute, wrong or replaced: every call returns in time, and says why.
#include <sys/mman.h>

#include <thread>

#include "check.h"
#include "core/arena_mapping.h"
#include "node_fixture.h"

namespace {

using namespace kvcommons;
using namespace kvcommons::testing;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// Listens and lets the test answer each connection; what is not answered stays mute.
struct FakeNode {
  FakeNode() : listener(directory.file("n"), SOCK_STREAM, 0600) { listener.listen(); }
  UniqueFd accept() {
    CHECK(wait_for(listener.fd(), POLLIN, 20'000));
    return unix_accept(listener.fd());
  }
  TempDir directory;
  UnixListener listener;
};

// Reads one request off the connection.
wire::Header read_request(int socket) {
  ByteBuffer in;
  wire::Frame frame;
  while (wire::parse_request(in.bytes(), &frame) != wire::Parse::Complete) {
    CHECK(wait_for(socket, POLLIN, 20'000));
    UniqueFd sent;
    const ssize_t got = recv_with_fd(socket, in.room(65'536), &sent, MSG_DONTWAIT);
    CHECK_GT(got, 0);
    in.filled(static_cast<std::size_t>(got));
  }
  return frame.header;
}

void answer_hello(int socket, int arena_fd, std::uint64_t arena_bytes) {
  ByteBuffer out;
  wire::HelloAnswer answer;
  answer.node_id = "fake";
  answer.fixed.version = wire::kVersionMax;
  answer.fixed.session = 5;
  answer.fixed.arena_bytes = arena_bytes;
  wire::encode_hello_reply(&out, read_request(socket), answer);
  CHECK_GT(send_with_fd(socket, out.bytes(), arena_fd, 0), 0);
}

}  // namespace

TEST(without_a_node_calls_fail_at_once_and_attempts_are_spaced_out) {
  TempDir directory;
  ClientConfig config = client_config(directory.file("n"));
  config.reconnect_ms_min = 200;
  config.reconnect_ms_max = 200;
  Client client(config);
  const auto start = Clock::now();
  for (int i = 0; i < 1'000; ++i) {
    Client::Hit hit;
    CHECK(client.lookup(keys_of(1, 4), 1, true, &hit) == Status::Disconnected);
  }
  CHECK_LT((Clock::now() - start) / milliseconds(1), 5'000);
  CHECK(client.last_error().find("no node answers") != std::string::npos);
  CHECK(!client.connected());
  CHECK_EQ(client.attach_count(), 0u);
  NodeCore node(node_config(directory));
  node.start();
  wait_until([&] { return client.ensure_connected(); }, "the client attaches when a node has come");
}

TEST(a_mute_node_costs_one_call_its_time_and_the_next_ones_nothing) {
  FakeNode fake;
  ClientConfig config = client_config(fake.listener.path());
  config.call_ms_max = 50;
  config.reconnect_ms_min = config.reconnect_ms_max = 60'000;
  Client client(config);
  const auto start = Clock::now();
  Client::Hit hit;
  CHECK(client.lookup(keys_of(1, 4), 1, true, &hit) == Status::Disconnected);
  const auto first = (Clock::now() - start) / milliseconds(1);
  CHECK_GE(first, 50);
  CHECK_LT(first, 2'000);
  for (int i = 0; i < 100; ++i) CHECK(client.lookup(keys_of(1, 4), 1, true, &hit) == Status::Disconnected);
  CHECK_LT((Clock::now() - start) / milliseconds(1), 2'000);
}

TEST(a_node_that_falls_silent_after_the_greeting_times_out) {
  FakeNode fake;
  std::vector<std::string> notes;
  const UniqueFd arena = make_memfd("kvcommons-arena", 1 << 20, {}, &notes);
  ClientConfig config = client_config(fake.listener.path());
  config.call_ms_max = 2'000;
  std::thread node([&] {
    const UniqueFd socket = fake.accept();
    answer_hello(socket.get(), arena.get(), 1 << 20);
    read_request(socket.get());
    char byte = 0;
    CHECK(wait_for(socket.get(), POLLIN, 20'000));  // until the client gives up
    CHECK_EQ(::recv(socket.get(), &byte, 1, 0), 0);
  });
  Client client(config);
  CHECK(client.ensure_connected());
  Client::Hit hit;
  CHECK(client.lookup(keys_of(1, 4), 1, true, &hit) == Status::TimedOut);
  CHECK(!client.connected());
  CHECK(client.arena() != nullptr);  // a copy that still runs reads valid memory
  node.join();
}

TEST(a_node_that_answers_nonsense_is_left) {
  for (int kind = 0; kind < 4; ++kind) {
    FakeNode fake;
    std::vector<std::string> notes;
    const UniqueFd arena = make_memfd("kvcommons-arena", 1 << 20, {}, &notes);
    std::thread node([&] {
      const UniqueFd socket = fake.accept();
      answer_hello(socket.get(), arena.get(), 1 << 20);
      const wire::Header request = read_request(socket.get());
      const auto type = static_cast<std::uint16_t>(request.type | wire::kReplyBit);
      ByteBuffer out;
      if (kind == 0) out.append_pod(std::array<std::byte, 64>{});
      if (kind == 1) wire::encode_u64(&out, type, request.request_id + 1, 0);  // another request's
      if (kind == 2) wire::encode_u64(&out, type, request.request_id, 0);      // too short
      if (kind == 3) {                                                         // a slot outside the arena
        wire::encode_slots(&out, type, request.request_id, std::vector<SlotRef>{{1 << 20, 1}});
      }
      CHECK(::send(socket.get(), out.bytes().data(), out.size(), MSG_NOSIGNAL) > 0);
      fake.accept();  // it tries once more on a new connection, which ends without an answer
    });
    ClientConfig config = client_config(fake.listener.path());
    config.call_ms_max = 1'000;
    Client client(config);
    CHECK(client.ensure_connected());
    Client::Hit hit;
    std::vector<SlotRef> slots;
    const Status status = kind == 3 ? client.begin(1, &slots) : client.lookup(keys_of(1, 4), 1, false, &hit);
    CHECK(status == Status::Disconnected);
    CHECK(!client.connected());
    if (kind >= 2) client.ensure_connected();  // lets the fake's thread end
    node.join();
  }
}

TEST(an_arena_that_could_shrink_is_not_mapped) {
  const UniqueFd loose(::memfd_create("loose", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  CHECK(::ftruncate(loose.get(), 1 << 20) == 0);
  std::string why;
  CHECK(map_arena(loose.get(), 1 << 20, &why) == nullptr);
  CHECK(why.find("sealed") != std::string::npos);
  CHECK(map_arena(loose.get(), 2 << 20, &why) == nullptr);
  CHECK(why.find("smaller") != std::string::npos);
  CHECK(map_arena(-1, 1 << 20, &why) == nullptr);
}

TEST(threads_share_a_client_and_each_gets_its_own_answer) {
  TempDir directory;
  NodeCore node(node_config(directory));
  node.start();
  Client client(client_config(directory.file("n")));
  store_chunks(client, keys_of(100, 32));
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (std::size_t i = 0; i < 200; ++i) CHECK_EQ(hits(client, keys_of(100, 4 * t + 1)), 4 * t + 1);
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(client.attach_count(), 1u);
}

TEST(threads_share_a_client_through_restarts_of_the_node) {
  TempDir directory;
  auto node = std::make_unique<NodeCore>(node_config(directory));
  node->start();
  Client client(client_config(directory.file("n")));
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t i = 0; !done.load(); ++i) {
        std::vector<Reservation> slots;
        Client::Hit hit;
        client.copy_started();
        (void)client.reserve(1, Key{}, keys_of(t << 32 | i * 4, 4), &slots);
        (void)client.lookup(keys_of(t << 32 | i * 4, 4), 1, true, &hit);
        client.copy_finished();
      }
    });
  }
  for (int life = 0; life < 10; ++life) {
    const auto attached = client.attach_count();
    node = nullptr;
    node = std::make_unique<NodeCore>(node_config(directory));
    node->start();
    wait_until([&] { return client.attach_count() > attached; }, "the client attaches again");
  }
  done.store(true);
  for (std::thread& thread : threads) thread.join();
}

TEST(a_call_that_is_over_a_limit_is_refused_here_and_the_connection_stays) {
  TempDir directory;
  NodeCore node(node_config(directory));
  node.start();
  Client client(client_config(directory.file("n")));
  const std::vector<Key> many(kKeysPerFrameMax + 1);
  Client::Hit hit;
  CHECK(client.lookup(many, 1, false, &hit) == Status::TooLarge);
  CHECK(client.feedback("no object") == Status::TooLarge);
  CHECK(client.feedback("{\"request_id\":\"r\"}") == Status::Ok);
  const std::vector<Key> most(kKeysPerFrameMax);
  CHECK(client.lookup(most, 1, false, &hit) == Status::Ok);
  CHECK_EQ(client.attach_count(), 1u);
}

TEST(a_forked_child_is_disconnected_and_does_not_say_goodbye_for_its_parent) {
  TempDir directory;
  NodeCore node(node_config(directory));
  node.start();
  auto client = std::make_unique<Client>(client_config(directory.file("n")));
  const auto keys = keys_of(100, 4);
  store_chunks(*client, keys);
  Process child([&] {
    Client::Hit hit;
    CHECK(client->lookup(keys, 1, false, &hit) == Status::Disconnected);
    client.reset();
  });
  CHECK_EQ(child.wait(), 0);
  CHECK_EQ(hits(*client, keys), 4u);
  CHECK_EQ(client->attach_count(), 1u);
}

TEST_MAIN()
