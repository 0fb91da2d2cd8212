// Sums over what a layer reads, added up on the device: raw device pointers, a stream. No
// allocation, no synchronisation.
#ifndef NIBBLE_KERNELS_CUDA_INPUTS_INPUT_SUMS_LAUNCH_H_
#define NIBBLE_KERNELS_CUDA_INPUTS_INPUT_SUMS_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"
#include "kernels/cuda/accumulate_hessian_launch.h"
#include "kernels/cuda/observe_launch.h"
#include "kernels/input_sums.h"

namespace nibble {

// Of all inputs so far; begins as all bytes 0.
struct InputTotals {
  unsigned long long bins[kAmaxBins];  // by the upper 16 bits of block maxima
  unsigned long long zero_blocks;
  unsigned amax;               // bits
  unsigned bad_slice;          // slices - (the first whose sums overflow); 0 for none
  NonFiniteCounts non_finite;  // `first`: in the call that had the first of them
};

struct CountBlocksArgs {
  const float* block_amax = nullptr;  // finite
  int64_t blocks = 0;
  const NonFiniteCounts* non_finite = nullptr;  // of this call
  InputTotals* totals = nullptr;
};
cudaError_t LaunchCountBlocks(const CountBlocksArgs& args, cudaStream_t stream);

// Tokens of a unit: what one call of AccumulateHessian sums in float32.
struct HessianUnitsArgs {
  const void* x = nullptr;  // tokens x channels, aligned to 16 bytes
  int64_t tokens = 0;
  int64_t channels = 0;        // a multiple of 16, up to kMaxHessianUnitChannels
  float* workspace = nullptr;  // HessianUnitsWorkspace floats
  int64_t* scratch = nullptr;
  int64_t* digits = nullptr;  // WindowSums of the entries i <= j of each slice, by i, then j
  uint8_t* top = nullptr;
  InputTotals* totals = nullptr;
};

inline constexpr int64_t kMaxHessianUnitChannels = int64_t{1} << 16;

constexpr int64_t HessianUnitsWorkspace(int64_t tokens, int64_t channels) {
  return ((tokens + kInputUnitTokens - 1) / kInputUnitTokens) * 2 * (channels / kBlockSize) *
         kHessianEntries;
}

// Adds each unit's sum, the bits that AccumulateHessian gives for it, to the WindowSums. `config`
// indexes kAccumulateHessianConfigs.
cudaError_t LaunchHessianUnits(DType dtype, const HessianUnitsArgs& args, int config,
                               cudaStream_t stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_INPUTS_INPUT_SUMS_LAUNCH_H_
