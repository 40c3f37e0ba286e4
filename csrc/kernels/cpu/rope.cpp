#include "rope.h"

#include <cmath>

namespace kvcommons::kernels {

void rope_angles(std::span<const double> frequencies, std::int64_t shift, float* cosines, float* sines) {
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double angle = static_cast<double>(shift) * frequencies[i];
    cosines[i] = static_cast<float>(std::cos(angle));
    sines[i] = static_cast<float>(std::sin(angle));
  }
}

void rope_rows(Element element, RowsOut rows, std::size_t count, const RopeForm& form, const float* cosines,
               const float* sines) {
  for (std::size_t row = 0; row < count; ++row) {
    for (std::uint32_t pair = 0; pair < form.dims / 2; ++pair) {
      rope_pair_any(element, rows[row], form, pair, cosines[pair], sines[pair]);
    }
  }
}

}  // namespace kvcommons::kernels
