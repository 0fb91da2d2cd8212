// All maxima of a matrix in one read: a warp walks down a strip of 512 bytes a row, a lane has 16
// of them. Column maxima stay in the lanes and are joined by the thread block at the end; a row's
// is one reduction of the warp, kept by lane (row % 32) until 32 rows are done. (A ring of rows in
// shared memory, copied asynchronously, was 2 % slower on an H200 than a batch of rows in
// registers.)
#ifndef NIBBLE_KERNELS_CUDA_OBSERVE_KERNEL_CUH_
#define NIBBLE_KERNELS_CUDA_OBSERVE_KERNEL_CUH_

#include <cstdint>

#include "kernels/cuda/magnitude.cuh"
#include "kernels/cuda/observe_launch.h"
#include "kernels/cuda/warp.cuh"
#include "quant/numerics/scale_rules.h"

namespace nibble {

inline constexpr int kClearThreads = 256;

__global__ void __launch_bounds__(kClearThreads) ClearObservationKernel(ObserveArgs args) {
  const int64_t thread = int64_t{blockIdx.x} * kClearThreads + threadIdx.x;
  const int64_t threads = int64_t{gridDim.x} * kClearThreads;
  if (thread == 0 && args.amax != nullptr) *args.amax = 0.0f;
  if (thread == 0 && args.non_finite != nullptr) *args.non_finite = {0, 0, -1};
  if (args.row_amax != nullptr) {
    for (int64_t i = thread; i < args.rows; i += threads) args.row_amax[i] = 0.0f;
  }
  if (args.column_amax != nullptr) {
    for (int64_t i = thread; i < args.cols; i += threads) args.column_amax[i] = 0.0f;
  }
  if (args.histogram != nullptr) {
    for (int64_t i = thread; i < kLog2Bins; i += threads) args.histogram[i] = 0;
  }
}

// Of a lane's 16 bytes at `p` in `rows` rows; `first` is the index of the first element. Out of
// line: it is rare.
template <typename T>
__device__ __noinline__ void CountNonFinite(const uint4* p, int64_t pitch, int rows, int64_t first,
                                            NonFiniteCounts* counts) {
  using M = Magnitude<T>;
  constexpr int kLaneElements = 4 * M::kPerWord;
  unsigned long long nan = 0, inf = 0, place = ~0ull;
  for (int r = 0; r < rows; ++r) {
    const uint4 v = p[r * pitch];
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    for (int i = 0; i < kLaneElements; ++i) {
      const uint32_t word = M::Of(words[i / M::kPerWord]);
      const uint32_t bits = M::kWide ? word : i % 2 != 0 ? word >> 16 : word & 0xFFFFu;
      if (bits < M::kInfinity) continue;
      ++(bits == M::kInfinity ? inf : nan);
      place = min(place, static_cast<unsigned long long>(first + r * pitch * kLaneElements + i));
    }
  }
  if (nan + inf == 0) return;
  if (nan != 0) atomicAdd(reinterpret_cast<unsigned long long*>(&counts->nan), nan);
  if (inf != 0) atomicAdd(reinterpret_cast<unsigned long long*>(&counts->inf), inf);
  // -1, the largest, is none.
  atomicMin(reinterpret_cast<unsigned long long*>(&counts->first), place);
}

// A lane's 16 bytes of each of kRows rows, as magnitudes.
template <typename T, int kRows>
struct ObserveBatch {
  using M = Magnitude<T>;
  uint4 words[kRows];
  uint32_t of_row[kRows];  // the largest
  uint32_t largest;

  // Zeros from row `rows` on.
  __device__ __forceinline__ void Load(const uint4* p, int64_t pitch, int rows) {
    if (rows >= kRows) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) words[i] = __ldg(p + i * pitch);
    } else {
#pragma unroll
      for (int i = 0; i < kRows; ++i) words[i] = i < rows ? __ldg(p + i * pitch) : uint4{};
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      words[i] = {M::Of(words[i].x), M::Of(words[i].y), M::Of(words[i].z), M::Of(words[i].w)};
    }
    FindLargest();
  }

  __device__ __forceinline__ void KeepFinite() {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      words[i] = {M::Finite(words[i].x), M::Finite(words[i].y), M::Finite(words[i].z),
                  M::Finite(words[i].w)};
    }
    FindLargest();
  }

 private:
  __device__ __forceinline__ void FindLargest() {
    largest = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const uint32_t low = M::Max(words[i].x, words[i].y);
      of_row[i] = M::Largest(M::Max(low, M::Max(words[i].z, words[i].w)));
      largest = max(largest, of_row[i]);
    }
  }
};

template <typename T, int kWarps, int kBatchRows, int kRowsPerWarp>
__global__ void __launch_bounds__(kWarps * 32) ObserveKernel(ObserveArgs args, unsigned strips) {
  using M = Magnitude<T>;
  constexpr int kThreads = kWarps * 32;
  constexpr int kLaneElements = 4 * M::kPerWord;
  constexpr int kStripColumns = 32 * kLaneElements;
  constexpr int kBlockLanes = kBlockSize / kLaneElements;
  static_assert(32 % kBatchRows == 0 && kBatchRows % kBlockLanes == 0 && kRowsPerWarp % 32 == 0);
  __shared__ uint4 columns_of_warp[kWarps][32];
  __shared__ uint32_t of_warp[kWarps];
  __shared__ unsigned bins[kLog2Bins];
  if (args.histogram != nullptr) {
    for (int i = threadIdx.x; i < kLog2Bins; i += kThreads) bins[i] = 0;
    __syncthreads();
  }

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t first_column = int64_t{blockIdx.x % strips} * kStripColumns;
  const int64_t column = first_column + lane * kLaneElements;
  const int64_t first_row = (int64_t{blockIdx.x / strips} * kWarps + warp) * kRowsPerWarp;
  const int warp_rows =
      static_cast<int>(min(max(args.rows - first_row, int64_t{0}), int64_t{kRowsPerWarp}));
  const int rows = column < args.cols ? warp_rows : 0;
  const int64_t pitch = args.cols / kLaneElements;  // in uint4
  const uint4* p = static_cast<const uint4*>(args.x) + first_row * pitch + column / kLaneElements;
  uint4 columns = {0, 0, 0, 0};
  uint32_t largest = 0, row_of_lane = 0;

#pragma unroll 1
  for (int row = 0; row < warp_rows; row += kBatchRows, p += kBatchRows * pitch) {
    ObserveBatch<T, kBatchRows> batch;
    batch.Load(p, pitch, rows - row);
    if (__any_sync(kWholeWarp, batch.largest >= M::kInfinity)) {
      if (args.non_finite != nullptr && batch.largest >= M::kInfinity) {
        CountNonFinite<T>(p, pitch, min(rows - row, kBatchRows),
                          (first_row + row) * args.cols + column, args.non_finite);
      }
      // Anew, since registers kept over the call would be spilled in the common case, too.
      batch.Load(p, pitch, rows - row);
      batch.KeepFinite();
    }
    largest = max(largest, batch.largest);
#pragma unroll
    for (const uint4& words : batch.words) {
      columns = {M::Max(columns.x, words.x), M::Max(columns.y, words.y), M::Max(columns.z, words.z),
                 M::Max(columns.w, words.w)};
    }
    if (args.row_amax != nullptr) {
#pragma unroll
      for (int i = 0; i < kBatchRows; ++i) {
        const uint32_t row_max = __reduce_max_sync(kWholeWarp, batch.of_row[i]);
        if (lane == row % 32 + i) row_of_lane = row_max;
      }
      if (row % 32 == 32 - kBatchRows || row + kBatchRows >= warp_rows) {
        if (row_of_lane != 0) {
          AtomicMaxMagnitude(args.row_amax + first_row + row / 32 * 32 + lane,
                             M::ToFloat(row_of_lane));
        }
        row_of_lane = 0;
      }
    }
    if (args.block_amax != nullptr || args.histogram != nullptr) {
      // Every lane of a block learns its maximum in kBlockLanes rows and takes one of them.
#pragma unroll
      for (int i = 0; i < kBatchRows; i += kBlockLanes) {
        uint32_t own_bits = 0;
#pragma unroll
        for (int r = 0; r < kBlockLanes; ++r) {
          uint32_t bits = batch.of_row[i + r];
#pragma unroll
          for (int step = 1; step < kBlockLanes; step *= 2) {
            bits = max(bits, __shfl_xor_sync(kWholeWarp, bits, step));
          }
          if (lane % kBlockLanes == r) own_bits = bits;
        }
        const int own_row = row + i + lane % kBlockLanes;
        if (own_row >= rows) continue;
        const float block_amax = M::ToFloat(own_bits);
        if (args.block_amax != nullptr) {
          args.block_amax[((first_row + own_row) * args.cols + column) / kBlockSize] = block_amax;
        }
        if (args.histogram != nullptr) atomicAdd(&bins[Log2Bin(block_amax)], 1u);
      }
    }
  }

  columns_of_warp[warp][lane] = columns;
  largest = __reduce_max_sync(kWholeWarp, largest);
  if (lane == 0) of_warp[warp] = largest;
  __syncthreads();
  if (args.column_amax != nullptr) {
    for (int i = threadIdx.x; i < kStripColumns / M::kPerWord; i += kThreads) {
      uint32_t words = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        words = M::Max(words, reinterpret_cast<const uint32_t*>(columns_of_warp[w])[i]);
      }
      float* out = args.column_amax + first_column + i * M::kPerWord;
      if (words == 0) continue;
      if constexpr (M::kWide) {
        AtomicMaxMagnitude(out, M::ToFloat(words));
      } else {
        AtomicMaxMagnitude(out, M::ToFloat(words & 0xFFFFu));
        AtomicMaxMagnitude(out + 1, M::ToFloat(words >> 16));
      }
    }
  }
  if (args.histogram != nullptr) {
    for (int i = threadIdx.x; i < kLog2Bins; i += kThreads) {
      if (bins[i] != 0) {
        atomicAdd(reinterpret_cast<unsigned long long*>(args.histogram + i),
                  static_cast<unsigned long long>(bins[i]));
      }
    }
  }
  if (threadIdx.x == 0 && args.amax != nullptr) {
#pragma unroll
    for (int w = 1; w < kWarps; ++w) largest = max(largest, of_warp[w]);
    AtomicMaxMagnitude(args.amax, M::ToFloat(largest));
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_OBSERVE_KERNEL_CUH_
