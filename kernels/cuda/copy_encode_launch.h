// Host side of CopyEncode: the row-wise and the column-wise copy of a matrix, or of groups of its
// rows, in one read. Raw device pointers, a config, a stream. No allocation, no synchronisation;
// may be captured in a graph.
#ifndef NIBBLE_KERNELS_CUDA_COPY_ENCODE_LAUNCH_H_
#define NIBBLE_KERNELS_CUDA_COPY_ENCODE_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"
#include "kernels/cuda/copy_encode_config.h"
#include "kernels/cuda/row_groups_launch.h"
#include "quant/numerics/block_encode.h"
#include "quant/numerics/hadamard.h"

namespace nibble {

// One quantized copy. With groups the memory holds the groups' copies one after another; swizzled
// scales are padded for each.
struct EncodedCopy {
  uint8_t* packed = nullptr;  // null where this copy is not made
  uint8_t* scale = nullptr;
  const float* amax = nullptr;  // one a group, or one for each of a copy's rows under per_token
  Scheme scheme = Scheme::kPerTensor;
  EncodeMethod method = EncodeMethod::kRuntime;
  EncodeParams encode = {};
  Rht rht = Rht::kNone;
  bool swizzle = false;
};

struct CopyEncodeArgs {
  const void* x = nullptr;           // aligned to 16 bytes
  int64_t rows = 0;                  // with groups: at least as many as they have
  int64_t cols = 0;                  // a multiple of 16
  const RowGroup* groups = nullptr;  // group_count + 1 of them; null where the matrix is one
  int group_count = 1;
  // The stream's last work is LaunchCopyAmax on this x and these groups: encoding may begin before
  // that has ended.
  bool follows_amax = false;
  EncodedCopy row;     // tile_2d: the groups' rows are multiples of 16
  EncodedCopy column;  // the groups' rows are multiples of 16
};

// `config` indexes kCopyEncodeConfigs. cudaErrorInvalidValue for an unknown type or config.
cudaError_t LaunchCopyEncode(DType dtype, const CopyEncodeArgs& args, int config,
                             cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_COPY_ENCODE_LAUNCH_H_
