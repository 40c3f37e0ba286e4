// Transfers between paged KV and an arena: the bytes, the order of calls to the node, and each way in which it may
// fail.
#include "transfer.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "kernels/cpu/copy.h"
#include "stream_device.h"
#include "transfer_fixture.h"
#include "xxh3.h"

namespace kvcommons {
namespace {

using namespace kvcommons::testing;

TEST(a_store_writes_each_slot_in_order_and_commits_it_with_checksum_and_text_keys) {
  Fixture f;
  const auto transfer = f.start();
  StoreJob job = Fixture::job(7, 3);
  job.text_keys = {{1, 2}, {}, {3}};
  CHECK_EQ(transfer->store(job), Status::Ok);
  const JobResult result = store_result(*transfer);
  CHECK_EQ(result.status, Status::Ok);
  CHECK_EQ(result.job, 7u);
  CHECK_EQ(result.chunks, 3u);
  CHECK_EQ(result.bytes, 3 * f.slot);
  const auto committed = f.port->committed();
  for (std::size_t i = 0; i < 3; ++i) {
    const auto& chunk = committed.at(100 + i);
    const auto want = f.kv.chunk(std::span(job.block_ids).subspan(i * 4, 4));
    CHECK(std::equal(want.begin(), want.end(), f.port->bytes(chunk.slot)));
    CHECK_EQ(chunk.checksum, xxh3_64(want.data(), want.size()));
    CHECK(chunk.text_keys == job.text_keys[i]);
  }
  CHECK(f.port->parents().front() == job.parent);
  CHECK_EQ(f.port->copies(), 0);
}

TEST(a_load_gives_back_what_was_stored_from_any_block_on) {
  Fixture f;
  const auto transfer = f.start();
  StoreJob job = Fixture::job(1, 2);
  CHECK_EQ(transfer->store(job), Status::Ok);
  CHECK_EQ(store_result(*transfer).status, Status::Ok);
  const LoadJob load = {.job = 2, .lease = f.port->lease_of(job.keys), .first_block = 3, .block_ids = {20, 31, 17}};
  CHECK_EQ(transfer->load(load), Status::Ok);
  CHECK_EQ(transfer->wait_layer(1, kMs), Status::Ok);
  CHECK_EQ(transfer->wait_load(2, kMs), Status::Ok);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    for (std::size_t i = 0; i < load.block_ids.size(); ++i) {
      const auto from = f.kv.block(layer, job.block_ids[3 + i]), to = f.kv.block(layer, load.block_ids[i]);
      CHECK(std::equal(from.begin(), from.end(), to.begin(), [](auto* a, auto* b) { return *a == *b; }));
    }
  }
  CHECK_EQ(only_result(transfer->take_finished_loads()).bytes, 3 * f.slot / 4);
  CHECK_EQ(transfer->wait_load(2, kMs), Status::Ok);  // remembered after it was taken
  f.port->wait_call("release 1");
  CHECK_EQ(f.port->copies(), 0);
  CHECK_EQ(transfer->stats().loads, 1u);
}

// A model of one random round: chunks stored from some blocks, then part of them loaded into others.
void random_round(std::uint32_t seed, std::uint32_t copy_threads, std::shared_ptr<Device> device) {
  std::mt19937 random(seed);
  const std::uint32_t per_chunk = 1 + testing::random_below(&random, 5), chunks = 1 + testing::random_below(&random, 4);
  const std::uint32_t held = per_chunk * chunks, blocks = 2 * held + 3;
  PagedKv kv(blocks, testing::random_shapes(&random), seed);
  const std::uint64_t slot = testing::slot_bytes_of(kv.layers(), per_chunk);
  const auto port = std::make_shared<ScriptedPort>(chunks * (slot + kSlotAlignBytes), slot);
  Transfer transfer(port, {.blocks_per_chunk = per_chunk,
                           .layers = kv.layers(),
                           .copy_threads = copy_threads,
                           .device = std::move(device)});
  Ids ids(blocks);
  std::iota(ids.begin(), ids.end(), 0u);
  std::shuffle(ids.begin(), ids.end(), random);
  StoreJob store;
  store.job = 1;
  store.keys = keys_of(1, chunks);
  store.block_ids.assign(ids.begin(), ids.begin() + held);
  CHECK_EQ(transfer.store(store), Status::Ok);
  CHECK_EQ(store_result(transfer).status, Status::Ok);
  for (const auto& [key, chunk] : port->committed()) {
    const auto want = kv.chunk(std::span(store.block_ids).subspan((key - 1) * per_chunk, per_chunk));
    CHECK(std::equal(want.begin(), want.end(), port->bytes(chunk.slot)));
    CHECK_EQ(chunk.checksum, xxh3_64(want.data(), want.size()));
  }
  const std::uint32_t first = testing::random_below(&random, held);
  LoadJob load = {.job = 2, .lease = port->lease_of(store.keys), .first_block = first, .block_ids = {}};
  const std::uint32_t count = 1 + testing::random_below(&random, held - first);
  load.block_ids.assign(ids.end() - count, ids.end());
  auto want = kv.memory();  // the whole memory, gaps included: what is not loaded must not change
  for (std::size_t layer = 0; layer < kv.layers().size(); ++layer) {
    const auto place = [&](const std::byte* byte) {
      return static_cast<std::size_t>(byte - kv.memory()[layer].data());
    };
    for (std::uint32_t i = 0; i < count; ++i) {
      const auto from = kv.block(layer, store.block_ids[load.first_block + i]), to = kv.block(layer, load.block_ids[i]);
      for (std::size_t b = 0; b < to.size(); ++b) want[layer][place(to[b])] = *from[b];
    }
  }
  CHECK_EQ(transfer.load(load), Status::Ok);
  CHECK_EQ(transfer.wait_load(2, kMs), Status::Ok);
  CHECK(kv.memory() == want);
}

TEST(random_layouts_and_partial_loads_equal_a_copy_byte_by_byte) {
  for (std::uint32_t seed = 0; seed < 120; ++seed) {
    if (seed % 40 == 0) std::fprintf(stderr, "seed %u\n", seed);
    random_round(seed, 1 + seed % 3, seed % 4 == 3 ? std::make_shared<StreamDevice>() : nullptr);
  }
}

TEST(a_refused_begin_touches_nothing_and_is_known_at_once) {
  Fixture f;
  const auto transfer = f.start();
  const auto before = f.kv.memory();
  const LoadJob load = {.job = 1, .lease = f.port->lease_of_slots({{0, 1}}), .block_ids = {1}};
  for (const Status status : {Status::Gone, Status::Disconnected, Status::TimedOut}) {
    f.port->begin_status = status;
    CHECK_EQ(transfer->load(load), status);
  }
  f.port->begin_status = Status::Ok;
  f.port->connected = false;
  CHECK_EQ(transfer->load(load), Status::Disconnected);
  CHECK_EQ(transfer->stats().loads_failed, 4u);
  CHECK(f.kv.memory() == before);
  CHECK_EQ(transfer->wait_load(1, kMs), Status::Gone);
  CHECK_EQ(transfer->wait_layer(0, kMs), Status::Ok);
  CHECK_EQ(f.port->copies(), 0);
}

TEST(a_slot_outside_the_arena_is_never_touched) {
  Fixture f;
  const auto transfer = f.start();
  const auto before = f.kv.memory();
  for (const std::uint64_t offset :
       {(std::uint64_t{1} << 20) - f.slot + 1, std::uint64_t{1} << 20, ~std::uint64_t{0}}) {
    const LeaseId lease = f.port->lease_of_slots({{0, 1}, {offset, 1}});
    CHECK_EQ(transfer->load({.job = 1, .lease = lease, .block_ids = {1}}), Status::Internal);
    f.port->wait_call("release " + std::to_string(lease));
  }
  CHECK(f.kv.memory() == before);
  f.port->bend_slot = [](SlotRef slot) { return SlotRef{slot.offset_bytes + (1 << 20), slot.generation}; };
  CHECK_EQ(transfer->store(Fixture::job(2, 2)), Status::Ok);
  CHECK_EQ(store_result(*transfer).status, Status::Internal);
  f.port->wait_call("abort 2");
  CHECK(f.port->committed().empty());
  CHECK_EQ(f.port->copies(), 0);
}

TEST(a_lease_that_covers_fewer_blocks_than_asked_is_refused_and_released) {
  Fixture f;
  const auto transfer = f.start();
  const LeaseId lease = f.port->lease_of_slots({{0, 1}});
  CHECK_EQ(transfer->load({.job = 1, .lease = lease, .first_block = 2, .block_ids = {1, 2, 3}}), Status::TooLarge);
  CHECK_EQ(transfer->load({.job = 1, .lease = lease, .first_block = ~0u, .block_ids = {1}}), Status::TooLarge);
  f.port->wait_call("release 1");
  CHECK_EQ(f.port->copies(), 0);
}

TEST(block_ids_that_no_layer_has_are_the_callers_error) {
  Fixture f;
  const auto transfer = f.start();
  CHECK_THROWS(transfer->load({.job = 1, .lease = 1, .block_ids = {0, 32}}), std::invalid_argument);
  StoreJob job = Fixture::job(1, 1);
  job.block_ids.back() = 32;
  CHECK_THROWS(transfer->store(job), std::invalid_argument);
  job.block_ids.pop_back();
  CHECK_THROWS(transfer->store(job), std::invalid_argument);  // fewer than the keys need
  job = Fixture::job(1, 1);
  job.text_keys = {{1}, {2}};
  CHECK_THROWS(transfer->store(job), std::invalid_argument);
  job.text_keys = {std::vector<std::uint64_t>(kTextKeysPerChunkMax + 1)};
  CHECK_THROWS(transfer->store(job), std::invalid_argument);
  CHECK_THROWS(transfer->wait_layer(2, 0), std::invalid_argument);
  CHECK(f.port->calls().empty());
}

TEST(chunks_that_exist_or_that_another_fills_are_skipped_and_the_chain_goes_on) {
  Fixture f;
  f.port->reserve_of = {{100, ReserveStatus::Exists}, {102, ReserveStatus::Busy}};
  const auto transfer = f.start();
  CHECK_EQ(transfer->store(Fixture::job(1, 4)), Status::Ok);
  const JobResult result = store_result(*transfer);
  CHECK_EQ(result.status, Status::Ok);
  CHECK_EQ(result.chunks, 2u);
  const auto committed = f.port->committed();
  CHECK(committed.contains(101) && committed.contains(103) && committed.size() == 2);
  CHECK_EQ(transfer->stats().store_exists, 1u);
  CHECK_EQ(transfer->stats().store_busy, 1u);
}

TEST(a_chunk_without_a_slot_ends_its_chain_and_what_was_granted_behind_it_is_given_back) {
  for (const auto& [why, status] :
       {std::pair{ReserveStatus::Full, Status::Full}, std::pair{ReserveStatus::ParentMissing, Status::Gone}}) {
    Fixture f;
    f.port->reserve_of = {{101, why}};
    const auto transfer = f.start();
    CHECK_EQ(transfer->store(Fixture::job(1, 4)), Status::Ok);
    const JobResult result = store_result(*transfer);
    CHECK_EQ(result.status, status);
    CHECK_EQ(result.chunks, 1u);
    CHECK_EQ(f.port->committed().size(), 1u);
    CHECK_EQ(f.port->granted(), 0u);  // chunks 102 and 103 were aborted
    CHECK_EQ(transfer->stats().store_full, why == ReserveStatus::Full ? 1u : 0u);
  }
}

TEST(a_failed_reserve_reads_no_source_and_a_lost_commit_gives_its_slots_back) {
  Fixture f;
  const auto transfer = f.start();
  f.port->reserve_status = Status::TimedOut;
  CHECK_EQ(transfer->store(Fixture::job(1, 2)), Status::Ok);
  CHECK_EQ(store_result(*transfer).status, Status::TimedOut);
  CHECK_EQ(transfer->stats().store_bytes, 0u);
  f.port->restart();  // frees what the lost answer had granted
  f.port->reserve_status = Status::Ok;
  f.port->commit_status = Status::Disconnected;
  CHECK_EQ(transfer->store(Fixture::job(2, 2)), Status::Ok);
  CHECK_EQ(store_result(*transfer).status, Status::Disconnected);
  CHECK_EQ(f.port->granted(), 0u);
  CHECK_EQ(f.port->copies(), 0);
  CHECK_EQ(transfer->stats().stores_failed, 2u);
}

TEST(a_node_restarted_between_grant_and_commit_never_gets_the_former_arenas_slots) {
  Fixture f;
  const auto transfer = f.start();
  f.port->at_copy_finished.close();
  CHECK_EQ(transfer->store(Fixture::job(1, 2)), Status::Ok);
  f.port->at_copy_finished.wait_arrived();
  f.port->restart();
  f.port->at_copy_finished.open();
  CHECK_EQ(store_result(*transfer).status, Status::Gone);
  const auto calls = f.port->calls();
  CHECK(std::find(calls.begin(), calls.end(), "commit 2") == calls.end());
  CHECK(f.port->committed().empty());
}

TEST(a_grant_that_came_while_the_node_changed_is_not_trusted_but_asked_again) {
  Fixture f;
  const auto transfer = f.start();
  bool once = true;
  f.port->on_reserve = [&] {
    if (std::exchange(once, false)) f.port->restart();
  };
  CHECK_EQ(transfer->store(Fixture::job(1, 2)), Status::Ok);
  CHECK_EQ(store_result(*transfer).status, Status::Ok);
  CHECK_EQ(f.port->committed().size(), 2u);
  CHECK_EQ(f.port->granted(), 0u);
  f.port->on_begin = [&] { f.port->restart(); };
  CHECK_EQ(transfer->load({.job = 2, .lease = f.port->lease_of(keys_of(100, 2)), .block_ids = {20}}), Status::Gone);
  CHECK_EQ(f.port->copies(), 0);
}

TEST(a_load_goes_on_from_the_mapping_that_it_began_with_when_the_node_is_lost) {
  Fixture f;
  const auto transfer = f.start();
  CHECK_EQ(transfer->store(Fixture::job(1, 1)), Status::Ok);
  CHECK_EQ(store_result(*transfer).status, Status::Ok);
  const LeaseId lease = f.port->lease_of(keys_of(100, 1));
  f.port->at_release.close();  // the first load holds the thread, so that the second begins and then waits
  CHECK_EQ(transfer->load({.job = 2, .lease = f.port->lease_of(keys_of(100, 1)), .block_ids = {16}}), Status::Ok);
  f.port->at_release.wait_arrived();
  CHECK_EQ(transfer->load({.job = 3, .lease = lease, .block_ids = {20, 21, 22, 23}}), Status::Ok);
  CHECK_EQ(transfer->wait_layer(0, 0), Status::TimedOut);
  f.port->restart();
  f.port->connected = false;
  f.port->at_release.open();
  CHECK_EQ(transfer->wait_load(3, kMs), Status::Ok);
  CHECK(f.kv.chunk(Fixture::blocks(20, 1)) == f.kv.chunk(Fixture::blocks(0, 1)));
}

TEST(who_waits_for_a_layer_copies_it_where_the_thread_does_not_come_to_it) {
  Fixture f;
  const auto transfer = f.start();
  CHECK_EQ(transfer->store(Fixture::job(1, 2)), Status::Ok);
  CHECK_EQ(store_result(*transfer).status, Status::Ok);
  f.port->at_release.close();
  CHECK_EQ(transfer->load({.job = 2, .lease = f.port->lease_of(keys_of(100, 1)), .block_ids = {16}}), Status::Ok);
  f.port->at_release.wait_arrived();  // here the thread stays
  const LeaseId lease = f.port->lease_of(keys_of(100, 2));
  CHECK_EQ(transfer->load({.job = 3, .lease = lease, .first_block = 2, .block_ids = {20, 21, 22, 23}}), Status::Ok);
  CHECK_EQ(transfer->wait_layer(0, kMs), Status::Ok);
  for (std::uint32_t i = 0; i < 4; ++i) {
    const auto from = f.kv.block(0, 2 + i), to = f.kv.block(0, 20 + i);
    CHECK(std::equal(from.begin(), from.end(), to.begin(), [](auto* a, auto* b) { return *a == *b; }));
  }
  CHECK_EQ(transfer->wait_load(3, 0), Status::TimedOut);  // no more than was waited for
  CHECK_EQ(transfer->wait_layer(1, kMs), Status::Ok);
  CHECK_EQ(transfer->wait_load(3, kMs), Status::Ok);
  CHECK_EQ(transfer->stats().load_bytes, 5 * f.slot / 4);
  f.port->at_release.open();
  f.port->wait_call("release " + std::to_string(lease));
  CHECK_EQ(f.port->copies(), 0);
}

TEST(loads_that_are_wanted_as_a_whole_come_behind_those_that_a_forward_waits_for_and_hold_none_up) {
  Fixture f;
  const auto transfer = f.start();
  CHECK_EQ(transfer->store(Fixture::job(1, 1)), Status::Ok);
  CHECK_EQ(store_result(*transfer).status, Status::Ok);
  const auto load = [&](std::uint64_t job, std::uint32_t block, bool whole) {
    const LeaseId lease = f.port->lease_of(keys_of(100, 1));
    CHECK_EQ(transfer->load({.job = job, .lease = lease, .block_ids = {block}, .whole = whole}), Status::Ok);
  };
  f.port->at_release.close();
  load(2, 16, false);
  f.port->at_release.wait_arrived();  // here the thread stays
  load(3, 17, true);
  load(4, 18, true);
  CHECK_EQ(transfer->wait_layer(1, kMs), Status::Ok);  // none of these is a forward's
  CHECK_EQ(transfer->wait_load(3, 0), Status::TimedOut);
  load(5, 19, false);
  f.port->at_release.open();
  for (const std::uint64_t job : {3u, 4u, 5u}) CHECK_EQ(transfer->wait_load(job, kMs), Status::Ok);
  std::vector<std::uint64_t> order;
  for (const JobResult& result : transfer->take_finished_loads()) order.push_back(result.job);
  CHECK(order == std::vector<std::uint64_t>({2, 5, 3, 4}));
  for (const std::uint32_t block : {17u, 18u, 19u}) {
    const auto from = f.kv.block(1, 0), to = f.kv.block(1, block);
    CHECK(std::equal(from.begin(), from.end(), to.begin(), [](auto* a, auto* b) { return *a == *b; }));
  }
}

TEST(a_layer_of_many_pieces_is_shared_between_the_thread_and_those_who_wait) {
  constexpr std::uint32_t kBlocks = 6;
  PagedKv kv(2 * kBlocks, {{.run_bytes = 1 << 20}, {.run_bytes = (2 << 20) + 7}, {.run_bytes = 64}}, 5);
  const std::uint64_t slot = testing::slot_bytes_of(kv.layers(), kBlocks);
  const auto port = std::make_shared<ScriptedPort>(slot + kSlotAlignBytes, slot);
  Transfer transfer(port, {.blocks_per_chunk = kBlocks, .layers = kv.layers(), .copy_threads = 2});
  StoreJob store;
  store.keys = keys_of(100, 1);
  store.block_ids.resize(kBlocks);
  std::iota(store.block_ids.begin(), store.block_ids.end(), 0u);
  CHECK_EQ(transfer.store(store), Status::Ok);
  CHECK_EQ(store_result(transfer).status, Status::Ok);
  Ids targets(kBlocks);
  std::iota(targets.begin(), targets.end(), kBlocks);
  CHECK_EQ(transfer.load({.job = 2, .lease = port->lease_of(store.keys), .block_ids = targets}), Status::Ok);
  const auto waiter = [&] {
    for (std::uint32_t layer = 0; layer < 3; ++layer) {
      CHECK_EQ(transfer.wait_layer(layer, kMs), Status::Ok);
      const LayerLayout& l = kv.layers()[layer];
      const auto* base = reinterpret_cast<const std::byte*>(l.base);
      for (std::uint32_t i = 0; i < kBlocks; ++i) {
        CHECK(std::memcmp(base + i * l.block_stride_bytes, base + (kBlocks + i) * l.block_stride_bytes, l.run_bytes) ==
              0);
      }
    }
  };
  std::thread other(waiter);
  waiter();
  other.join();
  CHECK_EQ(transfer.wait_load(2, kMs), Status::Ok);
  CHECK_EQ(only_result(transfer.take_finished_loads()).bytes, slot);
}

TEST(waiting_for_a_store_ends_when_its_source_is_read_and_not_when_the_node_has_answered) {
  Fixture f;
  const auto transfer = f.start();
  f.port->at_commit.close();
  CHECK_EQ(transfer->store(Fixture::job(5, 2)), Status::Ok);
  const std::uint64_t jobs[] = {5, 6};
  transfer->wait_stores(jobs);
  transfer->wait_all_stores();
  CHECK(transfer->take_finished_stores().empty());
  f.port->at_commit.open();
  CHECK_EQ(store_result(*transfer).status, Status::Ok);
}

TEST(jobs_over_the_limit_are_refused_and_counted) {
  Fixture f;
  const auto transfer = f.start(2);
  f.port->at_reserve.close();
  CHECK_EQ(transfer->store(Fixture::job(1, 1)), Status::Ok);
  f.port->at_reserve.wait_arrived();
  CHECK_EQ(transfer->store(Fixture::job(2, 1)), Status::Ok);
  CHECK_EQ(transfer->store(Fixture::job(3, 1)), Status::Ok);
  CHECK_EQ(transfer->store(Fixture::job(4, 1)), Status::Full);
  CHECK_EQ(transfer->stats().queued, 2u);
  f.port->at_reserve.open();
  transfer->wait_all_stores();
  CHECK_EQ(transfer->stats().stores_dropped, 1u);
}

TEST(a_store_yields_to_loads_between_layers_unless_somebody_waits_for_it) {
  Fixture f;
  const auto transfer = f.start();
  CHECK_EQ(transfer->store(Fixture::job(1, 2)), Status::Ok);
  CHECK_EQ(store_result(*transfer).status, Status::Ok);
  f.port->at_reserve.close();
  StoreJob second = Fixture::job(2, 2);
  second.keys = keys_of(200, 2);
  CHECK_EQ(transfer->store(second), Status::Ok);
  f.port->at_reserve.wait_arrived();
  f.port->at_release.close();  // the load thread stands here: a further load stays active
  CHECK_EQ(transfer->load({.job = 3, .lease = f.port->lease_of(keys_of(100, 1)), .block_ids = {16}}), Status::Ok);
  f.port->at_release.wait_arrived();
  CHECK_EQ(transfer->load({.job = 4, .lease = f.port->lease_of(keys_of(100, 1)), .block_ids = {17}}), Status::Ok);
  f.port->at_reserve.open();
  CHECK_EQ(transfer->stats().store_bytes, 2 * f.slot);  // what the first store wrote: the second has to wait
  transfer->wait_all_stores();                          // a waiter makes it urgent
  CHECK_EQ(transfer->stats().store_bytes, 4 * f.slot);
  CHECK_EQ(transfer->wait_load(4, 0), Status::TimedOut);
  f.port->at_release.open();
  CHECK_EQ(transfer->wait_load(4, kMs), Status::Ok);
}

TEST(an_end_drops_what_is_queued_and_gives_back_what_was_granted) {
  Fixture f;
  auto transfer = f.start();
  CHECK_EQ(transfer->store(Fixture::job(1, 1)), Status::Ok);
  CHECK_EQ(store_result(*transfer).status, Status::Ok);
  f.port->at_reserve.close();
  StoreJob second = Fixture::job(2, 2);
  second.keys = keys_of(200, 2);
  CHECK_EQ(transfer->store(second), Status::Ok);
  CHECK_EQ(transfer->store(Fixture::job(3, 2)), Status::Ok);
  f.port->at_reserve.wait_arrived();
  const LeaseId lease = f.port->lease_of(keys_of(100, 1));
  CHECK_EQ(transfer->load({.job = 4, .lease = lease, .block_ids = {16}}), Status::Ok);
  std::thread end([&] { transfer.reset(); });
  f.port->wait_call("release " + std::to_string(lease));
  f.port->at_reserve.open();
  end.join();
  CHECK_EQ(f.port->granted(), 0u);
  CHECK_EQ(f.port->copies(), 0);
}

TEST(long_chains_are_reserved_in_batches_each_on_the_key_before) {
  Fixture f;
  const std::size_t chunks = 150;
  PagedKv kv(chunks, {{.run_bytes = 64}}, 1);
  const auto port = std::make_shared<ScriptedPort>(std::uint64_t{1} << 20, 64);
  Transfer transfer(port, {.blocks_per_chunk = 1, .layers = kv.layers()});
  StoreJob job;
  job.keys = keys_of(1, chunks);
  job.block_ids.resize(chunks);
  std::iota(job.block_ids.begin(), job.block_ids.end(), 0u);
  CHECK_EQ(transfer.store(job), Status::Ok);
  CHECK_EQ(store_result(transfer).chunks, chunks);
  const auto parents = port->parents();
  CHECK_EQ(parents.size(), 3u);
  CHECK(parents[0].zero());
  CHECK(parents[1] == job.keys[63] && parents[2] == job.keys[127]);
}

TEST(loads_from_many_threads_all_arrive) {
  Fixture f;
  const auto transfer = f.start(64);
  CHECK_EQ(transfer->store(Fixture::job(1, 2)), Status::Ok);
  CHECK_EQ(store_result(*transfer).status, Status::Ok);
  std::vector<std::thread> threads;
  for (std::uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t i = 0; i < 50; ++i) {
        const std::uint64_t job = 1'000 * (t + 1) + i;
        const LoadJob load = {.job = job,
                              .lease = f.port->lease_of(keys_of(100, 2)),
                              .first_block = t,
                              .block_ids = {8 + 2 * t, 9 + 2 * t}};
        CHECK_EQ(transfer->load(load), Status::Ok);
        CHECK_EQ(transfer->wait_layer(i % 2, kMs), Status::Ok);
        CHECK_EQ(transfer->wait_load(job, kMs), Status::Ok);
        const auto from = f.kv.block(1, t), to = f.kv.block(1, 8 + 2 * t);
        CHECK(std::equal(from.begin(), from.end(), to.begin(), [](auto* a, auto* b) { return *a == *b; }));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK_EQ(transfer->take_finished_loads().size(), 200u);
}

void expect_refused(const std::vector<LayerLayout>& layers, const std::string& words, std::uint32_t per_chunk = 4) {
  const auto port = std::make_shared<ScriptedPort>(4'096, 4 * 64);
  try {
    Transfer transfer(port, {.blocks_per_chunk = per_chunk, .layers = layers});
  } catch (const std::invalid_argument& error) {
    if (std::string(error.what()).find(words) == std::string::npos) {
      testing::fail(__FILE__, __LINE__, std::string(error.what()) + " does not say: " + words);
    }
    return;
  }
  testing::fail(__FILE__, __LINE__, "accepted, but should have said: " + words);
}

TEST(a_bad_layout_is_refused_by_the_name_of_the_field) {
  constexpr std::uint64_t kHuge = ~std::uint64_t{0} / 2;
  const LayerLayout good = {.base = 4'096, .blocks = 8, .block_stride_bytes = 64, .run_bytes = 64};
  const auto with = [&](auto change) {
    LayerLayout layer = good;
    change(&layer);
    return std::vector<LayerLayout>{good, layer};
  };
  expect_refused({}, "layers has 0 entries");
  expect_refused({good}, "blocks_per_chunk is 0", 0);
  expect_refused(with([](auto* l) { l->base = 0; }), "layers[1].base is 0");
  expect_refused(with([](auto* l) { l->blocks = 0; }), "layers[1].blocks is 0");
  expect_refused(with([](auto* l) { l->blocks = 1ull << 33; }), "block ids have 32 bits");
  expect_refused(with([](auto* l) { l->planes = 0; }), "layers[1].planes is 0");
  expect_refused(with([](auto* l) { l->runs = 0; }), "layers[1].runs is 0");
  expect_refused(with([](auto* l) { l->run_bytes = 0; }), "layers[1].run_bytes is 0");
  expect_refused(with([](auto* l) { l->block_stride_bytes = 63; }), "block_stride_bytes is 63: pieces would overlap");
  expect_refused(with([](auto* l) { l->runs = 2, l->run_stride_bytes = 32; }), "run_stride_bytes is 32: pieces would");
  expect_refused(with([](auto* l) { l->planes = 2, l->plane_stride_bytes = 64; }), "pieces would overlap");
  expect_refused(with([](auto* l) { l->block_stride_bytes = kHuge; }), "overflows 64 bits");
  expect_refused(with([](auto* l) { l->base = ~std::uintptr_t{0} - 100; }), "overflows 64 bits");
  expect_refused(with([](auto* l) { l->blocks = 1, l->base = 1, l->run_bytes = kHuge; }), "overflows 64 bits");
  expect_refused(with([](auto* l) { l->blocks = 1, l->run_bytes = 1ull << 31; }), "choose a smaller chunk");
  expect_refused({good, good}, "has 512 bytes, but the client declared 256");
}

TEST(thread_and_job_limits_are_refused_by_name) {
  Fixture f;
  TransferConfig config = {.blocks_per_chunk = 4, .layers = f.kv.layers(), .copy_threads = 0};
  CHECK_THROWS(Transfer(f.port, config), std::invalid_argument);
  config.copy_threads = 1;
  config.jobs_max = 0;
  CHECK_THROWS(Transfer(f.port, config), std::invalid_argument);
}

}  // namespace
}  // namespace kvcommons

TEST_MAIN()
