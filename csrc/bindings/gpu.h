// GPUs by the names that Python gives them.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/transfer.h"
#include "kernels/gpu/gpu_device.h"

namespace kvcommons::bindings {

// Of "cuda:N"; nullopt where the name is none of a GPU's. Throws nb::value_error for a number that is none.
std::optional<gpu::GpuOptions> gpu_options(const std::string& name, const nanobind::bytes& kernels,
                                           const std::string& driver);
// Throws std::runtime_error without the GPU, std::invalid_argument where a layer is not in its memory.
std::shared_ptr<gpu::GpuDevice> gpu_device(const gpu::GpuOptions& options, const std::vector<LayerLayout>& layers);

}  // namespace kvcommons::bindings
