#include <algorithm>
#include <iterator>

#include "kernels/cuda/copy_rows_kernel.cuh"
#include "kernels/cuda/copy_rows_launch.h"

namespace nibble {
namespace {

constexpr int kConfigs = static_cast<int>(std::size(kCopyRowsConfigs));

int64_t ThreadBlocks(int64_t cols, int warps) {
  const int64_t columns = int64_t{kRowsColumns} * warps;
  return (cols + columns - 1) / columns;
}

// Warps of a thread block with columns: those of the config, or what rows of this length need.
int WarpsFor(int64_t cols, int config) {
  const int warps = kCopyRowsConfigs[config].warps;
  return ThreadBlocks(cols, warps) > kRowsCluster ? kRowsWarps : warps;
}

template <typename T, Rht kRht, int kWarps>
cudaError_t LaunchRows(const CopyAmaxArgs& maxima, const EncodedCopy& row, cudaStream_t stream) {
  const auto kernel = CopyRowsKernel<T, kRht, kWarps>;
  const int shared = RowsShared::Bytes(kWarps);
  if (cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared)) {
    return error;
  }
  const unsigned cluster = static_cast<unsigned>(ThreadBlocks(maxima.cols, kWarps));
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {cluster, 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t launch = {};
  launch.gridDim = cluster;
  launch.blockDim = (kWarps + 1) * 32;
  launch.dynamicSmemBytes = shared;
  launch.stream = stream;
  launch.attrs = attributes;
  launch.numAttrs = 1;
  int64_t walks = MostTiles(maxima.rows, maxima.group_count);
  if (maxima.groups == nullptr) {
    int most = 0;
    if (cudaError_t error = cudaOccupancyMaxActiveClusters(&most, kernel, &launch)) return error;
    if (most == 0) return cudaErrorInvalidConfiguration;
    walks = std::min<int64_t>((maxima.rows + kBlockSize - 1) / kBlockSize, most);
  }
  launch.gridDim = static_cast<unsigned>(cluster * walks);
  launch.numAttrs = 2;
  return cudaLaunchKernelEx(&launch, kernel, maxima, row, cluster, static_cast<unsigned>(walks));
}

cudaError_t ClearMaxima(const CopyAmaxArgs& maxima, cudaStream_t stream) {
  CopyAmaxArgs none = maxima;
  none.row = nullptr;
  none.per_row = false;
  return LaunchClearMaxima(none, stream);
}

}  // namespace

bool CopyRowsFits(DType dtype, const CopyAmaxArgs& maxima, const EncodedCopy& row) {
  if (dtype != DType::kBf16 && dtype != DType::kF16) return false;
  if (row.packed == nullptr || row.scheme != Scheme::kPerToken || row.rht != Rht::kNone ||
      row.method != EncodeMethod::kRuntime || row.encode.stochastic) {
    return false;
  }
  if (!maxima.per_row || maxima.row_rht != Rht::kNone || row.amax != maxima.row ||
      maxima.cols > kLongestRow) {
    return false;
  }
  int device = 0, clusters = 0, shared = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
             cudaSuccess &&
         clusters != 0 && shared >= RowsShared::Bytes(kRowsWarps);
}

cudaError_t LaunchCopyRows(DType dtype, const CopyAmaxArgs& maxima, const EncodedCopy& row,
                           int config, cudaStream_t stream) {
  if (config < 0 || config >= kConfigs) return cudaErrorInvalidValue;
  if (!CopyRowsFits(dtype, maxima, row)) {
    if (cudaError_t error = LaunchCopyAmax(dtype, maxima, 0, stream)) return error;
    CopyEncodeArgs args;
    args.x = maxima.x;
    args.rows = maxima.rows;
    args.cols = maxima.cols;
    args.groups = maxima.groups;
    args.group_count = maxima.group_count;
    args.follows_amax = true;
    args.row = row;
    return LaunchCopyEncode(dtype, args, 0, stream);
  }
  if (cudaError_t error = ClearMaxima(maxima, stream)) return error;
  if (maxima.rows == 0 || maxima.cols == 0 || maxima.group_count == 0) return cudaSuccess;
  const int warps = WarpsFor(maxima.cols, config);
  cudaError_t error = cudaSuccess;
  const cudaError_t dispatched = DispatchInput(dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (!std::is_same_v<T, F32>) {
      const cudaError_t inner =
          DispatchIndex<3>(static_cast<int>(maxima.column_rht), [&](auto rht) {
            constexpr Rht kRht = static_cast<Rht>(int{rht});
            error = warps == 8 ? LaunchRows<T, kRht, 8>(maxima, row, stream)
                               : LaunchRows<T, kRht, kRowsWarps>(maxima, row, stream);
            return error;
          });
      return error != cudaSuccess ? error : inner;
    }
    return cudaErrorInvalidValue;
  });
  return error != cudaSuccess ? error : dispatched;
}

}  // namespace nibble
