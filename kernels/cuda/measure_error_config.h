// Launch shapes of MeasureError. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_MEASURE_ERROR_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_MEASURE_ERROR_CONFIG_H_

namespace nibble {

struct MeasureErrorConfig {
  int warps;              // of a thread block
  int blocks_per_thread;  // NVFP4 blocks that a thread measures, where there are enough
};

// Every instantiated shape: the launcher's table, the tests and the benchmark walk this array. The
// first is the default.
inline constexpr MeasureErrorConfig kMeasureErrorConfigs[] = {
    {4, 8}, {4, 4}, {8, 8}, {4, 16}, {2, 16}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_MEASURE_ERROR_CONFIG_H_
