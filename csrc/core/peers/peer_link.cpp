#include "peers/peer_link.h"

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "peers/peer_connection.h"
#include "peers/peer_greeting.h"

namespace kvcommons::peers {
namespace {

constexpr double kRateWeight = 0.3;                  // of the newest measure
constexpr std::uint64_t kRateBytesMin = 256u << 10;  // less says more of the way there than of its width

std::string in_words(int error) { return std::error_code(error, std::generic_category()).message(); }

}  // namespace

PeerLink::PeerLink(PeerLinkConfig config, PeerAddress address) : config_(config), address_(std::move(address)) {}

PeerLink::~PeerLink() { close(); }

bool PeerLink::usable_locked() const { return !closing_ && (failures_in_row_ == 0 || Clock::now() >= open_until_); }

bool PeerLink::usable() const {
  const std::lock_guard lock(mutex_);
  return usable_locked() && !(failures_in_row_ != 0 && trying_);
}

bool PeerLink::idle() const {
  const std::lock_guard lock(mutex_);
  return reads_.empty() && writes_.empty() && busy_ == 0;
}

JobPtr PeerLink::post(JobPtr job, bool write) {
  const std::lock_guard lock(mutex_);
  auto& queue = write ? writes_ : reads_;
  if (!usable_locked() || queue.size() >= config_.jobs_max) return job;
  if (failures_in_row_ != 0 && std::exchange(trying_, true)) return job;  // one tries, the others stay away
  queue.push_back(std::move(job));
  const bool start = write ? !writer_ : idle_readers_ < reads_.size() && readers_ < config_.sockets;
  if (start) {
    lanes_.push_back(std::make_unique<Lane>());
    Lane& lane = *lanes_.back();
    lane.write = write;
    if (write) {
      writer_ = true;
    } else {
      ++readers_;
    }
    lane.thread = std::thread([this, &lane] { run(lane); });
  }
  changed_.notify_all();
  return nullptr;
}

void PeerLink::close() {
  std::vector<std::unique_ptr<Lane>> lanes;
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    for (const auto& lane : lanes_) {
      if (lane->stream) lane->stream->interrupt();
    }
    lanes.swap(lanes_);
    changed_.notify_all();
  }
  for (const auto& lane : lanes) lane->thread.join();
  std::deque<JobPtr> left;
  {
    const std::lock_guard lock(mutex_);
    left.swap(reads_);
    for (JobPtr& job : writes_) left.push_back(std::move(job));
    writes_.clear();
  }
  for (const JobPtr& job : left) job->end(TierStatus::Closed);
}

void PeerLink::run(Lane& lane) {
  block_broken_pipe_signal();
  while (const JobPtr job = next(lane)) {
    if (serve(lane, *job)) {
      worked();
    } else {
      job->end(TierStatus::Failed);
    }
    const std::lock_guard lock(mutex_);
    end_busy();
  }
  drop(lane);
}

JobPtr PeerLink::next(Lane& lane) {
  std::unique_lock lock(mutex_);
  auto& queue = lane.write ? writes_ : reads_;
  if (!lane.write) ++idle_readers_;
  const auto there = [&] { return closing_ || !queue.empty(); };
  if (!changed_.wait_for(lock, std::chrono::milliseconds(config_.idle_ms_max), there)) {
    const std::unique_ptr<Stream> stream = std::move(lane.stream);  // its end says goodbye
    changed_.wait(lock, there);
  }
  if (!lane.write) --idle_readers_;
  if (closing_) return nullptr;
  JobPtr job = std::move(queue.front());
  queue.pop_front();
  begin_busy();
  return job;
}

// True: all of the job was answered.
bool PeerLink::serve(Lane& lane, PeerJob& job) {
  for (int attempt = 0; attempt < 2; ++attempt) {
    std::string why;
    const bool kept = lane.stream != nullptr;
    {
      const std::lock_guard lock(mutex_);
      // Others have found out meanwhile that nobody answers.
      if (closing_ || (failures_in_row_ != 0 && Clock::now() < open_until_)) return false;
    }
    if (!kept && !connect(lane, &why)) {
      failed(why);
      return false;
    }
    if (job.run(*lane.stream, in_ms(job.ms_max))) return true;
    drop(lane);
    // A connection that had been kept may have been ended by the other side while nothing was said.
    if (!kept || !job.untouched()) break;
  }
  failed("a request was not answered in time, or with what is no answer");
  return false;
}

bool PeerLink::connect(Lane& lane, std::string* why) {
  const Deadline deadline = in_ms(config_.connect_ms_max);
  UniqueFd fd = tcp_connect(address_.host, address_.port, deadline);
  if (!fd) {
    *why = "it cannot be reached: " + in_words(errno);
    return false;
  }
  std::unique_ptr<Stream> stream;
  if (config_.tls != nullptr) {
    stream = config_.tls->wrap(std::move(fd), false, deadline, why);
    if (!stream) return false;
  } else {
    stream = std::make_unique<PlainStream>(std::move(fd));
  }
  if (!greet_server(*stream, config_.greeting_key, deadline, why)) return false;
  const std::lock_guard lock(mutex_);
  if (closing_) return false;
  lane.stream = std::move(stream);
  ++stats_.connects;
  return true;
}

void PeerLink::drop(Lane& lane) {
  const std::lock_guard lock(mutex_);
  lane.stream.reset();
}

void PeerLink::failed(const std::string& why) {
  std::deque<JobPtr> left;
  {
    const std::lock_guard lock(mutex_);
    if (closing_) return;
    ++stats_.failures;
    trying_ = false;
    if (failures_in_row_ != 0 && Clock::now() < open_until_) return;  // several found it at once: one failure
    ++failures_in_row_;
    ++stats_.opened;
    stats_.why = why;
    const std::uint64_t ms = std::uint64_t{config_.breaker_ms_min} << std::min(failures_in_row_ - 1, 16u);
    open_until_ = in_ms(static_cast<std::uint32_t>(std::min<std::uint64_t>(ms, config_.breaker_ms_max)));
    left.swap(reads_);
    for (JobPtr& job : writes_) left.push_back(std::move(job));
    writes_.clear();
  }
  for (const JobPtr& job : left) job->end(TierStatus::Failed);
}

void PeerLink::worked() {
  const std::lock_guard lock(mutex_);
  failures_in_row_ = 0;
  trying_ = false;
  stats_.why.clear();
}

void PeerLink::received(std::uint64_t shards, std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  stats_.fetched += shards;
  stats_.fetched_bytes += bytes;
  busy_bytes_ += bytes;
}

void PeerLink::begin_busy() {
  if (busy_++ == 0) {
    busy_since_ = Clock::now();
    busy_bytes_ = 0;
  }
}

// All connections together, as long as one of them had work.
void PeerLink::end_busy() {
  if (--busy_ != 0 && busy_bytes_ < 16 * kRateBytesMin) return;
  const double seconds = std::chrono::duration<double>(Clock::now() - busy_since_).count();
  if (busy_bytes_ >= kRateBytesMin && seconds > 0) {
    const double rate = static_cast<double>(busy_bytes_) / seconds;
    double& known = stats_.bytes_per_second;
    known = known == 0 ? rate : known + kRateWeight * (rate - known);
  }
  busy_since_ = Clock::now();
  busy_bytes_ = 0;
}

PeerLinkStats PeerLink::stats() const {
  const std::lock_guard lock(mutex_);
  PeerLinkStats s = stats_;
  s.open = failures_in_row_ != 0 && Clock::now() < open_until_;
  return s;
}

}  // namespace kvcommons::peers
