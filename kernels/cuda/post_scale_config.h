// Launch shapes of PostScale. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_POST_SCALE_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_POST_SCALE_CONFIG_H_

#include "kernels/tuning/config_field.h"

namespace nibble {

struct PostScaleConfig {
  int warps;              // of a thread block
  int chunks_per_thread;  // 16-byte pieces, or single elements where rows are not made of those

  static constexpr ConfigField<PostScaleConfig> kFields[] = {
      {"warps", &PostScaleConfig::warps},
      {"chunks_per_thread", &PostScaleConfig::chunks_per_thread}};
};

// Every instantiated shape: the launcher's table, the tests, the benchmark and the tuner walk this
// array. The first is the default.
inline constexpr PostScaleConfig kPostScaleConfigs[] = {{8, 1}, {4, 1}, {8, 2}, {8, 4}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_POST_SCALE_CONFIG_H_
