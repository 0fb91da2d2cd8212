// The plain runtime rule for a block of bf16 or fp16 values that lies packed in registers, two to a
// word: what both copies of a matrix are encoded by, in about ten operations an element. The bytes
// are those of EncodeBlock, which takes over where a block is out of the ordinary.
#ifndef NIBBLE_KERNELS_CUDA_FAST_BLOCK_CUH_
#define NIBBLE_KERNELS_CUDA_FAST_BLOCK_CUH_

#include <cstdint>

#include "kernels/cuda/block_encode.cuh"
#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/rotate.cuh"

namespace nibble {

// What an outer amax decides; `decode` is in reciprocal units (1 / kCodeUnit), and 0 where the
// shortcuts do not hold.
struct FastOuter {
  float factor;
  float decode;
};

__device__ __forceinline__ FastOuter MakeFastOuter(float amax, float bound) {
  const OuterScales outer = MakeOuterScales<false>(amax, bound, ErrorPath::kFast);
  return {outer.block_factor,
          outer.regular ? MulRn(outer.context.global.decode_scale, 1.0f / kCodeUnit) : 0.0f};
}

// In which order a block's elements lie in its eight words.
enum class Pairing {
  kNeighbours,  // word j: 2j, 2j + 1
  kInterleaved  // of each eight elements: 1 5, 3 7, 0 4, 2 6
};

// The two elements of a word.
__device__ __forceinline__ constexpr int FirstOf(Pairing pairing, int word) {
  return pairing == Pairing::kNeighbours ? 2 * word
                                         : word / 4 * 8 + (word % 2 * 2) + (word % 4 < 2 ? 1 : 0);
}
__device__ __forceinline__ constexpr int SecondOf(Pairing pairing, int word) {
  return FirstOf(pairing, word) + (pairing == Pairing::kNeighbours ? 1 : 4);
}

struct PackedBlock {
  uint32_t word[kBlockSize / 2];
};

// Rht16 with its result rounded to the type and packed. Multiplying by 1/4 first changes nothing:
// bf16 and fp16 values and their sums are multiples of 2^-133, so that none becomes subnormal
// enough to lose a bit.
template <Rht kRht, typename T>
__device__ __forceinline__ PackedBlock RotatePacked(T, const float (&in)[kBlockSize]) {
  constexpr uint32_t kSigns = RhtSigns(kRht);
  float x[kBlockSize];
#pragma unroll
  for (int i = 0; i < kBlockSize; i += 2) {
    const float b = MulRn(in[i + 1], kSigns >> (i + 1) & 1 ? -0.25f : 0.25f);
    const float quarter = kSigns >> i & 1 ? -0.25f : 0.25f;
    x[i] = FmaRn(in[i], quarter, b);
    x[i + 1] = FmaRn(in[i], quarter, -b);
  }
#pragma unroll
  for (int distance = 2; distance < kBlockSize; distance *= 2) {
#pragma unroll
    for (int i = 0; i < kBlockSize; ++i) {
      if (i & distance) continue;
      const float a = x[i], b = x[i + distance];
      x[i] = AddRn(a, b);
      x[i + distance] = SubRn(a, b);
    }
  }
  PackedBlock block;
#pragma unroll
  for (int j = 0; j < kBlockSize / 2; ++j) {
    block.word[j] =
        PackPair(T{}, x[FirstOf(Pairing::kInterleaved, j)], x[SecondOf(Pairing::kInterleaved, j)]);
  }
  return block;
}

// Eight codes from half a block's words. factor: the block's encode scale in units.
template <Pairing kPairing, typename T>
__device__ __forceinline__ uint32_t FastCodes(T, const uint32_t* word, float factor) {
  float q[8];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 pair = Unpack(T{}, word[j]);
    const float values[2] = {pair.x, pair.y};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      q[half == 0 ? FirstOf(kPairing, j) : SecondOf(kPairing, j)] =
          RoundE2m1Unsaturated(MulRn(values[half], factor), kCodeUnit);
    }
  }
  const uint32_t even = IndexBytes(q[0], q[2], q[4], q[6]);
  const uint32_t odd = IndexBytes(q[1], q[3], q[5], q[7]);
  uint32_t even_signs, odd_signs;
  const uint32_t low = PermuteBytes(word[0], word[1], 0x7351);
  const uint32_t high = PermuteBytes(word[2], word[3], 0x7351);
  if (kPairing == Pairing::kInterleaved) {
    odd_signs = low;
    even_signs = high;
  } else {
    even_signs = PermuteBytes(low, high, 0x5410);
    odd_signs = PermuteBytes(low, high, 0x7632);
  }
  const uint32_t signs = (odd_signs & 0x80808080u) | ((even_signs >> 4) & 0x08080808u);
  return (even >> 1) + odd * 8 + signs;
}

// The same where the device has the instruction of ConvertToE2m1.
template <Pairing kPairing, typename T>
__device__ __forceinline__ uint32_t ConvertedCodes(T, const uint32_t* word, float factor) {
  // Finite, so that a zero under the factor of an outer scale of 0 stays zero.
  const float whole = fminf(MulRn(factor, 1.0f / kCodeUnit), kFloatMax);
  float v[8];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 pair = Unpack(T{}, word[j]);
    v[FirstOf(kPairing, j)] = MulRn(pair.x, whole);
    v[SecondOf(kPairing, j)] = MulRn(pair.y, whole);
  }
  return ConvertToE2m1(v);
}

template <Pairing kPairing, typename T>
__device__ __forceinline__ uint32_t Codes(T, const uint32_t* word, float factor) {
  if constexpr (NIBBLE_CONVERTS_E2M1) {
    return ConvertedCodes<kPairing>(T{}, word, factor);
  } else {
    return FastCodes<kPairing>(T{}, word, factor);
  }
}

// Out of line: outside of the shortcuts' ranges.
template <Pairing kPairing, typename T>
__device__ __noinline__ EncodedBlock EncodeSlowly(PackedBlock block, float outer_amax,
                                                  float bound) {
  float x[kBlockSize];
#pragma unroll
  for (int j = 0; j < kBlockSize / 2; ++j) {
    const float2 pair = Unpack(T{}, block.word[j]);
    x[FirstOf(kPairing, j)] = pair.x;
    x[SecondOf(kPairing, j)] = pair.y;
  }
  using E = Encoding<false, EncodeMethod::kRuntime>;
  EncodeParams params = {};
  params.bound = bound;
  return EncodeBlock<E>(x, BlockMagnitude(x), MakeOuter<E>(outer_amax, params), params, 0);
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_FAST_BLOCK_CUH_
