// The way to one peer: a few connections, each with a thread that takes the next job; what is written goes over one
// connection of its own, in order. A peer that does not answer costs one time-out: then a breaker keeps everybody off
// for a while, and lets one job try again.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "peers/peer_job.h"
#include "peers/tls_library.h"
#include "types.h"

namespace kvcommons::peers {

struct PeerLinkConfig {
  Key greeting_key;
  const TlsContext* tls = nullptr;  // outlives the link
  std::uint32_t sockets = 4;        // for what is read
  std::uint32_t connect_ms_max = 500;
  std::uint32_t breaker_ms_min = 1'000, breaker_ms_max = 30'000;  // doubles with each failure in a row
  std::uint32_t idle_ms_max = 60'000;                             // below the server's
  std::uint32_t jobs_max = 4'096;
};

struct PeerLinkStats {
  std::uint64_t fetched = 0, fetched_bytes = 0, failures = 0, connects = 0, opened = 0;
  double bytes_per_second = 0;  // while something was being received; 0: not known
  bool open = false;            // the breaker
  std::string why;
};

class PeerLink {
 public:
  PeerLink(PeerLinkConfig config, PeerAddress address);
  ~PeerLink();                         // close()
  PeerLink(const PeerLink&) = delete;  // owns threads

  // Takes the job, or gives it back where too many wait, the breaker is open or it was closed.
  [[nodiscard]] JobPtr post(JobPtr job, bool write = false);
  // Every job is ended. Not from a thread of the link.
  void close();
  // False: nobody is to be sent there now.
  [[nodiscard]] bool usable() const;
  [[nodiscard]] bool idle() const;
  [[nodiscard]] PeerLinkStats stats() const;
  [[nodiscard]] const PeerAddress& address() const noexcept { return address_; }

  // What jobs tell.
  void received(std::uint64_t shards, std::uint64_t bytes);

 private:
  struct Lane {
    std::thread thread;
    std::unique_ptr<Stream> stream;  // the thread's; guarded by mutex_ where it is put and taken
    bool busy = false, write = false;
  };
  void run(Lane& lane);
  [[nodiscard]] JobPtr next(Lane& lane);
  [[nodiscard]] bool serve(Lane& lane, PeerJob& job);
  [[nodiscard]] bool connect(Lane& lane, std::string* why);
  void drop(Lane& lane);
  void failed(const std::string& why);
  void worked();
  [[nodiscard]] bool usable_locked() const;
  void begin_busy();
  void end_busy();

  PeerLinkConfig config_;
  PeerAddress address_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<JobPtr> reads_, writes_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::size_t idle_readers_ = 0, readers_ = 0;
  bool writer_ = false, closing_ = false, trying_ = false;
  std::uint32_t failures_in_row_ = 0;
  Clock::time_point open_until_{};
  PeerLinkStats stats_;
  std::uint32_t busy_ = 0;
  Clock::time_point busy_since_{};
  std::uint64_t busy_bytes_ = 0;
};

}  // namespace kvcommons::peers
