#include <algorithm>
#include <iterator>

#include "kernels/cuda/device_query.h"
#include "kernels/cuda/scale_sweep_kernel.cuh"
#include "kernels/cuda/scale_sweep_launch.h"

namespace nibble {
namespace {

constexpr int kConfigs = static_cast<int>(std::size(kScaleSweepConfigs));

}  // namespace

cudaError_t LaunchScaleSweep(DType dtype, const ScaleSweepArgs& args, int config,
                             cudaStream_t stream) {
  if (config < 0 || config >= kConfigs) return cudaErrorInvalidValue;
  const ScaleSweepEncodeArgs& encode = args.encode;
  if (args.blocks == 0) {
    if (encode.loss_sum == nullptr) return cudaSuccess;
    return cudaMemsetAsync(encode.loss_sum, 0, sizeof(double), stream);
  }
  if (encode.packed != nullptr && encode.swizzled_scale != nullptr) {
    const int64_t bytes = SwizzledBytes(args.blocks / encode.blocks_per_row, encode.blocks_per_row);
    if (bytes != args.blocks) {  // there is padding
      if (cudaError_t error = cudaMemsetAsync(encode.swizzled_scale, 0, bytes, stream)) {
        return error;
      }
    }
  }
  int major = 0, multiprocessors = 0, shared_bytes = 0;
  if (cudaError_t error = QueryDevice(cudaDevAttrComputeCapabilityMajor, &major)) return error;
  if (cudaError_t error = QueryMultiprocessors(&multiprocessors)) return error;
  if (cudaError_t error = QueryDevice(cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared_bytes)) {
    return error;
  }
  cudaError_t launch_error = cudaSuccess;
  const cudaError_t error = DispatchInput(dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kThreads = 128;
    MakeScaleSweepTables<std::is_same_v<T, Bf16>>
        <<<4 * 8 * kBoundCells / kThreads, kThreads, 0, stream>>>(args.global_amax, args.bound,
                                                                  args.tables);
    const auto launch = [&](auto index, auto encode) {
      constexpr int kWarps = kScaleSweepConfigs[index].warps;
      constexpr int kBlocksPerThread = kScaleSweepConfigs[index].blocks_per_thread;
      constexpr int kShared = sizeof(ScaleSweepShared<kWarps, kBlocksPerThread>);
      if (kShared > shared_bytes) return false;
      const auto kernel = ScaleSweepKernel<T, kWarps, kBlocksPerThread, encode>;
      launch_error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
      if (launch_error != cudaSuccess) return true;
      constexpr int64_t kPerThreadBlock = int64_t{kWarps} * 32;
      const int64_t grid =
          std::min<int64_t>((args.blocks + kPerThreadBlock - 1) / kPerThreadBlock, multiprocessors);
      // Starts beside the kernel that makes the tables and waits for it inside, where a device can.
      cudaLaunchAttribute overlap = {};
      overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      overlap.val.programmaticStreamSerializationAllowed = 1;
      cudaLaunchConfig_t launch_config = {};
      launch_config.gridDim = static_cast<unsigned>(grid);
      launch_config.blockDim = kWarps * 32;
      launch_config.dynamicSmemBytes = kShared;
      launch_config.stream = stream;
      launch_config.attrs = &overlap;
      launch_config.numAttrs = major >= 9 ? 1 : 0;
      cudaLaunchKernelEx(&launch_config, kernel, args);
      return true;
    };
    DispatchIndex<kConfigs>(config, [&](auto index) {
      constexpr std::integral_constant<int, kConfigs - 1> kFitsEverywhere;
      const auto launch_what_fits = [&](auto encode) {
        if (launch(index, encode) || launch(kFitsEverywhere, encode)) return;
        launch_error = cudaErrorInvalidConfiguration;
      };
      if (args.encode.packed != nullptr) {
        launch_what_fits(std::true_type());
      } else {
        launch_what_fits(std::false_type());
      }
    });
  });
  return launch_error != cudaSuccess ? launch_error : error;
}

}  // namespace nibble
