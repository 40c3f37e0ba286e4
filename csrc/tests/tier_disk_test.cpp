// The disk tier under the suite that every tier runs: by both engines, on one device and on two.
#include "disk_fixture.h"

using namespace kvcommons;
using namespace kvcommons::testing;

namespace {

namespace threads_1 {
std::unique_ptr<Tier> make(std::uint64_t capacity_bytes) {
  return passing_disk_tier(capacity_bytes, DiskEngine::Threads, 1);
}
KVCOMMONS_TIER_CONTRACT(make)
}  // namespace threads_1

namespace threads_2 {
std::unique_ptr<Tier> make(std::uint64_t capacity_bytes) {
  return passing_disk_tier(capacity_bytes, DiskEngine::Threads, 2);
}
KVCOMMONS_TIER_CONTRACT(make)
}  // namespace threads_2

// io_uring where it is allowed; where not, this is the same suite once more.
namespace preferred_1 {
std::unique_ptr<Tier> make(std::uint64_t capacity_bytes) {
  return passing_disk_tier(capacity_bytes, DiskEngine::Auto, 1);
}
KVCOMMONS_TIER_CONTRACT(make)
}  // namespace preferred_1

namespace preferred_2 {
std::unique_ptr<Tier> make(std::uint64_t capacity_bytes) {
  return passing_disk_tier(capacity_bytes, DiskEngine::Auto, 2);
}
KVCOMMONS_TIER_CONTRACT(make)
}  // namespace preferred_2

}  // namespace

TEST(the_chosen_engine_is_named_in_the_notes) {
  std::fprintf(stderr, "io_uring is %s on this machine\n", has_io_uring() ? "allowed" : "denied");
  for (const DiskEngine engine : disk_engines()) {
    const Folder folder;
    std::vector<std::string> notes;
    const auto tier = make_disk_tier(disk_config(folder, 8 * kTierMiB, engine), &notes);
    bool named = false;
    for (const std::string& note : notes) named |= note.find(std::string("engine ") + name_of(engine)) != note.npos;
    CHECK(named);
  }
}

TEST_MAIN()
