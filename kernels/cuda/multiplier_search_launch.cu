#include <iterator>

#include "kernels/cuda/multiplier_search_kernel.cuh"
#include "kernels/cuda/multiplier_search_launch.h"

namespace nibble {

cudaError_t LaunchMultiplierSearch(DType dtype, const MultiplierSearchArgs& args, int config,
                                   cudaStream_t stream) {
  constexpr int kConfigs = static_cast<int>(std::size(kMultiplierSearchConfigs));
  if (config < 0 || config >= kConfigs || !IsQuantizable(dtype)) return cudaErrorInvalidValue;
  if (args.blocks == 0) return cudaSuccess;
  const int count = MultiplierCount(args.grid);
  MakeMultiplierTables<<<1, kMultiplierTableThreads, 0, stream>>>(
      args.global_amax, args.bound, args.grid, count,
      static_cast<MultiplierSearchTables*>(args.workspace));
  return DispatchInput(dtype, [&](auto type) {
    return DispatchIndex<kConfigs>(config, [&](auto index) {
      constexpr int kWarps = kMultiplierSearchConfigs[index].warps;
      constexpr int kBlocksPerThread = kMultiplierSearchConfigs[index].blocks_per_thread;
      constexpr int64_t kPerThreadBlock = int64_t{kWarps} * 32 * kBlocksPerThread;
      const int64_t grid = (args.blocks + kPerThreadBlock - 1) / kPerThreadBlock;
      MultiplierSearchKernel<decltype(type), kWarps, kBlocksPerThread>
          <<<static_cast<unsigned>(grid), kWarps * 32, 0, stream>>>(args, count);
    });
  });
}

}  // namespace nibble
