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

// kFloat32Of: the values come from a float32 tensor, not from a bf16 or fp16 one. kStochasticOf:
// rounding is stochastic; a kernel may leave that to EncodeParams, which is slower.
template <bool kFloat32Of, EncodeMethod kMethodOf, bool kStochasticOf = false>
struct Encoding {
  static constexpr bool kFloat32 = kFloat32Of;
  static constexpr EncodeMethod kMethod = kMethodOf;
  static constexpr bool kStochastic = kStochasticOf;
};

// A block's scale code and codes: element j of 0..7 is nibble j of word[0], of 8..15 of word[1].
// Stored as eight bytes, little endian, they are the packed block.
struct EncodedBlock {
  uint8_t scale;
  BlockCodes codes;
};

// The larger magnitude, with either sign; NaN where one is.
__device__ __forceinline__ float LargerOrNan(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(fabsf(a)), "f"(fabsf(b)));
  return larger;
}

// What an outer amax decides: a few divisions. Any amax will do, the ordinary ones are fast.
template <typename E>
__device__ __forceinline__ OuterScales MakeOuter(float amax, const EncodeParams& params) {
  return MakeOuterScales<E::kFloat32>(amax, params.bound, params.path);
}

// The largest magnitude of a block; NaN where an element is NaN.
__device__ __forceinline__ float BlockMagnitude(const float (&x)[kBlockSize]) {
  float largest = LargerOrNan(x[0], x[1]);
#pragma unroll
  for (int i = 2; i < kBlockSize; ++i) largest = LargerOrNan(largest, x[i]);
  return fabsf(largest);
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

// The codes under a scale: every range and every rounding, in little code.
template <typename E>
__device__ __forceinline__ BlockCodes SlowCodes(const float* x, uint32_t scale, Rule rule,
                                                const OuterScales& outer,
                                                const EncodeParams& params, int64_t first_element) {
  const uint8_t scale8 = static_cast<uint8_t>(scale);
  const float encode_scale = RuntimeBlockEncodeScale(scale8, outer.context.global.decode_scale);
  const float decode_scale = CheckpointBlockDecodeScale(scale8, outer.checkpoint_decode_scale);
  BlockCodes codes = {{0, 0}};
  PhiloxWords uniform = {};
#pragma unroll 1
  for (int i = 0; i < kBlockSize; ++i) {
    const float scaled =
        rule == Rule::kRuntime ? RuntimeScaled(x[i], encode_scale) : DivRn(x[i], decode_scale);
    uint32_t code;
    if (E::kStochastic || params.stochastic) {
      if (i % 4 == 0) {
        uniform = StochasticUniform31(params.seed, params.offset,
                                      static_cast<uint64_t>(first_element + i) / 4);
      }
      code = E2m1EncodeStochastic(scaled, uniform.word[0]);
      uniform = {{uniform.word[1], uniform.word[2], uniform.word[3], 0}};
    } else {
      code = E2m1Encode(scaled);
    }
    codes.word[1] = codes.word[1] >> 4 | code << 28;
    if (i == kBlockSize / 2 - 1) codes.word[0] = codes.word[1];
  }
  return codes;
}

// Every range. kTile: the 16 lanes are the rows of a tile, and amax is the tile's.
template <typename E, bool kTile>
__device__ __forceinline__ uint32_t SlowScale(const float* x, float amax, const OuterScales& outer,
                                              const EncodeParams& params) {
  if (!(amax <= kFloatMax)) {  // maxima ignore NaN
    amax = 0.0f;
#pragma unroll 1
    for (int i = 0; i < kBlockSize; ++i) amax = Max(amax, Abs(x[i]));
    if (kTile) amax = JoinTile(amax, [](float a, float b) { return Max(a, b); });
  }
  if constexpr (E::kMethod == EncodeMethod::kRuntime) {
    return RuntimeBlockScale(amax, outer.context.global.encode_scale);
  } else if constexpr (IsFourOverSix(E::kMethod)) {
    constexpr ErrorMetric kMetric = MetricOf(E::kMethod);
    const FourOverSixScales candidates =
        FourOverSixCandidates(amax, outer.context.global.encode_scale);
    uint32_t winner = candidates.sf6;
    if (candidates.sf4 != candidates.sf6) {
      const bool regular = outer.regular && IsZeroOrInRange(amax);
      float error[2];
#pragma unroll 1
      for (int i = 0; i < 2; ++i) {
        const uint8_t scale = i == 0 ? candidates.sf6 : candidates.sf4;
        const float own =
            regular ? RegularBlockError(x, scale, outer, kMetric, params.path)
                    : FourOverSixBlockError(x, scale, outer.context, kMetric, params.path);
        error[1] =
            kTile ? JoinTile(own, [](float a, float b) { return FourOverSixJoin(a, b, kMetric); })
                  : own;
        if (i == 0) error[0] = error[1];
      }
      if (error[1] < error[0]) winner = candidates.sf4;
    }
    // A scale of 0 is legal at run time, never in a checkpoint.
    if (params.rule == Rule::kRuntime || winner != 0) return winner;
  }
  return CheckpointBlockScale(amax, outer.checkpoint_decode_scale);
}

// Everything, in little code. given: the scale, or 0.
template <typename E, bool kTile>
__device__ __forceinline__ EncodedBlock EncodeSlowly(const float (&values)[kBlockSize], float amax,
                                                     const OuterScales& outer,
                                                     const EncodeParams& params,
                                                     int64_t first_element, uint32_t given) {
  float x[kBlockSize];  // in memory, since loops index it
#pragma unroll
  for (int i = 0; i < kBlockSize; ++i) x[i] = values[i];
  const uint32_t scale = given != 0 ? given : SlowScale<E, kTile>(x, amax, outer, params);
  const Rule rule = E::kMethod == EncodeMethod::kRuntime      ? Rule::kRuntime
                    : E::kMethod == EncodeMethod::kCheckpoint ? Rule::kCheckpoint
                                                              : params.rule;
  return {static_cast<uint8_t>(scale), SlowCodes<E>(x, scale, rule, outer, params, first_element)};
}

// Encodes what is in the range of the shortcuts, and by far the most of what comes; returns whether
// it did. signs: ValueSignBytes(x), where kSignsKnown says that they are at hand. kTile: as above;
// all of a tile's lanes return the same.
template <typename E, bool kTile, bool kSignsKnown>
__device__ __forceinline__ bool EncodeFast(const float (&x)[kBlockSize], const BlockBytes& signs,
                                           float amax, const OuterScales& outer,
                                           const EncodeParams& params, int64_t first_element,
                                           uint32_t given, EncodedBlock& out) {
  constexpr bool kUseSigns = kSignsKnown && !E::kFloat32;
  if (!outer.regular || (!E::kStochastic && params.stochastic)) return false;
  if constexpr (IsFourOverSix(E::kMethod)) {
    constexpr ErrorMetric kMetric = MetricOf(E::kMethod);
    if (E::kStochastic || params.rule == Rule::kCheckpoint || !IsZeroOrInRange(amax)) return false;
    const FourOverSixScales candidates = RegularCandidates(amax, outer);
    const BlockScaler<E::kFloat32, Rule::kRuntime> scaler6(candidates.sf6, outer);
    const BlockScaler<E::kFloat32, Rule::kRuntime> scaler4(candidates.sf4, outer);
    if (!scaler6.IsUnsaturated(amax) || !scaler4.IsUnsaturated(amax)) return false;
    CandidateSums sums = SumCandidates<E::kFloat32, kMetric>(x, scaler6, scaler4,
                                                             CandidateWorth(candidates.sf6, outer),
                                                             CandidateWorth(candidates.sf4, outer));
    if constexpr (kTile) {
      const auto join = [](float a, float b) { return FourOverSixJoin(a, b, kMetric); };
      sums.error6 = JoinTile(sums.error6, join);
      sums.error4 = JoinTile(sums.error4, join);
    }
    const FourOverSixVerdict verdict =
        JudgeFourOverSix<kMetric>(sums.error6, sums.error4, amax, kTile ? kBlockSize : 1);
    // Equal candidates (those of zeros, say) leave nothing to choose.
    if (verdict == FourOverSixVerdict::kNear && candidates.sf4 != candidates.sf6) return false;
    const bool four = verdict == FourOverSixVerdict::kFour;
    BlockBytes indices;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      indices.word[i] = four ? sums.indices4.word[i] : sums.indices6.word[i];
    }
    out.scale = four ? candidates.sf4 : candidates.sf6;
    if constexpr (kUseSigns) {
      out.codes = JoinBlock(indices, signs);
    } else if constexpr (E::kFloat32) {
      out.codes = JoinBlock(indices, ScaledSignBytes(x, four ? scaler4 : scaler6));
    } else {
      out.codes = JoinBlock(indices, ValueSignBytes(x));
    }
  } else {
    constexpr Rule kRule =
        E::kMethod == EncodeMethod::kRuntime ? Rule::kRuntime : Rule::kCheckpoint;
    uint32_t scale = given;
    if (kRule == Rule::kRuntime) {
      scale = RegularRuntimeScale(amax, outer);
    } else if (given == 0) {
      if (!IsZeroOrInRange(amax)) return false;
      scale = RegularCheckpointScale(amax, outer);
    }
    const BlockScaler<E::kFloat32, kRule> scaler(scale, outer);
    if (kRule == Rule::kRuntime ? !scaler.IsUnsaturated(amax) : !scaler.IsRegular(amax)) {
      return false;
    }
    out.scale = static_cast<uint8_t>(scale);
    if constexpr (E::kStochastic) {
      out.codes = EncodeCodesStochastic(x, scaler, params.seed, params.offset, first_element);
    } else {
      out.codes = EncodeCodes<E::kFloat32, kRule, kUseSigns>(x, scaler, signs);
    }
  }
  return true;
}

// The same as a call: by value, since what a reference points to would live in memory everywhere.
struct Values {
  float x[kBlockSize];
};
template <typename E, bool kTile>
__device__ __noinline__ EncodedBlock EncodeOutOfLine(Values values, float amax, OuterScales outer,
                                                     EncodeParams params, int64_t first_element,
                                                     uint32_t given) {
  return EncodeSlowly<E, kTile>(values.x, amax, outer, params, first_element, given);
}

template <typename E, bool kTile>
__device__ __forceinline__ EncodedBlock Encode(const float (&x)[kBlockSize], float amax,
                                               const OuterScales& outer, const EncodeParams& params,
                                               int64_t first_element, uint32_t given) {
  EncodedBlock block;
  if (!EncodeFast<E, kTile, false>(x, {}, amax, outer, params, first_element, given, block)) {
    Values values;
#pragma unroll
    for (int i = 0; i < kBlockSize; ++i) values.x[i] = x[i];
    block = EncodeOutOfLine<E, kTile>(values, amax, outer, params, first_element, given);
  }
  return block;
}

}  // namespace block_encode_internal

// Encodes a 1x16 block. amax: BlockMagnitude(x). first_element: index of x[0] in the quantized copy
// (used by stochastic rounding). given: under the checkpoint rule, the scale to encode under,
// 1..126; 0: the block's own. Every lane of a warp calls it together; lanes without a block pass
// any values.
template <typename E>
__device__ __forceinline__ EncodedBlock EncodeBlock(const float (&x)[kBlockSize], float amax,
                                                    const OuterScales& outer,
                                                    const EncodeParams& params,
                                                    int64_t first_element, uint8_t given = 0) {
  return block_encode_internal::Encode<E, false>(x, amax, outer, params, first_element, given);
}

// Encodes a row of a 16x16 tile of the quantized copy. Lanes 0..15 hold one tile's rows in order,
// lanes 16..31 another's; amax is TileMagnitude. The scale comes out the same in a tile's 16 lanes.
// Every lane of a warp calls it together.
template <typename E>
__device__ __forceinline__ EncodedBlock EncodeTileRow(const float (&x)[kBlockSize], float amax,
                                                      const OuterScales& outer,
                                                      const EncodeParams& params,
                                                      int64_t first_element) {
  return block_encode_internal::Encode<E, true>(x, amax, outer, params, first_element, 0);
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_BLOCK_ENCODE_CUH_
