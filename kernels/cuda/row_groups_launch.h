// Groups of rows in one matrix: where each lies, as kernels look it up. Groups come one after
// another in the matrix, and so do their copies in each buffer: codes, scales, maxima.
#ifndef NIBBLE_KERNELS_CUDA_ROW_GROUPS_LAUNCH_H_
#define NIBBLE_KERNELS_CUDA_ROW_GROUPS_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace nibble {

inline constexpr int kTileRows = 128;  // of the pieces that thread blocks take

// Running sums over the groups before one.
struct RowGroup {
  int64_t row = 0;
  int64_t tile = 0;        // of kTileRows rows, each group's last may be cut short
  int64_t scale_tile = 0;  // of 64 rows: columns of 128x4 tiles in a column-wise copy's scales
};

// What tiles a launch must offer where the numbers of rows are known on the device alone.
inline int64_t MostTiles(int64_t rows, int64_t groups) {
  return (rows + (kTileRows - 1) * groups) / kTileRows;
}

// starts[i], i = 0..groups, from the groups' numbers of rows; all in device memory.
cudaError_t LaunchPlanRowGroups(const int64_t* rows, int groups, RowGroup* starts,
                                cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_ROW_GROUPS_LAUNCH_H_
