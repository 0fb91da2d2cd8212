#include "kernels/cuda/row_groups_launch.h"
#include "kernels/cuda/warp.cuh"
#include "quant/numerics/scale_rules.h"

namespace nibble {
namespace {

constexpr int kWarp = 32;

// One warp; a thread takes a run of groups, so that one scan is all.
__global__ void __launch_bounds__(kWarp)
    PlanRowGroups(const int64_t* rows, int groups, RowGroup* starts) {
  const int each = (groups + kWarp - 1) / kWarp;
  const int begin = min(groups, static_cast<int>(threadIdx.x) * each);
  const int end = min(groups, begin + each);
  const auto advance = [&](RowGroup& sum, int64_t count) {
    sum.row += count;
    sum.tile += (count + kTileRows - 1) / kTileRows;
    sum.scale_tile += (count / kBlockSize + 3) / 4;
  };
  RowGroup sum;
  for (int i = begin; i < end; ++i) advance(sum, rows[i]);
  const RowGroup own = sum;
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int64_t row = __shfl_up_sync(kWholeWarp, sum.row, distance);
    const int64_t tile = __shfl_up_sync(kWholeWarp, sum.tile, distance);
    const int64_t scale_tile = __shfl_up_sync(kWholeWarp, sum.scale_tile, distance);
    if (static_cast<int>(threadIdx.x) >= distance) {
      sum.row += row;
      sum.tile += tile;
      sum.scale_tile += scale_tile;
    }
  }
  if (threadIdx.x == kWarp - 1) starts[groups] = sum;
  sum.row -= own.row;
  sum.tile -= own.tile;
  sum.scale_tile -= own.scale_tile;
  for (int i = begin; i < end; ++i) {
    starts[i] = sum;
    advance(sum, rows[i]);
  }
}

}  // namespace

cudaError_t LaunchPlanRowGroups(const int64_t* rows, int groups, RowGroup* starts,
                                cudaStream_t stream) {
  if (groups < 0) return cudaErrorInvalidValue;
  PlanRowGroups<<<1, kWarp, 0, stream>>>(rows, groups, starts);
  return cudaGetLastError();
}

}  // namespace nibble
