// What an idle client does by itself: it notices that its node has gone, lets go of the arena, and attaches again.
#include "check.h"
#include "node_fixture.h"

namespace {

using namespace kvcommons;
using namespace kvcommons::testing;

ClientConfig idle_config(const std::string& socket_path, std::uint32_t arena_kept_ms) {
  ClientConfig config = client_config(socket_path);
  config.arena_kept_ms = arena_kept_ms;
  return config;
}

}  // namespace

TEST(an_idle_client_lets_go_of_the_arena_of_a_node_that_has_gone) {
  const TempDir directory;
  const NodeConfig config = node_config(directory);
  auto node = node_process(config);
  Client client(idle_config(config.socket_path, 0));
  CHECK(client.ensure_connected());
  client.upkeep();
  CHECK(client.arena() != nullptr);  // the node lives
  node->kill();
  wait_until([&] { return client.upkeep(), client.arena() == nullptr; }, "the arena is unmapped");
  CHECK(!client.connected());
  node = node_process(config);
  wait_until([&] { return client.upkeep(), client.connected(); }, "the next node is found");
  CHECK(client.arena() != nullptr);
  CHECK_EQ(client.attach_count(), 2u);
  store_chunks(client, keys_of(100, 4));
}

TEST(an_arena_that_is_copied_from_or_whose_node_may_come_back_stays_mapped) {
  const TempDir directory;
  const NodeConfig config = node_config(directory);
  auto node = node_process(config);
  Client copying(idle_config(config.socket_path, 0));
  Client patient(idle_config(config.socket_path, 3'600'000));
  CHECK(copying.ensure_connected() && patient.ensure_connected());
  copying.copy_started();
  node->kill();
  wait_until([&] { return copying.upkeep(), !copying.connected(); }, "the hang-up is noticed");
  wait_until([&] { return patient.upkeep(), !patient.connected(); }, "the hang-up is noticed");
  copying.upkeep();
  patient.upkeep();
  CHECK(copying.arena() != nullptr && patient.arena() != nullptr);
  copying.copy_finished();
  copying.upkeep();
  CHECK(copying.arena() == nullptr);
}

TEST(looking_for_a_node_in_vain_keeps_no_call_from_the_one_that_comes_back) {
  const TempDir directory;
  const NodeConfig config = node_config(directory);
  auto node = node_process(config);
  ClientConfig patient = idle_config(config.socket_path, 0);
  patient.reconnect_ms_min = patient.reconnect_ms_max = 3'600'000;
  Client client(patient);
  CHECK(client.ensure_connected());
  node->kill();
  wait_until([&] { return client.upkeep(), !client.connected(); }, "the hang-up is noticed");
  for (int i = 0; i < 5; ++i) client.upkeep();
  node = node_process(config);
  CHECK(client.ensure_connected());
  CHECK_EQ(client.attach_count(), 2u);
}

TEST(upkeep_opens_no_first_connection_and_none_after_close) {
  const TempDir directory;
  const NodeConfig config = node_config(directory);
  auto node = node_process(config);
  Client client(idle_config(config.socket_path, 0));
  client.upkeep();
  CHECK_EQ(client.attach_count(), 0u);
  CHECK(client.ensure_connected());
  client.close();
  client.upkeep();
  CHECK(!client.connected());
}

TEST(a_scheduler_maps_no_arena) {
  const TempDir directory;
  const NodeConfig config = node_config(directory);
  auto node = node_process(config);
  Client scheduler(client_config(config.socket_path, wire::Role::Scheduler));
  CHECK(scheduler.ensure_connected());
  CHECK(scheduler.arena() == nullptr);
  CHECK_EQ(scheduler.arena_bytes(), kTestArenaBytes);
}

TEST_MAIN()
