#include <iterator>

#include "kernels/cuda/scale_sweep_hessian_kernel.cuh"
#include "kernels/cuda/scale_sweep_hessian_launch.h"

namespace nibble {

cudaError_t LaunchScaleSweepHessian(DType dtype, const ScaleSweepHessianArgs& args, int config,
                                    cudaStream_t stream) {
  constexpr int kConfigs = static_cast<int>(std::size(kScaleSweepHessianConfigs));
  if (config < 0 || config >= kConfigs) return cudaErrorInvalidValue;
  if (args.rows == 0 || args.slices == 0) return cudaSuccess;
  return DispatchInput(dtype, [&](auto type) {
    MakeScaleSweepHessianTables<<<1, 128, 0, stream>>>(args.global_amax, args.bound, args.tables);
    DispatchIndex<kConfigs>(config, [&](auto index) {
      constexpr int kWarps = kScaleSweepHessianConfigs[index].warps;
      constexpr int kSlices = kScaleSweepHessianConfigs[index].slices;
      constexpr int64_t kRows = int64_t{kWarps} / kSlices * 32;
      const int64_t groups = (args.slices + kSlices - 1) / kSlices;
      const int64_t grid = (args.rows + kRows - 1) / kRows * groups;
      ScaleSweepHessianKernel<decltype(type), kWarps, kSlices>
          <<<static_cast<unsigned>(grid), kWarps * 32, 0, stream>>>(args, static_cast<int>(groups));
    });
  });
}

}  // namespace nibble
