// Launch shapes of Amax. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_AMAX_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_AMAX_CONFIG_H_

#include "kernels/tuning/config_field.h"

namespace nibble {

struct AmaxConfig {
  int warps;          // of a thread block
  int loads;          // of 16 bytes, that a thread has on their way together
  int thread_blocks;  // of the grid for each multiprocessor; they stride over the tensor;
                      // at most the 48 warps that every device has room for

  static constexpr ConfigField<AmaxConfig> kFields[] = {
      {"warps", &AmaxConfig::warps},
      {"loads", &AmaxConfig::loads},
      {"thread_blocks", &AmaxConfig::thread_blocks}};
};

// Every instantiated shape: the launcher's table, the conformance test and the benchmark walk this
// array. The first is the default.
inline constexpr AmaxConfig kAmaxConfigs[] = {{8, 8, 4}, {16, 8, 2}, {16, 4, 3}, {8, 4, 6}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_AMAX_CONFIG_H_
