#include <array>
#include <utility>

#include "kernels/cuda/scale_sweep_kernel.cuh"
#include "kernels/cuda/scale_sweep_launch.h"

namespace nibble {
namespace {

using Launcher = void (*)(const ScaleSweepArgs& args, cudaStream_t stream);

template <typename T, int kWarps, int kBlocksPerThread>
void Launch(const ScaleSweepArgs& args, cudaStream_t stream) {
  constexpr int64_t kPerThreadBlock = int64_t{kWarps} * 32 * kBlocksPerThread;
  const int64_t grid = (args.blocks + kPerThreadBlock - 1) / kPerThreadBlock;
  ScaleSweepKernel<T, kWarps, kBlocksPerThread>
      <<<static_cast<unsigned>(grid), kWarps * 32, 0, stream>>>(args, args.tables);
}

template <typename T, size_t... kIndex>
constexpr auto MakeLaunchers(std::index_sequence<kIndex...>) {
  return std::array<Launcher, sizeof...(kIndex)>{
      Launch<T, kScaleSweepConfigs[kIndex].warps, kScaleSweepConfigs[kIndex].blocks_per_thread>...};
}

template <typename T>
constexpr auto kLaunchers =
    MakeLaunchers<T>(std::make_index_sequence<std::size(kScaleSweepConfigs)>());

}  // namespace

cudaError_t LaunchScaleSweep(DType dtype, const ScaleSweepArgs& args, int config,
                             cudaStream_t stream) {
  if (config < 0 || config >= static_cast<int>(std::size(kScaleSweepConfigs))) {
    return cudaErrorInvalidValue;
  }
  Launcher launcher = nullptr;
  switch (dtype) {
    case DType::kBf16:
      launcher = kLaunchers<Bf16>[config];
      break;
    case DType::kF16:
      launcher = kLaunchers<F16>[config];
      break;
    case DType::kF32:
      launcher = kLaunchers<F32>[config];
      break;
    default:
      return cudaErrorInvalidValue;
  }
  if (args.blocks == 0) return cudaSuccess;
  MakeScaleSweepTables<<<1, 128, 0, stream>>>(args.global_amax, args.bound, args.tables);
  launcher(args, stream);
  return cudaGetLastError();
}

}  // namespace nibble
