// Launch shapes of CopyEncode. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_COPY_ENCODE_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_COPY_ENCODE_CONFIG_H_

namespace nibble {

struct CopyEncodeConfig {
  int thread_blocks;  // resident on a multiprocessor, at least: bounds the registers
};

// Every instantiated shape. The first is the default.
inline constexpr CopyEncodeConfig kCopyEncodeConfigs[] = {{3}, {2}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_COPY_ENCODE_CONFIG_H_
