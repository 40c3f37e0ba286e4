// What the disk tier's tests share: folders that go with their test, small tiers, and an engine that breaks on demand.
#pragma once

#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "core/tiers/disk_format.h"
#include "core/tiers/disk_tier.h"
#include "tier_contract.h"

namespace kvcommons::testing {

// A folder of its own under TMPDIR, or /tmp; removed with all that is in it.
class Folder {
 public:
  Folder() {
    const char* base = ::getenv("TMPDIR");
    path_ = std::string(base != nullptr && *base != '\0' ? base : "/tmp") + "/kvcommons-disk-XXXXXX";
    CHECK(::mkdtemp(path_.data()) != nullptr);
  }
  ~Folder() {
    std::error_code ignored;  // a test that fails has more to say
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;  // owns the folder
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string file() const { return path_ + "/segments.kvc"; }

 private:
  std::string path_;
};

inline bool has_io_uring() {
  std::string why;
  static const bool has = make_uring_io(1, &why) != nullptr;
  return has;
}

// io_uring where this machine allows it: the suites say what they ran with.
inline std::vector<DiskEngine> disk_engines() {
  if (has_io_uring()) return {DiskEngine::Threads, DiskEngine::IoUring};
  return {DiskEngine::Threads};
}

inline const char* name_of(DiskEngine engine) { return engine == DiskEngine::IoUring ? "io_uring" : "threads"; }

inline constexpr std::uint64_t kTestSegmentBytes = 1ull << 20;

inline DiskConfig disk_config(const Folder& folder, std::uint64_t capacity_bytes,
                              DiskEngine engine = DiskEngine::Auto) {
  DiskConfig config;
  config.devices = {{folder.path(), capacity_bytes}};
  config.segment_bytes = kTestSegmentBytes;
  config.engine = engine;
  config.threads_per_device = 4;
  config.ring_depth = 16;
  config.recovery_threads_max = 2;
  return config;
}

// A tier whose files have no name any more: nothing is left of it when it ends.
inline std::unique_ptr<Tier> passing_disk_tier(std::uint64_t capacity_bytes, DiskEngine engine, std::size_t devices) {
  const std::vector<Folder> folders(devices);
  DiskConfig config = disk_config(folders[0], 0, engine);
  config.devices.clear();
  for (const Folder& folder : folders) config.devices.push_back({folder.path(), capacity_bytes / devices});
  return make_disk_tier(config);
}

}  // namespace kvcommons::testing
