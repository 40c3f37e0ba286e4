#include "arena_warmer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>

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

bool ArenaWarmer::step(const LeasePort& port) {
  const LeasePort::Attachment attached = port.attachment();
  if (attached.attach != attach_) {
    attach_ = attached.attach;
    at_ = 0;
  }
  if (attached.arena == nullptr || at_ >= attached.arena_bytes) return false;
  const std::size_t bytes = std::min<std::uint64_t>(kStepBytes, attached.arena_bytes - at_);
  std::byte* start = attached.arena.get() + at_;
  at_ += bytes;
  // Refused by an older kernel, or by memory that is no mapping of its own: the first touch pays, as it would have.
  if (in_memory(start, bytes)) (void)madvise(start, bytes, MADV_POPULATE_READ);
  return true;
}

}  // namespace kvcommons
