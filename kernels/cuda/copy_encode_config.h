// Launch shapes of CopyEncode. A config never changes a bit of the result.
#ifndef NIBBLE_KERNELS_CUDA_COPY_ENCODE_CONFIG_H_
#define NIBBLE_KERNELS_CUDA_COPY_ENCODE_CONFIG_H_

#include "kernels/tuning/config_field.h"

namespace nibble {

struct CopyEncodeConfig {
  int strip_tiles;  // of 128 x 128 elements, that a thread block takes one after another
  int adjacent;     // whether those of a walk down columns are neighbours, or blocks take turns

  static constexpr ConfigField<CopyEncodeConfig> kFields[] = {
      {"strip_tiles", &CopyEncodeConfig::strip_tiles}, {"adjacent", &CopyEncodeConfig::adjacent}};
};

// Every launch shape, for the plain runtime rule of bf16 and fp16 (the others have one). The
// first is the default.
inline constexpr CopyEncodeConfig kCopyEncodeConfigs[] = {{12, 1}, {8, 1}, {4, 1}, {12, 0},
                                                          {8, 0},  {4, 0}, {24, 0}};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_COPY_ENCODE_CONFIG_H_
