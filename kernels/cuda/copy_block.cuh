// Two packed blocks by the plain runtime rule, with the bytes of fast_block.cuh.
#ifndef NIBBLE_KERNELS_CUDA_COPY_BLOCK_CUH_
#define NIBBLE_KERNELS_CUDA_COPY_BLOCK_CUH_

#include <cstdint>

#include "kernels/cuda/block_load.cuh"
#include "kernels/cuda/fast_block.cuh"

namespace nibble {

// The largest magnitudes of the elements at even and at odd places, with any sign; NaN where one of
// them is NaN.
template <typename T>
__device__ __forceinline__ uint32_t LargestPair(T, const PackedBlock& block) {
  uint32_t largest[kBlockSize / 2];
#pragma unroll
  for (int j = 0; j < kBlockSize / 2; ++j) largest[j] = block.word[j];
#pragma unroll
  for (int distance = kBlockSize / 4; distance > 0; distance /= 2) {
#pragma unroll
    for (int j = 0; j < distance; ++j) {
      largest[j] = MaxOrNan(T{}, largest[j], largest[j + distance]);
    }
  }
  return largest[0];
}

// The largest magnitude; NaN where an element is NaN.
template <typename T>
__device__ __forceinline__ float LargestOf(T, const PackedBlock& block) {
  const uint32_t pair = LargestPair(T{}, block);
  return fabsf(Unpack(T{}, MaxOrNan(T{}, pair, pair >> 16)).x);
}

// Two blocks, together: each is a chain of operations that wait for one another. amax: LargestOf.
// outer_amax(i): what outers[i] was made of.
template <Pairing kPairing, typename T, typename OuterAmax>
__device__ __forceinline__ void EncodeTwo(T, PackedBlock (&blocks)[2], const float (&amax)[2],
                                          const FastOuter (&outers)[2], float bound,
                                          const OuterAmax& outer_amax, EncodedBlock (&encoded)[2]) {
  bool regular[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t scale = E4m3EncodeMagnitude(MulRn(amax[i], outers[i].factor));
    // Of a scale or an outer scale of 0 only zeros come through the test below: the least magnitude
    // of either type is 2^-133.
    const float product = fmaxf(MulRn(E4m3DecodeMagnitude(scale), outers[i].decode), 0x1p-126f);
    const float factor = ReciprocalInRange(product);
    regular[i] = MulRn(amax[i], factor) < 7 * kCodeUnit;
#pragma unroll
    for (int j = 0; j < kBlockSize / 2; ++j) {
      blocks[i].word[j] = AddZero(T{}, blocks[i].word[j]);  // code 0 has no sign
    }
    encoded[i] = {static_cast<uint8_t>(scale),
                  {{Codes<kPairing>(T{}, blocks[i].word, factor),
                    Codes<kPairing>(T{}, blocks[i].word + 4, factor)}}};
  }
  if (regular[0] && regular[1]) return;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (!regular[i]) encoded[i] = EncodeSlowly<kPairing, T>(blocks[i], outer_amax(i), bound);
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_COPY_BLOCK_CUH_
