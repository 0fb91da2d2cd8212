#include <iterator>

#include "kernels/cuda/hessian_feedback_kernel.cuh"
#include "kernels/cuda/hessian_feedback_launch.h"

namespace nibble {

cudaError_t LaunchHessianFeedback(DType dtype, const HessianFeedbackArgs& args, int config,
                                  cudaStream_t stream) {
  constexpr int kConfigs = static_cast<int>(std::size(kHessianFeedbackConfigs));
  if (config < 0 || config >= kConfigs || !IsQuantizable(dtype)) return cudaErrorInvalidValue;
  if (args.rows == 0) return cudaSuccess;
  return DispatchInput(dtype, [&](auto type) {
    return DispatchIndex<kConfigs>(config, [&](auto index) {
      constexpr int kThreads = kHessianFeedbackConfigs[index].warps * 32;
      const int64_t grid = (args.rows + kThreads - 1) / kThreads * args.slices;
      HessianFeedbackKernel<decltype(type), kThreads / 32>
          <<<static_cast<unsigned>(grid), kThreads, 0, stream>>>(args);
    });
  });
}

}  // namespace nibble
