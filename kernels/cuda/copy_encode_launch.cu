#include <iterator>

#include "kernels/cuda/copy_encode_fast.cuh"
#include "kernels/cuda/copy_encode_kernel.cuh"
#include "kernels/cuda/copy_encode_launch.h"
#include "kernels/cuda/copy_walk.cuh"
#include "kernels/cuda/early_start.cuh"

namespace nibble {
namespace {

constexpr int kConfigs = static_cast<int>(std::size(kCopyEncodeConfigs));
constexpr int kMethods = 5;

template <typename... Parameters, typename... Args>
cudaError_t LaunchWithShared(bool early, void (*kernel)(Parameters...), int64_t grid, int shared,
                             cudaStream_t stream, const Args&... args) {
  if (cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared)) {
    return error;
  }
  return Launch(early, kernel, grid, kEncodeThreads, shared, stream, args...);
}

cudaError_t LaunchAny(DType dtype, EncodeMethod method, const CopyEncodeArgs& args,
                      cudaStream_t stream) {
  const unsigned column_tiles =
      static_cast<unsigned>((args.cols + kTileColumns - 1) / kTileColumns);
  const int64_t grid = MostTiles(args.rows, args.group_count) * column_tiles;
  return DispatchInput(dtype, [&](auto type) {
    using T = decltype(type);
    return DispatchIndex<kMethods>(static_cast<int>(method), [&](auto index) {
      constexpr EncodeMethod kMethod = static_cast<EncodeMethod>(int{index});
      return LaunchWithShared(false, CopyEncodeKernel<T, kMethod>, grid, sizeof(EncodeTile<T>),
                              stream, args, column_tiles);
    });
  });
}

bool IsFast(const EncodedCopy& copy) {
  return copy.packed == nullptr || (copy.method == EncodeMethod::kRuntime &&
                                    !copy.encode.stochastic && copy.scheme != Scheme::kTile2d);
}

// Whether CopyEncodeFastKernel does it.
bool IsFast(DType dtype, const CopyEncodeArgs& args) {
  return dtype != DType::kF32 && IsFast(args.row) && IsFast(args.column) &&
         (args.row.packed == nullptr || args.row.rht == Rht::kNone) &&
         (args.column.packed == nullptr || args.column.rht != Rht::kNoSigns);
}

// Whether CopyWalkKernel does it, of what is fast.
bool IsWalk(const CopyEncodeArgs& args) {
  return args.column.packed != nullptr && args.groups == nullptr;
}

cudaError_t LaunchWalk(DType dtype, const CopyEncodeArgs& args, int config, cudaStream_t stream) {
  const unsigned strips = static_cast<unsigned>((args.cols + kTileColumns - 1) / kTileColumns);
  const int64_t tiles = (args.rows + kTileRows - 1) / kTileRows;
  const auto [walk, adjacent] = kCopyEncodeConfigs[config];
  const int walks = static_cast<int>((tiles + walk - 1) / walk);
  const int apart = adjacent != 0 ? 1 : walks;
  const auto launch = [&](auto kernel) {
    return LaunchWithShared(args.follows_amax, kernel, int64_t{strips} * walks, sizeof(WalkTile),
                            stream, args, strips, walk, apart);
  };
  const auto of_type = [&](auto type) {
    using T = decltype(type);
    if (args.row.packed != nullptr) {
      return launch(args.column.rht != Rht::kNone ? CopyWalkKernel<T, Rht::kSigns, true>
                                                  : CopyWalkKernel<T, Rht::kNone, true>);
    }
    return launch(args.column.rht != Rht::kNone ? CopyWalkKernel<T, Rht::kSigns, false>
                                                : CopyWalkKernel<T, Rht::kNone, false>);
  };
  return dtype == DType::kBf16 ? of_type(Bf16{}) : of_type(F16{});
}

cudaError_t LaunchFast(DType dtype, const CopyEncodeArgs& args, int config, cudaStream_t stream) {
  const int strip_tiles = kCopyEncodeConfigs[config].strip_tiles;
  const int64_t strip = int64_t{kTileColumns} * strip_tiles;
  const unsigned strips = static_cast<unsigned>((args.cols + strip - 1) / strip);
  const int64_t grid = MostTiles(args.rows, args.group_count) * strips;
  const bool rotated = args.column.packed != nullptr && args.column.rht != Rht::kNone;
  const auto launch = [&](auto type) {
    using T = decltype(type);
    return LaunchWithShared(
        args.follows_amax,
        rotated ? CopyEncodeFastKernel<T, Rht::kSigns> : CopyEncodeFastKernel<T, Rht::kNone>, grid,
        sizeof(FastTile), stream, args, strips, strip_tiles);
  };
  return dtype == DType::kBf16 ? launch(Bf16{}) : launch(F16{});
}

}  // namespace

cudaError_t LaunchCopyEncode(DType dtype, const CopyEncodeArgs& args, int config,
                             cudaStream_t stream) {
  if (config < 0 || config >= kConfigs || !IsQuantizable(dtype)) return cudaErrorInvalidValue;
  if (args.rows == 0 || args.group_count == 0) return cudaSuccess;
  if (IsFast(dtype, args) && IsWalk(args)) return LaunchWalk(dtype, args, config, stream);
  if (IsFast(dtype, args)) return LaunchFast(dtype, args, config, stream);
  const bool has_row = args.row.packed != nullptr, has_column = args.column.packed != nullptr;
  if (has_row != has_column || args.row.method == args.column.method) {
    return LaunchAny(dtype, has_row ? args.row.method : args.column.method, args, stream);
  }
  CopyEncodeArgs one = args;
  one.column.packed = nullptr;
  if (cudaError_t error = LaunchAny(dtype, args.row.method, one, stream)) return error;
  one.column.packed = args.column.packed;
  one.row.packed = nullptr;
  return LaunchAny(dtype, args.column.method, one, stream);
}

}  // namespace nibble
