// A disk tier over several lives: what is found again, in which order room is made, and what it refuses at its start.
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "core/records.h"
#include "disk_fixture.h"

using namespace kvcommons;
using namespace kvcommons::testing;

namespace {

constexpr std::uint64_t kPayload = 200'000;  // five fit a segment

bool has(const std::vector<std::string>& notes, const std::string& text) {
  for (const std::string& note : notes) {
    if (note.find(text) != note.npos) return true;
  }
  for (const std::string& note : notes) std::fprintf(stderr, "note: %s\n", note.c_str());
  return false;
}

// The error's text, which must name all of `parts`.
void refused(const DiskConfig& config, const std::vector<std::string>& parts) {
  std::string text;
  try {
    (void)make_disk_tier(config);
  } catch (const std::invalid_argument& error) {
    text = error.what();
  }
  for (const std::string& part : parts) {
    if (text.find(part) == text.npos) fail(__FILE__, __LINE__, "'" + text + "' does not say '" + part + "'");
  }
}

void fill(Tier& tier, std::uint64_t from, std::uint64_t to, std::uint64_t fingerprint = 1) {
  for (std::uint64_t i = from; i < to; ++i) {
    CHECK_EQ(tier_put(tier, Sample(i, kPayload, fingerprint)), TierStatus::Ok);
  }
}

bool here(Tier& tier, std::uint64_t number, std::uint64_t fingerprint = 1) {
  return disk_get(tier, Sample(number, kPayload, fingerprint)).status == TierStatus::Ok;
}

// Runs in a child with mounts of its own; false where this machine allows none.
bool with_mounts(const std::function<void()>& act) {
  const pid_t child = ::fork();
  CHECK_GE(child, 0);
  if (child == 0) {
    const std::string user = "0 " + std::to_string(::getuid()) + " 1", group = "0 " + std::to_string(::getgid()) + " 1";
    if (::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) ::_exit(77);
    for (const auto& [file, text] : {std::pair<const char*, std::string>{"/proc/self/setgroups", "deny"},
                                     {"/proc/self/uid_map", user},
                                     {"/proc/self/gid_map", group}}) {
      if (!(std::ofstream(file) << text << std::flush)) ::_exit(77);
    }
    act();
    ::_exit(0);
  }
  int status = 0;
  CHECK_EQ(::waitpid(child, &status, 0), child);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
    std::fprintf(stderr, "NOT RUN: this machine allows no mounts of one's own\n");
    return false;
  }
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  return true;
}

void mount_or_leave(const char* type, const std::string& at, const char* options) {
  if (::mount(type, at.c_str(), type, 0, options) != 0) ::_exit(77);
}

}  // namespace

TEST(another_life_finds_all_of_it_by_tables_and_by_headers) {
  for (const DiskEngine engine : disk_engines()) {
    const Folder folder;
    const DiskConfig config = disk_config(folder, 8 * kTierMiB, engine);
    fill(*make_disk_tier(config), 0, 13);
    std::vector<std::string> notes;
    const auto tier = make_disk_tier(config, &notes);
    CHECK(has(notes, "13 extents recovered, 1 segments scanned"));
    CHECK_EQ(tier->stats().shards, 13u);
    CHECK_EQ(tier->stats().recovered, 13u);
    bool gap = false;
    CHECK(tier->drain_events(100, &gap).empty());  // the inventory tells them
    for (std::uint64_t i = 0; i < 13; ++i) {
      const Sample s(i, kPayload);
      ShardMeta meta;
      CHECK(tier->describe(s.meta.id, &meta));
      CHECK(meta.parent == s.meta.parent);
      CHECK(meta.text_keys == s.meta.text_keys);
      CHECK(here(*tier, i));
    }
    fill(*tier, 13, 20);  // the open segment goes on where it ended
    CHECK_EQ(tier->stats().shards, 20u);
  }
}

TEST(what_was_removed_or_cleared_stays_away_in_every_later_life) {
  const std::vector<Folder> folders(2);
  DiskConfig config = disk_config(folders[0], 8 * kTierMiB);
  config.devices.push_back({folders[1].path(), 8 * kTierMiB});
  std::vector<PutItem> batch;
  std::vector<Sample> samples;
  for (std::uint64_t i = 0; i < 24; ++i) samples.emplace_back(i, kPayload, 1 + i % 2);
  for (const Sample& s : samples) batch.push_back(s.put());
  {
    const auto tier = make_disk_tier(config);
    for (const TierStatus status : tier_put(*tier, batch)) CHECK_EQ(status, TierStatus::Ok);
    CHECK_EQ(tier->remove(std::span(&samples[2].meta.id, 1)), 1u);
    CHECK_EQ(tier->clear(&samples[1].meta.id.fingerprint), 12u);
    CHECK_EQ(tier_put(*tier, samples[5]), TierStatus::Ok);  // after the clear: it stays
  }
  for (int life = 0; life < 3; ++life) {
    const auto tier = make_disk_tier(config);
    for (std::uint64_t i = 0; i < 24; ++i) CHECK_EQ(here(*tier, i, 1 + i % 2), (i % 2 == 0 && i != 2) || i == 5);
    CHECK_EQ(tier->stats().shards, 12u);
  }
  CHECK_EQ(make_disk_tier(config)->clear(nullptr), 12u);
  CHECK_EQ(make_disk_tier(config)->stats().shards, 0u);
}

TEST(a_clear_on_one_device_leaves_what_came_later_on_another) {
  const std::vector<Folder> folders(2);
  DiskConfig config = disk_config(folders[0], 8 * kTierMiB);
  config.devices.push_back({folders[1].path(), 8 * kTierMiB});
  {
    const auto tier = make_disk_tier(config);
    CHECK_EQ(tier->clear(nullptr), 0u);
    std::vector<Sample> samples;
    std::vector<PutItem> batch;
    for (std::uint64_t i = 0; i < 20; ++i) samples.emplace_back(i, kPayload);
    for (const Sample& s : samples) batch.push_back(s.put());
    for (const TierStatus status : tier_put(*tier, batch)) CHECK_EQ(status, TierStatus::Ok);
  }
  CHECK_EQ(make_disk_tier(config)->stats().shards, 20u);
}

TEST(the_oldest_makes_room_and_what_was_read_since_stays) {
  const Folder folder;
  DiskConfig config = disk_config(folder, 8 * kTierMiB);
  const auto tier = make_disk_tier(config);
  fill(*tier, 0, 30);
  CHECK(here(*tier, 0));
  const ShardId used = Sample(6, kPayload).meta.id;
  tier->touch(std::span(&used, 1));
  fill(*tier, 30, 45);
  CHECK(tier_find(*tier, Sample(0, kPayload).meta.id) != 0);
  CHECK(tier_find(*tier, used) != 0);
  CHECK(tier_find(*tier, Sample(1, kPayload).meta.id) == 0);
  CHECK(here(*tier, 0));
  CHECK(here(*tier, 6));
  CHECK(here(*tier, 44));
  CHECK_GE(tier->stats().reinserted, 2u);
  CHECK_GT(tier->stats().evicted, 5u);
}

TEST(the_file_is_as_long_as_the_capacity_says_and_stays_so) {
  const Folder folder;
  const DiskConfig config = disk_config(folder, 6 * kTierMiB + 5'000);  // not a whole number of segments
  {
    const auto tier = make_disk_tier(config);
    CHECK_EQ(tier->stats().capacity_bytes, 6 * kTierMiB);
    fill(*tier, 0, 60);
    CHECK_LE(tier->stats().used_bytes, 6 * kTierMiB);
  }
  struct stat st{};
  CHECK_EQ(::stat(folder.file().c_str(), &st), 0);
  CHECK_EQ(st.st_size, static_cast<off_t>(6 * kTierMiB));
  CHECK_LE(static_cast<std::uint64_t>(st.st_blocks) * 512, 6 * kTierMiB + 64 * 1024);  // and the file system's own
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) files += entry.exists() ? 1 : 0;
  CHECK_EQ(files, 1u);
}

TEST(more_capacity_keeps_what_is_there_and_less_starts_empty) {
  const Folder folder;
  fill(*make_disk_tier(disk_config(folder, 8 * kTierMiB)), 0, 10);
  CHECK_EQ(make_disk_tier(disk_config(folder, 12 * kTierMiB))->stats().shards, 10u);
  std::vector<std::string> notes;
  CHECK_EQ(make_disk_tier(disk_config(folder, 6 * kTierMiB), &notes)->stats().shards, 0u);
  CHECK(has(notes, "made for a larger capacity_bytes: it starts empty"));
  CHECK_EQ(make_disk_tier(disk_config(folder, 8 * kTierMiB))->stats().shards, 0u);
}

TEST(other_segments_or_another_format_version_start_empty_and_say_so) {
  const Folder folder;
  DiskConfig config = disk_config(folder, 16 * kTierMiB);
  fill(*make_disk_tier(config), 0, 10);
  config.segment_bytes *= 2;
  std::vector<std::string> notes;
  CHECK_EQ(make_disk_tier(config, &notes)->stats().shards, 0u);
  CHECK(has(notes, "made with segment_bytes 1048576: it starts empty"));

  fill(*make_disk_tier(config), 0, 10);
  auto bytes = bytes_of(folder.file());
  disk::SegmentHeader head;
  std::memcpy(&head, bytes.data(), sizeof head);
  head.version = disk::kFormatVersion + 1;
  head.crc = 0;
  head.crc = internal::crc32c(std::as_bytes(std::span(&head, 1)));
  std::memcpy(bytes.data(), &head, sizeof head);
  write_bytes(folder.file(), bytes);
  notes.clear();
  CHECK_EQ(make_disk_tier(config, &notes)->stats().shards, 0u);
  CHECK(has(notes, "of another format version than this node's 2: it starts empty"));
  fill(*make_disk_tier(config), 0, 10);
  CHECK_EQ(make_disk_tier(config)->stats().shards, 10u);
}

TEST(a_file_of_something_else_is_nothing_to_it) {
  const Folder folder;
  std::vector<std::byte> bytes(3 * kTierMiB);
  std::mt19937_64 random(4);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  write_bytes(folder.file(), bytes);
  std::vector<std::string> notes;
  const auto tier = make_disk_tier(disk_config(folder, 8 * kTierMiB), &notes);
  CHECK(has(notes, "3 damaged segment headers"));
  CHECK_EQ(tier->stats().shards, 0u);
  fill(*tier, 0, 30);
  CHECK(here(*tier, 29));
}

TEST(a_shard_larger_than_a_segment_is_full_at_once) {
  const Folder folder;
  const auto tier = make_disk_tier(disk_config(folder, 8 * kTierMiB));
  CHECK_EQ(tier_put(*tier, Sample(1, 2 * kTierMiB)), TierStatus::Full);
  CHECK_EQ(tier_put(*tier, Sample(2, kTestSegmentBytes - 4 * 4'096)), TierStatus::Ok);  // the largest that fits
  CHECK_EQ(tier_put(*tier, Sample(3, kTestSegmentBytes - 4 * 4'096 + 1)), TierStatus::Full);
  CHECK_EQ(disk_get(*tier, Sample(2, kTestSegmentBytes - 4 * 4'096)).status, TierStatus::Ok);
  CHECK_EQ(tier->health(&std::string().erase()), TierHealth::Serving);
}

TEST(two_nodes_never_share_a_folder) {
  const Folder folder;
  DiskConfig config = disk_config(folder, 8 * kTierMiB);
  config.lock_wait_ms = 0;
  const auto tier = make_disk_tier(config);
  refused(config, {"devices[0].path", folder.file(), "another process has it"});
}

TEST(a_start_waits_a_bounded_time_for_the_process_before) {
  const Folder folder;
  auto before = make_disk_tier(disk_config(folder, 8 * kTierMiB));
  fill(*before, 0, 3);
  std::atomic<bool> begun{false};
  std::thread ender([&] {
    await([&] { return begun.load(); });
    before.reset();
  });
  begun = true;
  CHECK_EQ(make_disk_tier(disk_config(folder, 8 * kTierMiB))->stats().shards, 3u);
  ender.join();
}

TEST(settings_that_cannot_be_are_refused_with_the_remedy) {
  const Folder folder;
  const DiskConfig good = disk_config(folder, 8 * kTierMiB);
  const auto changed = [&](auto change) {
    DiskConfig config = good;
    change(config);
    return config;
  };
  refused(changed([](auto& c) { c.devices.clear(); }), {"devices is 0", "between 1 and"});
  refused(changed([](auto& c) { c.segment_bytes = 5'000; }), {"segment_bytes is 5000", "multiple of 4096"});
  refused(changed([](auto& c) { c.devices[0].capacity_bytes = kTierMiB; }),
          {"capacity_bytes is 1048576", "4 segments"});
  refused(changed([](auto& c) { c.devices[0].path += "/absent"; }), {"devices[0].path", "mount or make it first"});
  refused(changed([](auto& c) { c.devices[0].path = "/proc/self/exe"; }), {"/proc/self/exe", "it is no folder"});
  refused(changed([](auto& c) { c.reinsert_share = 0.9; }), {"reinsert_share", "between 0 and 0.5"});
  refused(changed([](auto& c) { c.threads_per_device = 0; }), {"threads_per_device is 0"});
  refused(changed([](auto& c) { c.devices[0].capacity_bytes = 1ull << 50, c.segment_bytes = 1ull << 30; }),
          {"capacity_bytes", "larger segment_bytes or less"});
  refused(changed([](auto& c) { c.devices[0].path = "/proc"; }), {"devices[0].path", "/proc/segments.kvc"});
}

TEST(a_file_system_without_room_is_a_clear_error_at_the_start) {
  const Folder folder;
  (void)with_mounts([&] {
    mount_or_leave("tmpfs", folder.path(), "size=6m");
    refused(disk_config(folder, 8 * kTierMiB), {"capacity_bytes is 8388608", "there is no space for it"});
    CHECK(std::filesystem::is_empty(folder.path()));  // nothing is left of the attempt
    const auto tier = make_disk_tier(disk_config(folder, 5 * kTierMiB));
    fill(*tier, 0, 60);
    CHECK(here(*tier, 59));
  });
}

TEST(a_file_system_without_o_direct_is_a_clear_error_or_buffered_by_choice) {
  const Folder folder;
  (void)with_mounts([&] {
    mount_or_leave("ramfs", folder.path(), "");
    DiskConfig config = disk_config(folder, 8 * kTierMiB);
    refused(config, {"devices[0].path", "no O_DIRECT", "allow buffered"});
    config.buffered = true;
    std::vector<std::string> notes;
    {
      const auto tier = make_disk_tier(config, &notes);
      CHECK(has(notes, "buffered, as allowed"));
      fill(*tier, 0, 60);
      CHECK(here(*tier, 59));
    }
    CHECK_GT(make_disk_tier(config)->stats().shards, 20u);
  });
}

TEST_MAIN()
