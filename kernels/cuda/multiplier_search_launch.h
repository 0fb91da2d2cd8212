// Host side of MultiplierSearch: raw device pointers, a config, a stream. No allocation, no
// synchronisation; may be captured in a graph.
#ifndef NIBBLE_KERNELS_CUDA_MULTIPLIER_SEARCH_LAUNCH_H_
#define NIBBLE_KERNELS_CUDA_MULTIPLIER_SEARCH_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"
#include "kernels/cuda/multiplier_search_config.h"
#include "quant/numerics/scale_sweep.h"

namespace nibble {

// The candidates of one tensor on the device; workspace of the launch, followed in memory by one
// float for each multiplier.
struct MultiplierSearchTables {
  SweepTable table;
  float reciprocal[kE4m3Codes + 1];  // 1 / decode_scale
  float global_decode_scale;         // of the checkpoint rule
};

inline int64_t MultiplierSearchWorkspaceBytes(const MultiplierGrid& grid) {
  return static_cast<int64_t>(sizeof(MultiplierSearchTables)) +
         int64_t{MultiplierCount(grid)} * static_cast<int64_t>(sizeof(float));
}

struct MultiplierSearchArgs {
  const void* x = nullptr;  // aligned to 16 bytes
  int64_t blocks = 0;
  const float* global_amax = nullptr;  // g
  float bound = kE4m3Max;
  MultiplierGrid grid = {};
  void* workspace = nullptr;  // MultiplierSearchWorkspaceBytes, aligned to 4 bytes
  uint8_t* code = nullptr;    // one a block, as are the next two
  float* best_amax = nullptr;
  float* loss = nullptr;
  SweepCounts* counts = nullptr;  // its evaluations are added to; may be null
};

// `config` indexes kMultiplierSearchConfigs. cudaErrorInvalidValue for an unknown type or config.
cudaError_t LaunchMultiplierSearch(DType dtype, const MultiplierSearchArgs& args, int config,
                                   cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_MULTIPLIER_SEARCH_LAUNCH_H_
