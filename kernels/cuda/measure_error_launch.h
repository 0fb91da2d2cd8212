// Host side of MeasureError: raw device pointers, a config, a stream. No allocation, no
// synchronisation; may be captured in a graph.
#ifndef NIBBLE_KERNELS_CUDA_MEASURE_ERROR_LAUNCH_H_
#define NIBBLE_KERNELS_CUDA_MEASURE_ERROR_LAUNCH_H_

#include <cuda_runtime_api.h>

#include "base/dtype.h"
#include "kernels/cuda/measure_error_config.h"
#include "kernels/cuda/packed_args.h"
#include "quant/numerics/block_error.h"

namespace nibble {

struct MeasureErrorArgs {
  const void* x = nullptr;  // of packed's shape, aligned to 16 bytes
  PackedArgs packed;
  ErrorTotals* totals = nullptr;  // what was there is overwritten
  // Where there is work for more, threads measure more blocks each: every thread block adds up to a
  // hundred numbers at the same places.
  int64_t most_thread_blocks = 8192;
};

// `config` indexes kMeasureErrorConfigs. cudaErrorInvalidValue for an unknown type or config.
cudaError_t LaunchMeasureError(DType dtype, const MeasureErrorArgs& args, int config,
                               cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_MEASURE_ERROR_LAUNCH_H_
