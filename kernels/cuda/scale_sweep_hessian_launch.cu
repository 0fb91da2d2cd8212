#include <algorithm>
#include <iterator>

#include "kernels/cuda/scale_sweep_hessian_filter.cuh"
#include "kernels/cuda/scale_sweep_hessian_kernel.cuh"
#include "kernels/cuda/scale_sweep_hessian_launch.h"

namespace nibble {
namespace {

template <typename T, int kWarps, int kTiles, int kResident>
cudaError_t LaunchFilter(const ScaleSweepHessianArgs& args, cudaStream_t stream) {
  constexpr int kRows = kTiles * 32;
  constexpr int kBytes = sizeof(HessianFilterMemory<kWarps, kRows>);
  const auto kernel = HessianFilterKernel<T, kWarps, kTiles, kResident>;
  if (cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes)) {
    return error;
  }
  const int64_t groups = (args.slices + kWarps - 1) / kWarps;
  const int64_t grid = (args.rows + kRows - 1) / kRows * groups;
  kernel<<<static_cast<unsigned>(grid), kWarps * 32, kBytes, stream>>>(args,
                                                                       static_cast<int>(groups));
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchScaleSweepHessian(DType dtype, const ScaleSweepHessianArgs& args, int config,
                                    cudaStream_t stream) {
  constexpr int kConfigs = static_cast<int>(std::size(kScaleSweepHessianConfigs));
  if (config < 0 || config >= kConfigs || !IsQuantizable(dtype)) return cudaErrorInvalidValue;
  if (args.rows == 0 || args.slices == 0) return cudaSuccess;
  return DispatchInput(dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kBits = std::is_same_v<T, Bf16> ? 8 : std::is_same_v<T, F16> ? 11 : 0;
    PrepareHessianSweep<<<static_cast<unsigned>(args.slices + 1), kHessianPrepareThreads, 0,
                          stream>>>(args, kBits);
    if (cudaError_t error = cudaGetLastError()) return error;
    if constexpr (kBits != 0) {
      if (!args.exhaustive) {
        const cudaError_t error = DispatchIndex<kConfigs>(config, [&](auto index) {
          constexpr ScaleSweepHessianConfig kConfig = kScaleSweepHessianConfigs[index];
          return LaunchFilter<T, kConfig.warps, kConfig.tiles, kConfig.resident>(args, stream);
        });
        if (error != cudaSuccess) return error;
      }
    }
    constexpr int kThreads = kHessianSearchWarps * 32;
    constexpr int64_t kMostThreadBlocks = 4096;
    const int64_t tiles = (args.rows + kThreads - 1) / kThreads * args.slices;
    HessianSearchKernel<T>
        <<<static_cast<unsigned>(std::min(tiles, kMostThreadBlocks)), kThreads, 0, stream>>>(args);
    return cudaGetLastError();
  });
}

}  // namespace nibble
