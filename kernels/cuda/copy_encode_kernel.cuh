// Both quantized copies of a tile of 128 x 128 elements, from one read of it into shared memory. A
// warp has a band of 16 rows: its threads take row-wise blocks first, then column-wise ones, whose
// codes wait in shared memory until all bands' together make long runs in the copy's rows.
#ifndef NIBBLE_KERNELS_CUDA_COPY_ENCODE_KERNEL_CUH_
#define NIBBLE_KERNELS_CUDA_COPY_ENCODE_KERNEL_CUH_

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/block_encode.cuh"
#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/copy_encode_launch.h"
#include "kernels/cuda/rotate.cuh"
#include "kernels/cuda/row_groups.cuh"
#include "quant/swizzle.h"

namespace nibble {

inline constexpr int kTileColumns = 128;
inline constexpr int kTileBlocks = kTileColumns / kBlockSize;  // of a row, and of a column
inline constexpr int kEncodeWarps = kTileRows / kBlockSize;
inline constexpr int kEncodeThreads = kEncodeWarps * 32;
inline constexpr int kBlocksEach = kTileBlocks * kBlockSize / 32;  // of each copy, for a thread
static_assert(kTileRows == kTileColumns);

enum Copy { kRowwise, kColumnwise };

// The tile in shared memory.
template <typename T>
struct EncodeTile {
  static constexpr int kElementBytes = std::is_same_v<T, F32> ? 4 : 2;
  static constexpr int kOfChunk = 16 / kElementBytes;      // elements
  static constexpr int kChunks = kTileColumns / kOfChunk;  // of a row
  static constexpr int kOuterWords = sizeof(OuterScales) / 4;

  uint4 x[kTileRows * kChunks];
  uint2 codes[kTileColumns * kTileBlocks];         // of the column-wise copy
  uint32_t scale[2][kTileRows * kTileBlocks / 4];  // of each copy, row-major
  uint32_t outer[2][kOuterWords][kTileRows];

  // Permuted so that neither 8 neighbours of a row, nor every second (fourth) of them, nor 8 of a
  // column share a bank.
  static __device__ __forceinline__ int Chunk(int row, int chunk) {
    return row * kChunks + (chunk ^ (chunk >> 3) ^ (row & 7));
  }
  // Permuted so that neither columns four apart nor a column's bands do.
  static __device__ __forceinline__ int Codes(int column, int band) {
    return (column ^ (column >> 5 & 1)) * kTileBlocks + (band ^ (column >> 2 & 7));
  }
  static __device__ __forceinline__ int Outer(int row) { return row % 4 * 32 + row / 4; }

  __device__ __forceinline__ void SetOuter(Copy copy, int row, const OuterScales& value) {
    uint32_t words[kOuterWords];
    memcpy(words, &value, sizeof(words));
#pragma unroll
    for (int i = 0; i < kOuterWords; ++i) outer[copy][i][Outer(row)] = words[i];
  }
  __device__ __forceinline__ OuterScales GetOuter(Copy copy, int row) const {
    uint32_t words[kOuterWords];
#pragma unroll
    for (int i = 0; i < kOuterWords; ++i) words[i] = outer[copy][i][Outer(row)];
    OuterScales value;
    memcpy(&value, words, sizeof(words));
    return value;
  }
  __device__ __forceinline__ void SetScale(Copy copy, int row, int block, uint8_t value) {
    reinterpret_cast<uint8_t*>(scale[copy])[row * kTileBlocks + block] = value;
  }

  __device__ __forceinline__ float Element(int row, int column) const {
    const void* chunk = &x[Chunk(row, column / kOfChunk)];
    if constexpr (std::is_same_v<T, F32>) {
      return static_cast<const float*>(chunk)[column % kOfChunk];
    } else {
      return Unpack(T{}, static_cast<const uint16_t*>(chunk)[column % kOfChunk]).x;
    }
  }
  __device__ __forceinline__ void RowBlock(int row, int block, float (&out)[kBlockSize]) const {
#pragma unroll
    for (int i = 0; i < kElementBytes; ++i) {
      UnpackChunk(T{}, x[Chunk(row, block * kElementBytes + i)], out + i * kOfChunk);
    }
  }
  __device__ __forceinline__ void ColumnBlock(int band, int column,
                                              float (&out)[kBlockSize]) const {
#pragma unroll
    for (int i = 0; i < kBlockSize; ++i) out[i] = Element(band * kBlockSize + i, column);
  }
};

// Where a tile lies: rows counted from the group's first.
struct TilePlace {
  RowTile rows;
  int64_t column;
  int64_t cols;  // of the matrix

  __device__ bool HasRow(int r) const { return rows.row + r < rows.group_rows; }
  __device__ bool HasColumn(int c) const { return column + c < cols; }
};

template <typename T>
__device__ __forceinline__ void LoadTile(const void* x, const TilePlace& place, int warp, int lane,
                                         EncodeTile<T>& tile) {
  using Tile = EncodeTile<T>;
  const int64_t row_chunks = place.cols / Tile::kOfChunk;
  const uint4* from = static_cast<const uint4*>(x) +
                      (place.rows.group_row + place.rows.row) * row_chunks +
                      place.column / Tile::kOfChunk;
#pragma unroll
  for (int i = 0; i < kBlockSize * Tile::kChunks / 32; ++i) {
    const int r = warp * kBlockSize + (i * 32 + lane) / Tile::kChunks;
    const int chunk = (i * 32 + lane) % Tile::kChunks;
    const bool valid = place.HasRow(r) && place.HasColumn(chunk * Tile::kOfChunk);
    CopyAsync16(SharedAddress(&tile.x[Tile::Chunk(r, chunk)]),
                valid ? from + r * row_chunks + chunk : from, valid);
  }
}

// Outer scales of 128 rows of a copy, by 128 threads; of one row, where all share them.
template <typename T, typename E>
__device__ __forceinline__ void MakeOuters(const EncodedCopy& copy, Copy which,
                                           const TilePlace& place, int row, EncodeTile<T>& tile) {
  if (copy.packed == nullptr) return;
  float amax = 0.0f;
  if (copy.scheme != Scheme::kPerToken) {
    if (row != 0) return;
    amax = copy.amax[place.rows.group];
  } else if (which == kRowwise) {
    if (place.HasRow(row)) amax = copy.amax[place.rows.group_row + place.rows.row + row];
  } else {
    if (place.HasColumn(row)) amax = copy.amax[place.rows.group * place.cols + place.column + row];
  }
  tile.SetOuter(which, row, MakeOuter<E>(amax, copy.encode));
}

template <typename T>
__device__ __forceinline__ void RotateBlock(Rht rht, float (&x)[kBlockSize]) {
  if (rht == Rht::kNone) return;
  Rht16(x, RhtSigns(rht));
  RoundBlock(T{}, x);
}

// A block's encoding, under tile_2d with those of the other rows of its tile.
template <typename E>
__device__ __forceinline__ EncodedBlock Encode(const float (&x)[kBlockSize],
                                               const OuterScales& outer, const EncodedCopy& copy,
                                               int64_t first) {
  const bool tile = copy.scheme == Scheme::kTile2d;
  float amax = BlockMagnitude(x);
  if (tile) amax = TileMagnitude(amax);
  return tile ? EncodeTileRow<E>(x, amax, outer, copy.encode, first)
              : EncodeBlock<E>(x, amax, outer, copy.encode, first);
}

// A warp's row-wise blocks.
template <typename T, typename E>
__device__ __forceinline__ void EncodeRows(const EncodedCopy& copy, const TilePlace& place,
                                           int warp, int lane, EncodeTile<T>& tile) {
  const bool tiles = copy.scheme == Scheme::kTile2d;
  const int64_t blocks_per_row = place.cols / kBlockSize;
  uint2* packed = reinterpret_cast<uint2*>(copy.packed) +
                  (place.rows.group_row + place.rows.row) * blocks_per_row +
                  place.column / kBlockSize;
  for (int i = 0; i < kBlocksEach; ++i) {
    const int r = warp * kBlockSize + (tiles ? lane % 16 : i * 4 + lane / 8);
    const int b = tiles ? 2 * i + lane / 16 : lane % 8;
    float x[kBlockSize];
    tile.RowBlock(r, b, x);
    RotateBlock<T>(copy.rht, x);
    const OuterScales outer = tile.GetOuter(kRowwise, copy.scheme == Scheme::kPerToken ? r : 0);
    const int64_t first = (place.rows.row + r) * place.cols + place.column + b * kBlockSize;
    const EncodedBlock encoded = Encode<E>(x, outer, copy, first);
    const bool valid = place.HasRow(r) && place.HasColumn(b * kBlockSize);
    tile.SetScale(kRowwise, r, b, valid ? encoded.scale : 0);
    if (valid) packed[r * blocks_per_row + b] = {encoded.codes.word[0], encoded.codes.word[1]};
  }
}

// A warp's column-wise blocks, into shared memory.
template <typename T, typename E>
__device__ __forceinline__ void EncodeColumns(const EncodedCopy& copy, const TilePlace& place,
                                              int warp, int lane, EncodeTile<T>& tile) {
  const bool tiles = copy.scheme == Scheme::kTile2d;
  const bool has_rows = place.HasRow(warp * kBlockSize);
  for (int i = 0; i < kBlocksEach; ++i) {
    const int c = tiles ? 32 * i + lane : 4 * lane + i;
    float x[kBlockSize];
    tile.ColumnBlock(warp, c, x);
    RotateBlock<T>(copy.rht, x);
    const OuterScales outer = tile.GetOuter(kColumnwise, copy.scheme == Scheme::kPerToken ? c : 0);
    const int64_t first =
        (place.column + c) * place.rows.group_rows + place.rows.row + warp * kBlockSize;
    const EncodedBlock encoded = Encode<E>(x, outer, copy, first);
    tile.SetScale(kColumnwise, c, warp, has_rows && place.HasColumn(c) ? encoded.scale : 0);
    tile.codes[EncodeTile<T>::Codes(c, warp)] = {encoded.codes.word[0], encoded.codes.word[1]};
  }
}

// The column-wise codes of all bands.
template <typename T>
__device__ __forceinline__ void StoreColumns(const EncodedCopy& copy, const TilePlace& place,
                                             const EncodeTile<T>& tile) {
  const int64_t copy_blocks = place.rows.group_rows / kBlockSize;  // of a row of the copy
  uint2* packed = reinterpret_cast<uint2*>(copy.packed) +
                  place.rows.group_row / kBlockSize * place.cols + place.column * copy_blocks +
                  place.rows.row / kBlockSize;
#pragma unroll
  for (int i = 0; i < kBlocksEach; ++i) {
    const int index = i * kEncodeThreads + static_cast<int>(threadIdx.x);
    const int band = index % kTileBlocks, c = index / kTileBlocks;
    if (place.HasRow(band * kBlockSize) && place.HasColumn(c)) {
      packed[c * copy_blocks + band] = tile.codes[EncodeTile<T>::Codes(c, band)];
    }
  }
}

// The scales of a copy's part of a tile, four to a thread. row, block: in the copy, of the tile's
// first; rows x blocks is the copy's size.
__device__ __forceinline__ void StoreScales(bool swizzle, uint8_t* to, int64_t row, int64_t block,
                                            int64_t rows, int64_t blocks, const uint32_t* scale) {
  const int t = static_cast<int>(threadIdx.x);
  // In the order of memory: four blocks of rows r, r + 32, r + 64, r + 96 lie in sequence, or the
  // two fours of a row.
  const int r = swizzle ? t % 4 * 32 + t % 128 / 4 : t / 2;
  const int four = swizzle ? t / 128 : t % 2;
  const uint32_t word = scale[r * (kTileBlocks / 4) + four];
  const int64_t first = block + 4 * four;
  if (first >= blocks) return;
  if (swizzle) {
    *reinterpret_cast<uint32_t*>(to + SwizzledOffset(row + r, first, blocks)) = word;
    return;
  }
  if (row + r >= rows) return;
  uint8_t* place = to + (row + r) * blocks + first;
  if (blocks % 4 == 0) {
    *reinterpret_cast<uint32_t*>(place) = word;
  } else {
    for (int i = 0; i < 4 && first + i < blocks; ++i) {
      place[i] = static_cast<uint8_t>(word >> (8 * i));
    }
  }
}

template <typename T, EncodeMethod kMethod>
__global__ void __launch_bounds__(kEncodeThreads, 2)
    CopyEncodeKernel(CopyEncodeArgs args, unsigned column_tiles) {
  using E = Encoding<std::is_same_v<T, F32>, kMethod>;
  extern __shared__ uint4 shared[];
  EncodeTile<T>& tile = *reinterpret_cast<EncodeTile<T>*>(shared);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  // From the end: what the maxima read last may still be cached.
  const unsigned index = gridDim.x - 1 - blockIdx.x;
  const TilePlace place = {
      FindRowTile(args.groups, args.group_count, args.rows, index / column_tiles),
      static_cast<int64_t>(index % column_tiles) * kTileColumns, args.cols};
  if (place.rows.group_rows == 0) return;
  LoadTile(args.x, place, warp, lane, tile);
  if (threadIdx.x < kTileRows) {
    MakeOuters<T, E>(args.row, kRowwise, place, threadIdx.x, tile);
  } else {
    MakeOuters<T, E>(args.column, kColumnwise, place, threadIdx.x - kTileRows, tile);
  }
  CommitCopies();
  WaitForCopies<0>();
  __syncthreads();
  if (args.row.packed != nullptr) EncodeRows<T, E>(args.row, place, warp, lane, tile);
  if (args.column.packed != nullptr) EncodeColumns<T, E>(args.column, place, warp, lane, tile);
  __syncthreads();
  const int64_t row_blocks = args.cols / kBlockSize;
  if (args.row.packed != nullptr) {
    const int64_t before = args.row.swizzle ? place.rows.first_tile * SwizzledBytes(128, row_blocks)
                                            : place.rows.group_row * row_blocks;
    StoreScales(args.row.swizzle, args.row.scale + before, place.rows.row,
                place.column / kBlockSize, place.rows.group_rows, row_blocks, tile.scale[kRowwise]);
  }
  if (args.column.packed != nullptr) {
    const int64_t copy_blocks = place.rows.group_rows / kBlockSize;
    const int64_t before = args.column.swizzle
                               ? place.rows.first_scale_tile * SwizzledBytes(args.cols, 4)
                               : place.rows.group_row * row_blocks;
    StoreColumns(args.column, place, tile);
    StoreScales(args.column.swizzle, args.column.scale + before, place.column,
                place.rows.row / kBlockSize, args.cols, copy_blocks, tile.scale[kColumnwise]);
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_COPY_ENCODE_KERNEL_CUH_
