// Launch shapes of CopyAmax. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_COPY_AMAX_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_COPY_AMAX_CONFIG_H_

#include "kernels/tuning/config_field.h"

namespace nibble {

struct CopyAmaxConfig {
  int steps;   // strips of 128 columns that a warp walks through
  int stages;  // of those, that are on their way or worked on

  static constexpr ConfigField<CopyAmaxConfig> kFields[] = {{"steps", &CopyAmaxConfig::steps},
                                                            {"stages", &CopyAmaxConfig::stages}};
};

// Every launch shape; no more than three stages fit where elements have four bytes. The first is
// the default.
inline constexpr CopyAmaxConfig kCopyAmaxConfigs[] = {{8, 3}, {12, 3}, {24, 3}, {4, 3}, {8, 2}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_COPY_AMAX_CONFIG_H_
