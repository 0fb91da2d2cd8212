#include <algorithm>
#include <iterator>

#include "kernels/cuda/accumulate_hessian_kernel.cuh"
#include "kernels/cuda/inputs/input_sums_launch.h"
#include "quant/numerics/window_sum.h"

namespace nibble {
namespace {

// Bins that a thread block counts by itself: block maxima from 2^-23 to 2^9, all that inputs of
// layers mostly have.
constexpr int kFirstOwnBin = (127 - 23) * 128, kOwnBins = 32 * 128;
constexpr int kCountThreads = 512, kMostCounting = 264;

__global__ void __launch_bounds__(kCountThreads) CountBlocksKernel(CountBlocksArgs args) {
  __shared__ unsigned own[kOwnBins];
  for (int i = threadIdx.x; i < kOwnBins; i += kCountThreads) own[i] = 0;
  __syncthreads();
  unsigned largest = 0;
  unsigned long long zeros = 0;
  for (int64_t i = int64_t{blockIdx.x} * kCountThreads + threadIdx.x; i < args.blocks;
       i += int64_t{gridDim.x} * kCountThreads) {
    const unsigned bits = FloatBits(args.block_amax[i]);
    largest = max(largest, bits);
    const int bin = static_cast<int>(bits >> 16), own_bin = bin - kFirstOwnBin;
    if (bits == 0) {
      ++zeros;
    } else if (own_bin >= 0 && own_bin < kOwnBins) {
      atomicAdd(own + own_bin, 1u);
    } else {
      atomicAdd(args.totals->bins + bin, 1ull);
    }
  }
  if (zeros != 0) atomicAdd(&args.totals->zero_blocks, zeros);
  largest = __reduce_max_sync(kWholeWarp, largest);
  if (threadIdx.x % 32 == 0) atomicMax(&args.totals->amax, largest);
  __syncthreads();
  for (int i = threadIdx.x; i < kOwnBins; i += kCountThreads) {
    if (own[i] != 0) atomicAdd(args.totals->bins + kFirstOwnBin + i, 1ull * own[i]);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    NonFiniteCounts& all = args.totals->non_finite;
    const NonFiniteCounts call = *args.non_finite;
    if (all.nan + all.inf == 0) all.first = call.first;
    all.nan += call.nan;
    all.inf += call.inf;
  }
}

// A thread is an entry of a slice. It adds up units that have `unit_groups` groups each, `groups`
// in all, as HessianTotal does: lane 0 has the first group, lane 1 the second, the others nothing.
__global__ void __launch_bounds__(kHessianEntries)
    AddUnitsKernel(HessianUnitsArgs args, int unit_groups, int64_t groups) {
  const int e = threadIdx.x;
  const int64_t slices = gridDim.x, slice = blockIdx.x;
  const int i = HessianEntryRow(e), j = HessianEntryColumn(e);
  const int64_t entry = slice * kHessianEntries + i * kBlockSize - i * (i - 1) / 2 + (j - i);
  WindowSum sum;
  for (int d = 0; d < kWindowDigits; ++d) sum.digit[d] = args.digits[entry * kWindowDigits + d];
  sum.top = args.top[entry];
  const float* group = args.workspace + slice * kHessianEntries + e;
  const int64_t pitch = slices * kHessianEntries;
  bool bad = false;
  for (int64_t first = 0; first < groups; first += unit_groups) {
    const float low = AddRn(0.0f, group[first * pitch]);
    const bool two = unit_groups == 2 && first + 1 < groups;
    const float high = two ? AddRn(0.0f, group[(first + 1) * pitch]) : 0.0f;
    const float total = AddRn(0.0f, AddRn(low, high));
    if (IsFinite(total)) {
      WindowAdd(sum, total);
    } else {
      bad = true;
    }
  }
  for (int d = 0; d < kWindowDigits; ++d) args.digits[entry * kWindowDigits + d] = sum.digit[d];
  args.top[entry] = static_cast<uint8_t>(sum.top);
  if (bad) atomicMax(&args.totals->bad_slice, static_cast<unsigned>(slices - slice));
}

}  // namespace

cudaError_t LaunchCountBlocks(const CountBlocksArgs& args, cudaStream_t stream) {
  const int64_t needed = (args.blocks + kCountThreads - 1) / kCountThreads;
  const unsigned blocks = static_cast<unsigned>(std::clamp<int64_t>(needed, 1, kMostCounting));
  CountBlocksKernel<<<blocks, kCountThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t LaunchHessianUnits(DType dtype, const HessianUnitsArgs& all, int config,
                               cudaStream_t stream) {
  constexpr int kConfigs = static_cast<int>(std::size(kAccumulateHessianConfigs));
  if (config < 0 || config >= kConfigs || all.channels > kMaxHessianUnitChannels) {
    return cudaErrorInvalidValue;
  }
  const int64_t slices = all.channels / kBlockSize;
  // Units of the same size in one launch: groups of their chains do not reach over their ends.
  const auto launch = [&](int64_t first, int64_t tokens, int64_t unit_tokens) -> cudaError_t {
    if (tokens == 0) return cudaSuccess;
    const int chain = static_cast<int>(HessianChainTokens(unit_tokens, slices));
    const int64_t groups = (tokens + kHessianChains * chain - 1) / (kHessianChains * chain);
    HessianUnitsArgs args = all;
    args.x = static_cast<const char*>(all.x) + first * all.channels * DTypeBytes(dtype);
    const AccumulateHessianArgs sums = {.x = args.x,
                                        .tokens = tokens,
                                        .channels = all.channels,
                                        .workspace = args.workspace,
                                        .bad_slice = args.scratch};
    const int64_t units = groups * ((slices + kHessianSlices - 1) / kHessianSlices);
    return DispatchInput(dtype, [&](auto type) {
      const cudaError_t error = DispatchIndex<kConfigs>(config, [&](auto index) {
        constexpr int kWarps = kAccumulateHessianConfigs[index].warps;
        constexpr int kRingBytes = kAccumulateHessianConfigs[index].ring_bytes;
        HessianGroupKernel<decltype(type), kWarps, kRingBytes>
            <<<static_cast<unsigned>((units + kWarps - 1) / kWarps), kWarps * 32, 0, stream>>>(
                sums, chain);
      });
      if (error != cudaSuccess) return error;
      const int unit_groups = static_cast<int>(HessianGroups(unit_tokens, slices));
      AddUnitsKernel<<<static_cast<unsigned>(slices), kHessianEntries, 0, stream>>>(
          args, unit_groups, groups);
      return cudaGetLastError();
    });
  };
  const int64_t rest = all.tokens % kInputUnitTokens, whole = all.tokens - rest;
  const cudaError_t error = launch(0, whole, kInputUnitTokens);
  return error == cudaSuccess ? launch(whole, rest, rest) : error;
}

}  // namespace nibble
