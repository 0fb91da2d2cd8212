// How a thread block finds the tile that it works on.
#ifndef NIBBLE_KERNELS_CUDA_ROW_GROUPS_CUH_
#define NIBBLE_KERNELS_CUDA_ROW_GROUPS_CUH_

#include "kernels/cuda/row_groups_launch.h"

namespace nibble {

// kTileRows rows of one group, or what is left of it.
struct RowTile {
  int64_t group;       // its index
  int64_t group_row;   // its first row in the matrix
  int64_t group_rows;  // 0 where there is no such tile
  int64_t row;         // of the tile, from the group's first
  int64_t first_tile;  // see RowGroup
  int64_t first_scale_tile;
};

// Tile `tile` of all groups, for a whole thread block. `groups` is null where the matrix is one.
__device__ __forceinline__ RowTile FindRowTile(const RowGroup* groups, int64_t count, int64_t rows,
                                               int64_t tile) {
  if (groups == nullptr) return {0, 0, rows, tile * kTileRows, 0, 0};
  // The group is the last that does not start behind the tile: empty ones before it start with it.
  int64_t last = -1;
  for (int64_t base = 0; base < count; base += blockDim.x) {
    const int64_t i = base + threadIdx.x;
    last += __syncthreads_count(i < count && groups[i].tile <= tile);
  }
  const RowGroup start = groups[last], end = groups[last + 1];
  const int64_t group_rows = tile < end.tile ? end.row - start.row : 0;
  return {last,       start.row,       group_rows, (tile - start.tile) * kTileRows,
          start.tile, start.scale_tile};
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_ROW_GROUPS_CUH_
