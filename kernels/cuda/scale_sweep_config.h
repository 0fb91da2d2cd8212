// Launch shapes of ScaleSweep. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_SCALE_SWEEP_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_SCALE_SWEEP_CONFIG_H_

#include "kernels/tuning/config_field.h"

namespace nibble {

struct ScaleSweepConfig {
  int warps;              // of a thread block; there is one on each multiprocessor
  int blocks_per_thread;  // NVFP4 blocks that a thread searches before its warp tidies up

  static constexpr ConfigField<ScaleSweepConfig> kFields[] = {
      {"warps", &ScaleSweepConfig::warps},
      {"blocks_per_thread", &ScaleSweepConfig::blocks_per_thread}};
};

// Every instantiated shape: the launcher's table, the conformance test, the benchmark and the tuner
// walk this array. The first is the default; the last fits into every device's shared memory and
// stands in for those that do not.
inline constexpr ScaleSweepConfig kScaleSweepConfigs[] = {{32, 4}, {32, 2}, {24, 4}, {8, 4}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SCALE_SWEEP_CONFIG_H_
