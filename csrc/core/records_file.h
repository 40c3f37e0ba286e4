// What written records say of themselves, for who opens them under another configuration.
#pragma once

#include <optional>

#include "records.h"

namespace kvcommons::internal {

// How the arena of these records was cut, whatever the configuration says today; nullopt if they are torn, or another
// version's.
std::optional<Geometry> geometry_of_file(int records_fd);

// Whether both cut an arena in the same way.
bool same_geometry(const Geometry& a, const Geometry& b) noexcept;

}  // namespace kvcommons::internal
