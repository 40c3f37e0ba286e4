// The GPU device, with fake_cuda.cpp in the driver's place: every method moves the same bytes, transfers are ordered
// with the engine's stream, and whatever call fails, nothing wrong is served and nothing leaks.
#include "kernels/gpu/gpu_device.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>

#include "fake_cuda.h"
#include "kernels/gpu/transforms.h"
#include "transfer_fixture.h"

namespace kvcommons::gpu {
namespace {

using namespace kvcommons::testing;
using Way = Device::Way;
using State = Device::State;

constexpr int kSomeError = 2;

void* const kEngineStream = reinterpret_cast<void*>(kLegacyStream);

GpuOptions options(const std::string& kernels = "an image") {
  return {.ordinal = 0, .library = KVCOMMONS_FAKE_CUDA, .kernels = kernels, .calibrate = false};
}

// Device memory of the fixture's KV, the port's arena pinned.
struct Gpu {
  explicit Gpu(Fixture* f, const GpuOptions& with = options()) : device(std::make_shared<GpuDevice>(with)) {
    for (const auto& memory : f->kv.memory()) fake_cuda_device_memory(memory.data(), memory.size());
    const auto attached = f->port->attachment();
    (void)device->pin(attached.arena.get(), attached.arena_bytes);
  }
  std::shared_ptr<GpuDevice> device;
};

LoadJob load_of(Fixture* f, const StoreJob& stored, std::uint64_t number) {
  LoadJob load = {.job = number, .lease = f->port->lease_of(stored.keys), .first_block = 0, .block_ids = {}};
  load.block_ids = Fixture::blocks(16, stored.keys.size());
  return load;
}

std::vector<std::byte> bytes_of(const PagedKv& kv, const Ids& ids) { return kv.chunk(ids); }

TEST(a_machine_without_the_driver_hears_what_is_missing) {
  std::string why;
  CHECK(Driver::load("/nowhere/libcuda.so.1", &why) == nullptr);
  CHECK(why.find("driver") != std::string::npos);
  GpuOptions other = options();
  other.ordinal = 3;
  CHECK_THROWS(GpuDevice(other), std::runtime_error);
  CHECK_EQ(fake_cuda_objects(), 0);
}

TEST(every_method_moves_the_same_bytes_both_ways) {
  for (const char* const version : {"13000", "12080", "12000"}) {
    setenv("FAKE_CUDA_VERSION", version, 1);
    fake_cuda_reset();
    std::mt19937 random(5);
    std::vector<std::byte> paged(1 << 20), arena(1 << 20);
    fake_cuda_device_memory(paged.data(), paged.size());
    GpuDevice device(options());
    CHECK(device.pin(arena.data(), arena.size()));
    for (const std::size_t bytes : {std::size_t{48}, std::size_t{4096}, std::size_t{20'000}}) {
      for (const Method method : kAllMethods) {
        for (const Way way : {Way::Store, Way::Load}) {
          for (auto& byte : paged) byte = static_cast<std::byte>(random());
          for (auto& byte : arena) byte = static_cast<std::byte>(random());
          std::vector<kernels::CopyRun> runs;
          for (std::size_t i = 0; i < 20; ++i) {
            std::byte *const near = arena.data() + i * bytes, *const far = paged.data() + (i * 7 % 20) * 2 * bytes;
            runs.push_back(way == Way::Store ? kernels::CopyRun{far, near, bytes} : kernels::CopyRun{near, far, bytes});
          }
          const Device::Mark mark = device.copy_by(method, way, runs, 0);
          const Traits traits = traits_of(way, runs, true);
          CHECK_EQ(mark != 0, can_use(method, traits, device.abilities()));
          if (mark == 0) continue;
          CHECK_EQ(device.wait(way, mark), State::Done);
          for (const auto& run : runs) CHECK_EQ(std::memcmp(run.src, run.dst, run.bytes), 0);
        }
      }
    }
    CHECK_EQ(device.copies_by(Method::Batch) > 0, device.abilities().batch);
    CHECK_GT(device.copies_by(Method::Warps), 0u);
    CHECK_GT(device.copies_by(Method::Staged), 0u);
    if (device.abilities().ring) CHECK_GT(device.copies_by(Method::Ring), 0u);
    if (std::string(version) == "12000") break;
  }
  unsetenv("FAKE_CUDA_VERSION");
}

TEST(kernels_touch_no_memory_that_is_not_pinned) {
  fake_cuda_reset();
  std::vector<std::byte> paged(1 << 16), arena(1 << 16);
  fake_cuda_device_memory(paged.data(), paged.size());
  GpuDevice device(options());
  CHECK(device.pin(arena.data(), 4096));
  const kernels::CopyRun across[] = {{paged.data(), arena.data(), 64}, {paged.data(), arena.data() + 4090, 64}};
  CHECK_EQ(device.copy_by(Method::Warps, Way::Store, across, 0), 0u);
  const kernels::CopyRun outside[] = {{paged.data(), arena.data() + 8192, 64}};
  const Device::Mark mark = device.copy(Way::Store, outside, 0);
  CHECK_EQ(device.wait(Way::Store, mark), State::Done);
}

TEST(addresses_that_are_not_the_devices_are_refused_before_anything_is_copied) {
  fake_cuda_reset();
  std::vector<std::byte> paged(4096), other(4096);
  fake_cuda_device_memory(paged.data(), paged.size());
  const GpuDevice device(options());
  device.check_memory(reinterpret_cast<std::uintptr_t>(paged.data()), paged.size());
  CHECK_THROWS(device.check_memory(reinterpret_cast<std::uintptr_t>(paged.data()), paged.size() + 1),
               std::invalid_argument);
  CHECK_THROWS(device.check_memory(reinterpret_cast<std::uintptr_t>(other.data()), 16), std::invalid_argument);
}

TEST(a_device_whose_kernels_do_not_load_copies_by_the_driver_alone) {
  fake_cuda_reset();
  for (const char* const image : {"", "broken image"}) {
    const GpuDevice device(options(image));
    CHECK(!device.abilities().staged && !device.abilities().warps && !device.abilities().ring);
    CHECK(device.abilities().batch);
    CHECK(device.description().find("kernels") != std::string::npos);
  }
  setenv("FAKE_CUDA_MAJOR", "8", 1);
  const GpuDevice older(options());
  CHECK(older.abilities().warps && !older.abilities().ring);
  unsetenv("FAKE_CUDA_MAJOR");
}

TEST(a_stream_that_is_being_captured_into_a_graph_is_not_waited_for_and_its_copy_is_refused) {
  fake_cuda_reset();
  Fixture f;
  const Gpu gpu(&f);
  setenv("FAKE_CUDA_CAPTURING", "1", 1);
  const Device::Mark mark = gpu.device->mark(kLegacyStream);
  unsetenv("FAKE_CUDA_CAPTURING");
  CHECK_NE(mark, 0u);
  std::byte* const arena = f.port->attachment().arena.get();
  const kernels::CopyRun runs[] = {{f.kv.memory()[0].data(), arena, 64}};
  CHECK_EQ(gpu.device->copy(Way::Store, runs, mark), 0u);
}

TEST(a_calibration_measures_what_the_device_can_do_and_is_kept) {
  fake_cuda_reset();
  GpuOptions measured = options();
  measured.calibrate = true;
  const GpuDevice first(measured);
  CHECK_EQ(first.last_error(), "");
  const int copies = fake_cuda_calls("cuMemcpyAsync");
  CHECK_GT(copies, 0);
  CHECK_NE(first.costs().at(Way::Load, Method::Loop).kib_ns, usual_costs().at(Way::Load, Method::Loop).kib_ns);
  const GpuDevice second(measured);
  CHECK_EQ(fake_cuda_calls("cuMemcpyAsync"), copies);
  CHECK_EQ(second.costs().at(Way::Load, Method::Loop).kib_ns, first.costs().at(Way::Load, Method::Loop).kib_ns);
}

TEST(a_store_reads_what_the_engines_stream_had_been_given_and_a_load_writes_behind_it) {
  fake_cuda_reset();
  Fixture f;
  const Gpu gpu(&f);
  const auto transfer = f.start(16, gpu.device);
  StoreJob job = Fixture::job(1, 2);
  job.stream = kLegacyStream;
  fake_cuda_hold(kEngineStream);
  CHECK_EQ(transfer->store(job), Status::Ok);
  f.port->wait_call("reserve 2");
  for (std::size_t layer = 0; layer < f.kv.layers().size(); ++layer) {  // the forward ends after the submission
    for (const std::uint32_t id : job.block_ids) {
      for (std::byte* byte : f.kv.block(layer, id)) *byte ^= std::byte{0x5a};
    }
  }
  fake_cuda_release(kEngineStream);
  CHECK_EQ(store_result(*transfer).status, Status::Ok);
  for (const auto& [key, chunk] : f.port->committed()) {
    const auto want = f.kv.chunk(std::span(job.block_ids).subspan((key - 100) * 4, 4));
    CHECK(std::equal(want.begin(), want.end(), f.port->bytes(chunk.slot)));
  }
  LoadJob load = load_of(&f, job, 2);
  load.stream = kLegacyStream;
  const auto before = bytes_of(f.kv, load.block_ids);
  fake_cuda_hold(kEngineStream);
  CHECK_EQ(transfer->load(load), Status::Ok);
  CHECK_EQ(transfer->wait_load(2, 1), Status::TimedOut);
  CHECK(bytes_of(f.kv, load.block_ids) == before);
  fake_cuda_release(kEngineStream);
  CHECK_EQ(transfer->wait_load(2, kMs), Status::Ok);
  CHECK(bytes_of(f.kv, load.block_ids) == bytes_of(f.kv, job.block_ids));
}

TEST(transforms_reach_the_kernels_as_they_were_given) {
  fake_cuda_reset();
  constexpr std::uint32_t kRows = 20, kWidth = 32;
  std::vector<float> rows(kRows * kWidth), back(rows.size()), wanted(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i % 97) / 9.0F - 5.0F;
  const std::uint32_t blocks[] = {0};
  std::vector<std::byte> params(2 * kRows);
  std::vector<std::uint8_t> codes(rows.size());
  std::vector<std::uint32_t> most(kRows);
  const auto grid_of = [&](std::vector<float>* memory) {
    return RowGrid{reinterpret_cast<std::uintptr_t>(memory->data()), 0, 0, kWidth * 4, 1, kRows, blocks};
  };
  QuantJob job{grid_of(&rows), kRows,        1,          kWidth, 1, Codec::Int8Rows, kernels::Element::F32,
               params.data(),  codes.data(), most.data()};
  GpuDevice device(options());
  CHECK_EQ(device.quantise(job), State::Done);
  job.grid = grid_of(&back);
  CHECK_EQ(device.dequantise(job), State::Done);
  for (std::size_t i = 0; i < rows.size(); ++i) CHECK(std::abs(rows[i] - back[i]) < 0.04F);
  for (std::uint32_t tile = 0; tile < kRows; ++tile) {
    job.grid = grid_of(&wanted);
    dequantise(HostWarp{}, job, tile);
  }
  CHECK(wanted == back);
  const std::vector<float> cosines(kWidth / 2, 0.0F), sines(kWidth / 2, 1.0F);  // a quarter turn
  const kernels::RopeForm form{kernels::RopeStyle::Neox, 0, kWidth};
  CHECK_EQ(device.turn({grid_of(&back), kRows, form, kernels::Element::F32, cosines.data(), sines.data()}),
           State::Done);
  for (std::uint32_t c = 0; c < kWidth / 2; ++c) {
    CHECK_EQ(back[c], -wanted[c + kWidth / 2]);
    CHECK_EQ(back[c + kWidth / 2], wanted[c]);
  }
  GpuDevice without(options(""));
  CHECK_EQ(without.quantise(job), State::Failed);
}

// One life in which the nth call of `name` fails: a store, then a load of it. Returns how often it was called.
int life(const char* name, int nth, bool also_synchronize) {
  fake_cuda_reset();
  const int before = fake_cuda_objects();
  Fixture f;
  {
    fake_cuda_fail(name, nth, kSomeError);
    if (also_synchronize) fake_cuda_fail("cuStreamSynchronize", 1, kSomeError);
    std::shared_ptr<GpuDevice> device;
    try {
      device = Gpu(&f).device;
    } catch (const std::runtime_error&) {
      CHECK_EQ(fake_cuda_objects(), before);
      return fake_cuda_calls(name);
    }
    const auto transfer = f.start(16, device);
    StoreJob job = Fixture::job(1, 2);
    job.stream = kLegacyStream;
    CHECK_EQ(transfer->store(job), Status::Ok);
    if (store_result(*transfer).status == Status::Ok) {
      const auto want = f.kv.chunk(std::span(job.block_ids).first(4));
      CHECK(std::equal(want.begin(), want.end(), f.port->bytes(f.port->committed().at(100).slot)));
      LoadJob load = load_of(&f, job, 2);
      load.stream = kLegacyStream;
      CHECK_EQ(transfer->load(load), Status::Ok);
      const Status loaded = transfer->wait_load(2, kMs);
      if (loaded == Status::Ok) {
        CHECK(bytes_of(f.kv, load.block_ids) == bytes_of(f.kv, job.block_ids));
      } else {
        CHECK_EQ(loaded, Status::Internal);
      }
    } else {
      CHECK(f.port->committed().empty());
    }
  }
  // What a device that nobody could ask may still touch stays held; everything else is given back.
  const bool lost = f.port->copies() != 0 || f.port->granted() != 0;
  const std::string call = name;
  // Without a context, or while the device may still run, nothing of it can be freed.
  const bool may_leak =
      lost || also_synchronize || call == "cuCtxPushCurrent" || call == "cuStreamSynchronize" || call == "stream";
  if (fake_cuda_objects() != before && !may_leak) fail(name, nth, "something of the device was not given back");
  const bool may_lose =
      also_synchronize || call == "stream" || call == "cuEventSynchronize" || call == "cuCtxPushCurrent";
  if (lost && !may_lose) fail(name, nth, "a single failure of this call lost the device");
  return fake_cuda_calls(name);
}

constexpr std::array kCalls = {
    "cuDeviceGetCount",    "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent",   "cuStreamCreateWithPriority",
    "cuStreamIsCapturing", "cuStreamWaitEvent",        "cuEventCreate",      "cuEventRecord",
    "cuEventSynchronize",  "cuMemHostRegister",        "cuMemHostAlloc",     "cuMemAlloc",
    "cuModuleLoadData",    "cuModuleGetFunction",      "cuFuncSetAttribute", "cuLaunchKernel",
    "cuMemcpyAsync",       "cuStreamSynchronize"};

TEST(whichever_call_of_the_driver_fails_nothing_wrong_is_served_and_nothing_leaks) {
  for (const char* const name : kCalls) {
    const int calls = life(name, 0, false);
    for (int nth = 1; nth <= calls; ++nth) (void)life(name, nth, false);
  }
}

TEST(a_copy_that_failed_half_way_and_can_not_be_waited_for_is_lost) {
  for (const char* const name : {"cuMemcpyAsync", "cuLaunchKernel", "cuEventRecord"}) {
    const int calls = life(name, 0, false);
    for (int nth = 1; nth <= calls; ++nth) (void)life(name, nth, true);
  }
}

TEST(a_device_that_breaks_under_a_copy_fails_what_is_on_it_and_holds_what_it_may_still_touch) {
  for (int nth = 1; nth <= 12; ++nth) {
    (void)life("stream", nth, false);
    fake_cuda_reset();
  }
}

}  // namespace
}  // namespace kvcommons::gpu

TEST_MAIN()
