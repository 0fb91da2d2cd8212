#include <iterator>

#include "kernels/cuda/copy_encode_kernel.cuh"
#include "kernels/cuda/copy_encode_launch.h"

namespace nibble {
namespace {

constexpr int kConfigs = static_cast<int>(std::size(kCopyEncodeConfigs));
constexpr int kMethods = 5;

cudaError_t Launch(DType dtype, EncodeMethod method, const CopyEncodeArgs& args, int config,
                   cudaStream_t stream) {
  const unsigned column_tiles =
      static_cast<unsigned>((args.cols + kTileColumns - 1) / kTileColumns);
  const int64_t grid = MostTiles(args.rows, args.group_count) * column_tiles;
  return DispatchInput(dtype, [&](auto type) {
    using T = decltype(type);
    DispatchIndex<kMethods>(static_cast<int>(method), [&](auto method_index) {
      DispatchIndex<kConfigs>(config, [&](auto config_index) {
        constexpr int kShared = sizeof(EncodeTile<T>);
        const auto kernel = CopyEncodeKernel<T, static_cast<EncodeMethod>(int{method_index}),
                                             kCopyEncodeConfigs[config_index].thread_blocks>;
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
        kernel<<<static_cast<unsigned>(grid), kEncodeThreads, kShared, stream>>>(args,
                                                                                 column_tiles);
      });
    });
  });
}

}  // namespace

cudaError_t LaunchCopyEncode(DType dtype, const CopyEncodeArgs& args, int config,
                             cudaStream_t stream) {
  if (config < 0 || config >= kConfigs || !IsQuantizable(dtype)) return cudaErrorInvalidValue;
  if (args.rows == 0 || args.group_count == 0) return cudaSuccess;
  const bool has_row = args.row.packed != nullptr, has_column = args.column.packed != nullptr;
  if (has_row != has_column || args.row.method == args.column.method) {
    return Launch(dtype, has_row ? args.row.method : args.column.method, args, config, stream);
  }
  CopyEncodeArgs one = args;
  one.column.packed = nullptr;
  if (cudaError_t error = Launch(dtype, args.row.method, one, config, stream)) return error;
  one.column.packed = args.column.packed;
  one.row.packed = nullptr;
  return Launch(dtype, args.column.method, one, config, stream);
}

}  // namespace nibble
