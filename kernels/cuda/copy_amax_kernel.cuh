// Maxima of the quantized copies on the device. A warp walks along a band of 16 rows: a thread
// holds four columns of it at a time, 16 elements each, which is a block of the column-wise copy.
//
// Rounding to the input's type and multiplying by 1/4 are monotone, so a rotation's maximum is
// taken before them. Largest magnitudes are compared as integers, or so that NaN wins: what is not
// finite shows in the result.
#ifndef NIBBLE_KERNELS_CUDA_COPY_AMAX_KERNEL_CUH_
#define NIBBLE_KERNELS_CUDA_COPY_AMAX_KERNEL_CUH_

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/copy_amax_launch.h"
#include "kernels/cuda/early_start.cuh"
#include "kernels/cuda/magnitude.cuh"
#include "kernels/cuda/rotate.cuh"
#include "kernels/cuda/row_groups.cuh"
#include "kernels/cuda/warp.cuh"

namespace nibble {

inline constexpr int kAmaxWarps = kTileRows / kBlockSize;  // a band of 16 rows each
inline constexpr int kStripColumns = 128;                  // four a thread

// Four consecutive elements of one row.
template <typename T>
using RawFour = std::conditional_t<std::is_same_v<T, F32>, uint4, uint2>;

__device__ __forceinline__ float ElementOf(F32, const uint4& raw, int k) {
  return FloatFromBits(k == 0 ? raw.x : k == 1 ? raw.y : k == 2 ? raw.z : raw.w);
}
template <typename T>
__device__ __forceinline__ float ElementOf(T, const uint2& raw, int k) {
  const float2 pair = Unpack(T{}, k < 2 ? raw.x : raw.y);
  return k % 2 == 0 ? pair.x : pair.y;
}

// Magnitudes of several elements and of those of `raw`.
__device__ __forceinline__ uint32_t Raise(uint32_t largest, const uint4& raw) {
  using M = Magnitude<F32>;
  return M::Max(M::Max(largest, M::Of(raw.x), M::Of(raw.y)), M::Of(raw.z), M::Of(raw.w));
}
__device__ __forceinline__ uint32_t Raise(uint32_t largest, const uint2& raw) {
  using M = Magnitude<Bf16>;  // those of fp16 are no other integers
  return M::Max(largest, M::Of(raw.x), M::Of(raw.y));
}

__device__ __forceinline__ float WarpMax(float magnitude) {
  return FloatFromBits(__reduce_max_sync(kWholeWarp, FloatBits(magnitude)));
}

// A strip of a band in shared memory.
template <typename T>
struct AmaxStrip {
  static constexpr int kOfChunk = std::is_same_v<T, F32> ? 4 : 8;  // elements of 16 bytes
  static constexpr int kRowChunks = kStripColumns / kOfChunk;
  static constexpr int kChunks = kBlockSize * kRowChunks;
  static constexpr int kLoads = kChunks / 32;  // of a thread

  // Of a thread block, the columns' maxima included.
  static constexpr int SharedBytes(int stages, int steps) {
    return kAmaxWarps * stages * kChunks * 16 + steps * kStripColumns * 4;
  }
};

// kRht: of the column-wise copy. A warp has kStages strips in shared memory: the one that it works
// on and others on their way.
template <typename T, Rht kRht, int kStages>
__global__ void __launch_bounds__(kAmaxWarps * 32, 2)
    CopyAmaxKernel(CopyAmaxArgs args, unsigned segments, int steps) {
  using Strip = AmaxStrip<T>;
  extern __shared__ uint4 shared[];
  // Of a strip: column / 4 + column % 4 * 32.
  unsigned* column_max =
      reinterpret_cast<unsigned*>(shared + kAmaxWarps * kStages * Strip::kChunks);
  LetNextKernelStart();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const RowTile tile = FindRowTile(args.groups, args.group_count, args.rows, blockIdx.x / segments);
  if (tile.group_rows == 0) {
    AwaitPreviousKernel();
    return;
  }
  const int segment_columns = steps * kStripColumns;
  const int64_t first_column = static_cast<int64_t>(blockIdx.x % segments) * segment_columns;
  const int columns = static_cast<int>(min(int64_t{segment_columns}, args.cols - first_column));
  const int64_t row = tile.row + warp * kBlockSize;
  const int rows =
      static_cast<int>(min(int64_t{kBlockSize}, max(int64_t{0}, tile.group_rows - row)));
  for (int i = threadIdx.x; i < segment_columns; i += kAmaxWarps * 32) column_max[i] = 0;
  __syncthreads();
  if (rows > 0) {
    const int load_row = lane / Strip::kRowChunks, load_chunk = lane % Strip::kRowChunks;
    constexpr int kRowsAtOnce = 32 / Strip::kRowChunks;
    const uint4* from =
        static_cast<const uint4*>(args.x) +
        ((tile.group_row + row + load_row) * args.cols + first_column) / Strip::kOfChunk +
        load_chunk;
    const int64_t pitch = args.cols / Strip::kOfChunk * kRowsAtOnce;
    const uint4* const strips = shared + warp * kStages * Strip::kChunks;
    const unsigned to = SharedAddress(strips) + lane * 16;
    const int own_steps = (columns + kStripColumns - 1) / kStripColumns;
    const auto load = [&](int step) {
      if (step < own_steps) {
        const bool has_column = step * kStripColumns + load_chunk * Strip::kOfChunk < columns;
        const unsigned stage = to + step % kStages * Strip::kChunks * 16;
        const uint4* p = from;
#pragma unroll
        for (int i = 0; i < Strip::kLoads; ++i) {
          CopyAsync16(stage + i * 32 * 16, p, has_column && load_row + i * kRowsAtOnce < rows);
          p += pitch;
        }
        from += Strip::kRowChunks;
      }
      CommitCopies();
    };
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) load(s);
    uint32_t row_max[kBlockSize] = {};
#pragma unroll 1
    for (int step = 0; step < own_steps; ++step) {
      WaitForCopies<kStages - 2>();
      __syncwarp();
      load(step + kStages - 1);
      using Raw = RawFour<T>;
      const Raw* strip =
          reinterpret_cast<const Raw*>(strips + step % kStages * Strip::kChunks) + lane;
      Raw raw[kBlockSize];
#pragma unroll
      for (int r = 0; r < kBlockSize; ++r) raw[r] = strip[r * 32];
#pragma unroll
      for (int r = 0; r < kBlockSize; ++r) row_max[r] = Raise(row_max[r], raw[r]);
      if (args.column == nullptr) continue;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float x[kBlockSize];
#pragma unroll
        for (int r = 0; r < kBlockSize; ++r) x[r] = ElementOf(T{}, raw[r], k);
        const float largest = kRht == Rht::kNone ? LargestNan(x) : LargestRotated<kRht>(x);
        atomicMax(&column_max[step * kStripColumns + k * 32 + lane], FloatBits(largest));
      }
    }
    AwaitPreviousKernel();  // which clears what follows
    float source = 0.0f;
#pragma unroll
    for (int r = 0; r < kBlockSize; ++r) {
      using M = Magnitude<T>;
      const float largest = WarpMax(M::ToFloat(M::Largest(row_max[r])));
      if (lane == r) source = largest;
    }
    if (lane >= rows) source = 0.0f;
    const bool raises_rows = args.row != nullptr && args.row_rht == Rht::kNone;
    if (raises_rows && args.per_row && lane < rows) {
      AtomicMaxMagnitude(args.row + tile.group_row + row + lane, source);
    }
    source = WarpMax(source);
    if (lane == 0) {
      AtomicMaxMagnitude(args.source + tile.group, source);
      if (raises_rows && !args.per_row) AtomicMaxMagnitude(args.row + tile.group, source);
    }
  }
  AwaitPreviousKernel();
  if (args.column == nullptr) return;
  __syncthreads();
  float largest = 0.0f;
  for (int i = threadIdx.x; i < columns; i += kAmaxWarps * 32) {
    const int place = i / kStripColumns * kStripColumns + i % 4 * 32 + i % kStripColumns / 4;
    float value = FloatFromBits(column_max[place]);
    if (kRht != Rht::kNone) value = RoundTo(T{}, MulRn(value, 0.25f));
    if (args.per_column) {
      AtomicMaxMagnitude(args.column + tile.group * args.cols + first_column + i, value);
    }
    largest = LargerNan(largest, value);
  }
  if (args.per_column) return;
  largest = WarpMax(largest);
  if (lane == 0) AtomicMaxMagnitude(args.column + tile.group, largest);
}

// Zeros; nothing of a null pointer.
struct ClearedMaxima {
  float* values[3];
  int64_t counts[3];
};

__global__ void __launch_bounds__(kAmaxWarps * 32) ClearMaximaKernel(ClearedMaxima cleared) {
  LetNextKernelStart();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int k = 0; k < 3; ++k) {
    if (cleared.values[k] == nullptr) continue;
    for (int64_t i = first; i < cleared.counts[k]; i += step) cleared.values[k][i] = 0.0f;
  }
}

// The rotated row-wise copy: a thread is a block.
template <typename T, Rht kRht>
__global__ void __launch_bounds__(kAmaxWarps * 32)
    RotatedRowAmaxKernel(CopyAmaxArgs args, int64_t segments, bool write_source) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const RowTile tile = FindRowTile(args.groups, args.group_count, args.rows, blockIdx.x / segments);
  const int64_t blocks_per_row = args.cols / kBlockSize;
  const int64_t block = blockIdx.x % segments * 32 + lane;
  float source = 0.0f, rotated = 0.0f;
  for (int r = warp; r < kTileRows && tile.row + r < tile.group_rows; r += kAmaxWarps) {
    const int64_t row = tile.group_row + tile.row + r;
    float largest = 0.0f;
    if (block < blocks_per_row) {
      float x[kBlockSize];
      LoadBlock<T>(args.x, row * blocks_per_row + block, x);
      source = LargerNan(source, LargestNan(x));
      largest = RoundTo(T{}, MulRn(LargestRotated<kRht>(x), 0.25f));
      rotated = LargerNan(rotated, largest);
    }
    largest = WarpMax(largest);
    if (lane == 0 && args.per_row) AtomicMaxMagnitude(args.row + row, largest);
  }
  if (tile.group_rows == 0) return;
  rotated = WarpMax(rotated);
  source = WarpMax(source);
  if (lane == 0 && !args.per_row) AtomicMaxMagnitude(args.row + tile.group, rotated);
  if (lane == 0 && write_source) AtomicMaxMagnitude(args.source + tile.group, source);
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_COPY_AMAX_KERNEL_CUH_
