// Host side of ScaleSweepHessian: raw device pointers, a config, a stream. No allocation, no
// synchronisation; may be captured in a graph.
#ifndef NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_LAUNCH_H_
#define NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"
#include "kernels/cuda/scale_sweep_hessian_config.h"
#include "quant/numerics/hessian_sweep.h"

namespace nibble {

inline constexpr int kHessianMoveBits = 10;  // of a mantissa of fp16

// The candidates of one tensor on the device; workspace of the launch.
struct ScaleSweepHessianTables {
  SweepTable table;
  float reciprocal[kE4m3Codes + 1];  // 1 / decode_scale
  float block_amax[kE4m3Codes + 1];
  // The filter's, see scale_sweep_hessian_filter.cuh.
  float filter_reciprocal[kE4m3Codes + 1];  // from code 8 on
  float move[1 << kHessianMoveBits];        // by mantissa of a weight
  int filter_exponent;                      // of the decode scale of code kHessianPivot
  int filtered;                             // whether the filter may be used
  int unresolved;                           // whether it left blocks to the definition
};

// One slice on the device; workspace of the launch.
struct alignas(16) HessianSlice {
  float column[kBlockSize][kBlockSize];  // [i][j] = L[j][i]
  float element_bound[kBlockSize];
  float eigenvalue_bound;
  // The filter's: L / 2^exponent, below 1, as two terms of fp16 in the lanes of B operands.
  int exponent;
  float slack;  // what rounding adds to a loss, by |d|^2 ...
  float floor;  // ... and at least
  uint32_t fragment[8][32];
};

struct ScaleSweepHessianArgs {
  const void* x = nullptr;  // aligned to 16 bytes
  int64_t rows = 0;
  int64_t slices = 0;                      // blocks of a row
  const HessianFactor* factors = nullptr;  // one a slice
  const float* global_amax = nullptr;      // g
  float bound = kE4m3Max;
  bool exhaustive = false;
  ScaleSweepHessianTables* tables = nullptr;  // workspace
  HessianSlice* prepared = nullptr;           // workspace, one a slice
  uint8_t* code = nullptr;                    // one a block, row-major, as are the next two
  float* best_amax = nullptr;
  float* loss = nullptr;
  SweepCounts* counts = nullptr;  // added to; may be null
};

// `config` indexes kScaleSweepHessianConfigs. cudaErrorInvalidValue for an unknown type or config.
cudaError_t LaunchScaleSweepHessian(DType dtype, const ScaleSweepHessianArgs& args, int config,
                                    cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SCALE_SWEEP_HESSIAN_LAUNCH_H_
