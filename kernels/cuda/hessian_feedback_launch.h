// Host side of HessianFeedback: raw device pointers, a config, a stream. No allocation, no
// synchronisation; may be captured in a graph.
#ifndef NIBBLE_KERNELS_CUDA_HESSIAN_FEEDBACK_LAUNCH_H_
#define NIBBLE_KERNELS_CUDA_HESSIAN_FEEDBACK_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"
#include "kernels/cuda/hessian_feedback_config.h"
#include "quant/numerics/hessian_feedback.h"

namespace nibble {

// code, loss and packed hold what the sweep found, with codes rounded to nearest; blocks that
// feedback betters are replaced.
struct HessianFeedbackArgs {
  const void* x = nullptr;  // aligned to 16 bytes
  int64_t rows = 0;
  int64_t slices = 0;                         // columns / 16
  const HessianFactor* factors = nullptr;     // one a slice
  const HessianFeedback* feedback = nullptr;  // one a slice
  const SweepTable* table = nullptr;
  uint8_t* code = nullptr;  // one a block, as is the loss
  float* loss = nullptr;
  uint8_t* packed = nullptr;  // 8 bytes a block, aligned to 8
};

// `config` indexes kHessianFeedbackConfigs. cudaErrorInvalidValue for an unknown type or config.
cudaError_t LaunchHessianFeedback(DType dtype, const HessianFeedbackArgs& args, int config,
                                  cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_HESSIAN_FEEDBACK_LAUNCH_H_
