// One block of 16, held in registers, to its scale code and its 16 codes: the heart that row-wise,
// column-wise and grouped kernels share. A kernel
//
//   1. names its Encoding,
//   2. makes OuterScales once for each outer amax (tensor, row, column) with MakeOuter,
//   3. brings each block of the quantized copy into registers as float32 (after a rotation: rounded
//      to the input's type first), takes its BlockMagnitude,
//   4. calls EncodeBlock, or EncodeTileRow under tile_2d, and stores what they return.
//
// Bytes are those of the scalar CPU kernels. A NaN element encodes as code 7, the largest magnitude
// that its block's scale expresses; maxima ignore it, and a sum of errors that it enters lets sf6
// win. An infinite one is a magnitude like any other. Kernels report both through
// IsFiniteMagnitude.
#ifndef NIBBLE_KERNELS_CUDA_BLOCK_ENCODE_CUH_
#define NIBBLE_KERNELS_CUDA_BLOCK_ENCODE_CUH_

#include <cstdint>

#include "quant/numerics/block_encode.h"

namespace nibble {

// kFloat32Of: the values come from a float32 tensor, not from a bf16 or fp16 one.
template <bool kFloat32Of, EncodeMethod kMethodOf>
struct Encoding {
  static constexpr bool kFloat32 = kFloat32Of;
  static constexpr EncodeMethod kMethod = kMethodOf;
};

// A block's scale code and codes: element j of 0..7 is nibble j of word[0], of 8..15 of word[1].
// Stored as eight bytes, little endian, they are the packed block.
struct EncodedBlock {
  uint8_t scale;
  BlockCodes codes;
};

// What an outer amax decides: a few divisions. Any amax will do, the ordinary ones are fast.
template <typename E>
__device__ __forceinline__ OuterScales MakeOuter(float amax, const EncodeParams& params) {
  return MakeOuterScales<E::kFloat32>(amax, params.bound, params.path);
}

// The largest magnitude of a block; NaN where an element is NaN. Magnitudes compare as integers,
// NaN above infinity, so that those of several blocks join by the unsigned maximum of their bits.
__device__ __forceinline__ float BlockMagnitude(const float (&x)[kBlockSize]) {
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kBlockSize; ++i) largest = max(largest, FloatBits(x[i]) & 0x7FFFFFFFu);
  return FloatFromBits(largest);
}

// A tile's magnitude from that of its rows, which lie in lanes 0..15 or 16..31 of a warp.
__device__ __forceinline__ float TileMagnitude(float row_magnitude) {
  uint32_t bits = FloatBits(row_magnitude);
  const unsigned lanes = 0xFFFFu << (threadIdx.x & 16);
#pragma unroll
  for (int distance = kBlockSize / 2; distance > 0; distance /= 2) {
    bits = max(bits, __shfl_xor_sync(lanes, bits, distance));
  }
  return FloatFromBits(bits);
}

__device__ __forceinline__ bool IsFiniteMagnitude(float magnitude) {
  return magnitude <= kFloatMax;
}

namespace block_encode_internal {

// A block in memory, for functions that are not inlined: what is rare or slow in itself.
struct Values {
  float x[kBlockSize];
};

__device__ __forceinline__ Values ValuesOf(const float (&x)[kBlockSize]) {
  Values values;
#pragma unroll
  for (int i = 0; i < kBlockSize; ++i) values.x[i] = x[i];
  return values;
}

// Ignores NaN.
inline __device__ __noinline__ float AmaxOfNumbers(const Values& values) {
  float amax = 0.0f;
#pragma unroll 1
  for (int i = 0; i < kBlockSize; ++i) amax = Max(amax, Abs(values.x[i]));
  return amax;
}

inline __device__ __noinline__ float ErrorByDefinition(const Values& values, uint8_t scale,
                                                       const FourOverSixContext& context,
                                                       ErrorMetric metric, ErrorPath path) {
  return FourOverSixBlockError(values.x, scale, context, metric, path);
}

// Every rule, every rounding, every range.
inline __device__ __noinline__ BlockCodes CodesByDefinition(const Values& values, uint8_t scale,
                                                            const OuterScales& outer, Rule rule,
                                                            const EncodeParams& params,
                                                            int64_t first_element) {
  const float encode_scale = RuntimeBlockEncodeScale(scale, outer.context.global.decode_scale);
  const float decode_scale = CheckpointBlockDecodeScale(scale, outer.checkpoint_decode_scale);
  BlockCodes codes = {{0, 0}};
  PhiloxWords uniform = {};
#pragma unroll 1
  for (int i = 0; i < kBlockSize; ++i) {
    const float x = values.x[i];
    const float scaled =
        rule == Rule::kRuntime ? RuntimeScaled(x, encode_scale) : DivRn(x, decode_scale);
    uint32_t code;
    if (params.stochastic) {
      if (i % 4 == 0) {
        uniform = StochasticUniform31(params.seed, params.offset,
                                      static_cast<uint64_t>(first_element + i) / 4);
      }
      code = E2m1EncodeStochastic(scaled, uniform.word[i % 4]);
    } else {
      code = E2m1Encode(scaled);
    }
    codes.word[i / 8] |= code << (4 * (i % 8));
  }
  return codes;
}

// The codes under a scale. amax as BlockMagnitude gives it.
template <typename E, Rule kRule>
__device__ __forceinline__ BlockCodes Codes(const float (&x)[kBlockSize], float amax, uint8_t scale,
                                            const OuterScales& outer, const EncodeParams& params,
                                            int64_t first_element) {
  const BlockScaler<E::kFloat32, kRule> scaler(scale, outer);
  if (!outer.regular || !scaler.IsRegularQuotient(amax) || params.stochastic) {
    return CodesByDefinition(ValuesOf(x), scale, outer, kRule, params, first_element);
  }
  return EncodeCodes(x, scaler);
}

// Joins a value of a tile's 16 rows, one a lane, as a tree: the same bits in all lanes.
template <typename Join>
__device__ __forceinline__ float JoinTile(float value, const Join& join) {
  const unsigned lanes = 0xFFFFu << (threadIdx.x & 16);
#pragma unroll
  for (int distance = kBlockSize / 2; distance > 0; distance /= 2) {
    value = join(value, __shfl_xor_sync(lanes, value, distance));
  }
  return value;
}

// The largest magnitude without NaN, where `amax` may be one.
template <bool kTile>
__device__ __forceinline__ float AmaxWithoutNan(const float (&x)[kBlockSize], float amax) {
  if (amax <= kFloatMax) return amax;
  const float numbers = AmaxOfNumbers(ValuesOf(x));
  return kTile ? JoinTile(numbers, [](float a, float b) { return Max(a, b); }) : numbers;
}

// The winner of 4over6 and its codes. kTile: the 16 lanes are the rows of a tile, and amax is the
// tile's.
template <typename E, bool kTile>
__device__ __forceinline__ EncodedBlock EncodeFourOverSix(const float (&x)[kBlockSize], float amax,
                                                          const OuterScales& outer,
                                                          const EncodeParams& params,
                                                          int64_t first_element) {
  constexpr ErrorMetric kMetric = MetricOf(E::kMethod);
  const auto join = [](float a, float b) { return FourOverSixJoin(a, b, kMetric); };
  FourOverSixScales candidates;
  FourOverSixVerdict verdict = FourOverSixVerdict::kNear;
  BlockBytes indices;
  if (outer.regular && IsRegularChoice(amax)) {
    candidates = FourOverSixCandidates(amax, outer.context.global.encode_scale);
    const CandidateSum six = SumCandidate<E::kFloat32, kMetric>(x, candidates.sf6, outer);
    const CandidateSum four = SumCandidate<E::kFloat32, kMetric>(x, candidates.sf4, outer);
    const float error6 = kTile ? JoinTile(six.error, join) : six.error;
    const float error4 = kTile ? JoinTile(four.error, join) : four.error;
    verdict = JudgeFourOverSix<kMetric>(error6, error4, amax, kTile ? kBlockSize : 1);
    // Equal candidates (those of zeros, say) leave nothing to choose.
    if (candidates.sf4 == candidates.sf6) verdict = FourOverSixVerdict::kSix;
    const bool four_wins = verdict == FourOverSixVerdict::kFour;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      indices.word[i] = four_wins ? four.indices.word[i] : six.indices.word[i];
    }
  }
  const bool indices_are_codes =
      verdict != FourOverSixVerdict::kNear && params.rule == Rule::kRuntime && !params.stochastic;
  if (verdict == FourOverSixVerdict::kNear) {
    amax = AmaxWithoutNan<kTile>(x, amax);
    candidates = FourOverSixCandidates(amax, outer.context.global.encode_scale);
    verdict = FourOverSixVerdict::kSix;
    if (candidates.sf4 != candidates.sf6) {
      const Values values = ValuesOf(x);
      float error6 = ErrorByDefinition(values, candidates.sf6, outer.context, kMetric, params.path);
      float error4 = ErrorByDefinition(values, candidates.sf4, outer.context, kMetric, params.path);
      if (kTile) {
        error6 = JoinTile(error6, join);
        error4 = JoinTile(error4, join);
      }
      if (error4 < error6) verdict = FourOverSixVerdict::kFour;
    }
  }
  uint8_t scale = verdict == FourOverSixVerdict::kFour ? candidates.sf4 : candidates.sf6;
  if (indices_are_codes) {
    const BlockScaler<E::kFloat32, Rule::kRuntime> scaler(scale, outer);
    return {scale, JoinBlock(indices, RuntimeSignBytes(x, scaler))};
  }
  // A scale of 0 is legal at run time, never in a checkpoint.
  if (params.rule == Rule::kCheckpoint && scale == 0) {
    scale = CheckpointBlockScale(amax, outer.checkpoint_decode_scale);
  }
  return {scale, CodesByDefinition(ValuesOf(x), scale, outer, params.rule, params, first_element)};
}

template <typename E, bool kTile>
__device__ __forceinline__ EncodedBlock EncodePlain(const float (&x)[kBlockSize], float amax,
                                                    const OuterScales& outer,
                                                    const EncodeParams& params,
                                                    int64_t first_element, uint8_t given) {
  constexpr Rule kRule = E::kMethod == EncodeMethod::kRuntime ? Rule::kRuntime : Rule::kCheckpoint;
  uint8_t scale = given;
  if (given == 0) {
    const float numbers = AmaxWithoutNan<kTile>(x, amax);
    scale = kRule == Rule::kRuntime ? RuntimeBlockScale(numbers, outer.context.global.encode_scale)
                                    : CheckpointBlockScale(numbers, outer.checkpoint_decode_scale);
  }
  return {scale, Codes<E, kRule>(x, amax, scale, outer, params, first_element)};
}

}  // namespace block_encode_internal

// Encodes a 1x16 block. amax: BlockMagnitude(x). first_element: index of x[0] in the quantized copy
// (used by stochastic rounding). given: the scale to encode under, 1..126; 0: the block's own.
// Every lane of a warp calls it together; lanes without a block pass any values.
template <typename E>
__device__ __forceinline__ EncodedBlock EncodeBlock(const float (&x)[kBlockSize], float amax,
                                                    const OuterScales& outer,
                                                    const EncodeParams& params,
                                                    int64_t first_element, uint8_t given = 0) {
  using namespace block_encode_internal;
  if constexpr (IsFourOverSix(E::kMethod)) {
    return EncodeFourOverSix<E, false>(x, amax, outer, params, first_element);
  } else {
    return EncodePlain<E, false>(x, amax, outer, params, first_element, given);
  }
}

// Encodes a row of a 16x16 tile of the quantized copy. Lanes 0..15 hold one tile's rows in order,
// lanes 16..31 another's; amax is TileMagnitude. The scale comes out the same in a tile's 16 lanes.
// Every lane of a warp calls it together.
template <typename E>
__device__ __forceinline__ EncodedBlock EncodeTileRow(const float (&x)[kBlockSize], float amax,
                                                      const OuterScales& outer,
                                                      const EncodeParams& params,
                                                      int64_t first_element) {
  using namespace block_encode_internal;
  if constexpr (IsFourOverSix(E::kMethod)) {
    return EncodeFourOverSix<E, true>(x, amax, outer, params, first_element);
  } else {
    return EncodePlain<E, true>(x, amax, outer, params, first_element, /*given=*/0);
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_BLOCK_ENCODE_CUH_
