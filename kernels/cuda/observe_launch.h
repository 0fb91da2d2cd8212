// Host side of Observe: raw device pointers, a config, a stream. No allocation, no synchronisation;
// may be captured in a graph.
#ifndef NIBBLE_KERNELS_CUDA_OBSERVE_LAUNCH_H_
#define NIBBLE_KERNELS_CUDA_OBSERVE_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"
#include "kernels/cuda/observe_config.h"
#include "quant/numerics/log2_bin.h"

namespace nibble {

struct NonFiniteCounts {
  uint64_t nan;
  uint64_t inf;
  int64_t first;  // index of the first of either, row-major; -1 where there is none
};

// Every output may be null; the launch writes each whole, whatever it held. Maxima are over finite
// elements, 0 where there is none.
struct ObserveArgs {
  const void* x = nullptr;  // rows x cols, aligned to 16 bytes
  int64_t rows = 0;
  int64_t cols = 0;  // a multiple of 16
  float* amax = nullptr;
  float* row_amax = nullptr;
  float* column_amax = nullptr;
  float* block_amax = nullptr;    // one a block of 16, row-major
  uint64_t* histogram = nullptr;  // of the block maxima, kLog2Bins
  NonFiniteCounts* non_finite = nullptr;
};

// One read of x. `config` indexes kObserveConfigs. cudaErrorInvalidValue for an unknown type or
// config.
cudaError_t LaunchObserve(DType dtype, const ObserveArgs& args, int config, cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_OBSERVE_LAUNCH_H_
