// Launch shapes of MultiplierSearch. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_MULTIPLIER_SEARCH_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_MULTIPLIER_SEARCH_CONFIG_H_

namespace nibble {

struct MultiplierSearchConfig {
  int warps;              // of a thread block
  int blocks_per_thread;  // NVFP4 blocks that a thread searches one after another
};

// Every instantiated shape: the launcher's table, the tests and the benchmark walk this array. The
// first is the default.
inline constexpr MultiplierSearchConfig kMultiplierSearchConfigs[] = {
    {4, 1}, {4, 2}, {8, 1}, {4, 4}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_MULTIPLIER_SEARCH_CONFIG_H_
