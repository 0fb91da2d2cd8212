// Launch shapes of AccumulateHessian. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_ACCUMULATE_HESSIAN_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_ACCUMULATE_HESSIAN_CONFIG_H_

#include "kernels/tuning/config_field.h"

namespace nibble {

struct AccumulateHessianConfig {
  int warps;       // of a thread block
  int ring_bytes;  // of shared memory, for the tokens that a warp has on their way

  static constexpr ConfigField<AccumulateHessianConfig> kFields[] = {
      {"warps", &AccumulateHessianConfig::warps},
      {"ring_bytes", &AccumulateHessianConfig::ring_bytes}};
};

// Every instantiated shape: the launcher's table, the conformance test and the benchmark walk this
// array. The first is the default.
inline constexpr AccumulateHessianConfig kAccumulateHessianConfigs[] = {
    {4, 8192}, {4, 12288}, {2, 16384}, {2, 24576}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_ACCUMULATE_HESSIAN_CONFIG_H_
