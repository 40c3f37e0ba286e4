// Transfers whose KV is behind a device's streams: what is waited for, and what each failure leaves behind.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <string>

#include "arena_warmer.h"
#include "stream_device.h"
#include "transfer_fixture.h"
#include "transfer_runs.h"
#include "xxh3.h"

namespace kvcommons {
namespace {

using namespace kvcommons::testing;
using State = Device::State;

constexpr std::uintptr_t kStream = 1;

// Every byte of some blocks, layer by layer.
std::vector<std::byte> bytes_of(const PagedKv& kv, const Ids& ids) {
  std::vector<std::byte> out;
  for (std::size_t layer = 0; layer < kv.layers().size(); ++layer) {
    for (const std::uint32_t id : ids) {
      for (const std::byte* byte : kv.block(layer, id)) out.push_back(*byte);
    }
  }
  return out;
}

LoadJob load_of(Fixture* f, const StoreJob& stored, std::uint64_t number) {
  LoadJob load = {.job = number, .lease = f->port->lease_of(stored.keys), .first_block = 0, .block_ids = {}};
  load.block_ids = Fixture::blocks(16, stored.keys.size());
  return load;
}

// As an engine's forward: writes other bytes into the blocks.
void compute(const PagedKv& kv, const Ids& ids, std::byte add) {
  for (std::size_t layer = 0; layer < kv.layers().size(); ++layer) {
    for (const std::uint32_t id : ids) {
      for (std::byte* byte : kv.block(layer, id)) *byte ^= add;
    }
  }
}

TEST(a_store_copies_what_the_engines_stream_had_been_given_when_it_was_submitted) {
  Fixture f;
  const auto device = std::make_shared<StreamDevice>();
  const auto transfer = f.start(16, device);
  StoreJob job = Fixture::job(1, 2);
  job.stream = kStream;
  CHECK_EQ(transfer->store(job), Status::Ok);
  f.port->wait_call("reserve 2");
  compute(f.kv, job.block_ids, std::byte{0x5a});  // the forward ends after the store was submitted
  device->reach(1);
  CHECK_EQ(store_result(*transfer).status, Status::Ok);
  for (const auto& [key, chunk] : f.port->committed()) {
    const auto want = f.kv.chunk(std::span(job.block_ids).subspan((key - 100) * 4, 4));
    CHECK(std::equal(want.begin(), want.end(), f.port->bytes(chunk.slot)));
    CHECK_EQ(chunk.checksum, xxh3_64(want.data(), want.size()));
  }
  CHECK_EQ(f.port->committed().size(), 2u);
  CHECK_EQ(device->marks(), 0u);
}

TEST(a_load_writes_no_block_before_the_engine_has_done_with_it_and_a_waiter_only_waits) {
  Fixture f;
  const auto device = std::make_shared<StreamDevice>();
  const auto transfer = f.start(16, device);
  const StoreJob job = Fixture::job(1, 2);
  CHECK_EQ(transfer->store(job), Status::Ok);
  CHECK_EQ(store_result(*transfer).status, Status::Ok);
  LoadJob load = load_of(&f, job, 2);
  load.stream = kStream;
  const auto before = bytes_of(f.kv, load.block_ids);
  CHECK_EQ(transfer->load(load), Status::Ok);
  CHECK_EQ(transfer->wait_layer(0, 1), Status::TimedOut);
  CHECK_EQ(transfer->wait_load(2, 1), Status::TimedOut);
  CHECK(bytes_of(f.kv, load.block_ids) == before);
  device->reach(1);
  CHECK_EQ(transfer->wait_layer(1, kMs), Status::Ok);
  CHECK_EQ(transfer->wait_load(2, kMs), Status::Ok);
  CHECK(bytes_of(f.kv, load.block_ids) == bytes_of(f.kv, job.block_ids));
  CHECK_EQ(device->marks(), 0u);
}

TEST(marks_of_jobs_that_come_to_no_copy_are_dropped) {
  Fixture f;
  const auto device = std::make_shared<StreamDevice>();
  {
    const auto transfer = f.start(1, device);
    StoreJob job = Fixture::job(1, 1);
    job.stream = kStream;
    f.port->reserve_status = Status::Busy;
    CHECK_EQ(transfer->store(job), Status::Ok);
    CHECK_EQ(store_result(*transfer).status, Status::Busy);
    f.port->begin_status = Status::Gone;
    LoadJob load = {.job = 2, .lease = 5, .first_block = 0, .block_ids = {0}, .stream = kStream};
    CHECK_EQ(transfer->load(load), Status::Gone);
  }
  CHECK_EQ(device->marks(), 0u);
}

// One life: two stores and two loads, of which the call number `fails` to `what` ends as `state`. Returns how many
// calls there were.
std::uint32_t life(const std::string& what, std::uint32_t fails, State state) {
  Fixture f;
  std::atomic<std::uint32_t> calls{0};
  const auto device = std::make_shared<StreamDevice>(
      [&](std::string_view call) { return call == what && calls++ == fails ? state : State::Done; });
  const StoreJob first = Fixture::job(1, 2);
  StoreJob second = Fixture::job(2, 2);
  second.keys = keys_of(200, 2);
  second.block_ids = Fixture::blocks(8, 2);
  bool lost = false;
  std::uint32_t kept_leases = 0;
  {
    const auto transfer = f.start(16, device);
    for (const StoreJob& job : {first, second}) {
      CHECK_EQ(transfer->store(job), Status::Ok);
      const Status status = store_result(*transfer).status;
      const auto committed = f.port->committed();
      if (status != Status::Ok) {
        CHECK(!committed.contains(job.keys[0].prefix64()));
        lost |= state == State::Lost;
        continue;
      }
      const auto want = f.kv.chunk(std::span(job.block_ids).first(4));
      CHECK(std::equal(want.begin(), want.end(), f.port->bytes(committed.at(job.keys[0].prefix64()).slot)));
      const LoadJob load = load_of(&f, job, 10 + job.job);
      CHECK_EQ(transfer->load(load), Status::Ok);
      const Status loaded = transfer->wait_load(load.job, kMs);
      if (loaded == Status::Ok) {
        CHECK(bytes_of(f.kv, load.block_ids) == bytes_of(f.kv, job.block_ids));
      } else {
        CHECK_EQ(loaded, Status::Internal);
        if (state == State::Lost && !lost) ++kept_leases;
        lost |= state == State::Lost;
      }
    }
  }
  CHECK_EQ(device->marks(), 0u);
  if (!lost) {  // nothing is held that nobody uses
    CHECK_EQ(f.port->copies(), 0);
    CHECK_EQ(f.port->granted(), 0u);
  } else {  // what the device may still touch is held for good: one copy, either a load's lease or a store's slots
    CHECK_EQ(f.port->copies(), 1);
    CHECK_EQ(f.port->granted(), kept_leases == 1 ? 0u : 2u);
  }
  return calls.load();
}

TEST(whichever_call_to_the_device_fails_nothing_wrong_is_committed_or_called_loaded_and_nothing_leaks) {
  for (const auto& [what, state] : {std::pair{"copy", State::Failed}, {"run", State::Failed}, {"run", State::Lost}}) {
    const std::uint32_t calls = life(what, ~0u, state);
    CHECK_GE(calls, 6u);  // four chunks stored, two loads
    for (std::uint32_t fails = 0; fails < calls; ++fails) (void)life(what, fails, state);
  }
}

TEST(an_end_while_copies_are_on_the_streams_waits_for_them) {
  Fixture f;
  const auto device = std::make_shared<StreamDevice>();
  const StoreJob job = Fixture::job(1, 2);
  {
    const auto transfer = f.start(16, device);
    CHECK_EQ(transfer->store(job), Status::Ok);
    CHECK_EQ(store_result(*transfer).status, Status::Ok);
    LoadJob load = load_of(&f, job, 2);
    load.stream = kStream;
    CHECK_EQ(transfer->load(load), Status::Ok);
    device->reach(1);
  }
  CHECK_EQ(f.port->copies(), 0);
  CHECK_EQ(f.port->granted(), 0u);
}

TEST(a_run_is_cut_where_one_registration_of_the_arena_ends) {
  const auto at = [](std::uint64_t address) { return reinterpret_cast<std::byte*>(address); };
  const std::byte* const arena = at(std::uint64_t{1} << 40);
  const std::uint64_t pin = Device::kPinBytes;
  std::vector<kernels::CopyRun> cut;
  const kernels::CopyRun inside = {arena + 5, at(4096), pin - 5};
  const auto whole = cut_at_pins(Device::Way::Load, {&inside, 1}, arena, &cut);
  CHECK_EQ(whole.size(), 1u);
  CHECK(whole.data() == &inside);
  const kernels::CopyRun across = {at(4096), const_cast<std::byte*>(arena) + pin - 7, pin + 20};
  const auto pieces = cut_at_pins(Device::Way::Store, {&across, 1}, arena, &cut);
  CHECK_EQ(pieces.size(), 3u);
  std::uint64_t done = 0;
  for (const auto& piece : pieces) {
    CHECK(piece.src == across.src + done && piece.dst == across.dst + done);
    const auto offset = static_cast<std::uint64_t>(piece.dst - arena);
    CHECK_EQ(offset / pin, (offset + piece.bytes - 1) / pin);
    done += piece.bytes;
  }
  CHECK_EQ(done, across.bytes);
}

// A node's arena, populated or not, that its client may drop.
class MappedPort final : public LeasePort {
 public:
  explicit MappedPort(std::uint64_t bytes) : bytes_(bytes) { restart(true); }
  void restart(bool populated) {
    void* const start = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                               MAP_SHARED | MAP_ANONYMOUS | (populated ? MAP_POPULATE : 0), -1, 0);
    CHECK(start != MAP_FAILED);
    arena = {static_cast<std::byte*>(start), [bytes = bytes_](std::byte* p) { ::munmap(p, bytes); }};
    ++attach;
  }
  [[nodiscard]] Attachment attachment() const override { return {arena, bytes_, attach}; }
  bool ensure_connected() override { return true; }
  [[nodiscard]] std::uint64_t slot_bytes() const override { return 0; }
  Status begin(LeaseId, std::vector<SlotRef>*) override { return Status::Gone; }
  Status release(LeaseId) override { return Status::Gone; }
  Status reserve(std::uint64_t, const Key&, std::span<const Key>, std::vector<Reservation>*, std::uint32_t) override {
    return Status::Gone;
  }
  Status commit(std::span<const CommitItem>, std::uint32_t*) override { return Status::Gone; }
  Status abort(std::span<const SlotRef>) override { return Status::Gone; }
  void copy_started() override {}
  void copy_finished() override {}

  std::shared_ptr<std::byte> arena;
  std::uint64_t attach = 0;

 private:
  std::uint64_t bytes_;
};

TEST(an_arena_is_pinned_in_the_background_and_unpinned_when_nobody_copies_from_it_any_more) {
  const std::uint64_t bytes = 3 * ArenaWarmer::kStepBytes + 4096;
  StreamDevice device;
  MappedPort port(bytes);
  {
    ArenaWarmer warmer(&device);
    const auto warm = [&] {
      while (warmer.step(port)) {
      }
    };
    warm();
    CHECK_EQ(device.pinned_bytes(), bytes);
    auto copying = port.arena;
    port.restart(true);
    warm();
    CHECK_EQ(device.pinned_bytes(), 2 * bytes);  // somebody still copies from the former one
    copying.reset();
    warm();
    CHECK_EQ(device.pinned_bytes(), bytes);
    port.arena.reset();  // no node for long: the client lets go of the memory
    warm();
    CHECK_EQ(device.pinned_bytes(), 0u);
    port.restart(false);  // pages that nobody has made are not made by pinning them
    warm();
    CHECK_EQ(device.pinned_bytes(), 0u);
    port.restart(true);
    warm();
    CHECK_EQ(device.pinned_bytes(), bytes);
  }
  CHECK_EQ(device.pinned_bytes(), 0u);
}

TEST(an_arena_that_can_not_be_pinned_is_used_as_it_is) {
  Fixture f;
  StreamDevice device([](std::string_view call) { return call == "pin" ? State::Failed : State::Done; });
  MappedPort port(2 * ArenaWarmer::kStepBytes);
  ArenaWarmer warmer(&device);
  while (warmer.step(port)) {
  }
  CHECK_EQ(device.pinned_bytes(), 0u);
}

}  // namespace
}  // namespace kvcommons

TEST_MAIN()
