// Launch shapes of Quantize. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_QUANTIZE_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_QUANTIZE_CONFIG_H_

#include "kernels/tuning/config_field.h"

namespace nibble {

struct QuantizeConfig {
  int warps;              // of a thread block
  int blocks_per_thread;  // NVFP4 blocks that a thread loads before it encodes them (not tile_2d)
  int thread_blocks;      // of a multiprocessor: as many stay and walk over the tensor

  static constexpr ConfigField<QuantizeConfig> kFields[] = {
      {"warps", &QuantizeConfig::warps},
      {"blocks_per_thread", &QuantizeConfig::blocks_per_thread},
      {"thread_blocks", &QuantizeConfig::thread_blocks}};
};

// Every instantiated shape: the launcher's table, the conformance test and the benchmark walk this
// array. The first is the default.
inline constexpr QuantizeConfig kQuantizeConfigs[] = {{4, 1, 8}, {4, 1, 10}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_QUANTIZE_CONFIG_H_
