// Launch shapes of ScaleSweep. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_SCALE_SWEEP_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_SCALE_SWEEP_CONFIG_H_

namespace nibble {

struct ScaleSweepConfig {
  int warps;              // of a thread block
  int blocks_per_thread;  // NVFP4 blocks that a thread searches one after another
};

// Every instantiated shape: the launcher's table, the conformance test and the benchmark walk this
// array. The first is the default.
inline constexpr ScaleSweepConfig kScaleSweepConfigs[] = {{4, 2}, {4, 1}, {4, 4},
                                                          {8, 1}, {8, 2}, {2, 4}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SCALE_SWEEP_CONFIG_H_
