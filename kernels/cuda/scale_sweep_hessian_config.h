// Launch shapes of ScaleSweepHessian. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_CONFIG_H_

#include "kernels/tuning/config_field.h"

namespace nibble {

// Of the pruned sweep of 16-bit weights.
struct ScaleSweepHessianConfig {
  int warps;     // of a thread block; each searches one slice, adjacent to the next one's
  int tiles;     // of 32 rows that a warp searches one after another
  int resident;  // thread blocks of a multiprocessor, at least: bounds the registers

  static constexpr ConfigField<ScaleSweepHessianConfig> kFields[] = {
      {"warps", &ScaleSweepHessianConfig::warps},
      {"tiles", &ScaleSweepHessianConfig::tiles},
      {"resident", &ScaleSweepHessianConfig::resident}};
};

// Every instantiated shape: the launcher's table, the conformance test and the benchmark walk this
// array. The first is the default.
inline constexpr ScaleSweepHessianConfig kScaleSweepHessianConfigs[] = {
    {4, 4, 5}, {8, 4, 3}, {8, 8, 2}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_CONFIG_H_
