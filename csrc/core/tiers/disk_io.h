// Reads and writes that run beside their caller: the one small interface of both engines.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace kvcommons {

struct IoOp {
  enum class Kind : std::uint8_t { Read, Write, Sync };
  Kind kind = Kind::Read;
  int fd = -1;
  int parts = 0;                   // of iov
  int result = 0;                  // bytes moved, fewer only where the medium ended, or -errno
  std::uint64_t offset_bytes = 0;  // in the file
  iovec iov[2]{};                  // an engine may change it
  std::uint32_t moved = 0;         // an engine's own
  // Called once, on a thread of the engine; the op and its memory are the caller's again.
  void (*done)(IoOp*) = nullptr;

  [[nodiscard]] std::uint64_t bytes() const noexcept {
    std::uint64_t sum = 0;
    for (int i = 0; i < parts; ++i) sum += iov[i].iov_len;
    return sum;
  }
};

class DiskIo {
 public:
  virtual ~DiskIo() = default;  // waits for every op first
  DiskIo() = default;
  DiskIo(const DiskIo&) = delete;  // owns threads

  // Never blocks on the medium. The caller keeps to depth().
  virtual void submit(std::span<IoOp* const> ops) = 0;
  [[nodiscard]] virtual std::uint32_t depth() const noexcept = 0;
  [[nodiscard]] virtual std::string_view name() const noexcept = 0;
};

std::unique_ptr<DiskIo> make_thread_io(std::uint32_t threads);
// nullptr where io_uring is not to be had; *why says so for the log.
std::unique_ptr<DiskIo> make_uring_io(std::uint32_t depth, std::string* why);

// What is left of an op after `moved` of its bytes; false: nothing is.
bool advance(IoOp* op, std::size_t moved) noexcept;

}  // namespace kvcommons
