// What the disk tier's tests share: folders that go with their test, small tiers, and an engine that breaks on demand.
#pragma once

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
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

// Waits for another thread's doing, at most a minute.
template <typename Condition>
void await(Condition holds) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!holds()) {
    CHECK(std::chrono::steady_clock::now() < until);
    std::this_thread::yield();
  }
}

// Time that stands still until a test moves it.
struct Clock {
  std::atomic<std::uint64_t> ms{1'000};
  std::function<std::uint64_t()> reader() {
    return [this] { return ms.load(); };
  }
};

// What goes wrong between a tier and its devices' engines. Shared by a test and the engines that it wraps.
class Faults {
 public:
  using Judge = std::function<int(const IoOp&, std::size_t device)>;  // an errno, or 0

  void set(Judge judge) {
    const std::lock_guard lock(mutex_);
    judge_ = std::move(judge);
  }
  // While held, operations are taken and nothing of them is begun: a device that hangs.
  void hold(bool held) {
    std::vector<std::pair<DiskIo*, IoOp*>> free;
    {
      const std::lock_guard lock(mutex_);
      held_ = held;
      if (!held) free.swap(waiting_);
    }
    for (auto& [io, op] : free) io->submit(std::span<IoOp* const>(&op, 1));
  }
  [[nodiscard]] std::size_t held_ops() const {
    const std::lock_guard lock(mutex_);
    return waiting_.size();
  }
  auto wrapper() {
    return [this](std::unique_ptr<DiskIo> inner, std::size_t device) -> std::unique_ptr<DiskIo> {
      return std::make_unique<Io>(this, std::move(inner), device);
    };
  }

 private:
  class Io final : public DiskIo {
   public:
    Io(Faults* faults, std::unique_ptr<DiskIo> inner, std::size_t device)
        : faults_(faults), inner_(std::move(inner)), device_(device) {}
    void submit(std::span<IoOp* const> ops) override {
      for (IoOp* op : ops) {
        const int error = faults_->error_of(op, device_, inner_.get());
        if (error < 0) continue;
        if (error == 0) {
          inner_->submit(std::span<IoOp* const>(&op, 1));
          continue;
        }
        op->result = -error;
        op->done(op);
      }
    }
    [[nodiscard]] std::uint32_t depth() const noexcept override { return inner_->depth(); }
    [[nodiscard]] std::string_view name() const noexcept override { return inner_->name(); }

   private:
    Faults* faults_;
    std::unique_ptr<DiskIo> inner_;
    std::size_t device_;
  };

  // Below zero: it is held.
  int error_of(IoOp* op, std::size_t device, DiskIo* inner) {
    const std::lock_guard lock(mutex_);
    if (held_) {
      waiting_.emplace_back(inner, op);
      return -1;
    }
    return judge_ ? judge_(*op, device) : 0;
  }

  mutable std::mutex mutex_;
  Judge judge_;
  bool held_ = false;
  std::vector<std::pair<DiskIo*, IoOp*>> waiting_;
};

inline GetResult disk_get(Tier& tier, const Sample& sample) {
  const Aligned into(sample.meta.payload_bytes);
  const GetResult result = tier_get(tier, sample.meta.id, into);
  if (result.status == TierStatus::Ok) sample.check(result, into.data());
  return result;
}

inline std::vector<std::byte> bytes_of(const std::string& path) {
  std::vector<std::byte> bytes(std::filesystem::file_size(path));
  std::ifstream in(path, std::ios::binary);
  in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  CHECK(in.good());
  return bytes;
}

inline void write_bytes(const std::string& path, std::span<const std::byte> bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  CHECK(out.good());
}

}  // namespace kvcommons::testing
