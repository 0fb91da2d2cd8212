// A packed tensor in device memory, as launchers take it: PackedView without Abseil.
#ifndef NIBBLE_KERNELS_CUDA_PACKED_ARGS_H_
#define NIBBLE_KERNELS_CUDA_PACKED_ARGS_H_

#include <cstdint>

#include "quant/numerics/float_bits.h"

namespace nibble {

struct PackedArgs {
  const uint8_t* packed = nullptr;  // aligned to 8 bytes
  const uint8_t* scale = nullptr;   // E4M3, linear or in 128x4 tiles
  const float* amax = nullptr;      // null: the values are wanted without the global scale
  int64_t rows = 0;
  int64_t blocks_per_row = 0;
  bool amax_per_row = false;
  bool checkpoint = false;  // the rule; runtime otherwise
  float bound = 448.0f;     // what the global scale aims at
  bool swizzled = false;

  NIBBLE_HD int64_t blocks() const { return rows * blocks_per_row; }
};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_PACKED_ARGS_H_
