// For libFuzzer: `make fuzz` builds and runs it where clang is at hand. The tests run the same over seeded mutations
// (disk_format_test.cpp, disk_fuzz_test.cpp).
#include "fuzz_disk_format.h"

#include <cstdint>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvcommons::testing::read_as_disk(std::as_bytes(std::span(data, size)));
  return 0;
}
