#include "quant/swizzle.h"

#include <algorithm>

#include "base/status.h"

namespace nibble {

void Swizzle(std::span<const uint8_t> linear, int64_t rows, int64_t cols,
             std::span<uint8_t> swizzled) {
  NIBBLE_CHECK(static_cast<int64_t>(linear.size()) == rows * cols);
  NIBBLE_CHECK(static_cast<int64_t>(swizzled.size()) == SwizzledBytes(rows, cols));
  std::fill(swizzled.begin(), swizzled.end(), uint8_t{0});
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) swizzled[SwizzledOffset(r, c, cols)] = linear[r * cols + c];
  }
}

void Unswizzle(std::span<const uint8_t> swizzled, int64_t rows, int64_t cols,
               std::span<uint8_t> linear) {
  NIBBLE_CHECK(static_cast<int64_t>(linear.size()) == rows * cols);
  NIBBLE_CHECK(static_cast<int64_t>(swizzled.size()) == SwizzledBytes(rows, cols));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) linear[r * cols + c] = swizzled[SwizzledOffset(r, c, cols)];
  }
}

}  // namespace nibble
