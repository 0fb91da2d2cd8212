// Launch shapes of CopyEncode. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_COPY_ENCODE_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_COPY_ENCODE_CONFIG_H_

#include "kernels/tuning/config_field.h"

namespace nibble {

struct CopyEncodeConfig {
  int strip_tiles;  // of 128 x 128 elements, that a thread block takes one after another

  static constexpr ConfigField<CopyEncodeConfig> kFields[] = {
      {"strip_tiles", &CopyEncodeConfig::strip_tiles}};
};

// Every launch shape, for the plain runtime rule of bf16 and fp16 (the others have one). The
// first is the default.
inline constexpr CopyEncodeConfig kCopyEncodeConfigs[] = {{8}, {4}, {12}, {24}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_COPY_ENCODE_CONFIG_H_
