// The row-wise copy under per_token and the maxima of the column-wise one, in one read. A cluster
// of thread blocks holds bands of 16 whole rows in shared memory: a warp has 128 columns of each
// band, finds their maxima, and encodes them when the cluster's other warps have said theirs.
// Before that it takes the maxima of the next band, while the elements of the one after are on
// their way from memory: warps wait for one another only where they are more than a band apart. One
// more warp of each thread block joins maxima and makes the rows' outer scales.
#ifndef NIBBLE_KERNELS_CUDA_COPY_ROWS_KERNEL_CUH_
#define NIBBLE_KERNELS_CUDA_COPY_ROWS_KERNEL_CUH_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/copy_block.cuh"
#include "kernels/cuda/copy_rows_launch.h"
#include "kernels/cuda/early_start.cuh"
#include "kernels/cuda/fast_block.cuh"
#include "kernels/cuda/magnitude.cuh"
#include "kernels/cuda/rotate.cuh"
#include "kernels/cuda/row_groups.cuh"
#include "kernels/cuda/shared_words.cuh"
#include "kernels/cuda/warp.cuh"
#include "quant/swizzle.h"

namespace nibble {

inline constexpr int kRowsWarps = 16;     // of a thread block, at most, with columns
inline constexpr int kRowsColumns = 128;  // of a warp
inline constexpr int kRowsStages = 3;     // bands in shared memory
inline constexpr int kRowsCluster = 8;    // thread blocks, at most
inline constexpr int kTileBands = kTileRows / kBlockSize;
inline constexpr int kLongestRow = kRowsCluster * kRowsWarps * kRowsColumns;

// A warp's part of a band in shared memory: rows one after another.
struct RowsBand {
  static constexpr int kRowBytes = kRowsColumns * 2;
  static constexpr int kBytes = kBlockSize * kRowBytes;

  // Where 16 bytes lie in a row, permuted so that neither 8 neighbours nor every second of them
  // share a bank.
  static __device__ __forceinline__ int Chunk(int chunk) { return 16 * (chunk ^ (chunk >> 3)); }
};

// What the warps of a thread block share; their bands follow in memory. Band `band` uses element
// band % N of each array of N, and the barrier's phase band / N.
struct RowsShared {
  // How many bands may be on their way between blocks: one waits for all others' maxima of a band
  // before it sends those of the next but one.
  static constexpr int kPeerBands = 4;

  uint64_t warps_said[2];  // of this block
  uint64_t blocks_said[kPeerBands];
  uint64_t scales_made[2];
  uint32_t warp_max[2][kRowsWarps][kBlockSize];  // as Magnitude has them
  uint32_t block_max[kPeerBands][kRowsCluster][kBlockSize];
  FastOuter outer[2][kBlockSize];
  float amax[2][kBlockSize];  // that they are made of

  static constexpr int Bytes(int warps) {
    return static_cast<int>(sizeof(RowsShared)) + RowsBand::kBytes * kRowsStages * warps;
  }
};
static_assert(sizeof(RowsShared) % 32 == 0);

// The bands that a cluster takes one after another: of a matrix every `step`-th, of groups those of
// a tile.
struct RowsWalk {
  int first, step;  // the first band's index in its group; from one to the next
  int bands;        // that have rows; there are less than 2^31 in any memory
  int padded;       // and those that swizzled scales have besides
  int last_rows;    // of the last band that has some

  __device__ __forceinline__ int Band(int band) const { return first + band * step; }
  __device__ __forceinline__ int64_t Row(int band) const {
    return static_cast<int64_t>(Band(band)) * kBlockSize;
  }
  __device__ __forceinline__ int Rows(int band) const {
    return band == bands - 1 ? last_rows : kBlockSize;
  }
};

__device__ __forceinline__ RowsWalk WalkOf(const RowTile& tile, bool groups, unsigned index,
                                           unsigned walks) {
  RowsWalk walk = {static_cast<int>(groups ? tile.row / kBlockSize : index),
                   static_cast<int>(groups ? 1 : walks)};
  int end = static_cast<int>((tile.group_rows + kBlockSize - 1) / kBlockSize);
  int padded = static_cast<int>((tile.group_rows + kTileRows - 1) / kTileRows) * kTileBands;
  if (groups) {
    padded = walk.first + kTileBands;
    end = min(end, padded);
  }
  walk.bands = (end - walk.first + walk.step - 1) / walk.step;
  walk.padded = (padded - walk.first + walk.step - 1) / walk.step;
  walk.last_rows =
      static_cast<int>(min(int64_t{kBlockSize}, tile.group_rows - walk.Row(walk.bands - 1)));
  return walk;
}

// A warp's 128 columns of a walk's bands.
template <typename T, Rht kRht>
class RowsWarp {
 public:
  // columns: that exist. shared: of RowsShared. bands: of this warp, in shared memory.
  __device__ __forceinline__ RowsWarp(const CopyAmaxArgs& args, const EncodedCopy& copy,
                                      const RowTile& tile, const RowsWalk& walk,
                                      int64_t first_column, int columns, unsigned shared,
                                      unsigned bands)
      : copy_(copy), walk_(walk), shared_(shared) {
    const int lane = Lane();
    const int row = lane / kBlocks, in_row = lane % kBlocks;
    const int64_t first_row = tile.group_row + walk.Row(0), row_blocks = args.cols / kBlockSize;
    row_bytes_ = static_cast<int>(args.cols) * 2;
    step_bytes_ = walk.step * kBlockSize * row_bytes_;
    const int load_row = lane / kChunks, chunk = lane % kChunks;
    from_ = static_cast<const char*>(args.x) + (first_row + load_row) * row_bytes_ +
            first_column * 2 + chunk * 16;
    to_ = bands + load_row * RowsBand::kRowBytes + RowsBand::Chunk(chunk);
    // No row, where the columns do not exist.
    load_row_ = 8 * chunk < columns ? load_row : kBlockSize;
    block_at_ = bands + row * RowsBand::kRowBytes + RowsBand::Chunk(2 * in_row);
    four_at_ = bands + RowsBand::Chunk(lane / 2) + lane % 2 * 8;
    const int64_t block = first_column / kBlockSize + in_row;
    packed_ = copy.packed + ((first_row + row) * row_blocks + block) * 8;
    if (copy.swizzle) {
      scale_ = copy.scale + tile.first_tile * SwizzledBytes(kTileRows, row_blocks) +
               SwizzledOffset(row, block, row_blocks);
    } else {
      scale_ = copy.scale + (first_row + row) * row_blocks + block;
    }
    tile_bytes_ = static_cast<int>(SwizzledBytes(kTileRows, row_blocks));
    stores_ = in_row * kBlockSize < columns;
    pads_ = copy.swizzle && in_row / 4 * 4 * kBlockSize < columns;
  }

  // Bands are loaded in order, one group of copies each: the first kRowsStages before anything
  // else, then one after each Encode.
  __device__ __forceinline__ void Load(int band) {
    if (band < walk_.bands) {
      const char* p = from_;
      const int rows = walk_.Rows(band) - load_row_;
#pragma unroll
      for (int i = 0; i < kBlockSize / 2; ++i) {
        CopyAsync16(to_ + stage_ + i * 2 * RowsBand::kRowBytes, p, 2 * i < rows);
        p += 2 * row_bytes_;
      }
      from_ += step_bytes_;
    }
    CommitCopies();
    stage_ = After(stage_);
  }

  // Says the maxima of a band's rows, when it has been loaded, and joins those of its columns: of
  // the first band, then of each next before Encode.
  __device__ __forceinline__ void Maxima(int band, bool has_column) {
    const unsigned stage = band == 0 ? stage_ : After(stage_);
    uint32_t rows[2];  // the four blocks' of this thread
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t a = LargestPair(T{}, Block(stage, 2 * i));
      const uint32_t b = LargestPair(T{}, Block(stage, 2 * i + 1));
      rows[i] = MaxOrNan(T{}, PermuteBytes(a, b, 0x5410), PermuteBytes(a, b, 0x7632)) & 0x7FFF7FFFu;
      blocks_max_[i] = next_blocks_max_[i];
      next_blocks_max_[i] = rows[i];
    }
#pragma unroll
    for (int distance = 1; distance < kBlocks; distance *= 2) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        rows[i] = __vmaxu2(rows[i], __shfl_xor_sync(kWholeWarp, rows[i], distance));
      }
    }
    const int in_row = Lane() % kBlocks;
    if (in_row < 4) {
      const uint32_t pair = in_row < 2 ? rows[0] : rows[1];
      const int place =
          static_cast<int>(threadIdx.x) / 32 * kBlockSize + Lane() / kBlocks + 4 * in_row;
      StoreShared4(shared_ + offsetof(RowsShared, warp_max) +
                       band % 2 * sizeof(RowsShared::warp_max[0]) + 4 * place,
                   in_row % 2 == 0 ? pair & 0xFFFFu : pair >> 16);
    }
    ArriveAtBarrier(shared_ + offsetof(RowsShared, warps_said) + band % 2 * 8);
    if (has_column) {
      uint2 raw[kBlockSize];
#pragma unroll
      for (int r = 0; r < kBlockSize; ++r) {
        raw[r] = LoadShared8(four_at_ + stage + r * RowsBand::kRowBytes);
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float column[kBlockSize];
#pragma unroll
        for (int r = 0; r < kBlockSize; ++r) {
          const float2 pair = Unpack(T{}, k < 2 ? raw[r].x : raw[r].y);
          column[r] = k % 2 == 0 ? pair.x : pair.y;
        }
        column_max_[k] = kRht == Rht::kNone ? LargerNan(column_max_[k], LargestNan(column))
                                            : LargestRotated<kRht>(column, column_max_[k]);
      }
    }
  }

  // Encodes and stores a band.
  __device__ __forceinline__ void Encode(int band) {
    const int row = Lane() / kBlocks;
    WaitForBarrier(shared_ + offsetof(RowsShared, scales_made) + band % 2 * 8, band / 2);
    const unsigned outers = shared_ + offsetof(RowsShared, outer) +
                            band % 2 * sizeof(RowsShared::outer[0]) + row * sizeof(FastOuter);
    uint8_t* scale = copy_.swizzle ? SwizzledBand(band) : scale_;
    const int scale_step = copy_.swizzle ? 64 : row_bytes_ / 8;
    const int rows = stores_ ? walk_.Rows(band) - row : 0;
    const int scale_rows = pads_ ? kBlockSize : rows;
    uint8_t* packed = packed_;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      PackedBlock blocks[2];
      FastOuter outer[2];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        blocks[k] = Block(stage_, i + k);
        const uint2 words = LoadShared8(outers + 4 * (i + k) * sizeof(FastOuter));
        outer[k] = {FloatFromBits(words.x), FloatFromBits(words.y)};
      }
      const float2 pair = Unpack(T{}, blocks_max_[i / 2]);
      const float amax[2] = {pair.x, pair.y};
      EncodedBlock encoded[2];
      EncodeTwo<Pairing::kNeighbours>(
          T{}, blocks, amax, outer, copy_.encode.bound,
          [&](int k) {
            return FloatFromBits(LoadShared4(shared_ + offsetof(RowsShared, amax) +
                                             4 * (band % 2 * kBlockSize + row + 4 * (i + k))));
          },
          encoded);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if (4 * (i + k) < rows) {
          *reinterpret_cast<uint2*>(packed) = {encoded[k].codes.word[0], encoded[k].codes.word[1]};
        }
        // A block that is not there was loaded as zeros, whose scale is 0.
        if (4 * (i + k) < scale_rows) *scale = encoded[k].scale;
        packed += row_bytes_;  // four rows of codes
        scale += scale_step;
      }
    }
    packed_ += step_bytes_ / 4;
    if (!copy_.swizzle) scale_ += step_bytes_ / 32;
  }

  // Where no maxima of a next band are taken before the last one's encoding.
  __device__ __forceinline__ void SkipMaxima() {
    blocks_max_[0] = next_blocks_max_[0];
    blocks_max_[1] = next_blocks_max_[1];
  }

  // The scales of rows that only pad a swizzled tile.
  __device__ __forceinline__ void Pad(int band) {
    if (!pads_) return;
    uint8_t* scale = SwizzledBand(band);
#pragma unroll
    for (int i = 0; i < 4; ++i) scale[64 * i] = 0;
  }

  __device__ __forceinline__ float ColumnMax(int k) const {
    return kRht == Rht::kNone ? column_max_[k] : RoundTo(T{}, MulRn(column_max_[k], 0.25f));
  }

 private:
  static constexpr int kBlocks = kRowsColumns / kBlockSize;  // of a row
  static constexpr int kChunks = RowsBand::kRowBytes / 16;   // likewise

  static __device__ __forceinline__ int Lane() { return static_cast<int>(threadIdx.x) % 32; }

  static __device__ __forceinline__ unsigned After(unsigned stage) {
    return stage == (kRowsStages - 1) * RowsBand::kBytes ? 0 : stage + RowsBand::kBytes;
  }

  __device__ __forceinline__ uint8_t* SwizzledBand(int band) const {
    const int index = walk_.Band(band), in_tile = index % kTileBands;
    return scale_ + static_cast<int64_t>(index / kTileBands) * tile_bytes_ + in_tile % 2 * 256 +
           in_tile / 2 * 4;
  }

  // A thread's i-th block: of every fourth row of the band in a stage.
  __device__ __forceinline__ PackedBlock Block(unsigned stage, int i) const {
    const unsigned at = block_at_ + stage + 4 * i * RowsBand::kRowBytes;
    const uint4 low = LoadShared16(at), high = LoadShared16(at ^ 16);
    return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
  }

  // Registers are scarce: offsets within a walk's step are ints, since rows are short.
  const EncodedCopy& copy_;
  const RowsWalk& walk_;
  unsigned shared_;
  const char* from_;  // of the band that is loaded next
  int row_bytes_, step_bytes_;
  int load_row_;
  unsigned to_, block_at_, four_at_;  // where this thread's elements are
  unsigned stage_ = 0;                // of the band that is encoded next
  uint8_t* packed_;                   // of that band
  uint8_t* scale_;                    // likewise; swizzled: of the group's first row
  int tile_bytes_;                    // of swizzled scales
  bool stores_, pads_;
  uint32_t next_blocks_max_[2];  // of the band that Maxima took last
  uint32_t blocks_max_[2];       // of the one before
  float column_max_[4] = {};
};

// How many thread blocks a multiprocessor has: what shared memory allows.
constexpr int RowsBlocks(int warps) { return warps <= 8 ? 2 : 1; }

// cluster: thread blocks; side by side, they cover the rows. walks: clusters, where the matrix is
// one; groups have one for each tile.
template <typename T, Rht kRht, int kWarps>
__global__ void __launch_bounds__((kWarps + 1) * 32, RowsBlocks(kWarps))
    CopyRowsKernel(CopyAmaxArgs args, EncodedCopy copy, unsigned cluster, unsigned walks) {
  extern __shared__ uint4 memory[];
  const unsigned shared = SharedAddress(memory);
  LetNextKernelStart();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const unsigned rank = blockIdx.x % cluster, index = blockIdx.x / cluster;
  const bool groups = args.groups != nullptr;
  const RowTile tile = FindRowTile(args.groups, args.group_count, args.rows, groups ? index : 0);
  if (tile.group_rows == 0) {
    AwaitPreviousKernel();
    return;
  }
  const RowsWalk walk = WalkOf(tile, groups, index, walks);
  const unsigned warps_said = shared + offsetof(RowsShared, warps_said);
  const unsigned blocks_said = shared + offsetof(RowsShared, blocks_said);
  const unsigned scales_made = shared + offsetof(RowsShared, scales_made);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      InitBarrier(warps_said + 8 * i, kWarps * 32);
      InitBarrier(scales_made + 8 * i, 32);
    }
    for (int i = 0; i < RowsShared::kPeerBands; ++i) InitBarrier(blocks_said + 8 * i, 1);
    PublishBarriers();
  }
  __syncthreads();
  ArriveAtCluster();
  if (warp == kWarps) {
    AwaitPreviousKernel();
    WaitForCluster();
    RowsShared& own = *reinterpret_cast<RowsShared*>(memory);
    float source = 0.0f;
    for (int band = 0; band < walk.bands; ++band) {
      using M = Magnitude<T>;
      WaitForBarrier(warps_said + band % 2 * 8, band / 2);
      uint32_t largest = 0;
      if (lane < kBlockSize) {
#pragma unroll
        for (int i = 0; i < kWarps; ++i) largest = max(largest, own.warp_max[band % 2][i][lane]);
      }
      if (cluster > 1) {
        const int peer = band % RowsShared::kPeerBands;
        if (lane < kBlockSize) {
          const unsigned place = SharedAddress(&own.block_max[peer][rank][lane]);
          for (unsigned i = 0; i < cluster; ++i) {
            SendToCluster(InCluster(place, i), largest, InCluster(blocks_said + 8 * peer, i));
          }
        }
        if (lane == 0) ArriveAndExpect(blocks_said + 8 * peer, 4 * kBlockSize * cluster);
        WaitForSent(blocks_said + 8 * peer, band / RowsShared::kPeerBands);
        if (lane < kBlockSize) {
          for (unsigned i = 0; i < cluster; ++i) {
            largest = max(largest, own.block_max[peer][i][lane]);
          }
        }
      }
      if (lane < kBlockSize) {
        const float amax = M::ToFloat(largest);
        own.outer[band % 2][lane] = MakeFastOuter(amax, copy.encode.bound);
        own.amax[band % 2][lane] = amax;
        if (rank == 0 && lane < walk.Rows(band)) {
          args.row[tile.group_row + walk.Row(band) + lane] = amax;
        }
        source = LargerNan(source, amax);
      }
      ArriveAtBarrier(scales_made + band % 2 * 8);
    }
    if (rank != 0) return;
    source = FloatFromBits(__reduce_max_sync(kWholeWarp, FloatBits(source)));
    if (lane == 0) AtomicMaxMagnitude(args.source + tile.group, source);
    return;
  }
  const bool has_column = args.column != nullptr;
  const int64_t first_column = (static_cast<int64_t>(rank) * kWarps + warp) * kRowsColumns;
  const int columns =
      static_cast<int>(max(int64_t{0}, min(int64_t{kRowsColumns}, args.cols - first_column)));
  RowsWarp<T, kRht> own(
      args, copy, tile, walk, first_column, columns, shared,
      shared + static_cast<unsigned>(sizeof(RowsShared)) + warp * kRowsStages * RowsBand::kBytes);
#pragma unroll
  for (int band = 0; band < kRowsStages; ++band) own.Load(band);
  WaitForCopies<kRowsStages - 1>();
  __syncwarp();
  own.Maxima(0, has_column);
  WaitForCluster();
  AwaitPreviousKernel();  // which clears maxima; what came before it may still read the copy
#pragma unroll 1
  for (int band = 0; band < walk.bands; ++band) {
    if (band + 1 < walk.bands) {
      WaitForCopies<kRowsStages - 2>();
      __syncwarp();
      own.Maxima(band + 1, has_column);
    } else {
      own.SkipMaxima();
    }
    own.Encode(band);
    __syncwarp();
    own.Load(band + kRowsStages);
  }
  for (int band = walk.bands; band < walk.padded; ++band) own.Pad(band);
  if (!has_column) return;
  float largest = 0.0f;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float value = own.ColumnMax(k);
    largest = LargerNan(largest, value);
    if (args.per_column && 4 * lane + k < columns) {
      AtomicMaxMagnitude(args.column + tile.group * args.cols + first_column + 4 * lane + k, value);
    }
  }
  if (args.per_column) return;
  largest = FloatFromBits(__reduce_max_sync(kWholeWarp, FloatBits(largest)));
  if (lane == 0) AtomicMaxMagnitude(args.column + tile.group, largest);
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_COPY_ROWS_KERNEL_CUH_
