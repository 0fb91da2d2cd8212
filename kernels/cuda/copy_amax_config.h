// Launch shapes of CopyAmax. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_COPY_AMAX_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_COPY_AMAX_CONFIG_H_

#include "kernels/tuning/config_field.h"

namespace nibble {

struct CopyAmaxConfig {
  int steps;          // strips of 128 columns that a warp walks through
  int thread_blocks;  // resident on a multiprocessor, at least: bounds the registers

  static constexpr ConfigField<CopyAmaxConfig> kFields[] = {
      {"steps", &CopyAmaxConfig::steps}, {"thread_blocks", &CopyAmaxConfig::thread_blocks}};
};

// Every instantiated shape. The first is the default.
inline constexpr CopyAmaxConfig kCopyAmaxConfigs[] = {{8, 3}, {4, 3}, {4, 2}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_COPY_AMAX_CONFIG_H_
