// The background transfers for Python, and the copies themselves for benchmarks. Every wait releases the GIL.
#include "core/transfer.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/buffers.h"
#include "bindings/gpu.h"
#include "bindings/names.h"
#include "core/stream_device.h"
#include "kernels/cpu/copy.h"
#include "kernels/cpu/pool.h"

namespace nb = nanobind;

namespace {

using kvcommons::Client;
using kvcommons::JobResult;
using kvcommons::LayerLayout;
using kvcommons::Status;
using kvcommons::Transfer;
using kvcommons::bindings::Buffer;
using kvcommons::bindings::key_argument;
using kvcommons::bindings::keys_argument;
using kvcommons::bindings::status_name;
using kvcommons::bindings::U32Array;
namespace kernels = kvcommons::kernels;

using LayerTuple = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, std::uint32_t, std::uint64_t, std::uint32_t,
                              std::uint64_t, std::uint64_t>;
using TextKeys = std::vector<std::vector<std::uint64_t>>;

LayerLayout layout_of(const LayerTuple& layer) {
  const auto& [base, blocks, block_stride, planes, plane_stride, runs, run_stride, run_bytes] = layer;
  return {.base = base,
          .blocks = blocks,
          .block_stride_bytes = block_stride,
          .planes = planes,
          .plane_stride_bytes = plane_stride,
          .runs = runs,
          .run_stride_bytes = run_stride,
          .run_bytes = run_bytes};
}

std::vector<std::uint32_t> ids_of(const nb::object& block_ids) {
  const U32Array ids("block_ids", block_ids);
  return {ids.values().begin(), ids.values().end()};
}

std::shared_ptr<kvcommons::Device> device_named(const std::string& name, const nb::bytes& kernels,
                                                const std::string& driver, const std::vector<LayerLayout>& layers) {
  if (name == "host") return nullptr;
  if (name == "stream") return std::make_shared<kvcommons::StreamDevice>();
  if (const auto options = kvcommons::bindings::gpu_options(name, kernels, driver)) {
    const nb::gil_scoped_release released;  // it measures for a moment
    return kvcommons::bindings::gpu_device(*options, layers);
  }
  throw nb::value_error(("device is \"" + name + "\": pass \"host\", \"stream\" or \"cuda:0\"").c_str());
}

const char* load(Transfer& transfer, std::uint64_t job, std::uint64_t lease, std::uint32_t first_block,
                 const nb::object& block_ids, std::uintptr_t stream, bool whole) {
  kvcommons::LoadJob load = {.job = job,
                             .lease = lease,
                             .first_block = first_block,
                             .block_ids = ids_of(block_ids),
                             .stream = stream,
                             .whole = whole};
  const nb::gil_scoped_release released;
  return status_name(transfer.load(std::move(load)));
}

const char* store(Transfer& transfer, std::uint64_t job, std::uint64_t tenant, const nb::bytes& parent,
                  const nb::bytes& keys, const nb::object& block_ids, TextKeys text_keys, std::uint32_t hints,
                  std::uintptr_t stream) {
  kvcommons::StoreJob store;
  store.job = job;
  store.tenant = tenant;
  if (parent.size() != 0) store.parent = key_argument("parent", parent);  // empty: the first chunk of a chain
  store.keys = keys_argument("keys", keys);
  store.block_ids = ids_of(block_ids);
  store.text_keys = std::move(text_keys);
  store.hints = hints;
  store.stream = stream;
  const nb::gil_scoped_release released;
  return status_name(transfer.store(std::move(store)));
}

nb::list tuples_of(const std::vector<JobResult>& results) {
  nb::list out;
  for (const JobResult& result : results) {
    out.append(nb::make_tuple(result.job, status_name(result.status), result.bytes, result.chunks));
  }
  return out;
}

nb::dict stats_of(const Transfer& transfer) {
  const Transfer::Stats stats = transfer.stats();
  nb::dict out;
  out["load_bytes"] = stats.load_bytes;
  out["load_ns"] = stats.load_ns;
  out["loads"] = stats.loads;
  out["loads_failed"] = stats.loads_failed;
  out["store_bytes"] = stats.store_bytes;
  out["store_ns"] = stats.store_ns;
  out["stores"] = stats.stores;
  out["stores_failed"] = stats.stores_failed;
  out["stores_dropped"] = stats.stores_dropped;
  out["store_chunks"] = stats.store_chunks;
  out["store_exists"] = stats.store_exists;
  out["store_full"] = stats.store_full;
  out["store_busy"] = stats.store_busy;
  out["queued"] = stats.queued;
  return out;
}

kernels::Stores stores_argument(const std::string& kernel, std::size_t bytes) {
  if (kernel == "memcpy") return kernels::Stores::Cached;
  if (kernel == "nt") return kernels::Stores::Streaming;
  if (kernel == "auto") return kernels::stores_for(bytes);
  throw nb::value_error(("kernel is \"" + kernel + "\": pass \"memcpy\", \"nt\" or \"auto\"").c_str());
}

// One pool a size, kept: a benchmark must not time the start of threads.
kernels::WorkerPool& pool_of(std::uint32_t threads) {
  constexpr std::uint32_t kThreadsMax = 64;
  if (threads == 0 || threads > kThreadsMax) {
    throw nb::value_error(("threads is " + std::to_string(threads) + ", outside 1.." + std::to_string(kThreadsMax) +
                           ": pass 1 or the number of free cores")
                              .c_str());
  }
  static std::mutex mutex;
  static std::map<std::uint32_t, std::unique_ptr<kernels::WorkerPool>> pools;
  const std::lock_guard lock(mutex);
  auto& pool = pools[threads];
  if (!pool) pool = std::make_unique<kernels::WorkerPool>(threads - 1);
  return *pool;
}

void copy_runs(const nb::object& runs, const std::string& kernel, std::uint32_t threads) {
  static_assert(sizeof(kernels::CopyRun) == 3 * sizeof(std::uint64_t), "triples of u64 are read in place");
  const Buffer buffer("runs", runs);
  if (buffer.item_bytes() != sizeof(std::uint64_t) || buffer.bytes() % sizeof(kernels::CopyRun) != 0) {
    throw nb::value_error("runs holds no u64 triples: pass (source, destination, bytes) for each run");
  }
  const std::span list(static_cast<const kernels::CopyRun*>(buffer.data()), buffer.bytes() / sizeof(kernels::CopyRun));
  std::size_t bytes = 0;
  for (const auto& run : list) bytes += run.bytes;
  const kernels::Stores stores = stores_argument(kernel, bytes);
  kernels::WorkerPool& pool = pool_of(threads);
  const nb::gil_scoped_release released;
  kernels::copy_runs(pool, list, stores);
}

void copy_bytes(std::uintptr_t dst, std::uintptr_t src, std::size_t bytes, const std::string& kernel,
                std::uint32_t threads) {
  const kernels::CopyRun run = {reinterpret_cast<const std::byte*>(src), reinterpret_cast<std::byte*>(dst), bytes};
  const kernels::Stores stores = stores_argument(kernel, bytes);
  kernels::WorkerPool& pool = pool_of(threads);
  const nb::gil_scoped_release released;
  kernels::copy_runs(pool, {&run, 1}, stores);
}

void bind_copies(nb::module_& module) {
  using nb::literals::operator""_a;
  module.def("copy_bytes", &copy_bytes, "dst"_a, "src"_a, "nbytes"_a, nb::kw_only(), "kernel"_a = "auto",
             "threads"_a = 1);
  module.def("copy_runs", &copy_runs, "runs"_a, nb::kw_only(), "kernel"_a = "auto", "threads"_a = 1);
}

}  // namespace

void bind_transfer(nb::module_& module);
void bind_transfer(nb::module_& module) {
  using nb::literals::operator""_a;
  bind_copies(module);
  using Released = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<Transfer>(module, "Transfer")
      .def(
          "__init__",
          [](Transfer* self, std::shared_ptr<Client> client, std::uint32_t blocks_per_chunk,
             const std::vector<LayerTuple>& layers, std::uint32_t copy_threads, std::uint32_t jobs_max,
             const std::string& device, const nb::bytes& kernels, const std::string& driver) {
            kvcommons::TransferConfig config = {.blocks_per_chunk = blocks_per_chunk,
                                                .layers = {},
                                                .copy_threads = copy_threads,
                                                .device = nullptr,
                                                .jobs_max = jobs_max};
            for (const auto& layer : layers) config.layers.push_back(layout_of(layer));
            config.device = device_named(device, kernels, driver, config.layers);
            new (self) Transfer(std::move(client), std::move(config));
          },
          "client"_a, nb::kw_only(), "blocks_per_chunk"_a, "layers"_a, "copy_threads"_a = 1, "jobs_max"_a = 1'024,
          "device"_a = "host", "kernels"_a = nb::bytes("", 0), "driver"_a = "")
      .def("load", &load, "job"_a, "lease"_a, "first_block"_a, "block_ids"_a, "stream"_a = 0, "whole"_a = false)
      .def(
          "wait_layer",
          [](Transfer& t, std::uint32_t layer, std::uint32_t ms_max) {
            return status_name(t.wait_layer(layer, ms_max));
          },
          "layer"_a, "ms_max"_a, Released())
      .def(
          "wait_load",
          [](Transfer& t, std::uint64_t job, std::uint32_t ms_max) { return status_name(t.wait_load(job, ms_max)); },
          "job"_a, "ms_max"_a, Released())
      .def("store", &store, "job"_a, "tenant"_a, "parent"_a, "keys"_a, "block_ids"_a, "text_keys"_a = TextKeys{},
           "hints"_a = 0, "stream"_a = 0)
      .def(
          "wait_stores", [](Transfer& t, const std::vector<std::uint64_t>& jobs) { t.wait_stores(jobs); }, "jobs"_a,
          Released())
      .def("wait_all_stores", &Transfer::wait_all_stores, Released())
      .def("take_finished_loads", [](Transfer& t) { return tuples_of(t.take_finished_loads()); })
      .def("take_finished_stores", [](Transfer& t) { return tuples_of(t.take_finished_stores()); })
      .def("stats", &stats_of);
}
