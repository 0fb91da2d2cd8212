// Host side of ScaleSweep: raw device pointers, a config, a stream. No allocation, no
// synchronisation; may be captured in a graph.
#ifndef NIBBLE_KERNELS_CUDA_SCALE_SWEEP_LAUNCH_H_
#define NIBBLE_KERNELS_CUDA_SCALE_SWEEP_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"
#include "kernels/cuda/scale_sweep_config.h"
#include "quant/numerics/scale_sweep.h"

namespace nibble {

// Magnitudes that the table of bounds tells apart: five binades of bf16 numbers.
inline constexpr int kBoundCells = 640;

// The candidates of one tensor on the device; workspace of the launch, aligned to 16 bytes. The
// bounds are explained in scale_sweep_kernel.cuh.
struct ScaleSweepTables {
  uint4 bounds[8 * kBoundCells];  // by mantissa of the first unsaturated code, then cell
  int bottom_cell[8];
  unsigned long long fetched;  // chunks of work that warps have fetched
  unsigned finished;           // thread blocks that are through
  SweepTable table;
  float reciprocal[kE4m3Codes + 1];  // 1 / decode_scale
  float block_amax[kE4m3Codes + 1];
};

// The stored form of the winners, under the checkpoint rule with g as the tensor's amax.
struct ScaleSweepEncodeArgs {
  uint8_t* packed = nullptr;          // blocks x 8, aligned to 8 bytes
  uint8_t* swizzled_scale = nullptr;  // SwizzledBytes(rows, blocks_per_row); may be null
  int64_t blocks_per_row = 0;
  double* loss_sum = nullptr;    // as SumSweepLosses adds; may be null
  double* group_sums = nullptr;  // workspace if loss_sum is asked for: one a group of 32 blocks
};

struct ScaleSweepArgs {
  const void* x = nullptr;  // aligned to 16 bytes
  int64_t blocks = 0;
  const float* global_amax = nullptr;  // g
  float bound = kE4m3Max;
  bool exhaustive = false;
  ScaleSweepTables* tables = nullptr;  // workspace
  // Results, one a block; any may be null. The code is the stored scale.
  uint8_t* code = nullptr;
  float* best_amax = nullptr;
  float* loss = nullptr;
  SweepCounts* counts = nullptr;     // added to; may be null
  ScaleSweepEncodeArgs encode = {};  // in the same pass; not if encode.packed is null
};

// `config` indexes kScaleSweepConfigs. cudaErrorInvalidValue for an unknown type or config.
cudaError_t LaunchScaleSweep(DType dtype, const ScaleSweepArgs& args, int config,
                             cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SCALE_SWEEP_LAUNCH_H_
