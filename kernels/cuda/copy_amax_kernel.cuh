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

#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/copy_amax_launch.h"
#include "kernels/cuda/rotate.cuh"
#include "kernels/cuda/row_groups.cuh"

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

// Magnitudes of several elements as integers: one of 32 bits, or two of 16.
__device__ __forceinline__ uint32_t MaxBits(uint32_t largest, const uint4& raw) {
  largest = max(largest, max(raw.x & 0x7FFFFFFFu, raw.y & 0x7FFFFFFFu));
  return max(largest, max(raw.z & 0x7FFFFFFFu, raw.w & 0x7FFFFFFFu));
}
__device__ __forceinline__ uint32_t MaxBits(uint32_t largest, const uint2& raw) {
  return __vimax3_u16x2(largest, raw.x & 0x7FFF7FFFu, raw.y & 0x7FFF7FFFu);
}

// The float32 that such integers stand for.
__device__ __forceinline__ float LargestOf(F32, uint32_t bits) { return FloatFromBits(bits); }
template <typename T>
__device__ __forceinline__ float LargestOf(T, uint32_t bits) {
  const float2 pair = Unpack(T{}, max(bits & 0xFFFFu, bits >> 16));
  return pair.x;
}

__device__ __forceinline__ float WarpMax(float magnitude) {
  return FloatFromBits(__reduce_max_sync(0xFFFFFFFFu, FloatBits(magnitude)));
}

__device__ __forceinline__ void RaiseTo(float* place, float magnitude) {
  atomicMax(reinterpret_cast<unsigned*>(place), FloatBits(magnitude));
}

// kRht: of the column-wise copy.
template <typename T, Rht kRht, int kSteps, int kThreadBlocks>
__global__ void __launch_bounds__(kAmaxWarps * 32, kThreadBlocks)
    CopyAmaxKernel(CopyAmaxArgs args, int64_t segments) {
  constexpr int kSegmentColumns = kSteps * kStripColumns;
  __shared__ unsigned column_max[kSegmentColumns];  // of a strip: column / 4 + column % 4 * 32
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const RowTile tile = FindRowTile(args.groups, args.group_count, args.rows, blockIdx.x / segments);
  if (tile.group_rows == 0) return;
  const int64_t first_column = blockIdx.x % segments * kSegmentColumns;
  const int64_t row = tile.row + warp * kBlockSize;
  const int rows = static_cast<int>(min(int64_t{kBlockSize}, tile.group_rows - row));
  for (int i = threadIdx.x; i < kSegmentColumns; i += kAmaxWarps * 32) column_max[i] = 0;
  __syncthreads();
  if (rows > 0) {
    using Raw = RawFour<T>;
    uint32_t row_max[kBlockSize] = {};
    for (int step = 0; step < kSteps; ++step) {
      const int64_t column = first_column + step * kStripColumns + lane * 4;
      if (column >= args.cols) break;
      const Raw* p =
          reinterpret_cast<const Raw*>(args.x) + ((tile.group_row + row) * args.cols + column) / 4;
      Raw raw[kBlockSize];
#pragma unroll
      for (int r = 0; r < kBlockSize; ++r) {
        raw[r] = r < rows ? __ldg(p) : Raw{};
        p += args.cols / 4;
      }
#pragma unroll
      for (int r = 0; r < kBlockSize; ++r) row_max[r] = MaxBits(row_max[r], raw[r]);
      if (args.column == nullptr) continue;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float x[kBlockSize];
#pragma unroll
        for (int r = 0; r < kBlockSize; ++r) x[r] = ElementOf(T{}, raw[r], k);
        const float largest =
            kRht == Rht::kNone ? LargestNan(x) : LargestRotated(x, RhtSigns(kRht));
        atomicMax(&column_max[step * kStripColumns + k * 32 + lane], FloatBits(largest));
      }
    }
    float source = 0.0f;
#pragma unroll
    for (int r = 0; r < kBlockSize; ++r) {
      const float largest = WarpMax(LargestOf(T{}, row_max[r]));
      if (lane == r) source = largest;
    }
    if (lane >= rows) source = 0.0f;
    const bool raises_rows = args.row != nullptr && args.row_rht == Rht::kNone;
    if (raises_rows && args.per_row && lane < rows) {
      RaiseTo(args.row + tile.group_row + row + lane, source);
    }
    source = WarpMax(source);
    if (lane == 0) {
      RaiseTo(args.source + tile.group, source);
      if (raises_rows && !args.per_row) RaiseTo(args.row + tile.group, source);
    }
  }
  if (args.column == nullptr) return;
  __syncthreads();
  float largest = 0.0f;
  for (int i = threadIdx.x; i < kSegmentColumns; i += kAmaxWarps * 32) {
    const int64_t column = first_column + i;
    if (column >= args.cols) break;
    const int place = i / kStripColumns * kStripColumns + i % 4 * 32 + i % kStripColumns / 4;
    float value = FloatFromBits(column_max[place]);
    if (kRht != Rht::kNone) value = RoundTo(T{}, MulRn(value, 0.25f));
    if (args.per_column) RaiseTo(args.column + tile.group * args.cols + column, value);
    largest = LargerNan(largest, value);
  }
  if (args.per_column) return;
  largest = WarpMax(largest);
  if (lane == 0) RaiseTo(args.column + tile.group, largest);
}

// The rotated row-wise copy: a thread is a block.
template <typename T>
__global__ void __launch_bounds__(kAmaxWarps * 32)
    RotatedRowAmaxKernel(CopyAmaxArgs args, int64_t segments, uint32_t signs, bool write_source) {
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
      largest = RoundTo(T{}, MulRn(LargestRotated(x, signs), 0.25f));
      rotated = LargerNan(rotated, largest);
    }
    largest = WarpMax(largest);
    if (lane == 0 && args.per_row) RaiseTo(args.row + row, largest);
  }
  if (tile.group_rows == 0) return;
  rotated = WarpMax(rotated);
  source = WarpMax(source);
  if (lane == 0 && !args.per_row) RaiseTo(args.row + tile.group, rotated);
  if (lane == 0 && write_source) RaiseTo(args.source + tile.group, source);
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_COPY_AMAX_KERNEL_CUH_
