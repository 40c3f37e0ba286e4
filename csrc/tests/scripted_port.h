// A node without a socket, for tests of transfers: grants real slots of a real arena, counts what it is asked, and
// fails where the test says so. Threads are ordered by its gates, never by time.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "lease_port.h"

namespace kvcommons::testing {

// Closed, whoever passes waits until it is opened; the test can wait for somebody to stand before it.
class Gate {
 public:
  void close() {
    const std::lock_guard lock(mutex_);
    open_ = false;
    arrived_ = false;
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void pass() {
    std::unique_lock lock(mutex_);
    arrived_ = true;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
  }
  void wait_arrived() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return arrived_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true, arrived_ = false;
};

class ScriptedPort final : public LeasePort {
 public:
  struct Committed {
    SlotRef slot;
    std::uint64_t checksum;
    std::vector<std::uint64_t> text_keys;
  };

  ScriptedPort(std::uint64_t arena_bytes, std::uint64_t slot_bytes)
      : arena_(new std::byte[arena_bytes], std::default_delete<std::byte[]>()),
        arena_bytes_(arena_bytes),
        slot_bytes_(slot_bytes) {
    std::memset(arena_.get(), 0, arena_bytes);
  }

  // The script. Set before the transfer uses the port, or from within on_reserve and on_begin.
  Status begin_status = Status::Ok, reserve_status = Status::Ok, commit_status = Status::Ok;
  bool connected = true;
  std::map<std::uint64_t, ReserveStatus> reserve_of;  // by the key's prefix; absent: Granted, or Exists if committed
  std::function<void()> on_begin, on_reserve;         // called before the call answers
  std::function<SlotRef(SlotRef)> bend_slot = [](SlotRef slot) { return slot; };
  Gate at_reserve, at_commit, at_release, at_copy_finished;
  std::uint64_t slot_bytes_declared = 0;  // 0: the true size

  bool ensure_connected() override {
    const std::lock_guard lock(mutex_);
    return connected;
  }
  [[nodiscard]] Attachment attachment() const override {
    const std::lock_guard lock(mutex_);
    return {.arena = arena_, .arena_bytes = arena_bytes_, .attach = attach_};
  }
  [[nodiscard]] std::uint64_t slot_bytes() const override {
    return slot_bytes_declared != 0 ? slot_bytes_declared : slot_bytes_;
  }

  Status begin(LeaseId lease, std::vector<SlotRef>* out) override {
    note("begin " + std::to_string(lease));
    if (on_begin) on_begin();
    const std::lock_guard lock(mutex_);
    if (begin_status == Status::Ok) {
      for (const SlotRef slot : leases_[lease]) out->push_back(bend_slot(slot));
    }
    return begin_status;
  }
  Status release(LeaseId lease) override {
    at_release.pass();
    note("release " + std::to_string(lease));
    return Status::Ok;
  }
  Status reserve(std::uint64_t, const Key& parent, std::span<const Key> keys, std::vector<Reservation>* out,
                 std::uint32_t) override {
    note("reserve " + std::to_string(keys.size()));
    at_reserve.pass();
    if (on_reserve) on_reserve();
    const std::lock_guard lock(mutex_);
    parents_.push_back(parent);
    for (const Key& key : keys) out->push_back(answer(key));
    return reserve_status;
  }
  Status commit(std::span<const CommitItem> items, std::uint32_t* accepted) override {
    at_commit.pass();
    note("commit " + std::to_string(items.size()));
    const std::lock_guard lock(mutex_);
    if (commit_status != Status::Ok) return commit_status;
    for (const CommitItem& item : items) {
      const auto at = granted_.find(item.slot.offset_bytes);
      if (at == granted_.end()) continue;
      committed_[at->second] = {item.slot, item.checksum, {item.text_keys.begin(), item.text_keys.end()}};
      granted_.erase(at);
      ++*accepted;
    }
    return Status::Ok;
  }
  Status abort(std::span<const SlotRef> slots) override {
    note("abort " + std::to_string(slots.size()));
    const std::lock_guard lock(mutex_);
    for (const SlotRef& slot : slots) granted_.erase(slot.offset_bytes);
    return Status::Ok;
  }
  void copy_started() override { note("copy_started"); }
  void copy_finished() override {
    at_copy_finished.pass();
    note("copy_finished");
  }

  // The test's own hands.
  LeaseId lease_of(const std::vector<Key>& keys) {
    const std::lock_guard lock(mutex_);
    const LeaseId lease = ++last_lease_;
    for (const Key& key : keys) leases_[lease].push_back(committed_.at(key.prefix64()).slot);
    return lease;
  }
  LeaseId lease_of_slots(const std::vector<SlotRef>& slots) {
    const std::lock_guard lock(mutex_);
    leases_[++last_lease_] = slots;
    return last_lease_;
  }
  // As a restarted node: another arena, and every slot of the former one is void.
  void restart() {
    const std::lock_guard lock(mutex_);
    ++attach_;
    arena_ = {new std::byte[arena_bytes_], std::default_delete<std::byte[]>()};
    std::memset(arena_.get(), 0, arena_bytes_);
    granted_.clear();
    committed_.clear();
  }
  [[nodiscard]] std::byte* bytes(const SlotRef& slot) const { return arena_.get() + slot.offset_bytes; }
  [[nodiscard]] std::size_t granted() const {
    const std::lock_guard lock(mutex_);
    return granted_.size();
  }
  [[nodiscard]] std::map<std::uint64_t, Committed> committed() const {
    const std::lock_guard lock(mutex_);
    return committed_;
  }
  [[nodiscard]] std::vector<std::string> calls() const {
    const std::lock_guard lock(mutex_);
    return calls_;
  }
  [[nodiscard]] std::vector<Key> parents() const {
    const std::lock_guard lock(mutex_);
    return parents_;
  }
  [[nodiscard]] std::int64_t copies() const {
    std::int64_t count = 0;
    for (const auto& call : calls()) count += call == "copy_started" ? 1 : call == "copy_finished" ? -1 : 0;
    return count;
  }
  void wait_call(const std::string& call) {
    std::unique_lock lock(mutex_);
    called_.wait(lock, [&] { return std::find(calls_.begin(), calls_.end(), call) != calls_.end(); });
  }

 private:
  void note(std::string call) {
    const std::lock_guard lock(mutex_);
    calls_.push_back(std::move(call));
    called_.notify_all();
  }

  Reservation answer(const Key& key) {
    const auto scripted = reserve_of.find(key.prefix64());
    if (scripted != reserve_of.end() && scripted->second != ReserveStatus::Granted) return {scripted->second, {}};
    if (committed_.contains(key.prefix64())) return {ReserveStatus::Exists, {}};
    const std::uint64_t stride = (slot_bytes_ + kSlotAlignBytes - 1) / kSlotAlignBytes * kSlotAlignBytes;
    for (std::uint64_t offset = 0; offset + stride <= arena_bytes_; offset += stride) {
      const bool used =
          granted_.contains(offset) || std::any_of(committed_.begin(), committed_.end(),
                                                   [&](const auto& c) { return c.second.slot.offset_bytes == offset; });
      if (used) continue;
      granted_[offset] = key.prefix64();
      return {ReserveStatus::Granted, bend_slot({offset, ++generation_})};
    }
    return {ReserveStatus::Full, {}};
  }

  mutable std::mutex mutex_;
  std::condition_variable called_;
  std::shared_ptr<std::byte> arena_;
  const std::uint64_t arena_bytes_, slot_bytes_;
  std::uint64_t attach_ = 1;
  std::uint32_t generation_ = 0;
  LeaseId last_lease_ = 0;
  std::map<std::uint64_t, std::uint64_t> granted_;  // offset -> key
  std::map<std::uint64_t, Committed> committed_;    // key -> slot
  std::map<LeaseId, std::vector<SlotRef>> leases_;
  std::vector<std::string> calls_;
  std::vector<Key> parents_;
};

}  // namespace kvcommons::testing
