// Launch shapes of ScaleSweepHessian. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_CONFIG_H_

namespace nibble {

struct ScaleSweepHessianConfig {
  int warps;   // of a thread block; each searches 32 rows of one slice
  int slices;  // adjacent ones that a thread block covers; divides `warps`
};

// Every instantiated shape: the launcher's table, the conformance test and the benchmark walk this
// array. The first is the default.
inline constexpr ScaleSweepHessianConfig kScaleSweepHessianConfigs[] = {{4, 4}, {4, 1}, {8, 8}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_CONFIG_H_
