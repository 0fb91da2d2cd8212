// Launch shapes of CopyRows. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_COPY_ROWS_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_COPY_ROWS_CONFIG_H_

#include "kernels/tuning/config_field.h"

namespace nibble {

struct CopyRowsConfig {
  int warps;  // of a thread block, 128 columns each; more where the rows are too long for them

  static constexpr ConfigField<CopyRowsConfig> kFields[] = {{"warps", &CopyRowsConfig::warps}};
};

// Every launch shape. The first is the default.
inline constexpr CopyRowsConfig kCopyRowsConfigs[] = {{16}, {8}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_COPY_ROWS_CONFIG_H_
