#include <iterator>

#include "kernels/cuda/accumulate_hessian_kernel.cuh"
#include "kernels/cuda/accumulate_hessian_launch.h"
#include "kernels/cuda/accumulate_hessian_total.cuh"

namespace nibble {

cudaError_t LaunchAccumulateHessian(DType dtype, const AccumulateHessianArgs& args, int config,
                                    cudaStream_t stream) {
  constexpr int kConfigs = static_cast<int>(std::size(kAccumulateHessianConfigs));
  if (config < 0 || config >= kConfigs || !IsQuantizable(dtype)) return cudaErrorInvalidValue;
  if (args.tokens == 0) {
    return cudaMemsetAsync(args.bad_slice, 0xFF, sizeof(*args.bad_slice), stream);
  }
  const int64_t slices = args.channels / kBlockSize;
  const int64_t groups = HessianGroups(args.tokens, slices);
  const int64_t units = groups * ((slices + kHessianSlices - 1) / kHessianSlices);
  const int chain = static_cast<int>(HessianChainTokens(args.tokens, slices));
  return DispatchInput(dtype, [&](auto type) {
    const cudaError_t error = DispatchIndex<kConfigs>(config, [&](auto index) {
      constexpr int kWarps = kAccumulateHessianConfigs[index].warps;
      constexpr int kRingBytes = kAccumulateHessianConfigs[index].ring_bytes;
      HessianGroupKernel<decltype(type), kWarps, kRingBytes>
          <<<static_cast<unsigned>((units + kWarps - 1) / kWarps), kWarps * 32, 0, stream>>>(args,
                                                                                             chain);
    });
    if (error != cudaSuccess) return error;
    HessianTotalKernel<<<static_cast<unsigned>(slices), kHessianTotalThreads, 0, stream>>>(args,
                                                                                           groups);
    return cudaGetLastError();
  });
}

}  // namespace nibble
