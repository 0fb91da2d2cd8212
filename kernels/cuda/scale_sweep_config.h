// Launch shapes of ScaleSweep. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_SCALE_SWEEP_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_SCALE_SWEEP_CONFIG_H_

#include "kernels/tuning/config_field.h"

namespace nibble {

struct ScaleSweepConfig {
  int warps;              // of a thread block
  int blocks_per_thread;  // NVFP4 blocks that a thread searches one after another

  static constexpr ConfigField<ScaleSweepConfig> kFields[] = {
      {"warps", &ScaleSweepConfig::warps},
      {"blocks_per_thread", &ScaleSweepConfig::blocks_per_thread}};
};

// Every instantiated shape: the launcher's table, the conformance test, the benchmark and the tuner
// walk this array. The first is the default.
inline constexpr ScaleSweepConfig kScaleSweepConfigs[] = {{4, 2}, {4, 1}, {4, 4},
                                                          {8, 1}, {8, 2}, {2, 4}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SCALE_SWEEP_CONFIG_H_
