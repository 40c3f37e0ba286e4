// The copies: every instruction set, every alignment, shared among threads; bytes around the runs stay untouched.
#include "kernels/cpu/copy.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "kernels/cpu/pool.h"

namespace kvcommons::kernels {
namespace {

std::vector<std::byte> noise(std::size_t bytes, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> out(bytes);
  for (auto& byte : out) byte = static_cast<std::byte>(random());
  return out;
}

struct Job {
  std::vector<std::byte> src, dst, want;
  std::vector<CopyRun> runs;
};

// Runs of random lengths from random places to disjoint places with gaps between them.
Job random_job(std::uint32_t seed, std::size_t run_bytes_max) {
  std::mt19937 random(seed);
  Job job{.src = noise(run_bytes_max + 70'000, seed), .dst = noise(400'000, seed + 1), .want = {}, .runs = {}};
  job.want = job.dst;
  for (std::size_t at = random() % 100; at + run_bytes_max < job.dst.size();) {
    const std::size_t bytes = random() % (run_bytes_max + 1), from = random() % 70'000;
    job.runs.push_back({job.src.data() + from, job.dst.data() + at, bytes});
    std::memcpy(job.want.data() + at, job.src.data() + from, bytes);
    at += bytes + random() % 100;
  }
  return job;
}

TEST(every_instruction_set_copies_the_runs_and_nothing_else) {
  for (const CopyIsa isa : {CopyIsa::Base, CopyIsa::Avx2, CopyIsa::Avx512}) {
    if (!copy_has(isa)) continue;
    for (const Stores stores : {Stores::Cached, Stores::Streaming}) {
      for (std::uint32_t seed = 0; seed < 12; ++seed) {
        Job job = random_job(seed, seed % 3 == 0 ? 300 : 20'000);
        copy_runs_isa(isa, job.runs, stores);
        CHECK(job.dst == job.want);
      }
    }
  }
}

TEST(no_runs_are_no_work) {
  copy_runs({}, Stores::Streaming);
  copy_runs({}, Stores::Cached);
}

TEST(a_pool_copies_the_same_bytes_as_one_thread) {
  WorkerPool pool(3);
  CHECK_EQ(pool.threads(), 4u);
  const auto src = noise(9'000'001, 5);
  for (const std::size_t run_bytes : {std::size_t{70'000}, std::size_t{9'000'001}}) {
    std::vector<std::byte> dst(src.size());
    std::vector<CopyRun> runs;
    for (std::size_t at = 0; at < src.size(); at += run_bytes) {
      runs.push_back({src.data() + at, dst.data() + at, std::min(run_bytes, src.size() - at)});
    }
    copy_runs(pool, runs, Stores::Streaming);
    CHECK(dst == src);
  }
}

TEST(a_pool_runs_each_task_once_whatever_the_rounds) {
  for (const unsigned helpers : {0u, 1u, 3u}) {
    WorkerPool pool(helpers);
    for (std::size_t round = 0; round < 2'000; ++round) {
      std::vector<std::atomic<int>> ran(round % 9);
      pool.run(ran.size(), [&](std::size_t i) { ran[i].fetch_add(1); });
      for (const auto& times : ran) CHECK_EQ(times.load(), 1);
    }
  }
}

TEST(neighbouring_runs_become_one_only_when_both_sides_continue) {
  std::byte src[64], dst[64];
  RunList list;
  list.add(src, dst, 8);
  list.add(src + 8, dst + 8, 8);    // both continue
  list.add(src + 16, dst + 24, 8);  // a gap on one side
  list.add(src + 40, dst + 32, 8);  // a gap on the other
  CHECK_EQ(list.runs().size(), 3u);
  CHECK_EQ(list.runs()[0].bytes, 16u);
  CHECK_EQ(list.bytes(), 32u);
  list.clear();
  CHECK_EQ(list.bytes(), 0u);
  CHECK(list.runs().empty());
}

TEST(what_exceeds_the_second_level_cache_is_streamed) {
  CHECK(stores_for(l2_bytes()) == Stores::Cached);
  CHECK(stores_for(l2_bytes() + 1) == Stores::Streaming);
}

}  // namespace
}  // namespace kvcommons::kernels

TEST_MAIN()
