// Launch shapes of ScaleSweepHessian. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_CONFIG_H_

namespace nibble {

struct ScaleSweepHessianConfig {
  int warps;     // of a thread block; each searches one slice, adjacent to the next one's
  int tiles;     // of 32 rows that a warp searches one after another
  int resident;  // thread blocks of a multiprocessor, at least: bounds the registers
};

// Every instantiated shape: the launcher's table, the conformance test and the benchmark walk this
// array. The first is the default.
inline constexpr ScaleSweepHessianConfig kScaleSweepHessianConfigs[] = {
    {8, 4, 2}, {8, 4, 3}, {4, 4, 5}, {8, 8, 2}, {4, 8, 4}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_CONFIG_H_
