#include <algorithm>
#include <iterator>

#include "kernels/cuda/amax_kernel.cuh"
#include "kernels/cuda/amax_launch.h"
#include "kernels/cuda/device_query.h"

namespace nibble {

cudaError_t LaunchAmax(DType dtype, const void* x, int64_t blocks, float* amax, int config,
                       cudaStream_t stream) {
  constexpr int kConfigs = static_cast<int>(std::size(kAmaxConfigs));
  if (config < 0 || config >= kConfigs || !IsQuantizable(dtype)) return cudaErrorInvalidValue;
  if (cudaError_t error = cudaMemsetAsync(amax, 0, sizeof(*amax), stream)) return error;
  if (blocks == 0) return cudaSuccess;
  int sms = 0;
  if (cudaError_t error = QueryMultiprocessors(&sms)) return error;
  return DispatchInput(dtype, [&](auto type) {
    return DispatchIndex<kConfigs>(config, [&](auto index) {
      constexpr AmaxConfig kConfig = kAmaxConfigs[index];
      const int64_t vectors = blocks * (dtype == DType::kF32 ? 4 : 2);
      constexpr int kTile = kConfig.warps * 32 * kConfig.loads;
      const int64_t grid =
          std::min<int64_t>((vectors + kTile - 1) / kTile, int64_t{sms} * kConfig.thread_blocks);
      AmaxKernel<decltype(type), kConfig.warps, kConfig.loads, kConfig.thread_blocks>
          <<<static_cast<unsigned>(grid), kConfig.warps * 32, 0, stream>>>(
              static_cast<const uint4*>(x), vectors, amax);
    });
  });
}

}  // namespace nibble
