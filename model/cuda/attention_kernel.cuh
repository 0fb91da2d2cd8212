// Attention with online softmax. By tensor cores: a thread block has 64 queries of one head, a warp
// 16 of them with their sums in registers; tiles of 64 keys and values pass through shared memory,
// copied asynchronously one tile ahead. In float32: a warp has 4 queries, a lane a key of 32.
#ifndef NIBBLE_MODEL_CUDA_ATTENTION_KERNEL_CUH_
#define NIBBLE_MODEL_CUDA_ATTENTION_KERNEL_CUH_

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/warp.cuh"
#include "model/cuda/attention_launch.h"
#include "quant/numerics/float_bits.h"

namespace nibble {

// The first key that a query attends to, both counted from the sequence's first token.
__device__ __forceinline__ int FirstKey(int query, int window) {
  return window == 0 ? 0 : max(0, query + 1 - window);
}

__device__ __forceinline__ void StoreMixed(const LinearInputArgs& out, int64_t at, float x) {
  if (out.bf16) {
    static_cast<uint16_t*>(out.out)[at] = Bf16FromFloat(x);
  } else {
    static_cast<float*>(out.out)[at] = x;
  }
}

// --- By tensor cores ----------------------------------------------------------------------------

inline constexpr int kAttentionThreads = 128;
inline constexpr int kKeyTile = 64;

// What AttentionPackKernel leaves for AttentionTensorKernel: fp16 rows of kDim channels a head,
// zeros beyond head_dim.
struct PackedAttention {
  const __half *q, *k, *v;
  const uint32_t* amax;  // bits, of q, k and v
};

inline constexpr int kPackedExponent = 13;  // of the largest packed value

// The power of two that values with this largest magnitude are packed with, as an exponent.
__device__ __forceinline__ int PackShift(uint32_t amax) {
  const int exponent = static_cast<int>(amax >> 23);
  if (amax == 0 || exponent == 255) return 0;
  return min(kPackedExponent - (exponent - 127), 126);
}

__device__ __forceinline__ float PowerOfTwo(int exponent) {  // -126 .. 127
  return FloatFromBits(static_cast<uint32_t>(exponent + 127) << 23);
}

inline constexpr int kPackThreads = 256;

// amax[blockIdx.y] = the largest magnitude of q, k or v, as bits; NaN counts as the largest.
__global__ void __launch_bounds__(kPackThreads)
    AttentionAmaxKernel(AttentionArgs args, uint32_t* amax) {
  const float* x = blockIdx.y == 0 ? args.q : blockIdx.y == 1 ? args.k : args.v;
  const int64_t count =
      args.rows * args.head_dim * (blockIdx.y == 0 ? args.heads : args.kv_heads) / 2;
  uint32_t largest = 0;
  for (int64_t i = int64_t{blockIdx.x} * kPackThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kPackThreads) {
    const float2 pair = reinterpret_cast<const float2*>(x)[i];
    largest = max(largest, FloatBits(pair.x) & 0x7FFFFFFFu);
    largest = max(largest, FloatBits(pair.y) & 0x7FFFFFFFu);
  }
  largest = __reduce_max_sync(kWholeWarp, largest);
  if (threadIdx.x % 32 == 0) atomicMax(amax + blockIdx.y, largest);
}

template <int kDim>
__global__ void __launch_bounds__(kPackThreads)
    AttentionPackKernel(AttentionArgs args, const uint32_t* amax, __half* packed_q,
                        __half* packed_k, __half* packed_v) {
  const float* x = blockIdx.y == 0 ? args.q : blockIdx.y == 1 ? args.k : args.v;
  __half* out = blockIdx.y == 0 ? packed_q : blockIdx.y == 1 ? packed_k : packed_v;
  const int64_t rows = args.rows * (blockIdx.y == 0 ? args.heads : args.kv_heads);  // of heads
  const float scale = PowerOfTwo(PackShift(amax[blockIdx.y]));
  constexpr int kPairs = kDim / 2;
  const int head_pairs = static_cast<int>(args.head_dim / 2);
  for (int64_t i = int64_t{blockIdx.x} * kPackThreads + threadIdx.x; i < rows * kPairs;
       i += int64_t{gridDim.x} * kPackThreads) {
    const int pair = static_cast<int>(i % kPairs);
    float2 v = {0, 0};
    if (pair < head_pairs) {
      v = reinterpret_cast<const float2*>(x)[i / kPairs * head_pairs + pair];
    }
    reinterpret_cast<__half2*>(out)[i] = __floats2half2_rn(v.x * scale, v.y * scale);
  }
}

__device__ __forceinline__ void LoadMatrices(unsigned address, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void LoadTransposed(unsigned address, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// c += a b, of 16 x 16 and 16 x 8 fp16 values.
__device__ __forceinline__ void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float PowerOf2(float x) {
  float y;
  asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ uint32_t PackHalves(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

// A row of a tile and 16 bytes: rows that ldmatrix reads together then lie in different banks.
template <int kDim>
inline constexpr int kTilePitch = 2 * kDim + 16;
template <int kDim>
inline constexpr int kAttentionSharedBytes = 4 * kKeyTile* kTilePitch<kDim>;

// Rows [first, end) of one head, 64 of them at most; rows from `end` on are zeros.
template <int kDim>
__device__ __forceinline__ void CopyTile(unsigned to, const __half* from, int64_t pitch, int first,
                                         int end) {
  constexpr int kChunks = kDim / 8;  // of 16 bytes a row
#pragma unroll
  for (int i = 0; i < kKeyTile * kChunks / kAttentionThreads; ++i) {
    const int at = i * kAttentionThreads + static_cast<int>(threadIdx.x);
    const int row = at / kChunks, chunk = at % kChunks;
    const bool valid = first + row < end;
    CopyAsync16(to + row * kTilePitch<kDim> + chunk * 16,
                from + (valid ? int64_t{first + row} * pitch : 0) + chunk * 8, valid);
  }
}

template <int kDim>
__global__ void __launch_bounds__(kAttentionThreads)
    AttentionTensorKernel(AttentionArgs args, PackedAttention packed, float scale) {
  static_assert(kAttentionQueries == kKeyTile && kAttentionThreads == 2 * kAttentionQueries);
  constexpr int kPitch = kTilePitch<kDim>;
  constexpr int kTileBytes = kKeyTile * kPitch;
  constexpr int kSteps = kDim / 16;         // of a product over channels
  constexpr int kKeySteps = kKeyTile / 16;  // of one over keys
  extern __shared__ uint4 tiles[];          // keys, keys, values, values
  const int heads = static_cast<int>(args.heads), kv_heads = static_cast<int>(args.kv_heads);
  const AttentionPiece piece = args.pieces[blockIdx.x / heads];
  const int head = static_cast<int>(blockIdx.x) % heads, kv_head = head / (heads / kv_heads);
  const int window = static_cast<int>(args.window);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t q_pitch = int64_t{heads} * kDim, kv_pitch = int64_t{kv_heads} * kDim;
  const __half* q = packed.q + piece.begin * q_pitch + head * kDim;
  const __half* k = packed.k + piece.begin * kv_pitch + kv_head * kDim;
  const __half* v = packed.v + piece.begin * kv_pitch + kv_head * kDim;

  const unsigned key_tiles = SharedAddress(tiles), value_tiles = key_tiles + 2 * kTileBytes;
  const int low = FirstKey(piece.first, window) / kKeyTile * kKeyTile;
  // The queries pass through the second tile of keys.
  CopyTile<kDim>(key_tiles + kTileBytes, q, q_pitch, piece.first, piece.after_last);
  CommitCopies();
  CopyTile<kDim>(key_tiles, k, kv_pitch, low, piece.after_last);
  CopyTile<kDim>(value_tiles, v, kv_pitch, low, piece.after_last);
  CommitCopies();
  WaitForCopies<1>();
  __syncthreads();
  uint32_t q_parts[kSteps][4];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    LoadMatrices(
        key_tiles + kTileBytes + (warp * 16 + lane % 16) * kPitch + s * 32 + lane / 16 * 16,
        q_parts[s]);
  }
  __syncthreads();  // the tile may be overwritten

  // Scores are (q * 2^a) (k * 2^b); the exponential's argument is their product with this.
  const int q_shift = PackShift(packed.amax[0]), k_shift = PackShift(packed.amax[1]);
  const float factor =
      fmaxf(scale * PowerOfTwo(max(-q_shift, -126)) * PowerOfTwo(max(-k_shift, -126)), 1e-37f);

  float mixed[kDim / 8][4] = {};  // two rows of the lane: its quad's, and 8 further down
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  const int query = piece.first + warp * 16 + lane / 4;  // of the first of the two rows

  int stage = 0;
  for (int first = low; first < piece.after_last; first += kKeyTile) {
    WaitForCopies<0>();
    __syncthreads();  // the tile is there for all, and the one before has been read by all
    if (first + kKeyTile < piece.after_last) {
      CopyTile<kDim>(key_tiles + (1 - stage) * kTileBytes, k, kv_pitch, first + kKeyTile,
                     piece.after_last);
      CopyTile<kDim>(value_tiles + (1 - stage) * kTileBytes, v, kv_pitch, first + kKeyTile,
                     piece.after_last);
    }
    CommitCopies();
    const unsigned keys = key_tiles + stage * kTileBytes;
    const unsigned values = value_tiles + stage * kTileBytes;
    stage = 1 - stage;

    float score[kKeyTile / 8][4] = {};
    const unsigned key_row = keys + (lane % 8 + lane / 16 * 8) * kPitch + lane / 8 % 2 * 16;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int n = 0; n < kKeySteps; ++n) {
        uint32_t b[4];
        LoadMatrices(key_row + n * 16 * kPitch + s * 32, b);
        MultiplyAdd(score[2 * n], q_parts[s], b[0], b[1]);
        MultiplyAdd(score[2 * n + 1], q_parts[s], b[2], b[3]);
      }
    }
    // Whether some query of the piece does not see some key of the tile.
    if (first + kKeyTile > piece.first + 1 || (window != 0 && first < piece.after_last - window)) {
#pragma unroll
      for (int n = 0; n < kKeyTile / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = first + n * 8 + lane % 4 * 2 + i % 2;
          const int of = query + i / 2 * 8;
          if (key > of || key < FirstKey(of, window)) score[n][i] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float tile_largest = score[0][2 * r];
#pragma unroll
      for (int n = 0; n < kKeyTile / 8; ++n) {
        tile_largest = fmaxf(tile_largest, fmaxf(score[n][2 * r], score[n][2 * r + 1]));
      }
      tile_largest = fmaxf(tile_largest, __shfl_xor_sync(kWholeWarp, tile_largest, 1));
      tile_largest = fmaxf(tile_largest, __shfl_xor_sync(kWholeWarp, tile_largest, 2));
      const float before = largest[r];
      largest[r] = fmaxf(before, tile_largest);
      // Where no key was seen yet all probabilities are 0.
      const float base = largest[r] == -INFINITY ? 0.0f : largest[r] * factor;
      const float kept = PowerOf2(fmaf(before, factor, -base));
      sum[r] *= kept;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        mixed[n][2 * r] *= kept;
        mixed[n][2 * r + 1] *= kept;
      }
#pragma unroll
      for (int n = 0; n < kKeyTile / 8; ++n) {
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i) {
          score[n][i] = PowerOf2(fmaf(score[n][i], factor, -base));
          sum[r] += score[n][i];
        }
      }
    }
    const unsigned value_row = values + lane % 16 * kPitch + lane / 16 * 16;
#pragma unroll
    for (int s = 0; s < kKeySteps; ++s) {
      const uint32_t p[4] = {PackHalves(score[2 * s][0], score[2 * s][1]),
                             PackHalves(score[2 * s][2], score[2 * s][3]),
                             PackHalves(score[2 * s + 1][0], score[2 * s + 1][1]),
                             PackHalves(score[2 * s + 1][2], score[2 * s + 1][3])};
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) {
        uint32_t b[4];
        LoadTransposed(value_row + s * 16 * kPitch + n * 32, b);
        MultiplyAdd(mixed[2 * n], p, b[0], b[1]);
        MultiplyAdd(mixed[2 * n + 1], p, b[2], b[3]);
      }
    }
  }
  WaitForCopies<0>();

  const float v_scale = PowerOfTwo(max(-PackShift(packed.amax[2]), -126));
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(kWholeWarp, sum[r], 1);
    sum[r] += __shfl_xor_sync(kWholeWarp, sum[r], 2);
    const int of = query + 8 * r;
    if (of >= piece.after_last) continue;
    const float weight = v_scale / sum[r];
    const int64_t at = ((piece.begin + of) * args.heads + head) * args.head_dim;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const int channel = n * 8 + lane % 4 * 2;
      if (channel >= args.head_dim) continue;
      const float a = mixed[n][2 * r] * weight, b = mixed[n][2 * r + 1] * weight;
      if (args.out.bf16) {
        *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(args.out.out) + at + channel) =
            Bf16FromFloat(a) | uint32_t{Bf16FromFloat(b)} << 16;
      } else {
        *reinterpret_cast<float2*>(static_cast<float*>(args.out.out) + at + channel) = {a, b};
      }
    }
  }
}

// --- In float32 ---------------------------------------------------------------------------------

inline constexpr int kPlainKeys = 32;    // of a tile: a lane each
inline constexpr int kPlainQueries = 4;  // of a warp
inline constexpr int kPlainBlock = kAttentionThreads / 32 * kPlainQueries;

template <int kLaneDims>
inline constexpr int kPlainSharedFloats =
    kPlainKeys*(32 * kLaneDims + 1) + kPlainKeys * 32 * kLaneDims + kPlainBlock * 32 * kLaneDims;

template <int kLaneDims>  // channels of a lane: head_dim <= 32 * kLaneDims
__global__ void __launch_bounds__(kAttentionThreads)
    AttentionPlainKernel(AttentionArgs args, float scale) {
  constexpr int kDim = 32 * kLaneDims;
  extern __shared__ float shared[];
  float* keys = shared;  // rows of kDim + 1: lanes read different banks
  float* values = keys + kPlainKeys * (kDim + 1);
  float* queries = values + kPlainKeys * kDim;
  const int heads = static_cast<int>(args.heads), kv_heads = static_cast<int>(args.kv_heads);
  const int dim = static_cast<int>(args.head_dim), window = static_cast<int>(args.window);
  const AttentionPiece piece = args.pieces[blockIdx.x / heads];
  const int head = static_cast<int>(blockIdx.x) % heads, kv_head = head / (heads / kv_heads);
  const int block_first = piece.first + static_cast<int>(blockIdx.y) * kPlainBlock;
  if (block_first >= piece.after_last) return;
  const int block_end = min(block_first + kPlainBlock, piece.after_last);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t q_pitch = int64_t{heads} * dim, kv_pitch = int64_t{kv_heads} * dim;

  for (int i = threadIdx.x; i < kPlainBlock * kDim; i += kAttentionThreads) {
    const int row = block_first + i / kDim, channel = i % kDim;
    queries[i] = row < block_end && channel < dim
                     ? args.q[(piece.begin + row) * q_pitch + head * dim + channel]
                     : 0.0f;
  }
  const float* own = queries + warp * kPlainQueries * kDim;
  float mixed[kPlainQueries][kLaneDims] = {};
  float largest[kPlainQueries], sum[kPlainQueries];
#pragma unroll
  for (int i = 0; i < kPlainQueries; ++i) {
    largest[i] = -INFINITY;
    sum[i] = 0;
  }
  for (int first = FirstKey(block_first, window); first < block_end; first += kPlainKeys) {
    __syncthreads();
    for (int i = threadIdx.x; i < kPlainKeys * kDim; i += kAttentionThreads) {
      const int row = first + i / kDim, channel = i % kDim;
      const bool valid = row < block_end && channel < dim;
      const int64_t at = (piece.begin + row) * kv_pitch + kv_head * dim + channel;
      keys[i / kDim * (kDim + 1) + channel] = valid ? args.k[at] : 0.0f;
      values[i] = valid ? args.v[at] : 0.0f;
    }
    __syncthreads();
    float p[kPlainQueries] = {};
    for (int channel = 0; channel < dim; ++channel) {
      const float key = keys[lane * (kDim + 1) + channel];
#pragma unroll
      for (int i = 0; i < kPlainQueries; ++i) p[i] = fmaf(own[i * kDim + channel], key, p[i]);
    }
#pragma unroll
    for (int i = 0; i < kPlainQueries; ++i) {
      const int query = block_first + warp * kPlainQueries + i, key = first + lane;
      const bool seen = key <= query && key >= FirstKey(query, window);
      const float score = seen ? p[i] * scale : -INFINITY;
      float tile_largest = score;
#pragma unroll
      for (int half = 16; half > 0; half /= 2) {
        tile_largest = fmaxf(tile_largest, __shfl_xor_sync(kWholeWarp, tile_largest, half));
      }
      const float before = largest[i];
      largest[i] = fmaxf(before, tile_largest);
      const float base = largest[i] == -INFINITY ? 0.0f : largest[i];
      const float kept = expf(before - base);
      p[i] = expf(score - base);
      float tile_sum = p[i];
#pragma unroll
      for (int half = 16; half > 0; half /= 2) {
        tile_sum += __shfl_xor_sync(kWholeWarp, tile_sum, half);
      }
      sum[i] = sum[i] * kept + tile_sum;
#pragma unroll
      for (int c = 0; c < kLaneDims; ++c) mixed[i][c] *= kept;
    }
#pragma unroll 4
    for (int key = 0; key < kPlainKeys; ++key) {
      float weight[kPlainQueries];
#pragma unroll
      for (int i = 0; i < kPlainQueries; ++i) weight[i] = __shfl_sync(kWholeWarp, p[i], key);
#pragma unroll
      for (int c = 0; c < kLaneDims; ++c) {
        const float value = values[key * kDim + c * 32 + lane];
#pragma unroll
        for (int i = 0; i < kPlainQueries; ++i) mixed[i][c] = fmaf(weight[i], value, mixed[i][c]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kPlainQueries; ++i) {
    const int query = block_first + warp * kPlainQueries + i;
    if (query >= block_end) continue;
    const float weight = 1.0f / sum[i];
    const int64_t at = (piece.begin + query) * q_pitch + head * dim;
#pragma unroll
    for (int c = 0; c < kLaneDims; ++c) {
      if (c * 32 + lane < dim) StoreMixed(args.out, at + c * 32 + lane, mixed[i][c] * weight);
    }
  }
}

}  // namespace nibble

#endif  // NIBBLE_MODEL_CUDA_ATTENTION_KERNEL_CUH_
