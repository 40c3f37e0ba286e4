// The node's socket against clients that are foreign, broken, slow or hostile: only they are refused.
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <random>
#include <thread>

#include "check.h"
#include "core/session_ledger.h"
#include "node_fixture.h"

namespace {

using namespace kvcommons;
using namespace kvcommons::testing;
using wire::Type;

// A server over a store, with limits of the test's own.
struct Served {
  explicit Served(ServerConfig config = {}) {
    store_config.arena_bytes = kTestArenaBytes;
    arena = make_memfd("test-arena", kTestArenaBytes, {}, &notes);
    records = make_memfd("test-records", Store::records_bytes(store_config), {false, false}, &notes);
    store = std::make_unique<Store>(store_config, arena.get(), records.get());
    config.arena_fd = arena.get();
    config.arena_bytes = kTestArenaBytes;
    config.node_id = "node-1";
    config.namespace_secret = key_of(4711);
    if (config.allowed_uids.empty()) config.allowed_uids = {::geteuid()};
    server = std::make_unique<Server>(std::move(config), std::make_unique<UnixListener>(path, SOCK_STREAM, 0600),
                                      store.get(), &holder, std::vector<HeldFd>{});
    server->start();
  }
  TempDir directory;
  std::string path = directory.file("n");
  StoreConfig store_config;
  std::vector<std::string> notes;
  UniqueFd arena, records;
  HolderLink holder{""};
  std::unique_ptr<Store> store;
  std::unique_ptr<Server> server;
};

ByteBuffer lookup_frame(std::uint64_t id, std::size_t count) {
  ByteBuffer out;
  wire::encode_lookup(&out, id, {1, false, keys_of(1, count)});
  return out;
}

}  // namespace

TEST(a_request_before_the_hello_is_refused) {
  Served served;
  RawClient raw(served.path);
  CHECK(raw.send(lookup_frame(1, 3).bytes()));
  CHECK(raw.receive() == Status::BadFrame);
  CHECK(raw.closed_by_node());
}

TEST(a_user_who_is_not_allowed_is_told_so) {
  ServerConfig config;
  config.allowed_uids = {::geteuid() + 12'345};
  Served served(config);
  Client client(client_config(served.path));
  CHECK(!client.ensure_connected());
  CHECK(client.last_error().find("allowed users") != std::string::npos);
  CHECK_EQ(served.store->stats().sessions, 0u);
}

// This thread's alone, where it may (root); what it was given back at the end.
class FurtherGroup {
 public:
  explicit FurtherGroup(gid_t group) : before_(static_cast<std::size_t>(std::max(::getgroups(0, nullptr), 0))) {
    before_.resize(
        static_cast<std::size_t>(std::max(::getgroups(static_cast<int>(before_.size()), before_.data()), 0)));
    std::vector<gid_t> more = before_;
    more.push_back(group);
    given_ = ::syscall(SYS_setgroups, more.size(), more.data()) == 0;
  }
  ~FurtherGroup() {
    if (given_) ::syscall(SYS_setgroups, before_.size(), before_.data());
  }
  FurtherGroup(const FurtherGroup&) = delete;  // would give the groups back twice
  [[nodiscard]] bool given() const { return given_; }

 private:
  std::vector<gid_t> before_;
  bool given_ = false;
};

TEST(a_user_who_is_not_allowed_is_let_in_by_a_group) {
  const auto reached = [](gid_t group) {
    ServerConfig config;
    config.allowed_uids = {::geteuid() + 12'345};
    config.allowed_gids = {group};
    Served served(config);
    Client client(client_config(served.path));
    const bool connected = client.ensure_connected();
    if (!connected) CHECK(client.last_error().find("none of its groups") != std::string::npos);
    return connected;
  };
  CHECK(reached(::getegid()));
  const gid_t further = ::getegid() + 12'345;
  CHECK(!reached(further));
  const FurtherGroup group(further);
  CHECK_EQ(reached(further), group.given());
}

TEST(a_protocol_of_the_future_is_told_which_versions_are_served) {
  Served served;
  RawClient raw(served.path);
  wire::HelloRequest hello = worker_hello();
  hello.version_min = 40;
  hello.version_max = 41;
  CHECK(raw.hello(hello) == Status::BadVersion);
  const std::string message(reinterpret_cast<const char*>(raw.payload().data()), raw.payload().size());
  CHECK(message.find("40 to 41") != std::string::npos);
  CHECK(raw.closed_by_node());
}

TEST(a_forged_frame_ends_its_own_connection_alone) {
  Served served;
  Client good(client_config(served.path));
  const auto keys = keys_of(100, 4);
  store_chunks(good, keys);
  for (int kind = 0; kind < 4; ++kind) {
    RawClient raw(served.path);
    CHECK(raw.hello(worker_hello()) == Status::Ok);
    ByteBuffer out = lookup_frame(2, 3);
    if (kind == 0) wire::encode_hello(&out, 3, worker_hello());                                 // a second HELLO
    if (kind == 1) out.append_pod(wire::Header{0xffffffff, 2, 0, 3});                           // endless
    if (kind == 2) out.append_pod(wire::Header{4, 4, 0, 3}), out.append_pod(std::uint32_t{1});  // half a RESERVE
    if (kind == 3) out.append_pod(wire::Header{0, 999, 0, 3});                                  // no such type
    CHECK(raw.send(out.bytes()));
    CHECK(raw.receive() == Status::Ok);
    if (kind != 3) CHECK(raw.receive() == Status::BadFrame);  // a type that nobody knows has no reply either
    CHECK(raw.closed_by_node());
    CHECK_EQ(hits(good, keys), 4u);
  }
  CHECK_EQ(good.attach_count(), 1u);
}

TEST(a_tool_may_look_but_is_granted_nothing) {
  Served served;
  Client writer(client_config(served.path));
  const auto keys = keys_of(100, 4);
  store_chunks(writer, keys);
  ClientConfig config = client_config(served.path, wire::Role::Tool);
  config.fingerprint = key_of(1);
  Client tool(config);
  CHECK_EQ(hits(tool, keys), 4u);
  CHECK(tool.namespace_secret().zero());
  CHECK(writer.namespace_secret() == key_of(4711));
  std::vector<Reservation> slots;
  CHECK(tool.reserve(1, Key{}, keys, &slots) == Status::Denied);
  CHECK_EQ(counter(tool, "sessions"), 1u);
}

TEST(a_foreign_fingerprint_never_hits_and_a_changed_layout_is_refused) {
  Served served;
  Client writer(client_config(served.path));
  const auto keys = keys_of(100, 4);
  store_chunks(writer, keys);
  ClientConfig foreign = client_config(served.path);
  foreign.fingerprint = key_of(2);
  Client other(foreign);
  CHECK_EQ(hits(other, keys), 0u);
  ClientConfig changed = client_config(served.path);
  changed.shards[0].slot_bytes *= 2;
  Client wrong(changed);
  CHECK(!wrong.ensure_connected());
  CHECK(wrong.last_error().find("shards") != std::string::npos);
  CHECK_EQ(hits(writer, keys), 4u);
}

TEST(half_a_frame_delays_nobody_and_is_closed_in_the_end) {
  ServerConfig config;
  config.stalled_ms_max = 200;
  Served served(config);
  RawClient half(served.path);
  CHECK(half.hello(worker_hello()) == Status::Ok);
  const ByteBuffer whole = lookup_frame(2, 64);
  CHECK(half.send(whole.bytes().first(whole.size() / 2)));
  Client good(client_config(served.path));
  store_chunks(good, keys_of(100, 4));
  CHECK_EQ(hits(good, keys_of(100, 4)), 4u);
  CHECK(half.closed_by_node());
  CHECK_EQ(served.server->stats().stalled.load(), 1u);
}

TEST(a_connection_that_never_greets_is_closed) {
  ServerConfig config;
  config.hello_ms_max = 200;
  Served served(config);
  RawClient silent(served.path);
  CHECK(silent.closed_by_node());
}

TEST(a_client_that_does_not_read_is_not_read_from_and_holds_up_nobody) {
  ServerConfig config;
  config.stalled_ms_max = 500;
  Served served(config);
  RawClient slow(served.path);
  CHECK(slow.hello(worker_hello()) == Status::Ok);
  ByteBuffer stats;
  for (std::uint64_t id = 2; id < 66; ++id) wire::encode_text(&stats, static_cast<std::uint16_t>(Type::Stat), id, {});
  // Each STAT's reply is some fifty times as long as the request: without a bound this would fill the node's memory.
  Client good(client_config(served.path));
  store_chunks(good, keys_of(100, 4));
  std::size_t sent = 0;
  while (slow.send(stats.bytes())) {
    sent += stats.size();
    CHECK_LT(sent, std::size_t{64} << 20);
    CHECK_EQ(hits(good, keys_of(100, 4)), 4u);
  }
  wait_until([&] { return served.server->stats().stalled.load() == 1; }, "the slow reader is closed");
  CHECK_EQ(hits(good, keys_of(100, 4)), 4u);
}

TEST(connections_over_the_limit_are_refused_and_the_others_served) {
  ServerConfig config;
  config.connections_max = 4;
  Served served(config);
  std::vector<std::unique_ptr<RawClient>> few;
  for (int i = 0; i < 4; ++i) {
    few.push_back(std::make_unique<RawClient>(served.path));
    CHECK(few.back()->hello(worker_hello()) == Status::Ok);
  }
  RawClient more(served.path);
  CHECK(more.closed_by_node());
  CHECK(few[0]->send(lookup_frame(2, 3).bytes()));
  CHECK(few[0]->receive() == Status::Ok);
}

TEST(two_writers_of_the_same_keys_never_get_the_same_slot) {
  Served served;
  std::vector<std::vector<Reservation>> got(2);
  const auto keys = keys_of(500, 64);
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 2; ++i) clients.push_back(std::make_unique<Client>(client_config(served.path)));
  std::vector<std::thread> writers;
  for (std::size_t i = 0; i < 2; ++i) {
    writers.emplace_back([&, i] { CHECK(clients[i]->reserve(1, Key{}, keys, &got[i]) == Status::Ok); });
  }
  for (std::thread& writer : writers) writer.join();
  for (std::size_t k = 0; k < keys.size(); ++k) {
    const bool first = got[0][k].status == ReserveStatus::Granted, second = got[1][k].status == ReserveStatus::Granted;
    CHECK(first != second);
    CHECK(got[first ? 1 : 0][k].status == ReserveStatus::Busy);
  }
  for (std::size_t i = 0; i < 2; ++i) {
    std::vector<CommitItem> items;
    for (const Reservation& item : got[i]) {
      if (item.status == ReserveStatus::Granted) items.push_back({item.slot, 0, {}});
    }
    std::uint32_t accepted = 0;
    CHECK(clients[i]->commit(items, &accepted) == Status::Ok);
    CHECK_EQ(accepted, items.size());
  }
  CHECK_EQ(hits(*clients[0], keys), 64u);
  std::vector<Reservation> again;
  CHECK(clients[1]->reserve(1, Key{}, keys, &again) == Status::Ok);
  for (const Reservation& item : again) CHECK(item.status == ReserveStatus::Exists);
}

TEST(a_lease_forged_by_guessing_is_gone) {
  Served served;
  Client client(client_config(served.path));
  store_chunks(client, keys_of(100, 4));
  Client::Hit hit;
  CHECK(client.lookup(keys_of(100, 4), 1, true, &hit) == Status::Ok);
  CHECK(hit.lease != 0);
  std::vector<SlotRef> slots;
  CHECK(client.begin(hit.lease + 1, &slots) == Status::Gone);
  CHECK(client.begin(hit.lease, &slots) == Status::Ok);
  CHECK_EQ(slots.size(), 4u);
  CHECK(client.release(hit.lease) == Status::Ok);
}

TEST(a_goodbye_frees_at_once_what_the_session_held) {
  Served served;
  {
    Client client(client_config(served.path));
    std::vector<Reservation> slots;
    CHECK(client.reserve(1, Key{}, keys_of(900, 8), &slots) == Status::Ok);
    CHECK_EQ(served.store->stats().slots_filling, 8u);
  }
  wait_until([&] { return served.store->stats().slots_filling + served.store->stats().slots_quarantined == 0; },
             "the slots are free");
  CHECK_EQ(served.store->stats().slots_quarantined, 0u);
}

TEST(a_session_whose_connection_broke_keeps_its_slots_until_it_says_that_it_is_drained) {
  Served served;
  auto raw = std::make_unique<RawClient>(served.path);
  CHECK(raw->hello(worker_hello()) == Status::Ok);
  wire::HelloAnswer answer;
  CHECK(wire::decode_hello_reply(raw->payload(), &answer));
  ByteBuffer out;
  wire::encode_reserve(&out, 2, {1, Key{}, keys_of(900, 8)});
  CHECK(raw->send(out.bytes()));
  CHECK(raw->receive() == Status::Ok);
  raw.reset();
  wait_until([&] { return served.store->stats().slots_quarantined == 8; }, "the slots are quarantined");
  RawClient back(served.path);
  wire::HelloRequest hello = worker_hello();
  hello.drained_session = answer.fixed.session;
  CHECK(back.hello(hello) == Status::Ok);
  CHECK_EQ(served.store->stats().slots_quarantined, 0u);
}

TEST(mutated_frames_never_take_the_node_down) {
  Served served;
  Client good(client_config(served.path));
  store_chunks(good, keys_of(100, 4));
  std::vector<std::string> corpus;
  for (const auto& entry : std::filesystem::directory_iterator("tests/corpus")) {
    std::ifstream file(entry.path(), std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  const char* given = std::getenv("KVCOMMONS_FUZZ_SEED");
  const std::uint64_t seed = given == nullptr ? 7 : std::strtoull(given, nullptr, 10);
  std::fprintf(stderr, "seed %llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  for (int round = 0; round < 500; ++round) {
    RawClient raw(served.path);
    if (round % 2 == 0) CHECK(raw.hello(worker_hello()) == Status::Ok);
    std::string bytes = corpus[random() % corpus.size()] + corpus[random() % corpus.size()];
    for (int flips = static_cast<int>(random() % 4); flips > 0; --flips) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    (void)raw.send(std::as_bytes(std::span(bytes)));
    ::shutdown(raw.fd(), SHUT_WR);
    CHECK(raw.closed_by_node());
    CHECK_EQ(hits(good, keys_of(100, 4)), 4u);
  }
  CHECK_EQ(good.attach_count(), 1u);
}

TEST_MAIN()
