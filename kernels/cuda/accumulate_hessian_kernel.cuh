// Hessian accumulation on the device: a warp is a group of 8 chains of 4 neighbouring slices, a
// lane one chain of one slice with all of its 136 sums in registers, so that an element is
// unpacked once and a fused multiply-add needs nothing but registers. A token is 32 lanes times
// 16 elements; a ring in shared memory keeps several of them on their way, copied asynchronously.
// The warp then joins its 8 chains; accumulate_hessian_total.cuh joins the groups.
#ifndef NIBBLE_KERNELS_CUDA_ACCUMULATE_HESSIAN_KERNEL_CUH_
#define NIBBLE_KERNELS_CUDA_ACCUMULATE_HESSIAN_KERNEL_CUH_

#include <cstdint>

#include "kernels/cuda/accumulate_hessian_launch.h"
#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/warp.cuh"
#include "quant/numerics/hessian_sum.h"

namespace nibble {

inline constexpr int kHessianSlices = 32 / kHessianChains;  // of a warp

// Entries in the order of sums: row r and row 15 - r together are 17 long.
__host__ __device__ constexpr int HessianEntryRow(int e) {
  return e % 17 < 16 - e / 17 ? e / 17 : 15 - e / 17;
}
__host__ __device__ constexpr int HessianEntryColumn(int e) {
  return e % 17 < 16 - e / 17 ? e / 17 + e % 17 : e % 17 - 1;
}

// Where chunk c (16 bytes) of a token lies in its stage: both the copies, which take the chunks in
// order, and the reads, in which a lane takes its own kChunks, then touch every bank once.
template <int kChunks>
__device__ __forceinline__ int HessianChunkPlace(int c) {
  return c ^ ((c >> 3) & (kChunks - 1));
}

template <typename T, int kWarps, int kRingBytes>
__global__ void __launch_bounds__(kWarps * 32, 8 / kWarps)
    HessianGroupKernel(AccumulateHessianArgs args, int chain_tokens) {
  constexpr int kElementBytes = std::is_same_v<T, F32> ? 4 : 2;
  constexpr int kChunks = kBlockSize * kElementBytes / 16;  // of a lane
  constexpr int kTokenBytes = 32 * kChunks * 16;            // of all lanes
  constexpr int kStageTokens = 2;                           // awaited together
  constexpr int kStageBytes = kStageTokens * kTokenBytes;
  constexpr int kStages = kRingBytes / kStageBytes;
  constexpr int kJoinStride = 36;  // floats a row of 32 sums, without bank conflicts
  constexpr int kJoinEntries = kRingBytes / (4 * kJoinStride) / 8 * 8;
  static_assert(kStages >= 2 && kJoinEntries >= 8);
  alignas(128) __shared__ uint4 rings[kWarps][kRingBytes / 16];
  if (blockIdx.x == 0 && threadIdx.x == 0) *args.bad_slice = -1;

  const int lane = threadIdx.x % 32;
  uint4* ring = rings[threadIdx.x / 32];
  const int64_t slices = args.channels / kBlockSize;
  const int64_t quads = (slices + kHessianSlices - 1) / kHessianSlices;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t group = unit / quads;
  const int64_t first_slice = unit % quads * kHessianSlices;
  const int64_t first_token = group * kHessianChains * chain_tokens;
  if (first_token >= args.tokens) return;
  // Tokens of the group's chain `c`.
  const auto tokens_of = [&](int c) {
    const int64_t left = args.tokens - first_token - int64_t{c} * chain_tokens;
    return static_cast<int>(min(max(left, int64_t{0}), int64_t{chain_tokens}));
  };

  // What the lane copies: of each token, one chunk of kChunks chains that lie kStep apart.
  constexpr int kChunksOfChain = kHessianSlices * kChunks;
  constexpr int kStep = 32 / kChunksOfChain;
  const int64_t row_bytes = args.channels * kElementBytes;
  const int copied_slice = lane % kChunksOfChain / kChunks;
  const char* source = static_cast<const char*>(args.x) +
                       (first_token + int64_t{lane / kChunksOfChain} * chain_tokens) * row_bytes +
                       first_slice * kBlockSize * kElementBytes + lane % kChunksOfChain * 16;
  const int64_t step_bytes = kStep * chain_tokens * row_bytes;
  int copied_tokens[kChunks];
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
    copied_tokens[k] =
        first_slice + copied_slice < slices ? tokens_of(k * kStep + lane / kChunksOfChain) : 0;
  }
  const unsigned ring_address = SharedAddress(ring);
  const unsigned copy_to = ring_address + HessianChunkPlace<kChunks>(lane) * 16;
  const auto copy = [&](int token, unsigned stage) {
#pragma unroll
    for (int u = 0; u < kStageTokens; ++u) {
#pragma unroll
      for (int k = 0; k < kChunks; ++k) {
        if (token + u < copied_tokens[k]) {
          CopyAsync16(copy_to + stage + u * kTokenBytes + k * 512, source + k * step_bytes);
        }
      }
      source += row_bytes;
    }
    CommitCopies();
  };

  const int steps = tokens_of(0);
  const int own_tokens =
      first_slice + lane % kHessianSlices < slices ? tokens_of(lane / kHessianSlices) : 0;
  // Its chunks differ in the lowest bits of their places alone.
  unsigned own = ring_address + HessianChunkPlace<kChunks>(lane * kChunks) * 16;
  float sum[kHessianEntries];
#pragma unroll
  for (int e = 0; e < kHessianEntries; ++e) sum[e] = 0.0f;

#pragma unroll 1
  for (int i = 0; i < kStages - 1; ++i) copy(i * kStageTokens, i * kStageBytes);
  int stage = 0;
  unsigned free_stage = (kStages - 1) * kStageBytes;
#pragma unroll 1
  for (int token = 0; token < steps; token += kStageTokens) {
    WaitForCopies<kStages - 2>();
    __syncwarp();  // the stage is there for all lanes, and the one before has been read by all
    copy(token + (kStages - 1) * kStageTokens, free_stage);
#pragma unroll
    for (int u = 0; u < kStageTokens; ++u) {
      if (token + u >= own_tokens) continue;
      float x[kBlockSize];
#pragma unroll
      for (int k = 0; k < kChunks; ++k) {
        const uint4 v = LoadShared16((own ^ (k * 16)) + u * kTokenBytes);
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if constexpr (kChunks == 4) {
            x[4 * k + j] = FloatFromBits(words[j]);
          } else {
            const float2 pair = Unpack(T{}, words[j]);
            x[8 * k + 2 * j] = pair.x;
            x[8 * k + 2 * j + 1] = pair.y;
          }
        }
      }
#pragma unroll
      for (int e = 0; e < kHessianEntries; ++e) {
        sum[e] = FmaRn(x[HessianEntryRow(e)], x[HessianEntryColumn(e)], sum[e]);
      }
    }
    // Kept by addition, or the compiler would compute it anew from the lane.
    own += stage == kStages - 1 ? -(kStages - 1) * kStageBytes : kStageBytes;
    free_stage = stage * kStageBytes;
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }
  WaitForCopies<0>();

  // Joins the chains; lane l has entry l / 4 of every eight, slice l % 4.
  float* joined = reinterpret_cast<float*>(ring);
  const int64_t slice = first_slice + lane % kHessianSlices;
  float* out = args.workspace + (group * slices + slice) * kHessianEntries + lane / kHessianSlices;
#pragma unroll
  for (int first = 0; first < kHessianEntries; first += kJoinEntries) {
    const int end = min(kHessianEntries - first, kJoinEntries);
    __syncwarp();
#pragma unroll
    for (int e = 0; e < end; ++e) joined[e * kJoinStride + lane] = sum[first + e];
    __syncwarp();
#pragma unroll
    for (int e = 0; e < end; e += 8) {
      const float* row = joined + (e + lane / kHessianSlices) * kJoinStride + lane % kHessianSlices;
      float s[kHessianChains];
#pragma unroll
      for (int c = 0; c < kHessianChains; ++c) s[c] = row[c * kHessianSlices];
#pragma unroll
      for (int half = kHessianChains / 2; half > 0; half /= 2) {
#pragma unroll
        for (int c = 0; c < half; ++c) s[c] = AddRn(s[c], s[c + half]);
      }
      if (slice < slices) out[first + e] = s[0];
    }
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_ACCUMULATE_HESSIAN_KERNEL_CUH_
