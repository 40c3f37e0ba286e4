// How a disk tier comes to be: files, recovery, engines.
#include <chrono>
#include <stdexcept>

#include "tiers/disk_tier_impl.h"

namespace kvcommons::disk {
namespace {

std::uint64_t steady_ms() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
}

std::unique_ptr<DiskIo> make_io(const DiskConfig& config, std::size_t device, std::vector<std::string>* notes) {
  std::unique_ptr<DiskIo> io;
  std::string why = "by choice";
  if (config.engine != DiskEngine::Threads) {
    io = make_uring_io(config.ring_depth, &why);
    if (!io && config.engine == DiskEngine::IoUring) {
      throw std::invalid_argument("engine is io_uring: " + why + ": allow it, or give auto or threads");
    }
  }
  if (!io) io = make_thread_io(config.threads_per_device);
  const bool fell_back = io->name() == "threads" && config.engine != DiskEngine::Threads;
  notes->push_back(config.devices[device].path + ": engine " + std::string(io->name()) + ", " +
                   std::to_string(io->depth()) + " operations at once" + (fell_back ? " (" + why + ")" : ""));
  return config.wrap_io ? config.wrap_io(std::move(io), device) : std::move(io);
}

std::string told(const DeviceFile& file, const Recovered& r) {
  std::string text = file.path + ": " + std::to_string(file.segments) + " segments, " + std::to_string(r.extents) +
                     " extents recovered";
  const std::pair<std::uint64_t, const char*> rest[]{{r.scanned, "segments scanned"},
                                                     {r.tables_dropped, "damaged tables"},
                                                     {r.headers_dropped, "damaged segment headers"},
                                                     {r.unreadable, "unreadable segments"}};
  for (const auto& [count, what] : rest) {
    if (count > 0) text += ", " + std::to_string(count) + " " + what;
  }
  return text;
}

}  // namespace

std::uint32_t DiskTier::segments_of(const std::vector<DeviceFile>& files) {
  std::uint32_t segments = 0;
  for (const DeviceFile& file : files) segments += file.segments;
  return segments;
}

DiskTier::DiskTier(const DiskConfig& config, std::vector<DeviceFile> files, std::vector<std::string>* notes)
    : shared_(config, segments_of(files)) {
  const auto begun = std::chrono::steady_clock::now();
  shared_.events.mute(true);
  std::vector<Recovered> recovered;
  std::uint32_t first = 0;
  for (const DeviceFile& file : files) {
    recovered.push_back(recover(file, first, config.recovery_threads_max, &shared_.index));
    notes->push_back(told(file, recovered.back()));
    first += file.segments;
  }
  shared_.events.mute(false);
  first = 0;
  for (std::size_t i = 0; i < files.size(); ++i) {
    const std::uint32_t segments = files[i].segments;
    devices_.push_back(std::make_unique<Device>(&shared_, std::move(files[i]), std::move(recovered[i]),
                                                make_io(config, i, notes), first));
    first += segments;
  }
  std::uint64_t used = 0, metadata = 0;
  shared_.index.add_up(&recovered_, &used, &metadata);
  const auto took = std::chrono::steady_clock::now() - begun;
  recovery_us_ = static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(took).count());
}

}  // namespace kvcommons::disk

namespace kvcommons {

std::unique_ptr<Tier> make_disk_tier(const DiskConfig& config, std::vector<std::string>* notes) {
  DiskConfig whole = config;
  if (!whole.now_ms) whole.now_ms = disk::steady_ms;
  std::vector<std::string> unread;
  if (notes == nullptr) notes = &unread;
  disk::check_config(whole);
  std::vector<disk::DeviceFile> files;
  for (std::size_t i = 0; i < whole.devices.size(); ++i) files.push_back(disk::open_device_file(whole, i, notes));
  return std::make_unique<disk::DiskTier>(whole, std::move(files), notes);
}

}  // namespace kvcommons
