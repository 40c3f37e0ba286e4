// For libFuzzer, where clang is at hand:
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -I.. -I../core fuzz_peer_wire.cpp
//     ../core/peers/peer_wire.cpp -o fuzz_peer_wire && ./fuzz_peer_wire
// The tests run the same over seeded mutations of good frames (peer_wire_test.cpp).
#include "fuzz_peer_wire.h"

#include <cstdint>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvcommons::testing::read_peer_frame(std::as_bytes(std::span(data, size)));
  return 0;
}
