// Launch shapes of MeasureError. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_MEASURE_ERROR_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_MEASURE_ERROR_CONFIG_H_

#include "kernels/tuning/config_field.h"

namespace nibble {

struct MeasureErrorConfig {
  int warps;              // of a thread block
  int blocks_per_thread;  // NVFP4 blocks that a thread measures, where there are enough
  int resident;           // thread blocks that an SM must have registers for

  static constexpr ConfigField<MeasureErrorConfig> kFields[] = {
      {"warps", &MeasureErrorConfig::warps},
      {"blocks_per_thread", &MeasureErrorConfig::blocks_per_thread},
      {"resident", &MeasureErrorConfig::resident}};
};

// Every instantiated shape: the launcher's table, the tests, the benchmark and the tuner walk this
// array. The first is the default.
inline constexpr MeasureErrorConfig kMeasureErrorConfigs[] = {
    {2, 16, 10}, {2, 8, 10}, {1, 16, 20}, {4, 8, 5}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_MEASURE_ERROR_CONFIG_H_
