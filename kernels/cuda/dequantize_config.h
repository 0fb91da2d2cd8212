// Launch shapes of Dequantize. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_DEQUANTIZE_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_DEQUANTIZE_CONFIG_H_

namespace nibble {

struct DequantizeConfig {
  int warps;              // of a thread block
  int chunks_per_thread;  // 16-byte pieces of the output that a thread writes
};

// Every instantiated shape: the launcher's table, the tests and the benchmark walk this array. The
// first is the default.
inline constexpr DequantizeConfig kDequantizeConfigs[] = {{4, 2}, {4, 4}, {8, 2}, {8, 4}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_DEQUANTIZE_CONFIG_H_
