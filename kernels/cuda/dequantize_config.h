// Launch shapes of Dequantize. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_DEQUANTIZE_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_DEQUANTIZE_CONFIG_H_

#include "kernels/tuning/config_field.h"

namespace nibble {

struct DequantizeConfig {
  int warps;              // of a thread block
  int chunks_per_thread;  // 16-byte pieces of the output that a thread writes

  static constexpr ConfigField<DequantizeConfig> kFields[] = {
      {"warps", &DequantizeConfig::warps},
      {"chunks_per_thread", &DequantizeConfig::chunks_per_thread}};
};

// Every instantiated shape: the launcher's table, the tests, the benchmark and the tuner walk this
// array. The first is the default.
inline constexpr DequantizeConfig kDequantizeConfigs[] = {{4, 2}, {4, 4}, {8, 2}, {8, 4}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_DEQUANTIZE_CONFIG_H_
