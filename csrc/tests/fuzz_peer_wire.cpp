// For libFuzzer: `make fuzz` builds and runs it where clang is at hand. The tests run the same over seeded mutations of
// good frames (peer_wire_test.cpp).
#include "fuzz_peer_wire.h"

#include <cstdint>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvcommons::testing::read_peer_frame(std::as_bytes(std::span(data, size)));
  return 0;
}
