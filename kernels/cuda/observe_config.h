// Launch shapes of Observe. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_OBSERVE_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_OBSERVE_CONFIG_H_

#include "kernels/tuning/config_field.h"

namespace nibble {

struct ObserveConfig {
  int warps;          // of a thread block, each with rows of its own
  int batch_rows;     // that a warp has on their way together: 4, 8 or 16
  int rows_per_warp;  // a multiple of 32

  static constexpr ConfigField<ObserveConfig> kFields[] = {
      {"warps", &ObserveConfig::warps},
      {"batch_rows", &ObserveConfig::batch_rows},
      {"rows_per_warp", &ObserveConfig::rows_per_warp}};
};

// Every instantiated shape: the launcher's table, the conformance test and the benchmark walk this
// array. The first is the default.
inline constexpr ObserveConfig kObserveConfigs[] = {
    {8, 16, 32}, {8, 8, 32}, {8, 8, 64}, {4, 16, 64}, {8, 4, 32}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_OBSERVE_CONFIG_H_
