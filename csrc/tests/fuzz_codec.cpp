// For libFuzzer: `make fuzz` builds and runs it where clang is at hand. The tests run the same over the kept corpus and
// seeded mutations of it (codec_test.cpp).
#include "fuzz_codec.h"

#include <cstdint>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvcommons::testing::read_stream(std::as_bytes(std::span(data, size)));
  return 0;
}
