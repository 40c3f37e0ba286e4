#include "bindings/gpu.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <array>
#include <charconv>
#include <stdexcept>
#include <string_view>
#include <tuple>
#include <utility>

#include "bindings/buffers.h"
#include "bindings/kv_names.h"

namespace nb = nanobind;

namespace kvcommons::bindings {
namespace {

constexpr std::string_view kCuda = "cuda:";

std::uint64_t bytes_of(const LayerLayout& layer) {
  if (layer.blocks == 0) return 0;
  return (layer.blocks - 1) * layer.block_stride_bytes + (layer.planes - 1) * layer.plane_stride_bytes +
         (layer.runs - 1) * layer.run_stride_bytes + layer.run_bytes;
}

// (usable, what it is or why not)
std::pair<bool, std::string> status(const std::string& name, const nb::bytes& kernels, const std::string& driver) {
  auto options = gpu_options(name, kernels, driver);
  if (!options) throw nb::value_error(("device is \"" + name + "\": pass \"cuda:0\"").c_str());
  options->calibrate = false;
  const nb::gil_scoped_release released;
  try {
    return {true, gpu::GpuDevice(*options).description()};
  } catch (const std::runtime_error& error) {
    return {false, error.what()};
  }
}

nb::tuple gpu_status(const std::string& name, const nb::bytes& kernels, const std::string& driver) {
  const auto [usable, text] = status(name, kernels, driver);
  return nb::make_tuple(usable, text);
}

const char* state_name(Device::State state) {
  constexpr std::array<const char*, 3> kStates = {"done", "failed", "lost"};
  return kStates[static_cast<std::size_t>(state)];
}

using GridTuple = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t, std::uint32_t, std::uint32_t>;
gpu::RowGrid grid_of(const GridTuple& grid, std::uintptr_t blocks) {
  const auto& [base, block_stride, outer_stride, inner_stride, outer, inner] = grid;
  if (outer == 0 || inner == 0) throw nb::value_error("grid has no rows: pass how many a block has");
  return {base, block_stride, outer_stride, inner_stride, outer, inner, reinterpret_cast<const std::uint32_t*>(blocks)};
}

constexpr const char* kCodecNames[] = {"e4m3", "int8_rows", "int8_channels", "int4_rows", "int4_channels"};

// A device to itself, for benchmarks: copies by each method, and memory of the device.
class GpuBench {
 public:
  GpuBench(const std::string& name, const nb::bytes& kernels, const std::string& driver) {
    const auto options = gpu_options(name, kernels, driver);
    if (!options) throw nb::value_error(("device is \"" + name + "\": pass \"cuda:0\"").c_str());
    device_ = std::make_unique<gpu::GpuDevice>(*options);
  }
  [[nodiscard]] std::string description() const { return device_->description(); }
  bool pin(std::uintptr_t start, std::size_t bytes) { return device_->pin(reinterpret_cast<std::byte*>(start), bytes); }
  void unpin(std::uintptr_t start) { device_->unpin(reinterpret_cast<std::byte*>(start)); }
  // runs: u64 triples (source, destination, bytes). "" for the way that costs least. Empty answer: the device can not.
  std::string copy(const std::string& way, const std::string& method, const nb::object& runs) {
    const Buffer buffer("runs", runs);
    if (buffer.item_bytes() != 8 || buffer.bytes() % sizeof(kernels::CopyRun) != 0) {
      throw nb::value_error("runs holds no u64 triples: pass (source, destination, bytes) for each run");
    }
    if (way != "load" && way != "store") throw nb::value_error("way is neither \"load\" nor \"store\"");
    const Device::Way to = way == "load" ? Device::Way::Load : Device::Way::Store;
    const std::span list(static_cast<const kernels::CopyRun*>(buffer.data()),
                         buffer.bytes() / sizeof(kernels::CopyRun));
    const nb::gil_scoped_release released;
    Device::Mark mark = 0;
    if (method.empty()) mark = device_->copy(to, list, 0);
    for (const gpu::Method one : gpu::kAllMethods) {
      if (gpu::method_name(one) == method) mark = device_->copy_by(one, to, list, 0);
    }
    if (mark == 0) return "refused";
    return state_name(device_->wait(to, mark));
  }
  // grid: (base, block_stride, outer_stride, inner_stride, outer, inner), in bytes but for the counts. blocks, params,
  // codes and most: addresses of what the device can reach.
  std::string quantise(const std::string& codec, const std::string& element, const GridTuple& grid,
                       std::uintptr_t blocks, std::uint32_t tiles, std::uint32_t count, std::uint32_t width,
                       std::uint32_t group, std::uintptr_t params, std::uintptr_t codes, std::uintptr_t most,
                       bool back) {
    const gpu::QuantJob job{grid_of(grid, blocks),
                            tiles,
                            count,
                            width,
                            group,
                            static_cast<gpu::Codec>(named("codec", codec, kCodecNames)),
                            element_named(element),
                            reinterpret_cast<std::byte*>(params),
                            reinterpret_cast<std::uint8_t*>(codes),
                            reinterpret_cast<std::uint32_t*>(most)};
    const nb::gil_scoped_release released;
    return state_name(back ? device_->dequantise(job) : device_->quantise(job));
  }
  std::string turn(const std::string& element, const GridTuple& grid, std::uintptr_t blocks, std::uint32_t rows,
                   bool neox, std::uint32_t first, std::uint32_t dims, std::uintptr_t cosines, std::uintptr_t sines) {
    const gpu::RopeJob job{grid_of(grid, blocks),
                           rows,
                           {neox ? kernels::RopeStyle::Neox : kernels::RopeStyle::Gptj, first, dims},
                           element_named(element),
                           reinterpret_cast<const float*>(cosines),
                           reinterpret_cast<const float*>(sines)};
    const nb::gil_scoped_release released;
    return state_name(device_->turn(job));
  }
  [[nodiscard]] nb::dict costs() const {
    nb::dict out;
    for (const auto way : {Device::Way::Load, Device::Way::Store}) {
      for (const gpu::Method one : gpu::kAllMethods) {
        const gpu::Cost& cost = device_->costs().at(way, one);
        const std::string key =
            std::string(way == Device::Way::Load ? "load." : "store.") + std::string(gpu::method_name(one));
        out[key.c_str()] = nb::make_tuple(cost.fixed_ns, cost.run_ns, cost.kib_ns);
      }
    }
    return out;
  }

 private:
  std::unique_ptr<gpu::GpuDevice> device_;
};

}  // namespace

std::optional<gpu::GpuOptions> gpu_options(const std::string& name, const nb::bytes& kernels,
                                           const std::string& driver) {
  if (!name.starts_with(kCuda)) return std::nullopt;
  gpu::GpuOptions options;
  const char *const begin = name.data() + kCuda.size(), *const end = name.data() + name.size();
  if (const auto [at, error] = std::from_chars(begin, end, options.ordinal); error != std::errc{} || at != end) {
    throw nb::value_error(("device is \"" + name + "\": pass \"cuda:\" and the GPU's number, such as 0").c_str());
  }
  options.library = driver;
  options.kernels = {kernels.c_str(), kernels.size()};
  return options;
}

std::shared_ptr<gpu::GpuDevice> gpu_device(const gpu::GpuOptions& options, const std::vector<LayerLayout>& layers) {
  auto device = std::make_shared<gpu::GpuDevice>(options);
  for (const LayerLayout& layer : layers) device->check_memory(layer.base, bytes_of(layer));
  return device;
}

}  // namespace kvcommons::bindings

void bind_gpu(nb::module_& module);
void bind_gpu(nb::module_& module) {
  using nb::literals::operator""_a;
  using kvcommons::bindings::GpuBench;
  module.def("gpu_status", &kvcommons::bindings::gpu_status, "device"_a, nb::kw_only(), "kernels"_a = nb::bytes("", 0),
             "driver"_a = "");
  nb::class_<GpuBench>(module, "GpuCopies")
      .def(nb::init<const std::string&, const nb::bytes&, const std::string&>(), "device"_a, nb::kw_only(),
           "kernels"_a = nb::bytes("", 0), "driver"_a = "")
      .def_prop_ro("description", &GpuBench::description)
      .def("pin", &GpuBench::pin, "start"_a, "nbytes"_a)
      .def("unpin", &GpuBench::unpin, "start"_a)
      .def("copy", &GpuBench::copy, "way"_a, "method"_a, "runs"_a)
      .def("quantise", &GpuBench::quantise, nb::kw_only(), "codec"_a, "element"_a, "grid"_a, "blocks"_a, "tiles"_a,
           "count"_a, "width"_a, "group"_a, "params"_a, "codes"_a, "most"_a, "back"_a = false)
      .def("turn", &GpuBench::turn, nb::kw_only(), "element"_a, "grid"_a, "blocks"_a, "rows"_a, "neox"_a, "first"_a,
           "dims"_a, "cosines"_a, "sines"_a)
      .def("costs", &GpuBench::costs);
}
