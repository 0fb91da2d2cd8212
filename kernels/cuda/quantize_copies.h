// Quantized copies of a matrix in host memory, made on the device: what the CUDA backend does for
// column-wise and rotated copies, for both copies at once and for groups of rows.
#ifndef NIBBLE_KERNELS_CUDA_QUANTIZE_COPIES_H_
#define NIBBLE_KERNELS_CUDA_QUANTIZE_COPIES_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "base/tensor_view.h"
#include "quant/packed_tensor.h"
#include "quant/quantize_params.h"

namespace nibble {

// The copies of one kind: one for each group of rows.
struct CopyRequest {
  const QuantizeParams* params = nullptr;  // null where no such copy is wanted
  std::span<const MutablePackedView> out = {};
};

// Launch shapes: indices of kCopyAmaxConfigs, kCopyRowsConfigs and kCopyEncodeConfigs.
struct CopyConfigs {
  int amax = 0;
  int rows = 0;
  int encode = 0;
};

// Requests are as Backend checks them. False, and nothing of use in `out`, where x or a rotated
// copy of it has elements that are not finite: the CPU's backend says which. The device of `stream`
// is current.
absl::StatusOr<bool> QuantizeCopies(const MatrixView& x, std::span<const int64_t> group_rows,
                                    const CopyRequest& rowwise, const CopyRequest& columnwise,
                                    const CopyConfigs& configs, cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_QUANTIZE_COPIES_H_
