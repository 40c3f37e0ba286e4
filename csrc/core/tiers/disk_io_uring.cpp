// io_uring by its three system calls. Container runtimes' default seccomp profiles deny it: then the threads do.
#include <linux/io_uring.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>

#include "socket.h"
#include "tiers/disk_io.h"

namespace kvcommons {
namespace {

constexpr int kEnterRetriesMax = 10'000;  // EAGAIN and EBUSY: the kernel waits for completions to be taken

int ring_enter(int ring, unsigned submit, unsigned wait) {
  const unsigned flags = wait > 0 ? IORING_ENTER_GETEVENTS : 0;
  return static_cast<int>(::syscall(SYS_io_uring_enter, ring, submit, wait, flags, nullptr, 0));
}

// One mapping of the kernel's.
class Mapped {
 public:
  bool map(int fd, std::size_t bytes, std::uint64_t offset) {
    void* at =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, static_cast<off_t>(offset));
    if (at == MAP_FAILED) return false;
    at_ = static_cast<std::byte*>(at);
    bytes_ = bytes;
    return true;
  }
  ~Mapped() {
    if (at_ != nullptr) ::munmap(at_, bytes_);
  }
  Mapped() = default;
  Mapped(const Mapped&) = delete;  // owns the mapping
  template <typename T>
  [[nodiscard]] T* at(std::uint64_t offset) const {
    return reinterpret_cast<T*>(at_ + offset);
  }

 private:
  std::byte* at_ = nullptr;
  std::size_t bytes_ = 0;
};

class UringIo final : public DiskIo {
 public:
  explicit UringIo(std::uint32_t depth) : depth_(depth) {}
  ~UringIo() override {
    if (!reaper_.joinable()) return;
    const std::lock_guard lock(mutex_);  // with the reaper's own submissions kept out
    closing_.store(true, std::memory_order_release);
    push(nullptr);
    (void)flush(1);
  }
  UringIo(const UringIo&) = delete;  // owns the ring

  // False: *why says why not.
  bool start(std::string* why) {
    io_uring_params params{};
    const unsigned entries = std::bit_ceil(2 * depth_ + 16);  // never full: transfers, syncs and the closing one
    ring_.reset(static_cast<int>(::syscall(SYS_io_uring_setup, entries, &params)));
    if (!ring_) return denied(why, "io_uring_setup");
    if ((params.features & IORING_FEAT_SINGLE_MMAP) == 0 || (params.features & IORING_FEAT_NODROP) == 0) {
      *why = "this kernel's io_uring is too old";
      return false;
    }
    const std::size_t bytes = std::max<std::size_t>(params.sq_off.array + params.sq_entries * sizeof(unsigned),
                                                    params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe));
    if (!rings_.map(ring_.get(), bytes, IORING_OFF_SQ_RING) ||
        !entries_.map(ring_.get(), params.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES)) {
      return denied(why, "mmap of the ring");
    }
    sq_tail_ = rings_.at<unsigned>(params.sq_off.tail);
    sq_mask_ = *rings_.at<unsigned>(params.sq_off.ring_mask);
    sq_array_ = rings_.at<unsigned>(params.sq_off.array);
    cq_head_ = rings_.at<unsigned>(params.cq_off.head);
    cq_tail_ = rings_.at<unsigned>(params.cq_off.tail);
    cq_mask_ = *rings_.at<unsigned>(params.cq_off.ring_mask);
    cqes_ = rings_.at<io_uring_cqe>(params.cq_off.cqes);
    reaper_ = std::jthread([this] { reap(); });
    return true;
  }

  void submit(std::span<IoOp* const> ops) override {
    unsigned sent = 0;
    int error = 0;
    in_flight_.fetch_add(ops.size(), std::memory_order_relaxed);
    {
      const std::lock_guard lock(mutex_);
      for (IoOp* op : ops) push(op);
      sent = flush(static_cast<unsigned>(ops.size()));
      error = errno;
    }
    for (IoOp* op : ops.subspan(sent)) {  // what the kernel never saw
      finish_with(op, -error);
    }
  }
  [[nodiscard]] std::uint32_t depth() const noexcept override { return depth_; }
  [[nodiscard]] std::string_view name() const noexcept override { return "io_uring"; }

 private:
  static bool denied(std::string* why, const char* call) {
    const int error = errno;
    *why = std::string(call) + ": " + std::generic_category().message(error);
    if (error == EPERM || error == ENOSYS) *why += " (denied by a seccomp profile or the kernel's settings)";
    return false;
  }

  void push(IoOp* op) {
    const unsigned tail = *sq_tail_ + pushed_;
    io_uring_sqe& entry = entries_.at<io_uring_sqe>(0)[tail & sq_mask_];
    std::memset(&entry, 0, sizeof entry);
    entry.user_data = reinterpret_cast<std::uint64_t>(op);
    entry.opcode = IORING_OP_NOP;
    if (op != nullptr) {
      entry.fd = op->fd;
      if (op->kind == IoOp::Kind::Sync) {
        entry.opcode = IORING_OP_FSYNC;
        entry.fsync_flags = IORING_FSYNC_DATASYNC;
      } else {
        entry.opcode = op->kind == IoOp::Kind::Read ? IORING_OP_READV : IORING_OP_WRITEV;
        entry.addr = reinterpret_cast<std::uint64_t>(op->iov);
        entry.len = static_cast<unsigned>(op->parts);
        entry.off = op->offset_bytes;
      }
    }
    sq_array_[tail & sq_mask_] = tail & sq_mask_;
    ++pushed_;
  }

  // Hands over what was pushed; returns how many the kernel took, errno says why not all. The rest is taken back.
  unsigned flush(unsigned wanted) {
    pushed_ = 0;
    errno = 0;
    handed_.fetch_add(1, std::memory_order_release);  // the ring orders this for the kernel, this line for the reaper
    std::atomic_ref(*sq_tail_).fetch_add(wanted, std::memory_order_release);
    unsigned sent = 0;
    for (int attempt = 0; sent < wanted && attempt < kEnterRetriesMax; ++attempt) {
      const int took = ring_enter(ring_.get(), wanted - sent, 0);
      if (took >= 0) {
        sent += static_cast<unsigned>(took);
      } else if (errno == EAGAIN || errno == EBUSY) {
        ::sched_yield();
      } else if (errno != EINTR) {
        break;
      }
    }
    const int error = errno;
    if (sent < wanted) std::atomic_ref(*sq_tail_).fetch_sub(wanted - sent, std::memory_order_release);
    errno = error;
    return sent;
  }

  void reap() {
    while (true) {
      unsigned head = *cq_head_;
      const unsigned tail = std::atomic_ref(*cq_tail_).load(std::memory_order_acquire);
      if (head == tail) {
        if (closing_.load(std::memory_order_acquire) && over_ && in_flight_.load() == 0) return;
        (void)ring_enter(ring_.get(), 0, 1);
        continue;
      }
      (void)handed_.load(std::memory_order_acquire);
      const io_uring_cqe entry = cqes_[head & cq_mask_];
      std::atomic_ref(*cq_head_).store(head + 1, std::memory_order_release);
      auto* op = reinterpret_cast<IoOp*>(entry.user_data);
      if (op == nullptr) {
        over_ = true;
      } else {
        finish(op, entry.res);
      }
    }
  }

  void finish(IoOp* op, int result) {
    if (result > 0) op->moved += static_cast<std::uint32_t>(result);
    const bool more =
        result > 0 ? advance(op, static_cast<std::size_t>(result)) : result == -EINTR || result == -EAGAIN;
    if (!more) return finish_with(op, op->moved > 0 ? static_cast<int>(op->moved) : result);
    submit(std::span<IoOp* const>(&op, 1));
    in_flight_.fetch_sub(1, std::memory_order_relaxed);  // counted twice
  }

  void finish_with(IoOp* op, int result) {
    op->result = result;
    op->done(op);
    in_flight_.fetch_sub(1, std::memory_order_relaxed);
  }

  const std::uint32_t depth_;
  UniqueFd ring_;
  Mapped rings_, entries_;
  unsigned *sq_tail_ = nullptr, *sq_array_ = nullptr, *cq_head_ = nullptr, *cq_tail_ = nullptr;
  io_uring_cqe* cqes_ = nullptr;
  unsigned sq_mask_ = 0, cq_mask_ = 0, pushed_ = 0;
  std::mutex mutex_;  // the submission queue
  std::atomic<std::uint64_t> handed_{0}, in_flight_{0};
  std::atomic<bool> closing_{false};
  bool over_ = false;
  std::jthread reaper_;  // last: it uses the others
};

}  // namespace

std::unique_ptr<DiskIo> make_uring_io(std::uint32_t depth, std::string* why) {
  auto io = std::make_unique<UringIo>(std::max(depth, 1u));
  if (!io->start(why)) return nullptr;
  return io;
}

}  // namespace kvcommons
