// The client's view of the node's arena.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace kvcommons {

// Maps `bytes` of the arena for reading and writing; the mapping ends with the last reference and is not inherited by a
// forked child. Null with *why set when the descriptor is no sealed file of that size: a file that could shrink would
// kill the engine by SIGBUS.
std::shared_ptr<std::byte> map_arena(int fd, std::uint64_t bytes, std::string* why);

}  // namespace kvcommons
