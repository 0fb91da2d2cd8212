// Launch shapes of PostScale. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_POST_SCALE_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_POST_SCALE_CONFIG_H_

namespace nibble {

struct PostScaleConfig {
  int warps;              // of a thread block
  int chunks_per_thread;  // 16-byte pieces, or single elements where rows are not made of those
};

// Every instantiated shape: the launcher's table, the tests and the benchmark walk this array. The
// first is the default.
inline constexpr PostScaleConfig kPostScaleConfigs[] = {{8, 1}, {4, 1}, {8, 2}, {8, 4}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_POST_SCALE_CONFIG_H_
