// Threads of the core, and the time that their copies take.
#pragma once

#include <pthread.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <thread>
#include <utility>

namespace kvcommons {

// Signals belong to the threads of the process that embeds us: ours take none.
template <typename Main>
std::thread native_thread(const char* name, Main main) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread(std::move(main));
  pthread_setname_np(thread.native_handle(), name);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

class Stopwatch {
 public:
  [[nodiscard]] std::uint64_t ns() const {
    using std::chrono::duration_cast;
    return static_cast<std::uint64_t>(
        duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start_).count());
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace kvcommons
