#include <algorithm>
#include <iterator>

#include "kernels/cuda/device_query.h"
#include "kernels/cuda/scale_sweep_kernel.cuh"
#include "kernels/cuda/scale_sweep_launch.h"

namespace nibble {
namespace {

constexpr int kConfigs = static_cast<int>(std::size(kScaleSweepConfigs));
constexpr int kLast = kConfigs - 1;           // fits into every device's shared memory
constexpr int kLeastSharedBytes = 99 * 1024;  // that of compute capabilities 8.9 and 12.0

}  // namespace

cudaError_t LaunchScaleSweep(DType dtype, const ScaleSweepArgs& args, int config,
                             cudaStream_t stream) {
  const ScaleSweepEncodeArgs& encode = args.encode;
  const bool swizzles = encode.packed != nullptr && encode.swizzled_scale != nullptr;
  if (config < 0 || config >= kConfigs || !IsQuantizable(dtype) ||
      (swizzles && (encode.blocks_per_row <= 0 || args.blocks % encode.blocks_per_row != 0)) ||
      (encode.loss_sum != nullptr && encode.group_sums == nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (args.blocks == 0) {
    if (encode.loss_sum == nullptr) return cudaSuccess;
    return cudaMemsetAsync(encode.loss_sum, 0, sizeof(double), stream);
  }
  if (swizzles) {
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
  return DispatchInput(dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kThreads = 128;
    MakeScaleSweepTables<std::is_same_v<T, Bf16>>
        <<<4 * 8 * kBoundCells / kThreads, kThreads, 0, stream>>>(args.global_amax, args.bound,
                                                                  args.tables);
    if (cudaError_t error = cudaGetLastError()) return error;
    const auto launch = [&](auto index, auto encode) {
      constexpr int kWarps = kScaleSweepConfigs[index].warps;
      constexpr int kBlocksPerThread = kScaleSweepConfigs[index].blocks_per_thread;
      constexpr int kShared = sizeof(ScaleSweepShared<kWarps, kBlocksPerThread>);
      static_assert(index != kLast || kShared <= kLeastSharedBytes);
      const auto kernel = ScaleSweepKernel<T, kWarps, kBlocksPerThread, encode>;
      if (cudaError_t error =
              cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared)) {
        return error;
      }
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
      return cudaLaunchKernelEx(&launch_config, kernel, args);
    };
    return DispatchIndex<kConfigs>(config, [&](auto index) {
      constexpr ScaleSweepConfig kConfig = kScaleSweepConfigs[index];
      const bool fits = sizeof(ScaleSweepShared<kConfig.warps, kConfig.blocks_per_thread>) <=
                        static_cast<size_t>(shared_bytes);
      const auto launch_what_fits = [&](auto encode) {
        return fits ? launch(index, encode) : launch(std::integral_constant<int, kLast>(), encode);
      };
      return encode.packed != nullptr ? launch_what_fits(std::true_type())
                                      : launch_what_fits(std::false_type());
    });
  });
}

}  // namespace nibble
