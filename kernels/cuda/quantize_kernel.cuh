// Quantize on the device, row-wise: block_encode.cuh between loads and stores. Thread blocks stay
// and walk over the tensor; what a thread encodes next is on its way while it encodes.
#ifndef NIBBLE_KERNELS_CUDA_QUANTIZE_KERNEL_CUH_
#define NIBBLE_KERNELS_CUDA_QUANTIZE_KERNEL_CUH_

#include <cstdint>

#include "kernels/cuda/block_encode.cuh"
#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/four_over_six.cuh"
#include "kernels/cuda/quantize_launch.h"
#include "kernels/cuda/warp.cuh"
#include "quant/swizzle.h"

namespace nibble {

__device__ __forceinline__ void StoreCodes(const QuantizeArgs& args, int64_t block,
                                           const BlockCodes& codes) {
  reinterpret_cast<uint2*>(args.packed)[block] = {codes.word[0], codes.word[1]};
}

// The bytes that pad swizzled scales, shared among all threads of the grid: columns to the right of
// the data first.
__device__ __forceinline__ void StorePadding(const QuantizeArgs& args) {
  const int64_t columns = args.cols / kBlockSize;
  const int64_t padded_columns = (columns + 3) / 4 * 4;
  const int64_t right = padded_columns - columns;
  const int64_t count = SwizzledBytes(args.rows, columns) - args.rows * columns;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    int64_t row, column;
    if (i < args.rows * right) {
      row = i / right;
      column = columns + i % right;
    } else {
      row = args.rows + (i - args.rows * right) / padded_columns;
      column = (i - args.rows * right) % padded_columns;
    }
    args.scale[SwizzledOffset(row, column, columns)] = 0;
  }
}

// What of the arguments the kernels keep at hand.
struct QuantizeShape {
  int64_t columns, blocks;  // of 16 elements: in a row, in all
  bool per_token;

  __device__ __forceinline__ explicit QuantizeShape(const QuantizeArgs& args)
      : columns(args.cols / kBlockSize),
        blocks(args.rows * columns),
        per_token(args.scheme == Scheme::kPerToken) {}
};

// Packed words with no negative zero among them: their sign bits are those of the codes.
template <typename T>
__device__ __forceinline__ BlockBytes WordSignBytes(const BlockWords<T>& words) {
  BlockBytes bytes = {};
  if constexpr (!std::is_same_v<T, F32>) {
    uint32_t w[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) w[i] = AddZero(T{}, words.word[i]);
      // Byte 1 is the sign and exponent of an even element, byte 3 of an odd one.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t* q = w + 4 * half;
      bytes.word[2 * half] =
          __byte_perm(__byte_perm(q[0], q[1], 0x0051), __byte_perm(q[2], q[3], 0x0051), 0x5410);
      bytes.word[2 * half + 1] =
          __byte_perm(__byte_perm(q[0], q[1], 0x0073), __byte_perm(q[2], q[3], 0x0073), 0x5410);
    }
  }
  return bytes;
}

template <typename E>
__device__ __forceinline__ uint32_t GivenScale(const QuantizeArgs& args, int64_t block) {
  if (E::kMethod != EncodeMethod::kCheckpoint || args.given_scale == nullptr) return 0;
  return args.given_scale[block];
}

// Where a block's scale lies.
__device__ __forceinline__ int64_t ScaleOffset(const QuantizeArgs& args, const QuantizeShape& shape,
                                               int64_t block) {
  if (!args.swizzle) return block;
  const int64_t row = block / shape.columns;
  return SwizzledOffset(row, block - row * shape.columns, shape.columns);
}

// Encodes and stores a block in little code, whatever it is.
template <typename T, typename E>
__device__ __forceinline__ void QuantizeSlowly(const QuantizeArgs& args, const QuantizeShape& shape,
                                               int64_t block) {
  const BlockWords<T> words = LoadWords<T>(args.x, block);
  const float amax = WordsMagnitude(words);
  float x[kBlockSize];
  UnpackBlock(words, x);
  const int64_t row = block / shape.columns;
  const OuterScales outer = MakeOuter<E>(args.amax[shape.per_token ? row : 0], args.encode);
  const EncodedBlock encoded = block_encode_internal::EncodeSlowly<E, false>(
      x, amax, outer, args.encode, block * kBlockSize, GivenScale<E>(args, block));
  StoreCodes(args, block, encoded.codes);
  args.scale[args.swizzle ? SwizzledOffset(row, block - row * shape.columns, shape.columns)
                          : block] = encoded.scale;
  if (!IsFiniteMagnitude(amax) && args.non_finite != nullptr) *args.non_finite = 1;
}

// per_tensor and per_token: a thread is a block. Blocks that the shortcuts do not hold for wait in
// a queue of their warp until it is full of them.
template <typename T, EncodeMethod kMethod, bool kStochastic, int kWarps, int kBlocksPerThread,
          int kThreadBlocks>
__global__ void __launch_bounds__(kWarps * 32, kThreadBlocks)
    QuantizeBlocksKernel(const __grid_constant__ QuantizeArgs args) {
  using E = Encoding<std::is_same_v<T, F32>, kMethod, kStochastic>;
  constexpr int kThreads = kWarps * 32;
  constexpr int kChunk = kThreads * kBlocksPerThread;
  __shared__ int64_t queues[kWarps][64];
  int64_t* queue = queues[threadIdx.x / 32];
  const unsigned lane = threadIdx.x % 32;
  int waiting = 0;
  const QuantizeShape shape(args);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kChunk;
  int64_t chunk = static_cast<int64_t>(blockIdx.x) * kChunk;
  OuterScales outer;
  if (!shape.per_token) outer = MakeOuter<E>(*args.amax, args.encode);
  BlockWords<T> next[kBlocksPerThread];
#pragma unroll
  for (int i = 0; i < kBlocksPerThread; ++i) {
    const int64_t b = chunk + i * kThreads + threadIdx.x;
    next[i] = LoadWords<T>(args.x, b < shape.blocks ? b : shape.blocks - 1);
  }
  for (; chunk < shape.blocks; chunk += stride) {
    BlockWords<T> words[kBlocksPerThread];
#pragma unroll
    for (int i = 0; i < kBlocksPerThread; ++i) {
      words[i] = next[i];
      const int64_t ahead = chunk + stride + i * kThreads + threadIdx.x;
      if (ahead < shape.blocks) next[i] = LoadWords<T>(args.x, ahead);
    }
#pragma unroll
    for (int i = 0; i < kBlocksPerThread; ++i) {
      const int64_t b = chunk + i * kThreads + threadIdx.x;
      const bool valid = b < shape.blocks;
      int64_t row = 0;
      if (shape.per_token || args.swizzle) {
        row = shape.blocks >> 32 == 0
                  ? static_cast<uint32_t>(b) / static_cast<uint32_t>(shape.columns)
                  : b / shape.columns;
      }
      if (shape.per_token) outer = MakeOuter<E>(args.amax[valid ? row : 0], args.encode);
      const float amax = WordsMagnitude(words[i]);
      float x[kBlockSize];
      UnpackBlock(words[i], x);
      EncodedBlock encoded;
      const bool done = block_encode_internal::EncodeFast<E, false, true>(
          x, WordSignBytes(words[i]), amax, outer, args.encode, b * kBlockSize,
          valid ? GivenScale<E>(args, b) : 0, encoded);
      if (done && valid) {
        StoreCodes(args, b, encoded.codes);
        args.scale[args.swizzle ? SwizzledOffset(row, b - row * shape.columns, shape.columns) : b] =
            encoded.scale;
      }
      const unsigned slow = __ballot_sync(kWholeWarp, !done && valid);
      if (slow != 0) {
        if (!done && valid) queue[waiting + __popc(slow & ((1u << lane) - 1))] = b;
        waiting += __popc(slow);
        __syncwarp();
        if (waiting >= 32) {
          waiting -= 32;
          QuantizeSlowly<T, E>(args, shape, queue[waiting + lane]);
          __syncwarp();
        }
      }
    }
  }
  if (lane < waiting) QuantizeSlowly<T, E>(args, shape, queue[lane]);
  if (args.swizzle) StorePadding(args);
}

// Encodes and stores a block by the float32 sums of 4over6; false where it takes QuantizeSlowly.
template <EncodeMethod kMethod>
__device__ __forceinline__ bool QuantizeUndecided(const QuantizeArgs& args, uint32_t block) {
  using E = Encoding<false, kMethod, false>;
  const QuantizeShape shape(args);
  const BlockWords<Bf16> words = LoadWords<Bf16>(args.x, block);
  float x[kBlockSize];
  UnpackBlock(words, x);
  EncodedBlock encoded;
  if (!block_encode_internal::EncodeFast<E, false, true>(
          x, WordSignBytes(words), WordsMagnitude(words), MakeOuter<E>(*args.amax, args.encode),
          args.encode, int64_t{block} * kBlockSize, 0, encoded)) {
    return false;
  }
  StoreCodes(args, block, encoded.codes);
  args.scale[ScaleOffset(args, shape, block)] = encoded.scale;
  return true;
}

template <EncodeMethod kMethod>
__device__ __noinline__ void QuantizeOneSlowly(const QuantizeArgs& args, uint32_t block) {
  QuantizeSlowly<Bf16, Encoding<false, kMethod, false>>(args, QuantizeShape(args), block);
}

__device__ __forceinline__ unsigned LanesBelow() {
  unsigned lanes;
  asm("mov.u32 %0, %%lanemask_lt;" : "=r"(lanes));
  return lanes;
}

// Blocks that wait for as many as a warp has lanes; every lane has the same count.
class WarpQueue {
 public:
  // items: 64 of shared memory, this warp's own.
  __device__ __forceinline__ explicit WarpQueue(uint32_t* items) : items_(items) {}

  // Every lane of the warp calls it together; whether a warp's worth is there.
  __device__ __forceinline__ bool Push(bool whether, uint32_t block) {
    const unsigned lanes = __ballot_sync(kWholeWarp, whether);
    if (lanes == 0) return false;
    if (whether) items_[count_ + __popc(lanes & LanesBelow())] = block;
    count_ += __popc(lanes);
    __syncwarp();
    return count_ >= 32;
  }
  // Calls process(block) in up to 32 lanes.
  template <typename Process>
  __device__ __forceinline__ void Pop(const Process& process) {
    const uint32_t lane = threadIdx.x % 32, first = count_ >= 32 ? count_ - 32 : 0;
    const bool own = first + lane < count_;
    const uint32_t block = items_[first + lane];
    count_ = first;
    __syncwarp();
    process(own, block);
  }

 private:
  uint32_t* items_;
  uint32_t count_ = 0;
};

// 4over6 of bf16 values by mae or mse, per_tensor, under the runtime rule, rounded to nearest: a
// thread is a block. Blocks that the filter leaves wait in a queue of their warp until it is full
// of them, and so do those that float32 sums leave. Threads beyond the end do the last block again.
template <EncodeMethod kMethod, bool kSwizzle, int kWarps, int kThreadBlocks>
__global__ void __launch_bounds__(kWarps * 32, kThreadBlocks)
    QuantizeFourOverSixKernel(const __grid_constant__ QuantizeArgs args) {
  constexpr uint32_t kThreads = kWarps * 32;
  __shared__ FilterScale scales[128];
  __shared__ uint32_t queues[2][kWarps][64];
  const QuantizeShape shape(args);
  const uint32_t last = static_cast<uint32_t>(shape.blocks - 1);
  const uint32_t stride = gridDim.x * kThreads;
  uint32_t next_block = min(blockIdx.x * kThreads + threadIdx.x, last);
  BlockWords<Bf16> next = LoadWords<Bf16>(args.x, next_block);
  float encode_scale;
  {
    const OuterScales outer = MakeOuter<Encoding<false, kMethod, false>>(*args.amax, args.encode);
    encode_scale = outer.context.global.encode_scale;
    for (uint32_t i = threadIdx.x; i < 128; i += kThreads) scales[i] = MakeFilterScale(i, outer);
  }
  __syncthreads();
  WarpQueue undecided(queues[0][threadIdx.x / 32]), slow(queues[1][threadIdx.x / 32]);
  const auto decide = [&](bool own, uint32_t block) {
    bool done = true;
    if (own) done = QuantizeUndecided<kMethod>(args, block);
    if (slow.Push(!done, block)) {
      slow.Pop([&](bool, uint32_t rare) { QuantizeOneSlowly<kMethod>(args, rare); });
    }
  };
  for (uint32_t chunk = blockIdx.x * kThreads; chunk <= last; chunk += stride) {
    const BlockWords<Bf16> words = next;
    const uint32_t block = next_block;
    next_block = min(block + stride, last);
    next = LoadWords<Bf16>(args.x, next_block);
    EncodedBlock encoded;
    const bool done = EncodeFourOverSix<MetricOf(kMethod)>(words, encode_scale, scales, encoded);
    if (done) {
      StoreCodes(args, block, encoded.codes);
      args.scale[kSwizzle ? ScaleOffset(args, shape, block) : block] = encoded.scale;
    }
    if (undecided.Push(!done, block)) undecided.Pop(decide);
  }
  undecided.Pop(decide);
  slow.Pop([&](bool own, uint32_t block) {
    if (own) QuantizeOneSlowly<kMethod>(args, block);
  });
  if (kSwizzle) StorePadding(args);
}

// tile_2d: half a warp is a tile, a lane one of its rows.
template <typename T, EncodeMethod kMethod, bool kStochastic, int kWarps, int kThreadBlocks>
__global__ void __launch_bounds__(kWarps * 32, kThreadBlocks)
    QuantizeTilesKernel(const __grid_constant__ QuantizeArgs args) {
  using E = Encoding<std::is_same_v<T, F32>, kMethod, kStochastic>;
  constexpr int kTilesAtOnce = kWarps * 2;
  const int64_t columns = args.cols / kBlockSize;
  const int64_t tiles = args.rows / kBlockSize * columns;
  const OuterScales outer = MakeOuter<E>(*args.amax, args.encode);
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kTilesAtOnce; first < tiles;
       first += static_cast<int64_t>(gridDim.x) * kTilesAtOnce) {
    const int64_t own = first + threadIdx.x / kBlockSize;
    const int64_t tile = own < tiles ? own : tiles - 1;
    const int64_t band = tile / columns, column = tile - band * columns;
    const int64_t row = band * kBlockSize + threadIdx.x % kBlockSize;
    const int64_t b = row * columns + column;
    const BlockWords<T> words = LoadWords<T>(args.x, b);
    const float row_amax = WordsMagnitude(words);
    float x[kBlockSize];
    UnpackBlock(words, x);
    const EncodedBlock encoded =
        EncodeTileRow<E>(x, TileMagnitude(row_amax), outer, args.encode, b * kBlockSize);
    if (own < tiles) {
      StoreCodes(args, b, encoded.codes);
      args.scale[args.swizzle ? SwizzledOffset(row, column, columns) : b] = encoded.scale;
      if (!IsFiniteMagnitude(row_amax) && args.non_finite != nullptr) *args.non_finite = 1;
    }
  }
  if (args.swizzle) StorePadding(args);
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_QUANTIZE_KERNEL_CUH_
