// kill -9 at every named point, and bytes that rot: what was Ok is found again, what is damaged is never handed out.
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "core/seq_points.h"
#include "core/socket.h"
#include "disk_fixture.h"

using namespace kvcommons;
using namespace kvcommons::testing;

namespace {

constexpr std::uint64_t kCapacity = 8 * kTierMiB;
constexpr std::uint64_t kKeptBytes = 3 * kTierMiB;  // the newest so many are never evicted: the rest goes round
constexpr std::uint64_t kNumbersMax = 4'096;
constexpr int kLives = 2;

std::uint64_t payload_of(std::uint64_t number) { return 1 + (number * 7'919'993) % 200'000; }
Sample sample_of(std::uint64_t number) { return Sample(number, payload_of(number)); }

// What a child reports, in memory that outlives it.
struct Reports {
  std::atomic<std::uint64_t> next{0};  // numbers below were offered
  std::atomic<bool> ok[kNumbersMax];
  std::atomic<bool> removed[kNumbersMax];
};

class SharedReports {
 public:
  SharedReports()
      : at_(static_cast<Reports*>(
            ::mmap(nullptr, sizeof(Reports), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {
    CHECK(at_ != MAP_FAILED);
  }
  ~SharedReports() { ::munmap(at_, sizeof(Reports)); }
  SharedReports(const SharedReports&) = delete;  // owns the mapping
  Reports* operator->() const { return at_; }

 private:
  Reports* at_;
};

std::atomic<int> kill_at{-1};
std::atomic<int> passes_left{0};

void die_there(SeqPoint point) {
  if (static_cast<int>(point) != kill_at.load()) return;
  if (passes_left.fetch_sub(1) == 0) (void)::kill(::getpid(), SIGKILL);
}

// Puts, in batches, until the point is reached for the n-th time; removes one now and then.
[[noreturn]] void live(const DiskConfig& config, const SharedReports& reports, SeqPoint point, int passes) {
  kill_at = static_cast<int>(point);
  passes_left = passes;
  seq_hook().store(die_there);
  const auto tier = make_disk_tier(config);
  for (std::uint64_t until = reports->next + 120; reports->next < until;) {
    const std::uint64_t from = reports->next;
    std::vector<Sample> samples;
    std::vector<PutItem> batch;
    for (std::uint64_t i = from; i < from + 4; ++i) samples.push_back(sample_of(i));
    for (const Sample& s : samples) batch.push_back(s.put());
    reports->next = from + 4;
    const auto statuses = tier_put(*tier, batch);
    for (std::uint64_t i = 0; i < 4; ++i) reports->ok[from + i] = statuses[i] == TierStatus::Ok;
    (void)disk_get(*tier, sample_of(from));  // hot: it is written anew when its segment is reused
    if (from % 32 == 28) {
      reports->removed[from - 3] = true;
      (void)tier->remove(std::span(&samples[0].meta.id, 1));
      reports->ok[from] = false;
    }
  }
  ::_exit(0);
}

// True: it was killed there.
bool one_life(const DiskConfig& config, const SharedReports& reports, SeqPoint point, int passes) {
  const pid_t child = ::fork();
  CHECK_GE(child, 0);
  if (child == 0) live(config, reports, point, passes);
  int status = 0;
  CHECK_EQ(::waitpid(child, &status, 0), child);
  if (WIFSIGNALED(status)) CHECK_EQ(WTERMSIG(status), SIGKILL);
  return WIFSIGNALED(status);
}

// All that is found is right (disk_get checks), and the newest that were Ok are found.
void check_what_is_left(Tier& tier, const SharedReports& reports) {
  std::uint64_t newer_bytes = 0;
  for (std::uint64_t i = reports->next; i-- > 0;) {
    const TierStatus status = disk_get(tier, sample_of(i)).status;
    newer_bytes += payload_of(i) + 8'192;
    if (reports->ok[i] && newer_bytes < kKeptBytes) {
      CHECK_EQ(status, TierStatus::Ok);
    } else {
      CHECK(status == TierStatus::Ok || status == TierStatus::Missing || status == TierStatus::Corrupt);
    }
  }
  CHECK_LE(tier.stats().used_bytes, kCapacity);
}

constexpr std::pair<SeqPoint, const char*> kPoints[]{
    {SeqPoint::DiskPutBegun, "DiskPutBegun"},       {SeqPoint::DiskPutWritten, "DiskPutWritten"},
    {SeqPoint::DiskFooterBegun, "DiskFooterBegun"}, {SeqPoint::DiskFooterWritten, "DiskFooterWritten"},
    {SeqPoint::DiskSealed, "DiskSealed"},           {SeqPoint::DiskReuseChosen, "DiskReuseChosen"},
    {SeqPoint::DiskReuseBegun, "DiskReuseBegun"},   {SeqPoint::DiskRecovering, "DiskRecovering"},
};

// Bytes of one extent that lies in the file as the test expects.
std::string shown(TierStatus status) { return std::to_string(static_cast<int>(status)); }

}  // namespace

TEST(killed_at_any_named_point_it_comes_back_with_all_that_was_ok) {
  constexpr std::uint64_t seed = 11;
  std::fprintf(stderr, "seed %lu\n", static_cast<unsigned long>(seed));
  std::mt19937_64 random(seed);
  for (const DiskEngine engine : disk_engines()) {
    for (const auto& [point, name] : kPoints) {
      const Folder folder;
      const SharedReports reports;
      const DiskConfig config = disk_config(folder, kCapacity, engine);
      int killed = 0;
      for (int life = 0; life < kLives; ++life) {
        const bool often = point == SeqPoint::DiskPutBegun || point == SeqPoint::DiskPutWritten;
        const bool recovering = point == SeqPoint::DiskRecovering;
        killed += one_life(config, reports, point,
                           static_cast<int>(random() % (recovering ? 2
                                                        : often    ? 110
                                                                   : 5)))
                      ? 1
                      : 0;
        const auto tier = make_disk_tier(config);
        check_what_is_left(*tier, reports);
      }
      std::fprintf(stderr, "%s, %s: killed in %d of %d lives\n", name_of(engine), name, killed, kLives);
      CHECK_GT(killed, 0);
    }
  }
}

TEST(killed_at_any_moment_it_comes_back_with_all_that_was_ok_on_two_devices) {
  constexpr std::uint64_t seed = 12;
  std::fprintf(stderr, "seed %lu\n", static_cast<unsigned long>(seed));
  std::mt19937_64 random(seed);
  const std::vector<Folder> folders(2);
  DiskConfig config = disk_config(folders[0], kCapacity / 2);
  config.devices.push_back({folders[1].path(), kCapacity / 2});
  const SharedReports reports;
  for (int life = 0; life < 8; ++life) {
    const auto& [point, name] = kPoints[random() % std::size(kPoints)];
    (void)one_life(config, reports, point, static_cast<int>(random() % 12));
    const auto tier = make_disk_tier(config);
    std::uint64_t newer_bytes = 0;
    for (std::uint64_t i = reports->next; i-- > 0;) {
      const TierStatus status = disk_get(*tier, sample_of(i)).status;
      newer_bytes += payload_of(i) + 8'192;
      if (reports->ok[i] && newer_bytes < kKeptBytes / 3) CHECK_EQ(status, TierStatus::Ok);
    }
  }
}

TEST(a_removal_that_was_written_holds_after_kill) {
  const Folder folder;
  const DiskConfig config = disk_config(folder, kCapacity);
  const SharedReports reports;
  const pid_t child = ::fork();
  CHECK_GE(child, 0);
  if (child == 0) {
    const auto tier = make_disk_tier(config);
    for (std::uint64_t i = 0; i < 8; ++i) (void)tier_put(*tier, sample_of(i));
    const ShardId id = sample_of(3).meta.id;
    CHECK_EQ(tier->remove(std::span(&id, 1)), 1u);
    for (std::uint64_t i = 8; i < 16; ++i) (void)tier_put(*tier, sample_of(i));  // written after the record
    (void)::kill(::getpid(), SIGKILL);
  }
  CHECK_EQ(::waitpid(child, nullptr, 0), child);
  const auto tier = make_disk_tier(config);
  for (std::uint64_t i = 0; i < 16; ++i) {
    CHECK_EQ(disk_get(*tier, sample_of(i)).status, i == 3 ? TierStatus::Missing : TierStatus::Ok);
  }
}

namespace {

// A small tier's file with sealed segments and an open one, as a life left it; all shards in it.
struct Left {
  Left() {
    const auto tier = make_disk_tier(config());
    for (std::uint64_t i = 0; i < kShards; ++i) {
      samples.emplace_back(i, 1 + (i * 77'003) % 150'000);
      CHECK_EQ(tier_put(*tier, samples.back()), TierStatus::Ok);
    }
  }
  [[nodiscard]] DiskConfig config() const { return disk_config(folder, 5 * kTierMiB); }

  static constexpr std::uint64_t kShards = 34;
  Folder folder;
  std::vector<Sample> samples;
};

// One injury: bits, garbage, zeros, or a stretch of the file that landed somewhere else.
std::string injure(std::vector<std::byte>* bytes, std::mt19937_64* random) {
  const std::uint64_t kinds = (*random)() % 4;
  std::uint64_t at = (*random)() % bytes->size();
  if ((*random)() % 2 == 0) at = at / 4'096 * 4'096 + at % 200;  // headers are at the start of blocks
  const std::uint64_t length = std::min<std::uint64_t>(512 * (1 + (*random)() % 64), bytes->size() - at);
  const auto target = std::span(*bytes).subspan(at, length);
  switch (kinds) {
    case 0:
      (*bytes)[at] ^= static_cast<std::byte>(1u << ((*random)() % 8));
      break;
    case 1:
      for (std::byte& b : target) b = static_cast<std::byte>((*random)());
      break;
    case 2:
      std::fill(target.begin(), target.end(), std::byte{0});
      break;
    default: {
      const std::uint64_t from = (*random)() % (bytes->size() - length) / 4'096 * 4'096;
      const std::vector<std::byte> stray(bytes->begin() + static_cast<std::ptrdiff_t>(from),
                                         bytes->begin() + static_cast<std::ptrdiff_t>(from + length));
      std::copy(stray.begin(), stray.end(), target.begin());
    }
  }
  return "kind " + std::to_string(kinds) + " at " + std::to_string(at) + ", " + std::to_string(length) + " bytes";
}

}  // namespace

TEST(no_flipped_or_torn_byte_is_ever_handed_out) {
  constexpr std::uint64_t seed = 21;
  std::fprintf(stderr, "seed %lu\n", static_cast<unsigned long>(seed));
  const Left found;
  const std::vector<std::byte> whole = bytes_of(found.folder.file());
  std::mt19937_64 random(seed);
  std::map<TierStatus, int> seen;
  for (int trial = 0; trial < 60; ++trial) {
    std::vector<std::byte> bytes = whole;
    std::string what;
    for (std::uint64_t injuries = 1 + random() % 3; injuries > 0; --injuries) what += injure(&bytes, &random) + "; ";
    write_bytes(found.folder.file(), bytes);
    const auto tier = make_disk_tier(found.config());
    int ok = 0;
    for (const Sample& s : found.samples) {
      const TierStatus status = disk_get(*tier, s).status;  // checks the bytes of what is Ok
      ++seen[status];
      ok += status == TierStatus::Ok ? 1 : 0;
      if (status != TierStatus::Ok && status != TierStatus::Missing && status != TierStatus::Corrupt) {
        fail(__FILE__, __LINE__, "trial " + std::to_string(trial) + " (" + what + ") says " + shown(status));
      }
    }
    if (ok < 8)
      fail(__FILE__, __LINE__, "trial " + std::to_string(trial) + " (" + what + ") left " + std::to_string(ok));
  }
  std::fprintf(stderr, "%d whole, %d missing, %d corrupt\n", seen[TierStatus::Ok], seen[TierStatus::Missing],
               seen[TierStatus::Corrupt]);
  CHECK_GT(seen[TierStatus::Corrupt], 10);
  CHECK_GT(seen[TierStatus::Ok], 30 * static_cast<int>(Left::kShards));
}

TEST(a_damaged_table_costs_a_scan_and_no_shard) {
  const Left found;
  std::vector<std::byte> bytes = bytes_of(found.folder.file());
  bytes[kTestSegmentBytes - 4'096] ^= std::byte{1};          // a trailer
  bytes[2 * kTestSegmentBytes - 2 * 4'096] ^= std::byte{1};  // a table
  write_bytes(found.folder.file(), bytes);
  std::vector<std::string> notes;
  const auto tier = make_disk_tier(found.config(), &notes);
  for (const Sample& s : found.samples) CHECK_EQ(disk_get(*tier, s).status, TierStatus::Ok);
  CHECK(notes.back().find("engine") != std::string::npos);
  CHECK(notes.front().find("3 segments scanned, 1 damaged tables") != std::string::npos);
}

TEST(bytes_that_rot_while_it_runs_are_corrupt_once_and_then_missing) {
  const Left found;
  const auto tier = make_disk_tier(found.config());
  std::vector<std::byte> bytes = bytes_of(found.folder.file());
  std::vector<std::byte> rotten(bytes.size(), std::byte{0x5a});
  std::ofstream out(found.folder.file(), std::ios::binary | std::ios::in);
  out.write(reinterpret_cast<const char*>(rotten.data()), static_cast<std::streamsize>(rotten.size()));
  out.flush();
  const UniqueFd written(::open(found.folder.file().c_str(), O_RDONLY | O_CLOEXEC));
  CHECK_EQ(::fsync(written.get()), 0);
  for (const Sample& s : found.samples) CHECK_EQ(disk_get(*tier, s).status, TierStatus::Corrupt);
  for (const Sample& s : found.samples) CHECK_EQ(disk_get(*tier, s).status, TierStatus::Missing);
  CHECK_EQ(tier->stats().corrupt, Left::kShards);
  CHECK_EQ(tier->stats().shards, 0u);
}

TEST_MAIN()
