#include "transfer.h"

#include <stdexcept>
#include <string>

#include "transfer_gate.h"
#include "transfer_layout.h"
#include "transfer_loads.h"
#include "transfer_stores.h"

namespace kvcommons {
namespace {

constexpr std::uint32_t kCopyThreadsMax = 64;

TransferConfig checked(TransferConfig config) {
  const auto refuse = [](const char* field, std::uint32_t value, const std::string& range) {
    throw std::invalid_argument(std::string(field) + " is " + std::to_string(value) + ", outside " + range);
  };
  if (config.copy_threads == 0 || config.copy_threads > kCopyThreadsMax) {
    refuse("copy_threads", config.copy_threads, "1.." + std::to_string(kCopyThreadsMax) + ": 1 is the usual");
  }
  if (config.jobs_max == 0) refuse("jobs_max", config.jobs_max, "1..4294967295: 1024 is the usual");
  return config;
}

}  // namespace

class Transfer::Impl {
 public:
  Impl(std::shared_ptr<LeasePort> port, TransferConfig config)
      : port_(std::move(port)),
        layout_(config.blocks_per_chunk, std::move(config.layers)),
        device_(std::move(config.device)),
        stores(*port_, declared(layout_, *port_), gate_, device_.get(), config.jobs_max),
        loads(*port_, layout_, gate_, device_.get(), config.copy_threads, config.jobs_max) {}

 private:
  // A slot smaller than what we write would spill into its neighbour.
  static const SlotLayout& declared(const SlotLayout& layout, const LeasePort& port) {
    if (layout.slot_bytes() != port.slot_bytes()) {
      throw std::invalid_argument("a slot of these layers has " + std::to_string(layout.slot_bytes()) +
                                  " bytes, but the client declared " + std::to_string(port.slot_bytes()) +
                                  " for its own shard: declare what the layers need");
    }
    return layout;
  }

  std::shared_ptr<LeasePort> port_;
  const SlotLayout layout_;
  const std::shared_ptr<Device> device_;
  TransferGate gate_;

 public:
  StoreQueue stores;
  LoadQueue loads;  // ends first: stores that yield to loads then go on, to their own end
};

Transfer::Transfer(std::shared_ptr<LeasePort> port, TransferConfig config)
    : impl_(std::make_unique<Impl>(std::move(port), checked(std::move(config)))) {}
Transfer::~Transfer() = default;

Status Transfer::load(LoadJob job) { return impl_->loads.submit(std::move(job)); }
Status Transfer::wait_layer(std::uint32_t layer, std::uint32_t ms_max) {
  return impl_->loads.wait_layer(layer, ms_max);
}
Status Transfer::wait_load(std::uint64_t job, std::uint32_t ms_max) { return impl_->loads.wait_load(job, ms_max); }
Status Transfer::store(StoreJob job) { return impl_->stores.submit(std::move(job)); }
void Transfer::wait_stores(std::span<const std::uint64_t> jobs) { impl_->stores.wait(jobs); }
void Transfer::wait_all_stores() { impl_->stores.wait_all(); }
std::vector<JobResult> Transfer::take_finished_loads() { return impl_->loads.take_finished(); }
std::vector<JobResult> Transfer::take_finished_stores() { return impl_->stores.take_finished(); }

Transfer::Stats Transfer::stats() const {
  Stats stats{};
  impl_->loads.add_stats(&stats);
  impl_->stores.add_stats(&stats);
  return stats;
}

}  // namespace kvcommons
