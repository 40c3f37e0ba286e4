// The memory of the arena: sealed, populated memfds, and how much of it this machine or cgroup can give.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "socket.h"

namespace kvcommons {

struct MemoryRoom {
  std::uint64_t limit_bytes = 0;      // the least of the machine's memory and the cgroups' limits
  std::uint64_t available_bytes = 0;  // of the machine, now
  std::string limited_by;             // "the machine's memory" or the cgroup's file
};
MemoryRoom memory_room();

// Throws std::invalid_argument with the numbers and the remedy if `bytes` and some room for the process do not fit.
void check_capacity(std::uint64_t bytes, const MemoryRoom& room);

struct MemfdOptions {
  bool huge_pages = false;
  bool populate = true;
};
// A memfd of `bytes` that can neither shrink nor grow. Throws std::system_error. What was asked for and could not be
// had (huge pages) is told in *notes.
UniqueFd make_memfd(const char* name, std::uint64_t bytes, const MemfdOptions& options,
                    std::vector<std::string>* notes);

// Has the kernel make the pages of a memfd that has none yet, in huge ones where they are to be had; what is written
// in others stays. Throws std::system_error.
void populate_memfd(int fd, std::uint64_t bytes);

// `bytes` of the file, shared, at an address on a 2 MiB border, without which no huge page of the file is mapped whole.
// nullptr, with errno, if the kernel refuses. Ended by munmap.
std::byte* map_shared(int fd, std::uint64_t offset, std::uint64_t bytes, int protection);

// 0 if it is not to be had.
std::uint64_t file_bytes(int fd);
// What of it is in memory, or in swap.
std::uint64_t allocated_bytes(int fd);

}  // namespace kvcommons
