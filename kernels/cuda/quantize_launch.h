// Host side of Quantize, row-wise: raw device pointers, a config, a stream. No allocation, no
// synchronisation; may be captured in a graph.
#ifndef NIBBLE_KERNELS_CUDA_QUANTIZE_LAUNCH_H_
#define NIBBLE_KERNELS_CUDA_QUANTIZE_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"
#include "kernels/cuda/quantize_config.h"
#include "quant/numerics/block_encode.h"

namespace nibble {

struct QuantizeArgs {
  DType dtype = DType::kBf16;
  const void* x = nullptr;  // rows x cols, aligned to 16 bytes
  int64_t rows = 0;         // a multiple of 16 under tile_2d
  int64_t cols = 0;         // a multiple of 16
  Scheme scheme = Scheme::kPerTensor;
  EncodeMethod method = EncodeMethod::kRuntime;
  EncodeParams encode = {};
  const float* amax = nullptr;  // one, or one a row under per_token
  // kCheckpoint, not under tile_2d: one a block, 1..126. Null: each block's own.
  const uint8_t* given_scale = nullptr;
  bool swizzle = false;
  uint8_t* packed = nullptr;  // rows x cols / 2, aligned to 8 bytes
  uint8_t* scale = nullptr;   // one a block; swizzled: SwizzledBytes(rows, cols / 16), padding too
  // Set to 1 where an element of x is NaN or infinite, and else left alone; may be null. The bytes
  // are defined even so: a NaN element gets code 7, the largest magnitude that its block's scale
  // expresses, and is ignored where a maximum is taken; a sum of errors that it enters lets sf6
  // win. An infinite one is a magnitude like any other.
  uint32_t* non_finite = nullptr;
};

// `config` indexes kQuantizeConfigs. cudaErrorInvalidValue for an unknown type or config, and for
// arguments that exclude each other.
cudaError_t LaunchQuantize(const QuantizeArgs& args, int config, cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_QUANTIZE_LAUNCH_H_
