// The tier over its devices: batches are spread and gathered here.
#pragma once

#include "tiers/disk_device.h"

namespace kvcommons::disk {

class DiskTier final : public Tier {
 public:
  DiskTier(const DiskConfig& config, std::vector<DeviceFile> files, std::vector<std::string>* notes);

  [[nodiscard]] std::string_view name() const noexcept override { return "disk"; }
  bool put(std::vector<PutItem> batch, PutDone done) override;
  bool get(std::vector<GetItem> batch, GetDone done) override;
  void find(std::span<const ShardId> ids, std::span<std::uint64_t> bytes) override;
  bool describe(const ShardId& id, ShardMeta* out) override;
  void touch(std::span<const ShardId> ids) override;
  std::uint64_t remove(std::span<const ShardId> ids) override;
  std::uint64_t clear(const Key* fingerprint) override;
  std::vector<ShardMeta> inventory(std::uint64_t* cursor, std::size_t max) override;
  std::vector<TierEvent> drain_events(std::size_t max, bool* gap) override;
  [[nodiscard]] TierHealth health(std::string* why) const override;
  [[nodiscard]] TierStats stats() const override;

 private:
  static std::uint32_t segments_of(const std::vector<DeviceFile>& files);
  static bool admit(std::atomic<std::uint64_t>* queued, std::uint64_t bytes, std::uint64_t bytes_max);
  [[nodiscard]] std::size_t emptiest(const std::vector<std::uint64_t>& given) const;
  void refuse(PutBatch* batch, const std::vector<std::uint32_t>& bad);
  [[nodiscard]] std::size_t device_of(std::uint32_t segment) const;

  Shared shared_;
  std::uint64_t recovered_ = 0, recovery_us_ = 0;
  std::vector<std::unique_ptr<Device>> devices_;
};

}  // namespace kvcommons::disk
