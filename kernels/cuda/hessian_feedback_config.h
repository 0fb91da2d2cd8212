// Launch shapes of HessianFeedback. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_HESSIAN_FEEDBACK_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_HESSIAN_FEEDBACK_CONFIG_H_

#include "kernels/tuning/config_field.h"

namespace nibble {

struct HessianFeedbackConfig {
  int warps;  // of a thread block

  static constexpr ConfigField<HessianFeedbackConfig> kFields[] = {
      {"warps", &HessianFeedbackConfig::warps}};
};

// Every instantiated shape: the launcher's table, the tests, the benchmark and the tuner walk this
// array. The first is the default.
inline constexpr HessianFeedbackConfig kHessianFeedbackConfigs[] = {{4}, {2}, {8}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_HESSIAN_FEEDBACK_CONFIG_H_
