// The scale layout that block-scaled GEMMs read: tiles of 128 rows x 4 columns, 512 bytes each.
#ifndef NIBBLE_QUANT_SWIZZLE_H_
#define NIBBLE_QUANT_SWIZZLE_H_

#include <cstdint>
#include <span>

#include "quant/numerics/float_bits.h"

namespace nibble {

// Rows are padded to 128, columns (K/16) to 4.
NIBBLE_HD int64_t SwizzledBytes(int64_t rows, int64_t cols) {
  return (rows + 127) / 128 * 128 * ((cols + 3) / 4 * 4);
}

NIBBLE_HD int64_t SwizzledOffset(int64_t row, int64_t col, int64_t cols) {
  const int64_t tiles_per_row = (cols + 3) / 4;
  return ((row / 128) * tiles_per_row + col / 4) * 512 + (row % 32) * 16 + ((row % 128) / 32) * 4 +
         col % 4;
}

// `linear` holds rows * cols bytes, `swizzled` SwizzledBytes(rows, cols). Padding is written as 0
// and not read.
void Swizzle(std::span<const uint8_t> linear, int64_t rows, int64_t cols,
             std::span<uint8_t> swizzled);
void Unswizzle(std::span<const uint8_t> swizzled, int64_t rows, int64_t cols,
               std::span<uint8_t> linear);

}  // namespace nibble

#endif  // NIBBLE_QUANT_SWIZZLE_H_
