// preadv and pwritev on threads, for where io_uring is denied: with enough of them the device is as busy.
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "tiers/disk_io.h"

namespace kvcommons {
namespace {

int transfer(const IoOp& whole) {
  IoOp op = whole;
  std::size_t moved = 0;
  while (true) {
    const auto at = static_cast<off_t>(op.offset_bytes);
    const ssize_t got =
        op.kind == IoOp::Kind::Read ? ::preadv(op.fd, op.iov, op.parts, at) : ::pwritev(op.fd, op.iov, op.parts, at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return moved > 0 ? static_cast<int>(moved) : -errno;
    moved += static_cast<std::size_t>(got);
    if (got == 0 || !advance(&op, static_cast<std::size_t>(got))) return static_cast<int>(moved);
  }
}

class ThreadIo final : public DiskIo {
 public:
  explicit ThreadIo(std::uint32_t threads) : depth_(std::max(threads, 1u)) {
    for (std::uint32_t i = 0; i < depth_ + kSyncThreads; ++i) threads_.emplace_back([this, i] { run(i < depth_); });
  }
  ~ThreadIo() override {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
    }
    work_.notify_all();
    sync_work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void submit(std::span<IoOp* const> ops) override {
    const std::lock_guard lock(mutex_);
    for (IoOp* op : ops) {
      const bool sync = op->kind == IoOp::Kind::Sync;
      (sync ? syncs_ : transfers_).push_back(op);
      (sync ? sync_work_ : work_).notify_one();
    }
  }
  [[nodiscard]] std::uint32_t depth() const noexcept override { return depth_; }
  [[nodiscard]] std::string_view name() const noexcept override { return "threads"; }

 private:
  static constexpr std::uint32_t kSyncThreads = 1;  // a sync lasts long: it takes no transfer's place

  void run(bool transfers) {
    std::deque<IoOp*>& mine = transfers ? transfers_ : syncs_;
    std::condition_variable& wake = transfers ? work_ : sync_work_;
    for (std::unique_lock lock(mutex_);;) {
      wake.wait(lock, [&] { return closing_ || !mine.empty(); });
      if (mine.empty()) return;
      IoOp* op = mine.front();
      mine.pop_front();
      lock.unlock();
      op->result = op->kind != IoOp::Kind::Sync ? transfer(*op) : ::fdatasync(op->fd) == 0 ? 0 : -errno;
      op->done(op);
      lock.lock();
    }
  }

  const std::uint32_t depth_;
  std::mutex mutex_;
  std::condition_variable work_, sync_work_;
  std::deque<IoOp*> transfers_, syncs_;
  bool closing_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

bool advance(IoOp* op, std::size_t moved) noexcept {
  op->offset_bytes += moved;
  while (op->parts > 0 && moved >= op->iov[0].iov_len) {
    moved -= op->iov[0].iov_len;
    op->iov[0] = op->iov[1];
    --op->parts;
  }
  if (op->parts == 0) return false;
  op->iov[0].iov_base = static_cast<std::byte*>(op->iov[0].iov_base) + moved;
  op->iov[0].iov_len -= moved;
  return true;
}

std::unique_ptr<DiskIo> make_thread_io(std::uint32_t threads) { return std::make_unique<ThreadIo>(threads); }

}  // namespace kvcommons
