// Launch shapes of MultiplierSearch. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_MULTIPLIER_SEARCH_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_MULTIPLIER_SEARCH_CONFIG_H_

#include "kernels/tuning/config_field.h"

namespace nibble {

struct MultiplierSearchConfig {
  int warps;              // of a thread block
  int blocks_per_thread;  // NVFP4 blocks that a thread searches one after another

  static constexpr ConfigField<MultiplierSearchConfig> kFields[] = {
      {"warps", &MultiplierSearchConfig::warps},
      {"blocks_per_thread", &MultiplierSearchConfig::blocks_per_thread}};
};

// Every instantiated shape: the launcher's table, the tests, the benchmark and the tuner walk this
// array. The first is the default.
inline constexpr MultiplierSearchConfig kMultiplierSearchConfigs[] = {
    {4, 1}, {4, 2}, {8, 1}, {4, 4}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_MULTIPLIER_SEARCH_CONFIG_H_
