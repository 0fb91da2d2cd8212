#include <iterator>

#include "kernels/cuda/scale_sweep_kernel.cuh"
#include "kernels/cuda/scale_sweep_launch.h"

namespace nibble {

cudaError_t LaunchScaleSweep(DType dtype, const ScaleSweepArgs& args, int config,
                             cudaStream_t stream) {
  constexpr int kConfigs = static_cast<int>(std::size(kScaleSweepConfigs));
  if (config < 0 || config >= kConfigs) return cudaErrorInvalidValue;
  if (args.blocks == 0) return cudaSuccess;
  return DispatchInput(dtype, [&](auto type) {
    MakeScaleSweepTables<<<1, 128, 0, stream>>>(args.global_amax, args.bound, args.tables);
    DispatchIndex<kConfigs>(config, [&](auto index) {
      constexpr int kWarps = kScaleSweepConfigs[index].warps;
      constexpr int kBlocksPerThread = kScaleSweepConfigs[index].blocks_per_thread;
      constexpr int64_t kPerThreadBlock = int64_t{kWarps} * 32 * kBlocksPerThread;
      const int64_t grid = (args.blocks + kPerThreadBlock - 1) / kPerThreadBlock;
      ScaleSweepKernel<decltype(type), kWarps, kBlocksPerThread>
          <<<static_cast<unsigned>(grid), kWarps * 32, 0, stream>>>(args, args.tables);
    });
  });
}

}  // namespace nibble
