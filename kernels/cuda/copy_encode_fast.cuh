// Both quantized copies by the plain runtime rule, of bf16 and fp16: copy_block.cuh between loads
// and stores. A thread block walks along a strip of 128 x 128 tiles. Each warp loads the bands of
// 16 rows that it encodes itself, the next tile's while it works on this one's; warps meet
// once a tile, where the column-wise codes of all bands are stored together.
#ifndef NIBBLE_KERNELS_CUDA_COPY_ENCODE_FAST_CUH_
#define NIBBLE_KERNELS_CUDA_COPY_ENCODE_FAST_CUH_

#include <cstdint>

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/copy_block.cuh"
#include "kernels/cuda/copy_encode_kernel.cuh"
#include "kernels/cuda/copy_encode_launch.h"
#include "kernels/cuda/early_start.cuh"
#include "kernels/cuda/fast_block.cuh"
#include "kernels/cuda/row_groups.cuh"

namespace nibble {

// The outer scales of 128 rows of a copy.
struct FastOuters {
  FastOuter outer[kTileRows];
  float amax[kTileRows];

  __device__ __forceinline__ void Set(int place, float value, float bound) {
    outer[place] = MakeFastOuter(value, bound);
    amax[place] = value;
  }
};

struct FastStage {
  uint2 codes[kTileColumns * kTileBlocks];         // of the column-wise copy
  uint32_t scale[2][kTileRows * kTileBlocks / 4];  // of each copy, row-major
  FastOuters column_outers;

  // Permuted so that neither every second column nor a column's bands share a bank.
  static __device__ __forceinline__ int Codes(int column, int band) {
    return (column ^ (column >> 4 & 1)) * kTileBlocks + (band ^ (column >> 1 & 7));
  }
  // Of column_outers, so that every second column does not.
  static __device__ __forceinline__ int Outer(int column) {
    return column / 64 * 64 + column % 2 * 32 + column % 64 / 2;
  }
};

// Four bytes a thread hold two columns of a row, 64 columns a warp.
struct FastTile {
  static constexpr int kChunks = kTileColumns / 8;  // 16 bytes each, of a row
  uint4 x[2][kTileRows * kChunks];                  // one is encoded, the next is on its way
  FastStage stage[2];                               // while one is stored the other is filled
  FastOuters row_outers;

  // Permuted so that neither 8 neighbours of a row nor every second of them share a bank.
  static __device__ __forceinline__ int Chunk(int chunk) { return chunk ^ (chunk >> 3); }
};

// Where a thread stores eight scales of each tile of a strip: the first 128 threads those of the
// row-wise copy, a row each, the others those of the column-wise one.
class ScaleCursor {
 public:
  // exists: there is such a copy. to: the scales of a group's copy of rows x blocks; row, block:
  // the tile's place in it. row_step, block_step: from one tile of the strip to the next.
  __device__ __forceinline__ ScaleCursor(bool exists, bool swizzle, uint8_t* to, int64_t row,
                                         int64_t block, int64_t rows, int64_t blocks, int row_step,
                                         int block_step)
      : row_step_(row_step), block_step_(block_step) {
    const int t = static_cast<int>(threadIdx.x) % kTileRows;
    // In the order of memory: four blocks of rows r, r + 32, r + 64, r + 96 lie in sequence.
    const int r = swizzle ? t % 4 * 32 + t / 4 : t;
    word_ = 2 * r;
    words_ = swizzle || blocks % 4 == 0;
    eight_ = !swizzle && blocks % 8 == 0 && reinterpret_cast<uintptr_t>(to) % 8 == 0;
    second_ = swizzle ? 512 : 4;
    to_ = to + (swizzle ? SwizzledOffset(row + r, block, blocks) : (row + r) * blocks + block);
    step_ = swizzle ? row_step / kTileRows * SwizzledBytes(kTileRows, blocks) + block_step / 4 * 512
                    : row_step * blocks + block_step;
    rows_left_ = swizzle ? kTileRows : static_cast<int>(min(rows - row, int64_t{1} << 30)) - r;
    if (!exists) rows_left_ = 0;
    if (swizzle) row_step_ = 0;
    blocks_left_ = static_cast<int>(blocks - block);
  }

  // The scales of a tile; goes on to the next.
  __device__ __forceinline__ void Store(const uint32_t* scale) {
    if (rows_left_ > 0) {
      const uint2 words = *reinterpret_cast<const uint2*>(scale + word_);
      if (eight_) {
        if (blocks_left_ > 0) *reinterpret_cast<uint2*>(to_) = words;
      } else if (words_) {
        if (blocks_left_ > 0) *reinterpret_cast<uint32_t*>(to_) = words.x;
        if (blocks_left_ > 4) *reinterpret_cast<uint32_t*>(to_ + second_) = words.y;
      } else {
        for (int i = 0; i < kTileBlocks && i < blocks_left_; ++i) {
          to_[i] = static_cast<uint8_t>((i < 4 ? words.x : words.y) >> (8 * (i & 3)));
        }
      }
    }
    to_ += step_;
    rows_left_ -= row_step_;
    blocks_left_ -= block_step_;
  }

 private:
  uint8_t* to_;
  int64_t step_;
  int row_step_, block_step_, rows_left_, blocks_left_, word_, second_;
  bool eight_, words_;
};

// Row-wise blocks of rows r, r + 4, r + 8 and r + 12 of a tile; from: row r. packed: where the
// first goes. rows_left: of the tile, from r on; 0 where the block's columns do not exist.
template <typename T>
__device__ __forceinline__ void EncodeRowsFast(const EncodedCopy& copy, const FastOuters& outers,
                                               const uint4* from, int r, int b, uint2* packed,
                                               int64_t four_rows, int rows_left, uint8_t* scales) {
  const int place = FastTile::Chunk(2 * b);
#pragma unroll
  for (int i = 0; i < kBlocksEach; i += 2) {
    PackedBlock blocks[2];
    FastOuter outer[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const uint4* row = from + 4 * (i + k) * FastTile::kChunks;
      const uint4 low = row[place], high = row[place ^ 1];
      blocks[k] = {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
      outer[k] = outers.outer[r + 4 * (i + k)];
    }
    EncodedBlock encoded[2];
    const float amax[2] = {LargestOf(T{}, blocks[0]), LargestOf(T{}, blocks[1])};
    EncodeTwo<Pairing::kNeighbours>(
        T{}, blocks, amax, outer, copy.encode.bound, [&](int k) { return outers.amax[r + 4 * (i + k)]; },
        encoded);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const bool valid = 4 * (i + k) < rows_left;
      scales[4 * (i + k) * kTileBlocks] = valid ? encoded[k].scale : 0;
      if (valid) *packed = {encoded[k].codes.word[0], encoded[k].codes.word[1]};
      packed += four_rows;
    }
  }
}

// Two column-wise blocks, of columns c and c + 1 of the tile, given the band's 16 rows of them.
template <typename T, Rht kRht>
__device__ __forceinline__ void EncodeColumnsFast(const EncodedCopy& copy,
                                                  const uint32_t (&raw)[kBlockSize], int band,
                                                  int c, bool exist, FastStage& stage) {
  const int outer = FastStage::Outer(c);
  const int place = FastStage::Codes(c, band);
  uint8_t* scales = reinterpret_cast<uint8_t*>(stage.scale[kColumnwise]) + c * kTileBlocks + band;
  PackedBlock blocks[2];
  FastOuter outers[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if constexpr (kRht == Rht::kNone) {
#pragma unroll
      for (int j = 0; j < kBlockSize / 2; ++j) {
        blocks[i].word[j] =
            PermuteBytes(raw[FirstOf(Pairing::kInterleaved, j)],
                         raw[SecondOf(Pairing::kInterleaved, j)], i == 0 ? 0x5410 : 0x7632);
      }
    } else {
      float x[kBlockSize];
#pragma unroll
      for (int r = 0; r < kBlockSize; ++r) {
        const float2 pair = Unpack(T{}, raw[r]);
        x[r] = i == 0 ? pair.x : pair.y;
      }
      blocks[i] = RotatePacked<kRht>(T{}, x);
    }
    outers[i] = stage.column_outers.outer[outer + 32 * i];
  }
  EncodedBlock encoded[2];
  const float amax[2] = {LargestOf(T{}, blocks[0]), LargestOf(T{}, blocks[1])};
  EncodeTwo<Pairing::kInterleaved>(
      T{}, blocks, amax, outers, copy.encode.bound,
      [&](int i) { return stage.column_outers.amax[outer + 32 * i]; }, encoded);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    scales[i * kTileBlocks] = exist ? encoded[i].scale : 0;
    stage.codes[place ^ (i * kTileBlocks)] = {encoded[i].codes.word[0], encoded[i].codes.word[1]};
  }
}

// kRht: of the column-wise copy; the row-wise one is not rotated. strips: of strip_tiles tiles,
// side by side.
template <typename T, Rht kRht>
__global__ void __launch_bounds__(kEncodeThreads, 2)
    CopyEncodeFastKernel(CopyEncodeArgs args, unsigned strips, int strip_tiles) {
  extern __shared__ uint4 shared[];
  FastTile& tile = *reinterpret_cast<FastTile*>(shared);
  const EncodedCopy &row = args.row, &column = args.column;
  const bool has_row = row.packed != nullptr, has_column = column.packed != nullptr;
  const int t = static_cast<int>(threadIdx.x), lane = t % 32, band = t / 32;
  // From the end: what the maxima read last may still be cached.
  const unsigned index = gridDim.x - 1 - blockIdx.x;
  const RowTile rows = FindRowTile(args.groups, args.group_count, args.rows, index / strips);
  if (rows.group_rows == 0) {
    AwaitPreviousKernel();
    return;
  }
  const int rows_left = static_cast<int>(min(int64_t{kTileRows}, rows.group_rows - rows.row));
  const int64_t first_row = rows.group_row + rows.row;
  const int64_t first_column = static_cast<int64_t>(index % strips) * strip_tiles * kTileColumns;
  const int64_t row_blocks = args.cols / kBlockSize;
  const int64_t column_blocks = rows.group_rows / kBlockSize;  // of a row of the column-wise copy
  int cols_left = static_cast<int>(
      min(static_cast<int64_t>(strip_tiles) * kTileColumns, args.cols - first_column));

  // A warp loads the band that it encodes, two rows at a time.
  const int load_row = band * kBlockSize + lane / FastTile::kChunks;
  const int load_chunk = lane % FastTile::kChunks;
  const uint4* load_from = static_cast<const uint4*>(args.x) +
                           ((first_row + load_row) * args.cols + first_column) / 8 + load_chunk;
  const unsigned load_to =
      SharedAddress(tile.x[0]) + 16 * (load_row * FastTile::kChunks + FastTile::Chunk(load_chunk));
  const auto load = [&](int s, int cols) {
    const uint4* from = load_from;
    const int exist = 8 * load_chunk < cols ? rows_left - load_row : 0;
#pragma unroll
    for (int i = 0; i < kBlockSize / 2; ++i) {
      CopyAsync16(load_to + 16 * (s % 2 * kTileRows + i * 2) * FastTile::kChunks, from,
                  2 * i < exist);
      from += args.cols / 4;
    }
    load_from += FastTile::kChunks;
    CommitCopies();
  };
  load(0, cols_left);
  AwaitPreviousKernel();  // which makes the maxima

  // The first 128 threads make the column-wise copy's outer scales of the s-th tile, in two steps,
  // since memory is slow; the others make the row-wise copy's.
  const bool makes_outer = has_column && t < kTileColumns;
  const bool column_per_token = column.scheme == Scheme::kPerToken;
  const float* column_amax =
      column.amax + (column_per_token ? rows.group * args.cols + first_column + t : rows.group);
  const auto load_column_amax = [&](int cols) {
    const float amax = makes_outer && t < cols ? *column_amax : 0.0f;
    if (column_per_token) column_amax += kTileColumns;
    return amax;
  };
  const auto make_column_outers = [&](int s, float amax) {
    if (!makes_outer) return;
    tile.stage[s % 2].column_outers.Set(FastStage::Outer(t), amax, column.encode.bound);
  };
  make_column_outers(0, load_column_amax(cols_left));
  const int outer_row = t - kTileColumns;
  if (has_row && outer_row >= 0 && outer_row < rows_left) {
    const bool per_token = row.scheme == Scheme::kPerToken;
    tile.row_outers.Set(outer_row, row.amax[per_token ? first_row + outer_row : rows.group],
                        row.encode.bound);
  }

  const int r = band * kBlockSize + lane / kTileBlocks, b = lane % kTileBlocks;
  uint2* row_packed = reinterpret_cast<uint2*>(row.packed) + (first_row + r) * row_blocks +
                      first_column / kBlockSize + b;
  // The column-wise codes that a thread stores: of column `stored` of the tile, and every 32nd.
  const int stored = t / kTileBlocks, stored_band = t % kTileBlocks;
  const bool stored_exists = has_column && stored_band * kBlockSize < rows_left;
  uint2* column_packed =
      reinterpret_cast<uint2*>(column.packed) + rows.group_row / kBlockSize * args.cols +
      (first_column + stored) * column_blocks + rows.row / kBlockSize + stored_band;
  const bool stores_row_scales = t < kTileRows;
  ScaleCursor scales =
      stores_row_scales
          ? ScaleCursor(has_row, row.swizzle,
                        row.scale + (row.swizzle ? rows.first_tile * SwizzledBytes(128, row_blocks)
                                                 : rows.group_row * row_blocks),
                        rows.row, first_column / kBlockSize, rows.group_rows, row_blocks, 0,
                        kTileBlocks)
          : ScaleCursor(
                has_column, column.swizzle,
                column.scale + (column.swizzle ? rows.first_scale_tile * SwizzledBytes(args.cols, 4)
                                               : rows.group_row * row_blocks),
                first_column, rows.row / kBlockSize, args.cols, column_blocks, kTileRows, 0);
  __syncthreads();

  const bool band_exists = band * kBlockSize < rows_left;
  const bool encodes_columns = has_column && band_exists;
  for (int s = 0; cols_left > 0; ++s) {
    FastStage& stage = tile.stage[s % 2];
    WaitForCopies<0>();
    __syncwarp();
    if (cols_left > kTileColumns) load(s + 1, cols_left - kTileColumns);
    const float next_amax = load_column_amax(cols_left - kTileColumns);
    if (has_row && band_exists) {
      EncodeRowsFast<T>(row, tile.row_outers, tile.x[s % 2] + r * FastTile::kChunks, r, b,
                        row_packed, 4 * row_blocks, b * kBlockSize < cols_left ? rows_left - r : 0,
                        reinterpret_cast<uint8_t*>(stage.scale[kRowwise]) + r * kTileBlocks + b);
    } else {
      stage.scale[kRowwise][t] = 0;
    }
    const uint32_t* words =
        reinterpret_cast<const uint32_t*>(tile.x[s % 2] + band * kBlockSize * FastTile::kChunks);
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      const int c = half * 64 + 2 * lane;
      uint32_t raw[kBlockSize];
#pragma unroll
      for (int r = 0; r < kBlockSize; ++r) {
        raw[r] = words[(r * FastTile::kChunks + FastTile::Chunk(c / 8)) * 4 + lane % 4];
      }
      if (encodes_columns) {
        EncodeColumnsFast<T, kRht>(column, raw, band, c, c < cols_left, stage);
      } else {
        uint8_t* zeros =
            reinterpret_cast<uint8_t*>(stage.scale[kColumnwise]) + c * kTileBlocks + band;
        zeros[0] = zeros[kTileBlocks] = 0;
      }
    }
    if (cols_left > kTileColumns) make_column_outers(s + 1, next_amax);
    __syncthreads();
    scales.Store(stage.scale[stores_row_scales ? kRowwise : kColumnwise]);
    const int place = FastStage::Codes(stored, stored_band);
    const int exist = stored_exists ? cols_left - stored : 0;
    uint2* to = column_packed;
#pragma unroll
    for (int i = 0; i < kBlocksEach; ++i) {
      if (32 * i < exist) *to = stage.codes[place + i * 32 * kTileBlocks];
      to += 32 * column_blocks;
    }
    column_packed = to;
    row_packed += kTileBlocks;
    cols_left -= kTileColumns;
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_COPY_ENCODE_FAST_CUH_
