// The column-wise copy by the plain runtime rule, of bf16 and fp16, alone or with the row-wise one,
// where the rows are no groups. A thread block walks through tiles of 128 x 128 elements that have
// the same columns, whose outer scales a thread keeps: those of four columns. Each warp loads the
// bands of 16 rows that it encodes itself, the next tile's while it works on this one's; warps meet
// once a tile, where the column-wise codes of all bands are stored together.
#ifndef NIBBLE_KERNELS_CUDA_COPY_WALK_CUH_
#define NIBBLE_KERNELS_CUDA_COPY_WALK_CUH_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/copy_block.cuh"
#include "kernels/cuda/copy_encode_kernel.cuh"
#include "kernels/cuda/copy_encode_launch.h"
#include "kernels/cuda/early_start.cuh"
#include "kernels/cuda/fast_block.cuh"
#include "kernels/cuda/shared_words.cuh"

namespace nibble {

// In shared memory.
struct WalkTile {
  static constexpr int kChunks = kTileColumns / 8;  // of 16 bytes, of a row
  static constexpr int kRowBytes = kChunks * 16;

  uint4 x[2][kTileRows * kChunks];  // one is encoded, the next is on its way
  struct Stage {
    uint2 codes[kTileColumns * kTileBlocks];        // of the column-wise copy
    uint32_t scale[kTileBlocks][kTileColumns / 4];  // of a band, four columns to a word
  } stage[2];                                       // while one is stored the other is filled
  FastOuter row_outers[kTileRows];

  // Permuted so that neither 8 neighbours of a row nor every second of them share a bank.
  static __device__ __forceinline__ int Chunk(int chunk) { return chunk ^ (chunk >> 3); }
  // Permuted so that neither columns four apart nor a column's bands share a bank.
  static __device__ __forceinline__ int Codes(int column, int band) {
    return (column ^ (column >> 5 & 1)) * kTileBlocks + (band ^ (column >> 2 & 7));
  }
};

// The four words of one byte each of the words given: word k has byte k of each.
__device__ __forceinline__ uint4 TransposeBytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const uint32_t ab = PermuteBytes(a, b, 0x5140), cd = PermuteBytes(c, d, 0x5140);
  const uint32_t ab2 = PermuteBytes(a, b, 0x7362), cd2 = PermuteBytes(c, d, 0x7362);
  return {PermuteBytes(ab, cd, 0x5410), PermuteBytes(ab, cd, 0x7632),
          PermuteBytes(ab2, cd2, 0x5410), PermuteBytes(ab2, cd2, 0x7632)};
}

// Two blocks, of neighbouring columns, given the 16 rows of them.
template <typename T, Rht kRht>
__device__ __forceinline__ void ColumnBlocks(const uint32_t (&raw)[kBlockSize],
                                             PackedBlock (&blocks)[2]) {
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
  }
}

// Stores eight scales of each of four columns, which lie at `scale`. blocks: of a row of the copy.
__device__ __forceinline__ void StoreColumnScales(const EncodedCopy& copy, unsigned scale,
                                                  int64_t first_column, int columns, int block,
                                                  int64_t blocks) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint4 half[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) words[j] = LoadShared4(scale + (4 * i + j) * 4 * kTileColumns / 4);
    half[i] = TransposeBytes(words[0], words[1], words[2], words[3]);
  }
  const int left = static_cast<int>(min(int64_t{kTileBlocks}, blocks - block));
  const uint32_t low[4] = {half[0].x, half[0].y, half[0].z, half[0].w};
  const uint32_t high[4] = {half[1].x, half[1].y, half[1].z, half[1].w};
  if (copy.swizzle) {
    uint8_t* to = copy.scale + SwizzledOffset(first_column + 4 * lane, block, blocks);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      *reinterpret_cast<uint32_t*>(to + 16 * k) = low[k];
      if (left > 4) *reinterpret_cast<uint32_t*>(to + 16 * k + 512) = high[k];
    }
    return;
  }
  if (4 * lane >= columns) return;
  uint8_t* to = copy.scale + (first_column + 4 * lane) * blocks + block;
  if (blocks % 8 == 0 && reinterpret_cast<uintptr_t>(copy.scale) % 8 == 0) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      *reinterpret_cast<uint2*>(to) = {low[k], high[k]};
      to += blocks;
    }
  } else if (blocks % 4 == 0) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      *reinterpret_cast<uint32_t*>(to) = low[k];
      if (left > 4) *reinterpret_cast<uint32_t*>(to + 4) = high[k];
      to += blocks;
    }
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll 1
      for (int i = 0; i < left; ++i) {
        to[i] = static_cast<uint8_t>((i < 4 ? low[k] : high[k]) >> (8 * (i & 3)));
      }
      to += blocks;
    }
  }
}

// A warp's row-wise blocks of the tiles of a walk.
template <typename T>
class WalkRows {
 public:
  // columns: that exist, of the strip. block: the first of the first tile's rows, in blocks of 16;
  // step: from one tile to the next, in the same. tile: WalkTile.
  __device__ __forceinline__ WalkRows(const EncodedCopy& copy, int64_t cols, int64_t first_column,
                                      int columns, int64_t block, int64_t step, unsigned tile)
      : copy_(copy) {
    const int lane = static_cast<int>(threadIdx.x) % 32, band = static_cast<int>(threadIdx.x) / 32;
    const int row = lane / kTileBlocks, in_row = lane % kTileBlocks;
    const int64_t blocks = cols / kBlockSize;
    const int64_t first_row = (block + band) * kBlockSize;
    const int64_t first = first_column / kBlockSize + in_row;
    amax_ = copy.amax;
    if (copy.scheme == Scheme::kPerToken) amax_ += first_row + lane % kBlockSize;
    amax_step_ = copy.scheme == Scheme::kPerToken ? step * kBlockSize : 0;
    at_ = tile + (band * kBlockSize + row) * WalkTile::kRowBytes + 16 * WalkTile::Chunk(2 * in_row);
    outers_ = tile + offsetof(WalkTile, row_outers) + band * kBlockSize * sizeof(FastOuter);
    four_rows_ = 4 * blocks;
    packed_ = reinterpret_cast<uint2*>(copy.packed) + (first_row + row) * blocks + first;
    packed_step_ = step * kBlockSize * blocks;
    if (copy.swizzle) {
      scale_ = copy.scale + SwizzledOffset(first_row + row, first, blocks);
      scale_step_ = step / kTileBlocks * SwizzledBytes(kTileRows, blocks);
      scale_four_rows_ = 64;
    } else {
      scale_ = copy.scale + (first_row + row) * blocks + first;
      scale_step_ = packed_step_;
      scale_four_rows_ = four_rows_;
    }
    stores_ = in_row * kBlockSize < columns;
    pads_ = copy.swizzle && in_row / 4 * 4 * kBlockSize < columns;
  }

  // Of a row of the band, a lane each: begins to load what Encode takes.
  __device__ __forceinline__ void LoadAmax(bool exists) { next_amax_ = exists ? *amax_ : 0.0f; }

  // A band of a tile; then goes on to the next. x: of the tile, from the memory's begin.
  __device__ __forceinline__ void Encode(unsigned x, bool exists) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (lane < kBlockSize) {
      const FastOuter outer = MakeFastOuter(next_amax_, copy_.encode.bound);
      StoreShared8(outers_ + lane * sizeof(FastOuter),
                   {FloatBits(outer.factor), FloatBits(outer.decode)});
    }
    __syncwarp();
    uint8_t* scale = scale_;
    if (exists) {
      uint2* packed = packed_;
#pragma unroll
      for (int i = 0; i < kBlocksEach; i += 2) {
        PackedBlock blocks[2];
        FastOuter outer[2];
        float amax[2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const unsigned at = at_ + x + 4 * (i + k) * WalkTile::kRowBytes;
          const uint4 low = LoadShared16(at), high = LoadShared16(at ^ 16);
          blocks[k] = {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
          const uint2 words = LoadShared8(outers_ + (4 * (i + k) + lane / kTileBlocks) * 8);
          outer[k] = {FloatFromBits(words.x), FloatFromBits(words.y)};
          amax[k] = LargestOf(T{}, blocks[k]);
        }
        EncodedBlock encoded[2];
        EncodeTwo<Pairing::kNeighbours>(
            T{}, blocks, amax, outer, copy_.encode.bound,
            [&](int k) {
              const int row = 4 * (i + k) + lane / kTileBlocks - lane % kBlockSize;
              return copy_.scheme == Scheme::kPerToken ? amax_[row] : *amax_;
            },
            encoded);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          if (stores_) *packed = {encoded[k].codes.word[0], encoded[k].codes.word[1]};
          // A block that is not there was loaded as zeros, whose scale is 0.
          if (stores_ || pads_) *scale = encoded[k].scale;
          packed += four_rows_;
          scale += scale_four_rows_;
        }
      }
    } else if (pads_) {
#pragma unroll
      for (int i = 0; i < kBlocksEach; ++i) scale[64 * i] = 0;
    }
    amax_ += amax_step_;
    packed_ += packed_step_;
    scale_ += scale_step_;
  }

 private:
  static_assert(sizeof(FastOuter) == 8);

  const EncodedCopy& copy_;
  const float* amax_;
  int64_t amax_step_;
  unsigned at_, outers_;  // in shared memory
  uint2* packed_;
  int64_t packed_step_, four_rows_;
  uint8_t* scale_;
  int64_t scale_step_, scale_four_rows_;
  bool stores_, pads_;
  float next_amax_;
};

// strips: of 128 columns. A thread block takes up to `walk` tiles of one from the end, since what
// the kernel before this one read last may still be cached: every apart-th, or neighbours where
// that is 1.
template <typename T, Rht kRht, bool kRows>
__global__ void __launch_bounds__(kEncodeThreads, 2)
    CopyWalkKernel(CopyEncodeArgs args, unsigned strips, int walk, int apart) {
  extern __shared__ uint4 shared[];
  const unsigned memory = SharedAddress(shared);
  const EncodedCopy& copy = args.column;
  const int t = static_cast<int>(threadIdx.x), lane = t % 32, band = t / 32;
  const int64_t first_column = static_cast<int64_t>(blockIdx.x % strips) * kTileColumns;
  const int columns = static_cast<int>(min(int64_t{kTileColumns}, args.cols - first_column));
  const int64_t blocks = args.rows / kBlockSize;  // of a row of the copy
  const int64_t first_tile = (args.rows - 1) / kTileRows -
                             static_cast<int64_t>(blockIdx.x / strips) * (apart == 1 ? walk : 1);
  int tiles = static_cast<int>(min(int64_t{walk}, first_tile / apart + 1));
  const int64_t last_block = first_tile * kTileBlocks;
  const int step = apart * kTileBlocks;

  // A warp loads two rows of its band at a time.
  constexpr int kChunks = WalkTile::kChunks, kRowBytes = WalkTile::kRowBytes;
  constexpr unsigned kTileBytes = sizeof(WalkTile::x[0]);
  const int chunk = lane % kChunks;
  const int64_t two_rows = args.cols / 4;
  const int64_t back = -static_cast<int64_t>(apart) * kTileRows * args.cols / 8;
  const uint4* from = static_cast<const uint4*>(args.x) +
                      ((last_block + band) * kBlockSize + lane / kChunks) * (args.cols / 8) +
                      first_column / 8 + chunk;
  const unsigned band_memory = memory + band * kBlockSize * kRowBytes;
  const unsigned to = band_memory + lane / kChunks * kRowBytes + 16 * WalkTile::Chunk(chunk);
  const unsigned four = band_memory + 16 * WalkTile::Chunk(lane / 2) + lane % 2 * 8;
  const bool loads = 8 * chunk < columns;
  const auto load = [&](unsigned tile, bool exists) {
    if (exists) {
      const uint4* p = from;
#pragma unroll
      for (int i = 0; i < kBlockSize / 2; ++i) {
        CopyAsync16(to + tile + i * 2 * kRowBytes, p, loads);
        p += two_rows;
      }
    }
    from += back;
    CommitCopies();
  };
  load(0, last_block + band < blocks);
  AwaitPreviousKernel();  // which makes the maxima

  // Of this thread's columns.
  const auto amax_of = [&](int k) {
    if (copy.scheme != Scheme::kPerToken) return copy.amax[0];
    return 4 * lane < columns ? copy.amax[first_column + 4 * lane + k] : 0.0f;
  };
  FastOuter outers[4];
  WalkRows<T> rows(args.row, args.cols, first_column, columns, last_block, -step, memory);
  {
    float amax[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) amax[k] = amax_of(k);
    if (kRows) rows.LoadAmax(last_block + band < blocks);
#pragma unroll
    for (int k = 0; k < 4; ++k) outers[k] = MakeFastOuter(amax[k], copy.encode.bound);
  }

  // The codes that a thread stores: of column `stored` of the tile, and every 32nd.
  const int stored = t / kTileBlocks, stored_band = t % kTileBlocks;
  uint2* packed = reinterpret_cast<uint2*>(copy.packed) + (first_column + stored) * blocks +
                  last_block + stored_band;
  constexpr unsigned kStages = offsetof(WalkTile, stage);
  constexpr unsigned kStageBytes = sizeof(WalkTile::Stage);
  constexpr unsigned kScales = offsetof(WalkTile::Stage, scale);
  const unsigned own_codes = memory + kStages + 8 * WalkTile::Codes(4 * lane, band);
  const unsigned own_scales = memory + kStages + kScales + 4 * (band * 32 + lane);
  const unsigned stored_codes = memory + kStages + 8 * WalkTile::Codes(stored, stored_band);
  const unsigned stored_scales = memory + kStages + kScales + 4 * lane;
  // Bands of the tile; only the matrix' last tile may be cut short.
  int left = static_cast<int>(min(blocks - last_block, int64_t{kTileBlocks}));
  unsigned tile = 0, stage = 0;
  int turn = 0;  // the warp that stores scales
#pragma unroll 1
  for (int block = static_cast<int>(last_block); tiles > 0; block -= step) {
    WaitForCopies<0>();
    __syncwarp();
    --tiles;
    load(tile ^ kTileBytes, tiles > 0);
    if (kRows) {
      rows.Encode(tile, band < left);
      rows.LoadAmax(tiles > 0);
    }
    if (band < left) {
      uint2 raw[kBlockSize];
#pragma unroll
      for (int r = 0; r < kBlockSize; ++r) raw[r] = LoadShared8(four + tile + r * kRowBytes);
      uint32_t scales[4];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        uint32_t two[kBlockSize];
#pragma unroll
        for (int r = 0; r < kBlockSize; ++r) two[r] = h == 0 ? raw[r].x : raw[r].y;
        PackedBlock rotated[2];
        ColumnBlocks<T, kRht>(two, rotated);
        const float amax[2] = {LargestOf(T{}, rotated[0]), LargestOf(T{}, rotated[1])};
        const FastOuter outer[2] = {outers[2 * h], outers[2 * h + 1]};
        EncodedBlock encoded[2];
        EncodeTwo<Pairing::kInterleaved>(
            T{}, rotated, amax, outer, copy.encode.bound, [&](int i) { return amax_of(2 * h + i); },
            encoded);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          StoreShared8((own_codes + stage) ^ ((2 * h + i) * kTileBlocks * 8),
                       {encoded[i].codes.word[0], encoded[i].codes.word[1]});
          scales[2 * h + i] = encoded[i].scale;
        }
      }
      StoreShared4(own_scales + stage,
                   PermuteBytes(PermuteBytes(scales[0], scales[1], 0x0040),
                                PermuteBytes(scales[2], scales[3], 0x0040), 0x5410));
    } else {
      StoreShared4(own_scales + stage, 0);
    }
    __syncthreads();
    if (stored_band < left) {
      uint2* p = packed;
      if (columns == kTileColumns) {
#pragma unroll
        for (int i = 0; i < kBlocksEach; ++i) {
          *p = LoadShared8((stored_codes + stage + 32 * i * kTileBlocks * 8) ^
                           (i % 2 * kTileBlocks * 8));
          p += 32 * blocks;
        }
      } else {
#pragma unroll 1
        for (int i = 0; i < kBlocksEach && stored + 32 * i < columns; ++i) {
          *p = LoadShared8((stored_codes + stage + 32 * i * kTileBlocks * 8) ^
                           (i % 2 * kTileBlocks * 8));
          p += 32 * blocks;
        }
      }
    }
    if (band == turn) {
      StoreColumnScales(copy, stored_scales + stage, first_column, columns, block, blocks);
    }
    turn = (turn + 1) % kEncodeWarps;
    packed -= step;
    left = kTileBlocks;
    tile ^= kTileBytes;
    stage = kStageBytes - stage;
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_COPY_WALK_CUH_
