// LayerOps on a GPU: products by cuBLASLt, everything else by kernels of ours, one after another in
// one stream. The same bytes from run to run.
#ifndef NIBBLE_MODEL_CUDA_CUDA_OPS_H_
#define NIBBLE_MODEL_CUDA_CUDA_OPS_H_

#include <memory>

#include "absl/status/statusor.h"
#include "base/dtype.h"
#include "base/parallel_for.h"
#include "model/layer_ops.h"

namespace nibble {

// linear_input: what products read. Under bf16, bf16 weights are multiplied as they are; other
// weights, and inputs in float32, as the sum of two bf16 values, which keeps 16 bits of them; heads
// of up to 128 channels go by tensor cores (attention_launch.h). Under fp32 all is float32.
//
// Unavailable where the machine has no such device, the build no CUDA, or there is no cuBLASLt. The
// pool, which copies between host memory and what the device reads, outlives the result. Which
// definition is linked decides whether the build has CUDA.
absl::StatusOr<std::unique_ptr<LayerOps>> MakeCudaOps(int device, ThreadPool& pool,
                                                      DType linear_input);

}  // namespace nibble

#endif  // NIBBLE_MODEL_CUDA_CUDA_OPS_H_
