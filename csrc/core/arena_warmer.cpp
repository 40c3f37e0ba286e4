#include "arena_warmer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <utility>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // Linux 5.14; the C library's headers may be older than the kernel
#endif

namespace kvcommons {
namespace {

constexpr std::size_t kPageBytesMin = 4096;

bool in_memory(std::byte* start, std::size_t bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  std::array<unsigned char, ArenaWarmer::kStepBytes / kPageBytesMin> resident{};
  if (page < kPageBytesMin || mincore(start, bytes, resident.data()) != 0) return false;
  return std::all_of(resident.begin(), resident.begin() + static_cast<std::ptrdiff_t>((bytes + page - 1) / page),
                     [](unsigned char flags) { return (flags & 1) != 0; });
}

}  // namespace

ArenaWarmer::~ArenaWarmer() {
  former_.push_back(std::move(present_));
  unpin_former(true);
}

bool ArenaWarmer::step(const LeasePort& port) {
  const LeasePort::Attachment attached = port.attachment();
  if (attached.attach != attach_ || attached.arena == nullptr) {
    if (!present_.pieces.empty()) former_.push_back(std::move(present_));
    present_ = {};
    if (attached.attach != attach_) at_ = pinned_to_ = 0;
    whole_ = true;
    attach_ = attached.attach;
  }
  unpin_former(false);
  if (attached.arena == nullptr || at_ >= attached.arena_bytes) return false;
  const std::size_t bytes = std::min<std::uint64_t>(kStepBytes, attached.arena_bytes - at_);
  std::byte* start = attached.arena.get() + at_;
  at_ += bytes;
  const bool populated = in_memory(start, bytes);
  // Refused by an older kernel, or by memory that is no mapping of its own: the first touch pays, as it would have.
  if (populated) (void)madvise(start, bytes, MADV_POPULATE_READ);
  if (device_ != nullptr) pin_upto(attached, populated);
  return true;
}

// Pinning what the node has not populated would make its pages, and charge them to this process.
void ArenaWarmer::pin_upto(const LeasePort::Attachment& attached, bool populated) {
  whole_ = whole_ && populated;
  if (at_ - pinned_to_ < Device::kPinBytes && at_ < attached.arena_bytes) return;
  std::byte* const piece = attached.arena.get() + pinned_to_;
  if (whole_ && device_->pin(piece, at_ - pinned_to_)) {
    present_.arena = attached.arena;
    present_.pieces.push_back(piece);
  }
  pinned_to_ = at_;
  whole_ = true;
}

void ArenaWarmer::unpin_former(bool all) {
  std::erase_if(former_, [&](const Pinned& pinned) {
    if (!all && pinned.arena.use_count() > 1) return false;  // somebody still copies
    for (std::byte* const piece : pinned.pieces) device_->unpin(piece);
    return true;
  });
}

}  // namespace kvcommons
