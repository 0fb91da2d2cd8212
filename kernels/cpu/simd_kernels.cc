// The CPU kernels in vectors: one lane is one block, so that every sum runs in the reference's
// order and no result depends on the number of lanes. A group of blocks is first transposed into a
// staging array, element i of all of them side by side. Compiled once for each instruction set.
#include <algorithm>
#include <array>
#include <vector>

#include "kernels/cpu/cpu_kernels.h"
#include "quant/numerics/hessian_feedback.h"
#include "quant/numerics/hessian_sum.h"
#include "quant/numerics/hessian_sweep.h"
#include "quant/numerics/philox.h"
#include "quant/numerics/scale_rules.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/simd_kernels.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes: wider vectors would only lengthen the tails.
using DF = hn::CappedTag<float, 16>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;
using D8 = hn::Rebind<uint8_t, DI>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;
using VU = hn::Vec<DU>;
using MF = hn::Mask<DF>;
constexpr DF df;
constexpr DI di;
constexpr DU du;
constexpr size_t kMaxLanes = 16;

HWY_INLINE int64_t Lanes() { return static_cast<int64_t>(hn::Lanes(df)); }

HWY_INLINE VF Bits(VU v) { return hn::BitCast(df, v); }
HWY_INLINE VU Bits(VF v) { return hn::BitCast(du, v); }

// --- The numerics of quant/numerics, a block a lane ----------------------------------------------

// a * b + c, rounded once, on every instruction set.
HWY_INLINE VF Fma(VF a, VF b, VF c) {
#if HWY_NATIVE_FMA
  return hn::MulAdd(a, b, c);
#else
  HWY_ALIGN float as[kMaxLanes], bs[kMaxLanes], cs[kMaxLanes];
  hn::Store(a, df, as);
  hn::Store(b, df, bs);
  hn::Store(c, df, cs);
  for (int64_t i = 0; i < Lanes(); ++i) cs[i] = FmaRn(as[i], bs[i], cs[i]);
  return hn::Load(df, cs);
#endif
}

HWY_INLINE VF NegFma(VF a, VF b, VF c) { return Fma(hn::Neg(a), b, c); }

// E2M1 magnitude and, in the low bits, its index. `v` in [0, 6 + an ulp]: adding 1.5 * 2^(22 + e),
// e the exponent of v or 0, rounds v to the grid's step at v, ties to even.
struct Rounded {
  VF magnitude;
  VU sum, exponent;  // of the addition
  HWY_INLINE VU index() const {
    // The sum's last bits are magnitude / step; each binade above the first adds two indices.
    const VU steps = hn::And(sum, hn::Set(du, 0xFu));
    return hn::Sub(hn::Add(steps, hn::ShiftRight<22>(exponent)), hn::Set(du, 254u));
  }
};

HWY_INLINE Rounded RoundE2m1(VF v) {
  const VU exponent = hn::Max(hn::And(Bits(v), hn::Set(du, 0x7F800000u)), hn::Set(du, 0x3F800000u));
  const VF magic = Bits(hn::Add(exponent, hn::Set(du, (22u << 23) | 0x400000u)));
  const VF sum = hn::Add(v, magic);
  return {hn::Sub(sum, magic), Bits(sum), exponent};
}

// The magnitude alone, ties to either side, in three operations: 2^22 * max(v, 1) has its last
// place at the grid's step at v, so subtracting it from v rounds v to that step, and adding it back
// is exact. (Just above 1, since below 2^22 the last place would be half a step.)
HWY_INLINE VF RoundE2m1EitherWay(VF v) {
#if HWY_NATIVE_FMA
  const VF m = hn::Max(v, hn::Set(df, 1.0f + 0x1p-22f));
  const VF shift = hn::Set(df, 0x1p22f);
  return hn::MulAdd(m, shift, hn::NegMulAdd(m, shift, v));
#else
  return RoundE2m1(v).magnitude;
#endif
}

// Index of v in [0, 6] rounded stochastically.
HWY_INLINE VU StochasticIndex(VF v, VI uniform31) {
  const VU exponent = hn::Max(hn::And(Bits(v), hn::Set(du, 0x7F800000u)), hn::Set(du, 0x3F800000u));
  const VF inverse_step = Bits(hn::Sub(hn::Set(du, 255u << 23), exponent));  // 2, 1 or 0.5
  const VF steps = hn::Mul(v, inverse_step);
  const VI low = hn::ConvertTo(di, steps);
  const VF up = hn::Sub(steps, hn::ConvertTo(df, low));
  const VI threshold = hn::ConvertTo(di, hn::Mul(up, hn::Set(df, 0x1p31f)));
  const VI goes_up = hn::VecFromMask(di, hn::Lt(uniform31, threshold));  // -1 where it does
  const VU rounded = hn::BitCast(du, hn::Sub(low, goes_up));
  return hn::Sub(hn::Add(rounded, hn::ShiftRight<22>(exponent)), hn::Set(du, 254u));
}

// For 0 <= x <= 448.
HWY_INLINE VU EncodeE4m3(VF x) {
  const VU bits = Bits(x);
  const VU odd = hn::And(hn::ShiftRight<20>(bits), hn::Set(du, 1u));
  const VU normal =
      hn::ShiftRight<20>(hn::Add(hn::Add(bits, odd), hn::Set(du, 0x7FFFFu - 0x3C000000u)));
  const VU subnormal = hn::Sub(Bits(hn::Add(x, hn::Set(df, 0x1p14f))), hn::Set(du, 0x46800000u));
  return hn::IfThenElse(hn::RebindMask(du, hn::Lt(x, hn::Set(df, 0x1p-6f))), subnormal, normal);
}

HWY_INLINE VF DecodeE4m3(VU code) {
  return hn::Mul(Bits(hn::ShiftLeft<20>(code)), hn::Set(df, 0x1p120f));
}

HWY_INLINE VU CheckpointScale(VF block_amax, VF global_decode_scale) {
  VF ratio = hn::Div(block_amax, hn::Mul(hn::Set(df, kE2m1Max), global_decode_scale));
  ratio = hn::IfThenElse(hn::Eq(ratio, hn::Zero(df)), hn::Set(df, 1.0f), ratio);
  return EncodeE4m3(
      hn::Max(hn::Min(ratio, hn::Set(df, kE4m3Max)), hn::Set(df, kE4m3SmallestSubnormal)));
}

// --- Staging ------------------------------------------------------------------------------------

// Sixteen rows of Lanes() values.
struct Stage {
  HWY_ALIGN float values[kBlockSize * kMaxLanes];
  HWY_INLINE VF operator[](int i) const { return hn::Load(df, values + i * Lanes()); }
  HWY_INLINE void Set(int i, VF v) { hn::Store(v, df, values + i * Lanes()); }
};

HWY_INLINE VF FloatFromF16Bits(VU bits) {
  const VU sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(du, 0x8000u)));
  const VU magnitude = hn::ShiftLeft<13>(hn::And(bits, hn::Set(du, 0x7FFFu)));
  return Bits(hn::Or(Bits(hn::Mul(Bits(magnitude), hn::Set(df, 0x1p112f))), sign));
}

// Loads `lanes` blocks that lie `stride` elements apart; the lanes beyond are zero.
HWY_INLINE void LoadBlocks(const MatrixView& x, int64_t first_element, int64_t stride,
                           int64_t lanes, Stage& stage) {
  const int bytes = x.dtype == DType::kF32 ? 4 : 2;
  const char* base = static_cast<const char*>(x.data) + first_element * bytes;
  const bool aligned = reinterpret_cast<uintptr_t>(base) % 4 == 0;
  const int64_t word_stride = stride * bytes / 4;
  if (lanes < Lanes() || !aligned || word_stride * Lanes() > (int64_t{1} << 30)) {
    std::fill_n(stage.values, kBlockSize * Lanes(), 0.0f);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      for (int i = 0; i < kBlockSize; ++i) {
        stage.values[i * Lanes() + lane] =
            LoadElement(x.dtype, x.data, first_element + lane * stride + i);
      }
    }
    return;
  }
  const VI lane_offset = hn::Mul(hn::Iota(di, 0), hn::Set(di, static_cast<int32_t>(word_stride)));
  if (x.dtype == DType::kF32) {
    const float* words = reinterpret_cast<const float*>(base);
    for (int i = 0; i < kBlockSize; ++i) stage.Set(i, hn::GatherIndex(df, words + i, lane_offset));
    return;
  }
  const auto set_pair = [&](int i, VU pair) HWY_ATTR {
    if (x.dtype == DType::kBf16) {
      stage.Set(i, Bits(hn::ShiftLeft<16>(pair)));
      stage.Set(i + 1, Bits(hn::And(pair, hn::Set(du, 0xFFFF0000u))));
    } else {
      stage.Set(i, FloatFromF16Bits(pair));
      stage.Set(i + 1, FloatFromF16Bits(hn::ShiftRight<16>(pair)));
    }
  };
#if HWY_TARGET != HWY_SCALAR
  if (stride == kBlockSize) {
    // Neighbours: a block is 8 words of two elements. Far cheaper than gathering.
    const uint32_t* words = reinterpret_cast<const uint32_t*>(base);
    VU low[4], high[4];
    hn::LoadInterleaved4(du, words, low[0], low[1], low[2], low[3]);
    hn::LoadInterleaved4(du, words + 4 * Lanes(), high[0], high[1], high[2], high[3]);
    for (int j = 0; j < 4; ++j) {
      set_pair(2 * j, hn::ConcatEven(du, high[j], low[j]));
      set_pair(2 * j + 8, hn::ConcatOdd(du, high[j], low[j]));
    }
    return;
  }
#endif
  const int32_t* words = reinterpret_cast<const int32_t*>(base);
  for (int i = 0; i < kBlockSize; i += 2) {
    set_pair(i, hn::BitCast(du, hn::GatherIndex(di, words + i / 2, lane_offset)));
  }
}

// Takes the signs off and returns the largest magnitudes.
HWY_INLINE VF TakeMagnitudes(Stage& stage) {
  VF amax = hn::Zero(df);
  for (int i = 0; i < kBlockSize; ++i) {
    const VF a = hn::Abs(stage[i]);
    stage.Set(i, a);
    amax = hn::Max(amax, a);
  }
  return amax;
}

HWY_INLINE VF Amax(const Stage& stage) {
  VF amax = hn::Zero(df);
  for (int i = 0; i < kBlockSize; ++i) amax = hn::Max(amax, hn::Abs(stage[i]));
  return amax;
}

// Writes the low byte of the first `lanes` lanes.
HWY_INLINE void StoreBytes(VU v, int64_t lanes, uint8_t* out) {
  HWY_ALIGN uint8_t bytes[kMaxLanes];
  hn::Store(hn::DemoteTo(D8(), hn::BitCast(di, v)), D8(), bytes);
  std::memcpy(out, bytes, lanes);
}

HWY_INLINE void StoreFloats(VF v, int64_t lanes, float* out) {
  HWY_ALIGN float values[kMaxLanes];
  hn::Store(v, df, values);
  std::memcpy(out, values, lanes * sizeof(float));
}

// --- Encoding -----------------------------------------------------------------------------------

// Everything that one outer amax decides, see scalar_kernels.cc.
struct Outer {
  VF encode_scale, decode_scale, checkpoint_decode_scale, amax, bound6;

  HWY_INLINE Outer(float outer_amax, const QuantizeParams& params) {
    const float bound = static_cast<float>(params.e4m3_max);
    const GlobalScale global = RuntimeGlobalScale(outer_amax, bound);
    encode_scale = hn::Set(df, global.encode_scale);
    decode_scale = hn::Set(df, global.decode_scale);
    checkpoint_decode_scale = hn::Set(df, CheckpointGlobalDecodeScale(outer_amax, bound));
    amax = hn::Set(df, outer_amax);
    bound6 = hn::Set(df, kE2m1Max * bound);
  }
};

HWY_INLINE VF BlockEncodeScale(VU scale, const Outer& outer) {
  const VF inverse = hn::Div(hn::Set(df, 1.0f), hn::Mul(DecodeE4m3(scale), outer.decode_scale));
  return hn::Min(inverse, hn::Set(df, kFloatMax));
}

template <ErrorMetric kMetric>
HWY_INLINE VF Join(VF a, VF b) {
  return kMetric == ErrorMetric::kAbsMax ? hn::Max(a, b) : hn::Add(a, b);
}

// Magnitudes stand for the signed values: d changes sign with x, and only |d| and d * d count.
template <ErrorMetric kMetric, ErrorPath kPath>
HWY_INLINE VF BlockError(const Stage& x, VU scale, const Outer& outer) {
  const VF encode_scale = BlockEncodeScale(scale, outer);
  const VF decoded = DecodeE4m3(scale);
  VF error = hn::Zero(df);
  for (int i = 0; i < kBlockSize; ++i) {
    const VF a = hn::Abs(x[i]);
    const VF scaled = hn::Min(hn::Mul(a, encode_scale), hn::Set(df, kE2m1Max));
    const VF q_scale = hn::Mul(RoundE2m1(scaled).magnitude, decoded);  // exact
    VF d;
    if constexpr (kPath == ErrorPath::kFast) {
      d = hn::Sub(q_scale, hn::Mul(a, outer.encode_scale));
    } else {
      d = hn::Sub(hn::Div(hn::Mul(q_scale, outer.amax), outer.bound6), a);
    }
    error = Join<kMetric>(error, kMetric == ErrorMetric::kMse ? hn::Mul(d, d) : hn::Abs(d));
  }
  return error;
}

struct Candidates {
  VU sf6, sf4;
};

HWY_INLINE Candidates FourOverSixScales(VF block_amax, const Outer& outer) {
  const VF base = hn::Mul(hn::Div(block_amax, hn::Set(df, 6.0f)), outer.encode_scale);
  const VF largest = hn::Set(df, kE4m3Max);
  return {EncodeE4m3(hn::Min(base, largest)),
          EncodeE4m3(hn::Min(hn::Mul(base, hn::Set(df, 1.5f)), largest))};
}

HWY_INLINE VU ChooseFourOverSix(const Candidates& c, VF error6, VF error4, VF block_amax,
                                const Outer& outer, Rule rule) {
  VU scale = hn::IfThenElse(hn::RebindMask(du, hn::Lt(error4, error6)), c.sf4, c.sf6);
  if (rule == Rule::kCheckpoint) {
    const VU stored = CheckpointScale(block_amax, outer.checkpoint_decode_scale);
    scale = hn::IfThenElse(hn::Eq(scale, hn::Zero(du)), stored, scale);
  }
  return scale;
}

HWY_INLINE VU PlainScale(VF block_amax, const Outer& outer, Rule rule) {
  if (rule == Rule::kCheckpoint) return CheckpointScale(block_amax, outer.checkpoint_decode_scale);
  const VF factor = hn::Mul(outer.encode_scale, hn::Set(df, 1.0f / 6.0f));
  return EncodeE4m3(hn::Min(hn::Mul(block_amax, factor), hn::Set(df, kE4m3Max)));
}

// The 31-bit uniforms of `lanes` blocks whose first elements lie 16 apart.
HWY_INLINE void FillUniforms(const StochasticRounding& stochastic, int64_t first_block,
                             int64_t lanes, int32_t* uniforms) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    for (int quad = 0; quad < kBlockSize / 4; ++quad) {
      const PhiloxWords words =
          StochasticUniform31(stochastic.seed, stochastic.offset,
                              static_cast<uint64_t>((first_block + lane) * 4 + quad));
      for (int i = 0; i < 4; ++i) {
        uniforms[(4 * quad + i) * Lanes() + lane] = static_cast<int32_t>(words.word[i]);
      }
    }
  }
}

// Encodes a group of consecutive blocks and writes their packed bytes.
template <Rule kRule, bool kStochastic>
HWY_INLINE void EncodeGroupAs(const Stage& x, VU scale, const Outer& outer,
                              const QuantizeParams& params, int64_t first_block, int64_t lanes,
                              uint8_t* packed) {
  HWY_ALIGN int32_t uniforms[kStochastic ? kBlockSize * kMaxLanes : 1];
  if constexpr (kStochastic) {
    std::fill_n(uniforms, kBlockSize * Lanes(), 0);
    FillUniforms(*params.stochastic, first_block, lanes, uniforms);
  }
  const VF factor = kRule == Rule::kRuntime
                        ? BlockEncodeScale(scale, outer)
                        : hn::Max(hn::Mul(DecodeE4m3(scale), outer.checkpoint_decode_scale),
                                  hn::Set(df, 0x1p-149f));
  VU words[2];
  for (int half = 0; half < 2; ++half) {
    VU word = hn::Zero(du);
    for (int j = 7; j >= 0; --j) {
      const int i = half * 8 + j;
      const VF scaled = kRule == Rule::kRuntime ? hn::Mul(x[i], factor) : hn::Div(x[i], factor);
      const VF magnitude = hn::Min(hn::Abs(scaled), hn::Set(df, kE2m1Max));
      VU index;
      if constexpr (kStochastic) {
        index = StochasticIndex(magnitude, hn::Load(di, uniforms + i * Lanes()));
      } else {
        index = RoundE2m1(magnitude).index();
      }
      const VU negative =
          hn::And(Bits(hn::VecFromMask(df, hn::Lt(scaled, hn::Zero(df)))), hn::Set(du, 8u));
      word = hn::Or(hn::ShiftLeft<4>(word), hn::Or(index, negative));
    }
    words[half] = word;
  }
  HWY_ALIGN uint32_t bytes[2 * kMaxLanes];
  hn::StoreInterleaved2(words[0], words[1], du, bytes);
  std::memcpy(packed + first_block * 8, bytes, lanes * 8);
}

HWY_INLINE void EncodeGroup(const Stage& x, VU scale, const Outer& outer,
                            const QuantizeParams& params, int64_t first_block, int64_t lanes,
                            uint8_t* packed) {
  if (params.rule == Rule::kRuntime) {
    if (params.stochastic) {
      EncodeGroupAs<Rule::kRuntime, true>(x, scale, outer, params, first_block, lanes, packed);
    } else {
      EncodeGroupAs<Rule::kRuntime, false>(x, scale, outer, params, first_block, lanes, packed);
    }
  } else {
    if (params.stochastic) {
      EncodeGroupAs<Rule::kCheckpoint, true>(x, scale, outer, params, first_block, lanes, packed);
    } else {
      EncodeGroupAs<Rule::kCheckpoint, false>(x, scale, outer, params, first_block, lanes, packed);
    }
  }
}

// Calls body(std::integral_constant<metric>, std::integral_constant<path>).
template <typename Body>
HWY_INLINE void WithFourOverSix(const FourOverSix& choice, const Body& body) {
  const auto with_metric = [&](auto metric) HWY_ATTR {
    if (choice.path == ErrorPath::kFast) {
      body(metric, std::integral_constant<ErrorPath, ErrorPath::kFast>());
    } else {
      body(metric, std::integral_constant<ErrorPath, ErrorPath::kStrict>());
    }
  };
  switch (choice.metric) {
    case ErrorMetric::kMae:
      return with_metric(std::integral_constant<ErrorMetric, ErrorMetric::kMae>());
    case ErrorMetric::kMse:
      return with_metric(std::integral_constant<ErrorMetric, ErrorMetric::kMse>());
    case ErrorMetric::kAbsMax:
      return with_metric(std::integral_constant<ErrorMetric, ErrorMetric::kAbsMax>());
  }
}

// Blocks [begin, end) under one outer amax.
void EncodeRun(const EncodeJob& job, const Outer& outer, int64_t begin, int64_t end) {
  const QuantizeParams& params = *job.params;
  for (int64_t b = begin; b < end; b += Lanes()) {
    const int64_t lanes = std::min(Lanes(), end - b);
    Stage x;
    LoadBlocks(job.x, b * kBlockSize, kBlockSize, lanes, x);
    VU scale;
    if (job.given_scales) {
      HWY_ALIGN uint8_t given[kMaxLanes] = {};
      std::memcpy(given, job.given_scales + b, lanes);
      scale = hn::BitCast(du, hn::PromoteTo(di, hn::Load(D8(), given)));
    } else if (params.four_over_six) {
      const VF block_amax = Amax(x);
      const Candidates candidates = FourOverSixScales(block_amax, outer);
      WithFourOverSix(*params.four_over_six, [&](auto metric, auto path) HWY_ATTR {
        const VF error6 = BlockError<metric(), path()>(x, candidates.sf6, outer);
        const VF error4 = BlockError<metric(), path()>(x, candidates.sf4, outer);
        scale = ChooseFourOverSix(candidates, error6, error4, block_amax, outer, params.rule);
      });
    } else {
      scale = PlainScale(Amax(x), outer, params.rule);
    }
    StoreBytes(scale, lanes, job.scale + b);
    EncodeGroup(x, scale, outer, params, b, lanes, job.packed);
  }
}

void EncodeBlocks(const EncodeJob& job, int64_t begin, int64_t end) {
  if (job.params->scheme != Scheme::kPerToken) {
    EncodeRun(job, Outer(job.amax[0], *job.params), begin, end);
    return;
  }
  const int64_t blocks_per_row = job.x.cols / kBlockSize;
  while (begin < end) {
    const int64_t row = begin / blocks_per_row;
    const int64_t row_end = std::min(end, (row + 1) * blocks_per_row);
    EncodeRun(job, Outer(job.amax[row], *job.params), begin, row_end);
    begin = row_end;
  }
}

void EncodeTiles(const EncodeJob& job, int64_t begin, int64_t end) {
  const QuantizeParams& params = *job.params;
  const Outer outer(job.amax[0], params);
  const int64_t tiles_per_row = job.x.cols / kBlockSize;
  while (begin < end) {
    // Neighbouring tiles of one band, a lane each.
    const int64_t band = begin / tiles_per_row;
    const int64_t lanes = std::min({Lanes(), end - begin, (band + 1) * tiles_per_row - begin});
    const int64_t first = band * kBlockSize * tiles_per_row + begin % tiles_per_row;
    Stage x[kBlockSize];
    VF tile_amax = hn::Zero(df);
    for (int r = 0; r < kBlockSize; ++r) {
      LoadBlocks(job.x, (first + r * tiles_per_row) * kBlockSize, kBlockSize, lanes, x[r]);
      tile_amax = hn::Max(tile_amax, Amax(x[r]));
    }
    VU scale;
    if (params.four_over_six) {
      const Candidates candidates = FourOverSixScales(tile_amax, outer);
      WithFourOverSix(*params.four_over_six, [&](auto metric, auto path) HWY_ATTR {
        const auto tile_error = [&](VU candidate) HWY_ATTR {
          Stage errors;
          for (int r = 0; r < kBlockSize; ++r) {
            errors.Set(r, BlockError<metric(), path()>(x[r], candidate, outer));
          }
          for (int half = kBlockSize / 2; half > 0; half /= 2) {
            for (int r = 0; r < half; ++r) {
              errors.Set(r, Join<metric()>(errors[r], errors[r + half]));
            }
          }
          return errors[0];
        };
        const VF error6 = tile_error(candidates.sf6);
        const VF error4 = tile_error(candidates.sf4);
        scale = ChooseFourOverSix(candidates, error6, error4, tile_amax, outer, params.rule);
      });
    } else {
      scale = PlainScale(tile_amax, outer, params.rule);
    }
    for (int r = 0; r < kBlockSize; ++r) {
      const int64_t b = first + r * tiles_per_row;
      StoreBytes(scale, lanes, job.scale + b);
      EncodeGroup(x[r], scale, outer, params, b, lanes, job.packed);
    }
    begin += lanes;
  }
}

// --- Amax ---------------------------------------------------------------------------------------

template <typename T>
uint32_t MaxBits(const void* data, int64_t count, T mask) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const T* p = static_cast<const T*>(data);
  auto largest0 = hn::Zero(d), largest1 = hn::Zero(d);
  const auto magnitude = hn::Set(d, mask);
  int64_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    largest0 = hn::Max(largest0, hn::And(hn::LoadU(d, p + i), magnitude));
    largest1 = hn::Max(largest1, hn::And(hn::LoadU(d, p + i + lanes), magnitude));
  }
  HWY_ALIGN T parts[hn::MaxLanes(d)];
  hn::Store(hn::Max(largest0, largest1), d, parts);
  T largest = *std::max_element(parts, parts + lanes);
  for (; i < count; ++i) largest = std::max<T>(largest, p[i] & mask);
  return largest;
}

uint32_t MaxMagnitude(DType dtype, const void* data, int64_t count) {
  // Signed types: an unsigned maximum is slow before SSE4, and the sign is off anyway.
  if (dtype == DType::kF32) return MaxBits<int32_t>(data, count, 0x7FFFFFFF);
  return MaxBits<int16_t>(data, count, 0x7FFF);
}

#if HWY_TARGET != HWY_SCALAR
// The largest magnitude of each four consecutive words, which hold one element or two.
template <bool kWide>
HWY_INLINE VI LargestOf4Words(const int32_t* words) {
  VI v[4];
  hn::LoadInterleaved4(di, words, v[0], v[1], v[2], v[3]);
  if constexpr (kWide) {
    for (VI& word : v) word = hn::And(word, hn::Set(di, 0x7FFFFFFF));
    return hn::Max(hn::Max(v[0], v[1]), hn::Max(v[2], v[3]));
  } else {
    const hn::Repartition<int16_t, DI> d16;
    const auto magnitude = hn::Set(d16, 0x7FFF);
    const auto halves = [&](VI word)
                            HWY_ATTR { return hn::And(hn::BitCast(d16, word), magnitude); };
    const VI largest = hn::BitCast(
        di, hn::Max(hn::Max(halves(v[0]), halves(v[1])), hn::Max(halves(v[2]), halves(v[3]))));
    return hn::Max(hn::And(largest, hn::Set(di, 0xFFFF)), hn::ShiftRight<16>(largest));
  }
}

// The larger of every two neighbours of a and then of b.
HWY_INLINE VI LargerOfPairs(VI a, VI b) {
  return hn::Max(hn::ConcatEven(di, b, a), hn::ConcatOdd(di, b, a));
}
#endif

void BlockMagnitudes(DType dtype, const void* data, int64_t blocks, uint32_t* largest) {
  const bool wide = dtype == DType::kF32;
  const char* bytes = static_cast<const char*>(data);
  int64_t b = 0;
#if HWY_TARGET != HWY_SCALAR
  if (reinterpret_cast<uintptr_t>(data) % 4 == 0) {
    const int32_t* words = static_cast<const int32_t*>(data);
    const int64_t step = 4 * Lanes();
    for (; b + Lanes() <= blocks; b += Lanes()) {
      VI block;
      if (wide) {
        const VI low =
            LargerOfPairs(LargestOf4Words<true>(words), LargestOf4Words<true>(words + step));
        const VI high = LargerOfPairs(LargestOf4Words<true>(words + 2 * step),
                                      LargestOf4Words<true>(words + 3 * step));
        block = LargerOfPairs(low, high);
        words += 4 * step;
      } else {
        block = LargerOfPairs(LargestOf4Words<false>(words), LargestOf4Words<false>(words + step));
        words += 2 * step;
      }
      hn::StoreU(hn::BitCast(du, block), du, largest + b);
    }
  }
#endif
  const int64_t block_bytes = kBlockSize * (wide ? 4 : 2);
  for (; b < blocks; ++b) largest[b] = MaxMagnitude(dtype, bytes + b * block_bytes, kBlockSize);
}

template <typename T>
void RaiseBits(const void* data, int64_t count, T mask, void* largest) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const T* p = static_cast<const T*>(data);
  T* out = static_cast<T*>(largest);
  const auto magnitude = hn::Set(d, mask);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto value = hn::And(hn::LoadU(d, p + i), magnitude);
    hn::StoreU(hn::Max(hn::LoadU(d, out + i), value), d, out + i);
  }
  for (; i < count; ++i) out[i] = std::max<T>(out[i], p[i] & mask);
}

void RaiseMagnitudes(DType dtype, const void* data, int64_t count, void* largest) {
  if (dtype == DType::kF32) return RaiseBits<int32_t>(data, count, 0x7FFFFFFF, largest);
  RaiseBits<int16_t>(data, count, 0x7FFF, largest);
}

// --- Hessian accumulation -----------------------------------------------------------------------

// Sixteen elements as float32, NaN and infinity included.
HWY_INLINE void LoadChannels(DType dtype, const char* bytes, float* out) {
  if (dtype == DType::kF32) {
    std::memcpy(out, bytes, kBlockSize * sizeof(float));
    return;
  }
  const hn::Rebind<uint16_t, DU> d16;
  HWY_ALIGN uint16_t halves[kBlockSize];
  std::memcpy(halves, bytes, sizeof(halves));
  for (int64_t i = 0; i < kBlockSize; i += Lanes()) {
    const VU bits = hn::PromoteTo(du, hn::Load(d16, halves + i));
    VF value;
    if (dtype == DType::kBf16) {
      value = Bits(hn::ShiftLeft<16>(bits));
    } else {
      const auto finite = hn::Lt(hn::And(bits, hn::Set(du, 0x7FFFu)), hn::Set(du, 0x7C00u));
      value = hn::IfThenElse(hn::RebindMask(df, finite), FloatFromF16Bits(bits),
                             hn::Set(df, FloatFromBits(0x7FC00000u)));
    }
    hn::Store(value, df, out + i);
  }
}

void HessianChain(const MatrixView& x, int64_t slice, int64_t first, int64_t last, float* sum) {
  HWY_ALIGN float tokens[kHessianMaxChain * kBlockSize];
  const int bytes = x.dtype == DType::kF32 ? 4 : 2;
  const char* source = static_cast<const char*>(x.data) + slice * kBlockSize * bytes;
  for (int64_t t = first; t < last; ++t) {
    LoadChannels(x.dtype, source + t * x.cols * bytes, tokens + (t - first) * kBlockSize);
  }
  // Eight rows of a vector's columns at a time: their sums stay in registers.
  constexpr int kRows = 8;
  for (int64_t j = 0; j < kBlockSize; j += Lanes()) {
    for (int64_t i = 0; i < j + Lanes() && i < kBlockSize; i += kRows) {
      VF s[kRows];
      for (int r = 0; r < kRows; ++r) s[r] = hn::LoadU(df, sum + (i + r) * kBlockSize + j);
      for (const float* t = tokens; t < tokens + (last - first) * kBlockSize; t += kBlockSize) {
        const VF v = hn::Load(df, t + j);
        for (int r = 0; r < kRows; ++r) s[r] = Fma(hn::Set(df, t[i + r]), v, s[r]);
      }
      for (int r = 0; r < kRows; ++r) hn::StoreU(s[r], df, sum + (i + r) * kBlockSize + j);
    }
  }
}

// --- The sweep ----------------------------------------------------------------------------------

// How a loss divides: as the definition does, or by the reciprocal, to within
// kSweepFilterTolerance.
enum class Division { kExact, kReciprocal };

// A candidate: its decode scale and what Loss needs of it.
template <Division kDivision>
struct Divisor {
  VF divisor, negated_scale;

  HWY_INLINE explicit Divisor(VF decode_scale)
      : divisor(kDivision == Division::kExact ? decode_scale
                                              : hn::Div(hn::Set(df, 1.0f), decode_scale)),
        negated_scale(hn::Neg(decode_scale)) {}

  // One element's part of a loss. Without kClamp no lane may saturate by more than rounding.
  template <bool kClamp>
  HWY_INLINE VF Difference(VF a) const {
    VF v = kDivision == Division::kExact ? hn::Div(a, divisor) : hn::Mul(a, divisor);
    if constexpr (kClamp) v = hn::Min(v, hn::Set(df, kE2m1Max));
    if constexpr (kDivision == Division::kExact) {
      return Fma(RoundE2m1(v).magnitude, negated_scale, a);
    } else {
      return Fma(RoundE2m1EitherWay(v), negated_scale, a);  // within the tolerance, too
    }
  }
};

struct TwoLosses {
  VF first, second;
};

// Two candidates at once: one alone waits for its sums most of the time.
template <bool kClamp, Division kDivision>
HWY_INLINE TwoLosses LossOfTwo(const Stage& a, VF first_scale, VF second_scale) {
  const Divisor<kDivision> first(first_scale), second(second_scale);
  VF even0 = hn::Zero(df), odd0 = hn::Zero(df), even1 = hn::Zero(df), odd1 = hn::Zero(df);
  for (int i = 0; i < kBlockSize; i += 2) {
    const VF d00 = first.template Difference<kClamp>(a[i]);
    const VF d01 = first.template Difference<kClamp>(a[i + 1]);
    const VF d10 = second.template Difference<kClamp>(a[i]);
    const VF d11 = second.template Difference<kClamp>(a[i + 1]);
    even0 = Fma(d00, d00, even0);
    odd0 = Fma(d01, d01, odd0);
    even1 = Fma(d10, d10, even1);
    odd1 = Fma(d11, d11, odd1);
  }
  return {hn::Add(even0, odd0), hn::Add(even1, odd1)};
}

template <bool kClamp, Division kDivision = Division::kExact>
HWY_INLINE VF Loss(const Stage& a, VF decode_scale) {
  const Divisor<kDivision> divisor(decode_scale);
  VF even = hn::Zero(df), odd = hn::Zero(df);
  for (int i = 0; i < kBlockSize; i += 2) {
    const VF d0 = divisor.template Difference<kClamp>(a[i]);
    const VF d1 = divisor.template Difference<kClamp>(a[i + 1]);
    even = Fma(d0, d0, even);
    odd = Fma(d1, d1, odd);
  }
  return hn::Add(even, odd);
}

// The best candidate of each lane so far.
struct Best {
  VF loss;
  VI code, evaluations;

  HWY_INLINE Best()
      : loss(hn::Set(df, FloatFromBits(0x7F800000u))),
        code(hn::Zero(di)),
        evaluations(hn::Zero(di)) {}

  HWY_INLINE void Count(MF active) {
    evaluations = hn::Sub(evaluations, hn::BitCast(di, hn::VecFromMask(df, active)));
  }
  HWY_INLINE void Take(MF wins, VF candidate_loss, VI k) {
    loss = hn::IfThenElse(wins, candidate_loss, loss);
    code = hn::IfThenElse(hn::RebindMask(di, wins), k, code);
  }
};

HWY_INLINE VF ScaleOf(const SweepTable& table, VI k) {
  return hn::GatherIndex(df, table.decode_scale, k);
}

HWY_INLINE MF ToFloatMask(hn::Mask<DI> mask) { return hn::RebindMask(df, mask); }

HWY_INLINE MF AtMost(VI a, VI b) { return ToFloatMask(hn::Not(hn::Gt(a, b))); }

// The first code with 6 * s >= amax, 127 where there is none: the code nearest to amax's own value
// or the next. Rounding moves that value by far less than half a code.
HWY_INLINE VI FirstUnsaturated(VF amax, const SweepTable& table) {
  const VF unit = hn::Set(df, MulRn(kE2m1Max, table.decode_scale[1]));
  const VF value = hn::Mul(hn::Div(amax, unit), hn::Set(df, kE4m3SmallestSubnormal));
  const VI near =
      hn::Max(hn::BitCast(di, EncodeE4m3(hn::Min(value, hn::Set(df, kE4m3Max)))), hn::Set(di, 1));
  const MF below = hn::Lt(hn::Mul(hn::Set(df, kE2m1Max), ScaleOf(table, near)), amax);
  return hn::Sub(near, hn::BitCast(di, hn::VecFromMask(df, below)));
}

HWY_INLINE VI WindowEnd(VI first) {
  const VI end = hn::Max(hn::Add(first, hn::Set(di, 7)), hn::Set(di, 15));
  return hn::Min(end, hn::Set(di, kE4m3Codes));
}

// The second best of each lane, as SweepConsider has it.
struct RunnerUp {
  VF loss;

  HWY_INLINE RunnerUp() : loss(hn::Set(df, FloatFromBits(0x7F800000u))) {}

  // To be called before best.Take.
  HWY_INLINE void Consider(MF wins, VF candidate_loss, const Best& best) {
    const VF loser = hn::IfThenElse(wins, best.loss, candidate_loss);
    loss = hn::IfThenElse(hn::Lt(loser, loss), loser, loss);
  }
  HWY_INLINE MF IsNear(const Best& best) const {
    return hn::Le(loss, hn::Mul(best.loss, hn::Set(df, kSweepNearTie)));
  }
};

// Returns the lanes that are near-ties.
HWY_INLINE MF SweepAll(const Stage& a, const SweepTable& table, Best& best) {
  best.loss = Loss<true>(a, hn::Set(df, table.decode_scale[1]));
  best.code = hn::Set(di, 1);
  RunnerUp runner_up;
  for (int k = 2; k <= kE4m3Codes; ++k) {
    const VF loss = Loss<true>(a, hn::Set(df, table.decode_scale[k]));
    const MF wins = hn::Lt(loss, best.loss);
    runner_up.Consider(wins, loss, best);
    best.Take(wins, loss, hn::Set(di, k));
  }
  best.evaluations = hn::Set(di, kE4m3Codes);
  return runner_up.IsNear(best);
}

// Follows SweepPruned. With reciprocals the losses are approximate: `runner_up` then has the second
// best, and the walk down allows for the tolerance.
template <Division kDivision>
HWY_INLINE void SweepWindow(const Stage& a, VF amax, const SweepTable& table, Best& best,
                            VF& runner_up) {
  const MF nonzero = hn::Gt(amax, hn::Zero(df));
  const VI first = FirstUnsaturated(amax, table);
  const VI end = WindowEnd(first);
  runner_up = best.loss;
  const auto consider = [&](MF active, MF wins, VF loss, VI k) HWY_ATTR {
    if constexpr (kDivision == Division::kReciprocal) {
      const VF loser = hn::IfThenElse(wins, best.loss, loss);
      runner_up = hn::IfThenElse(active, hn::Min(runner_up, loser), runner_up);
    }
    best.Count(active);
    best.Take(wins, loss, k);
  };
  const VI one = hn::Set(di, 1), last_code = hn::Set(di, kE4m3Codes);
  for (VI k = first;; k = hn::Add(k, hn::Set(di, 2))) {
    const MF active = hn::And(nonzero, AtMost(k, end));
    if (hn::AllFalse(df, active)) break;
    const VI next = hn::Add(k, one);
    const TwoLosses loss = LossOfTwo<false, kDivision>(a, ScaleOf(table, hn::Min(k, last_code)),
                                                       ScaleOf(table, hn::Min(next, last_code)));
    consider(active, hn::And(active, hn::Lt(loss.first, best.loss)), loss.first, k);
    const MF next_active = hn::And(nonzero, AtMost(next, end));
    consider(next_active, hn::And(next_active, hn::Lt(loss.second, best.loss)), loss.second, next);
  }
  const VF slack = hn::Set(df, kDivision == Division::kExact ? 1.0f : 1.0f + kSweepFilterTolerance);
  MF active = nonzero;
  const auto still_active = [&](VI k, VF scale) HWY_ATTR {
    const VF beyond = NegFma(hn::Set(df, kE2m1Max), scale, amax);
    const MF possible = hn::Le(hn::Mul(beyond, beyond), hn::Mul(best.loss, slack));
    return hn::And(active, hn::And(possible, AtMost(one, k)));
  };
  for (VI k = hn::Sub(first, one);; k = hn::Sub(k, hn::Set(di, 2))) {
    const VI next = hn::Sub(k, one);
    const VF scale = ScaleOf(table, hn::Max(k, one));
    const VF next_scale = ScaleOf(table, hn::Max(next, one));
    active = still_active(k, scale);
    if (hn::AllFalse(df, active)) break;
    const TwoLosses loss = LossOfTwo<true, kDivision>(a, scale, next_scale);
    consider(active, hn::And(active, hn::Le(loss.first, best.loss)), loss.first, k);
    active = still_active(next, next_scale);
    consider(active, hn::And(active, hn::Le(loss.second, best.loss)), loss.second, next);
  }
}

// The pruned winners: found with reciprocals, confirmed with divisions. Where a runner-up is nearer
// than the reciprocals' error, the group is searched again with divisions.
HWY_INLINE void SweepPrunedGroup(const Stage& a, VF amax, const SweepTable& table, Best& best) {
  VF runner_up;
  SweepWindow<Division::kReciprocal>(a, amax, table, best, runner_up);
  const MF ahead = hn::Gt(runner_up, hn::Mul(best.loss, hn::Set(df, 1.0f + kSweepFilterTolerance)));
  const MF clear = hn::And(ahead, hn::Ge(best.loss, hn::Set(df, kSweepFilterFloor)));
  const MF found = ToFloatMask(hn::Gt(best.code, hn::Zero(di)));
  const MF zero = hn::Eq(amax, hn::Zero(df));
  if (HWY_LIKELY(hn::AllTrue(df, hn::Or(zero, hn::And(clear, found))))) {
    best.loss = Loss<true>(a, ScaleOf(table, hn::Max(best.code, hn::Set(di, 1))));
    return;
  }
  best = Best();
  SweepWindow<Division::kExact>(a, amax, table, best, runner_up);
}

HWY_INLINE int64_t SumLanes(VI v, int64_t lanes) {
  HWY_ALIGN int32_t values[kMaxLanes];
  hn::Store(v, di, values);
  int64_t sum = 0;
  for (int64_t i = 0; i < lanes; ++i) sum += values[i];
  return sum;
}

HWY_INLINE int64_t CountLanes(MF mask, int64_t lanes) {
  return SumLanes(hn::IfThenElseZero(hn::RebindMask(di, mask), hn::Set(di, 1)), lanes);
}

// All-zero blocks have loss 0 under every code and get the first. Blocks whose squares overflowed
// everywhere in the window are left to `exhaustive`(lane).
template <typename Exhaustive>
HWY_INLINE void FinishPruned(VF amax, int64_t lanes, Best& best, const Exhaustive& exhaustive) {
  const MF zero = hn::Eq(amax, hn::Zero(df));
  best.code = hn::IfThenElse(hn::RebindMask(di, zero), hn::Set(di, 1), best.code);
  best.loss = hn::IfThenElse(zero, hn::Zero(df), best.loss);
  const auto undecided = hn::Eq(best.code, hn::Zero(di));
  if (HWY_LIKELY(hn::AllFalse(di, undecided))) return;
  HWY_ALIGN int32_t codes[kMaxLanes], evaluations[kMaxLanes];
  HWY_ALIGN float losses[kMaxLanes];
  hn::Store(best.code, di, codes);
  hn::Store(best.evaluations, di, evaluations);
  hn::Store(best.loss, df, losses);
  for (int64_t lane = 0; lane < lanes; ++lane) {
    if (codes[lane] != 0) continue;
    const SweepWinner winner = exhaustive(lane);
    codes[lane] = winner.code;
    evaluations[lane] = winner.evaluations;
    losses[lane] = winner.loss;
  }
  best.code = hn::Load(di, codes);
  best.evaluations = hn::Load(di, evaluations);
  best.loss = hn::Load(df, losses);
}

SweepCounts ScaleSweep(const SweepJob& job, int64_t begin, int64_t end) {
  SweepCounts counts;
  for (int64_t b = begin; b < end; b += Lanes()) {
    const int64_t lanes = std::min(Lanes(), end - b);
    Stage a;
    LoadBlocks(job.x, b * kBlockSize, kBlockSize, lanes, a);
    const VF amax = TakeMagnitudes(a);
    Best best;
    if (job.method == SweepMethod::kExhaustive) {
      counts.near_ties += CountLanes(SweepAll(a, *job.table, best), lanes);
    } else if (!job.table->prunable) {
      SweepAll(a, *job.table, best);
      const auto zero = hn::RebindMask(di, hn::Eq(amax, hn::Zero(df)));
      best.evaluations = hn::IfThenZeroElse(zero, best.evaluations);
    } else {
      SweepPrunedGroup(a, amax, *job.table, best);
      FinishPruned(amax, lanes, best, [&](int64_t lane) {
        float block[kBlockSize];
        for (int i = 0; i < kBlockSize; ++i) block[i] = a.values[i * Lanes() + lane];
        return SweepExhaustive(block, *job.table);
      });
    }
    StoreBytes(hn::BitCast(du, best.code), lanes, job.code + b);
    StoreFloats(best.loss, lanes, job.loss + b);
    counts.evaluations += SumLanes(best.evaluations, lanes);
  }
  return counts;
}

SweepCounts MultiplierSearch(const MultiplierJob& job, int64_t begin, int64_t end) {
  SweepCounts counts;
  const VF global_decode_scale = hn::Set(df, job.global_decode_scale);
  for (int64_t b = begin; b < end; b += Lanes()) {
    const int64_t lanes = std::min(Lanes(), end - b);
    Stage a;
    LoadBlocks(job.x, b * kBlockSize, kBlockSize, lanes, a);
    const VF amax = TakeMagnitudes(a);
    Best best;
    VF best_amax = hn::Zero(df);
    VI last_code = hn::Zero(di);
    for (int i = 0; i < job.count; ++i) {
      const VF candidate = hn::Mul(amax, hn::Set(df, job.multipliers[i]));
      const VI code = hn::BitCast(di, CheckpointScale(candidate, global_decode_scale));
      const MF fresh = ToFloatMask(hn::Ne(code, last_code));
      if (hn::AllFalse(df, fresh)) continue;
      last_code = code;
      const VF loss = Loss<true>(a, ScaleOf(*job.table, code));
      best.Count(fresh);
      const MF none_yet = ToFloatMask(hn::Eq(best.code, hn::Zero(di)));
      const MF wins = hn::And(fresh, hn::Or(none_yet, hn::Lt(loss, best.loss)));
      best.Take(wins, loss, code);
      best_amax = hn::IfThenElse(wins, candidate, best_amax);
    }
    StoreBytes(hn::BitCast(du, best.code), lanes, job.code + b);
    StoreFloats(best_amax, lanes, job.best_amax + b);
    StoreFloats(best.loss, lanes, job.loss + b);
    counts.evaluations += SumLanes(best.evaluations, lanes);
  }
  return counts;
}

// --- The Hessian sweep: a lane is a row, all lanes share the slice's factor ----------------------

// Stops once every lane of `active` exceeds its limit; the sums returned there exceed it, too.
HWY_INLINE VF HessianLoss(const Stage& w, VF decode_scale, const HessianFactor& factor, VF limit,
                          MF active) {
  Stage d;
  const Divisor<Division::kExact> divisor(decode_scale);
  for (int i = 0; i < kBlockSize; ++i) {
    const VF magnitude = divisor.Difference<true>(hn::Abs(w[i]));
    // As in HessianDifference: negated where w < 0.
    const VU sign =
        hn::And(Bits(hn::VecFromMask(df, hn::Lt(w[i], hn::Zero(df)))), hn::Set(du, 0x80000000u));
    d.Set(i, Bits(hn::Xor(Bits(magnitude), sign)));
  }
  VF loss = hn::Zero(df);
  for (int i = kBlockSize - 1; i >= 0; --i) {
    VF z = hn::Mul(hn::Set(df, factor.lower[i][i]), d[i]);
    for (int j = i + 1; j < kBlockSize; ++j) z = Fma(hn::Set(df, factor.lower[j][i]), d[j], z);
    loss = Fma(z, z, loss);
    if (hn::AllFalse(df, hn::AndNot(hn::Gt(loss, limit), active))) break;
  }
  return loss;
}

HWY_INLINE MF BoundExceeds(VF bound, VF best_loss) {
  return hn::And(hn::Gt(bound, best_loss), hn::Gt(bound, hn::Set(df, 0x1p-70f)));
}

HWY_INLINE VF SaturationBound(const Stage& a, VF decode_scale, const HessianFactor& factor) {
  VF bound = hn::Zero(df);
  for (int i = 0; i < kBlockSize; ++i) {
    const VF d = hn::Max(NegFma(hn::Set(df, kE2m1Max), decode_scale, a[i]), hn::Zero(df));
    bound = hn::Max(bound, hn::Mul(hn::Set(df, factor.element_bound[i]), hn::Mul(d, d)));
  }
  return bound;
}

// Returns the lanes that are near-ties. A candidate is left where its sum exceeds the best loss so
// far by more than a near-tie may. That loses none: the best loss only falls and multiplication is
// monotone, so what exceeds the limit of its time, the sum returned and the whole loss alike,
// exceeds the last limit, too; and what is within the last limit never exceeded one, so it was
// computed to its end.
HWY_INLINE MF HessianSweepAll(const Stage& w, const SweepTable& table, const HessianFactor& factor,
                              Best& best) {
  const VF infinity = hn::Set(df, FloatFromBits(0x7F800000u));
  const MF every = hn::Eq(infinity, infinity);
  best.loss = HessianLoss(w, hn::Set(df, table.decode_scale[1]), factor, infinity, every);
  best.code = hn::Set(di, 1);
  RunnerUp runner_up;
  for (int k = 2; k <= kE4m3Codes; ++k) {
    const VF scale = hn::Set(df, table.decode_scale[k]);
    const VF limit = hn::Mul(best.loss, hn::Set(df, kSweepNearTie));
    const VF loss = HessianLoss(w, scale, factor, limit, every);
    const MF wins = hn::Lt(loss, best.loss);
    runner_up.Consider(wins, loss, best);
    best.Take(wins, loss, hn::Set(di, k));
  }
  best.evaluations = hn::Set(di, kE4m3Codes);
  return runner_up.IsNear(best);
}

// See HessianSweepPruned.
HWY_INLINE void HessianSweepBounded(const Stage& w, VF amax, const SweepTable& table,
                                    const HessianFactor& factor, Best& best) {
  Stage a = w;
  TakeMagnitudes(a);
  const VI one = hn::Set(di, 1);
  const VI last_code = hn::Set(di, kE4m3Codes);
  const MF nonzero = hn::Gt(amax, hn::Zero(df));
  VF squares[8];  // by code % 8, which differs from lane to lane: see `slot`
  for (VF& s : squares) s = hn::Zero(df);
  const VI first = FirstUnsaturated(amax, table);
  const VI window_end = WindowEnd(first);
  const auto evaluate = [&](VI k, VF scale, MF active) HWY_ATTR {
    const VF loss = HessianLoss(w, scale, factor, best.loss, active);
    best.Count(active);
    const MF smaller = ToFloatMask(hn::Lt(k, best.code));
    const MF tie = hn::And(hn::Eq(loss, best.loss), smaller);
    best.Take(hn::And(active, hn::Or(hn::Lt(loss, best.loss), tie)), loss, k);
  };
  // Lanes step in unison, so the code of step j is first + j in every lane and the slot j % 8
  // belongs to the same residue of first + j.
  int slot = 0;
  VI k = first;
  for (;; k = hn::Add(k, one), slot = (slot + 1) % 8) {
    const MF active = hn::And(nonzero, AtMost(k, window_end));
    if (hn::AllFalse(df, active)) break;
    const VF scale = ScaleOf(table, hn::Min(k, last_code));
    evaluate(k, scale, active);
    squares[slot] = hn::IfThenElse(active, Loss<true>(a, scale), squares[slot]);
  }
  MF down = nonzero;
  for (VI lower = hn::Sub(first, one);; lower = hn::Sub(lower, one)) {
    const VF scale = ScaleOf(table, hn::Max(lower, one));
    const MF beyond = BoundExceeds(SaturationBound(a, scale, factor), best.loss);
    down = hn::And(hn::AndNot(beyond, down), AtMost(one, lower));
    if (hn::AllFalse(df, down)) break;
    evaluate(lower, scale, down);
  }
  // Lanes whose window ended earlier start here earlier.
  const VF all_zero = hn::Mul(hn::Set(df, 4.0f), amax);
  MF up = nonzero;
  slot = 0;
  for (k = first;; k = hn::Add(k, one), slot = (slot + 1) % 8) {
    up = hn::And(up, AtMost(k, last_code));
    if (hn::AllFalse(df, up)) break;
    const MF past_window = hn::And(up, ToFloatMask(hn::Gt(k, window_end)));
    if (hn::AllFalse(df, past_window)) continue;
    const VF scale = ScaleOf(table, hn::Min(k, last_code));
    const VF bound = hn::Mul(hn::Set(df, factor.eigenvalue_bound), squares[slot]);
    const MF active = hn::AndNot(BoundExceeds(bound, best.loss), past_window);
    if (!hn::AllFalse(df, active)) {
      evaluate(k, scale, active);
      squares[slot] = hn::IfThenElse(active, Loss<true>(a, scale), squares[slot]);
    }
    up = hn::AndNot(hn::And(past_window, hn::Ge(scale, all_zero)), up);
  }
}

SweepCounts ScaleSweepHessian(const SweepJob& job, int64_t begin, int64_t end) {
  SweepCounts counts;
  const int64_t blocks_per_row = job.x.cols / kBlockSize;
  for (int64_t row = begin; row < end; row += Lanes()) {
    const int64_t lanes = std::min(Lanes(), end - row);
    for (int64_t c = 0; c < blocks_per_row; ++c) {
      const HessianFactor& factor = job.factors[c];
      Stage w;
      LoadBlocks(job.x, row * job.x.cols + c * kBlockSize, job.x.cols, lanes, w);
      const VF amax = Amax(w);
      Best best;
      if (job.method == SweepMethod::kExhaustive) {
        counts.near_ties += CountLanes(HessianSweepAll(w, *job.table, factor, best), lanes);
      } else if (!job.table->prunable) {
        HessianSweepAll(w, *job.table, factor, best);
        const auto zero = hn::RebindMask(di, hn::Eq(amax, hn::Zero(df)));
        best.evaluations = hn::IfThenZeroElse(zero, best.evaluations);
      } else {
        HessianSweepBounded(w, amax, *job.table, factor, best);
        FinishPruned(amax, lanes, best, [&](int64_t lane) {
          float block[kBlockSize];
          for (int i = 0; i < kBlockSize; ++i) block[i] = w.values[i * Lanes() + lane];
          return HessianSweepExhaustive(block, *job.table, factor);
        });
      }
      HWY_ALIGN float losses[kMaxLanes];
      HWY_ALIGN int32_t codes[kMaxLanes];
      hn::Store(best.loss, df, losses);
      hn::Store(best.code, di, codes);
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t b = (row + lane) * blocks_per_row + c;
        job.code[b] = static_cast<uint8_t>(codes[lane]);
        job.loss[b] = losses[lane];
      }
      counts.evaluations += SumLanes(best.evaluations, lanes);
    }
  }
  return counts;
}

// --- Error feedback: see HessianFeedbackSearch; lanes as above
// ------------------------------------

// By position: codes as E2m1Encode gives them, and errors.
struct FeedbackCodes {
  Stage d;
  VU code[kBlockSize];
};

struct FeedbackScales {
  VF decode_scale, inverse;

  HWY_INLINE explicit FeedbackScales(VF scale)
      : decode_scale(scale), inverse(hn::Div(hn::Set(df, 1.0f), scale)) {}
};

struct Chosen {
  VF value;
  VU code;
};

HWY_INLINE Chosen NearestCode(VF t, VF inverse) {
  const VF scaled = hn::Mul(t, inverse);
  const VF magnitude = hn::Abs(scaled);
  const VF largest = hn::Set(df, kE2m1Max);
  // NaN saturates, too.
  const Rounded rounded = RoundE2m1(hn::IfThenElse(hn::Lt(magnitude, largest), magnitude, largest));
  const VU negative = Bits(hn::VecFromMask(df, hn::Lt(scaled, hn::Zero(df))));
  return {Bits(hn::Xor(Bits(rounded.magnitude), hn::And(negative, hn::Set(du, 0x80000000u)))),
          hn::Or(rounded.index(), hn::And(negative, hn::Set(du, 8u)))};
}

// Without kKeepCodes only the errors and the loss are made. A candidate is left once every lane of
// `active` has reached its limit: the loss only rises from there.
template <bool kKeepCodes>
HWY_INLINE VF FeedbackRound(const Stage& w, const FeedbackScales& scale,
                            const HessianFeedback& feedback, VF limit, MF active,
                            FeedbackCodes& out) {
  VF loss = hn::Zero(df);
  for (int p = 0; p < kBlockSize; ++p) {
    VF t = w[p];
    for (int r = 0; r < p; ++r) t = Fma(hn::Set(df, feedback.feedback[p][r]), out.d[r], t);
    const Chosen q = NearestCode(t, scale.inverse);
    if constexpr (kKeepCodes) out.code[p] = q.code;
    out.d.Set(p, NegFma(q.value, scale.decode_scale, w[p]));
    const VF e = NegFma(q.value, scale.decode_scale, t);
    loss = Fma(hn::Mul(hn::Set(df, feedback.pivot[p]), e), e, loss);
    if (!kKeepCodes && p % 4 == 3 && hn::AllFalse(df, hn::And(hn::Lt(loss, limit), active))) break;
  }
  return loss;
}

HWY_INLINE void FeedbackPolish(const Stage& w, const FeedbackScales& scale,
                               const HessianFeedback& feedback, FeedbackCodes& out) {
  for (int p = 0; p < kBlockSize; ++p) {
    VF t = w[p];
    for (int r = 0; r < kBlockSize; ++r) {
      t = Fma(hn::Set(df, feedback.coupling[p][r]), out.d[r], t);
    }
    const Chosen q = NearestCode(t, scale.inverse);
    out.code[p] = q.code;
    out.d.Set(p, NegFma(q.value, scale.decode_scale, w[p]));
  }
}

// HessianLoss of errors by element.
HWY_INLINE VF LossOfErrors(const Stage& d, const HessianFactor& factor) {
  VF loss = hn::Zero(df);
  for (int i = kBlockSize - 1; i >= 0; --i) {
    VF z = hn::Mul(hn::Set(df, factor.lower[i][i]), d[i]);
    for (int j = i + 1; j < kBlockSize; ++j) z = Fma(hn::Set(df, factor.lower[j][i]), d[j], z);
    loss = Fma(z, z, loss);
  }
  return loss;
}

HWY_INLINE VF FeedbackLoss(const FeedbackCodes& codes, const HessianFeedback& feedback,
                           const HessianFactor& factor) {
  Stage d;
  for (int p = 0; p < kBlockSize; ++p) d.Set(feedback.order[p], codes.d[p]);
  return LossOfErrors(d, factor);
}

// See StoredHessianLoss. x: by element; words: eight codes each.
HWY_INLINE VF StoredLoss(const Stage& x, const VU (&words)[2], VF decode_scale,
                         const HessianFactor& factor) {
  Stage d;
  for (int i = 0; i < kBlockSize; ++i) {
    const VU code = hn::ShiftRightSame(words[i / 8], 4 * (i % 8));
    // Twice the magnitude, from the nibbles of E2m1Magnitude.
    const VU index = hn::And(code, hn::Set(du, 7u));
    const VU doubled =
        hn::And(hn::Shr(hn::Set(du, 0xC8643210u), hn::ShiftLeft<2>(index)), hn::Set(du, 0xFu));
    const VF magnitude = hn::Mul(hn::ConvertTo(df, hn::BitCast(di, doubled)), hn::Set(df, 0.5f));
    const VU sign = hn::ShiftLeft<28>(hn::And(code, hn::Set(du, 8u)));
    d.Set(i, NegFma(Bits(hn::Or(Bits(magnitude), sign)), decode_scale, x[i]));
  }
  return LossOfErrors(d, factor);
}

HWY_INLINE void TakeLanes(MF wins, const FeedbackCodes& from, FeedbackCodes& to) {
  for (int p = 0; p < kBlockSize; ++p) {
    to.d.Set(p, hn::IfThenElse(wins, from.d[p], to.d[p]));
    to.code[p] = hn::IfThenElse(hn::RebindMask(du, wins), from.code[p], to.code[p]);
  }
}

// Returns the scales of the lanes that do better than codes rounded to nearest, 0 elsewhere.
HWY_INLINE VI HessianFeedbackGroup(const Stage& w, VI nearest_code, VF nearest_loss, MF active,
                                   const SweepTable& table, const HessianFactor& factor,
                                   const HessianFeedback& feedback, FeedbackCodes& codes,
                                   VF& loss) {
  const VI one = hn::Set(di, 1), last_code = hn::Set(di, kE4m3Codes);
  Best best;
  for (int step = -kFeedbackReach; step <= kFeedbackReach; ++step) {
    const VI k = hn::Add(nearest_code, hn::Set(di, step));
    const MF exists = hn::And(active, hn::And(AtMost(one, k), AtMost(k, last_code)));
    const VF scale = ScaleOf(table, hn::Min(hn::Max(k, one), last_code));
    const VF candidate =
        FeedbackRound<false>(w, FeedbackScales(scale), feedback, best.loss, exists, codes);
    best.Take(hn::And(exists, hn::Lt(candidate, best.loss)), candidate, k);
  }
  const MF found = hn::And(active, ToFloatMask(hn::Gt(best.code, hn::Zero(di))));
  const FeedbackScales scale(ScaleOf(table, hn::Max(best.code, one)));
  FeedbackRound<true>(w, scale, feedback, best.loss, found, codes);
  loss = FeedbackLoss(codes, feedback, factor);
  MF polishing = found;
  for (int round = 0; round < kFeedbackPolishRounds; ++round) {
    FeedbackCodes next = codes;
    FeedbackPolish(w, scale, feedback, next);
    const VF next_loss = FeedbackLoss(next, feedback, factor);
    polishing = hn::And(polishing, hn::Lt(next_loss, loss));
    if (hn::AllFalse(df, polishing)) break;
    TakeLanes(polishing, next, codes);
    loss = hn::IfThenElse(polishing, next_loss, loss);
  }
  const VF enough = hn::Mul(nearest_loss, hn::Set(df, kFeedbackMargin));
  const MF wins = hn::And(found, hn::Lt(loss, enough));
  return hn::IfThenElseZero(hn::RebindMask(di, wins), best.code);
}

void HessianFeedbackRows(const FeedbackJob& job, int64_t begin, int64_t end) {
  if (!job.table->prunable) return;
  const int64_t blocks_per_row = job.x.cols / kBlockSize;
  for (int64_t row = begin; row < end; row += Lanes()) {
    const int64_t lanes = std::min(Lanes(), end - row);
    for (int64_t c = 0; c < blocks_per_row; ++c) {
      const HessianFeedback& feedback = job.feedback[c];
      HWY_ALIGN int32_t code[kMaxLanes] = {};
      HWY_ALIGN float loss[kMaxLanes] = {};
      HWY_ALIGN uint32_t bytes[2 * kMaxLanes] = {};
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t b = (row + lane) * blocks_per_row + c;
        code[lane] = job.code[b];
        loss[lane] = job.loss[b];
        std::memcpy(bytes + 2 * lane, job.packed + b * 8, 8);
      }
      VF nearest_loss = hn::Load(df, loss);
      const MF active = hn::Ne(nearest_loss, hn::Zero(df));
      if (hn::AllFalse(df, active)) continue;
      Stage x, w;
      LoadBlocks(job.x, row * job.x.cols + c * kBlockSize, job.x.cols, lanes, x);
      for (int p = 0; p < kBlockSize; ++p) w.Set(p, x[feedback.order[p]]);
      const VI nearest_code = hn::Load(di, code);
      VU words[2];
      hn::LoadInterleaved2(du, bytes, words[0], words[1]);
      const VF stored_loss =
          StoredLoss(x, words, ScaleOf(*job.table, nearest_code), job.factors[c]);
      nearest_loss = hn::IfThenElse(hn::Lt(stored_loss, nearest_loss), stored_loss, nearest_loss);
      FeedbackCodes codes;
      VF better_loss;
      const VI better = HessianFeedbackGroup(w, nearest_code, nearest_loss, active, *job.table,
                                             job.factors[c], feedback, codes, better_loss);
      words[0] = words[1] = hn::Zero(du);
      for (int p = 0; p < kBlockSize; ++p) {
        const int i = feedback.order[p];
        VU& word = words[i / 8];
        word = hn::Or(word, hn::ShiftLeftSame(codes.code[p], 4 * (i % 8)));
      }
      hn::StoreInterleaved2(words[0], words[1], du, bytes);
      hn::Store(better, di, code);
      hn::Store(better_loss, df, loss);
      for (int64_t lane = 0; lane < lanes; ++lane) {
        if (code[lane] == 0) continue;
        const int64_t b = (row + lane) * blocks_per_row + c;
        job.code[b] = static_cast<uint8_t>(code[lane]);
        job.loss[b] = loss[lane];
        std::memcpy(job.packed + b * 8, bytes + 2 * lane, 8);
      }
    }
  }
}

// --- Errors -------------------------------------------------------------------------------------

const float* E4m3Table() {
  static const auto* table = [] {
    auto* values = new std::array<float, 256>;
    for (int code = 0; code < 256; ++code) {
      (*values)[code] = E4m3Decode(static_cast<uint8_t>(code));  // NaN and negative ones, too
    }
    return values;
  }();
  return table->data();
}

using DD = hn::CappedTag<double, 8>;
using VD = hn::Vec<DD>;
constexpr DD dd;
constexpr hn::Rebind<float, DD> dd_floats;

// The float64 sums of MeasureBlock, a lane a block.
struct ErrorSums {
  VD squared_error, squared_x, squared_y, product, max_error;

  // `offset`: of the first lane.
  HWY_INLINE ErrorSums(const Stage& x, const Stage& y, int64_t offset)
      : squared_error(hn::Zero(dd)),
        squared_x(hn::Zero(dd)),
        squared_y(hn::Zero(dd)),
        product(hn::Zero(dd)),
        max_error(hn::Zero(dd)) {
    for (int i = 0; i < kBlockSize; ++i) {
      const int64_t at = i * Lanes() + offset;
      const VD xi = hn::PromoteTo(dd, hn::Load(dd_floats, x.values + at));
      const VD yi = hn::PromoteTo(dd, hn::Load(dd_floats, y.values + at));
      const VD error = hn::Sub(xi, yi);
      squared_error = hn::Add(squared_error, hn::Mul(error, error));
      squared_x = hn::Add(squared_x, hn::Mul(xi, xi));
      squared_y = hn::Add(squared_y, hn::Mul(yi, yi));
      product = hn::Add(product, hn::Mul(xi, yi));
      max_error = hn::Max(max_error, hn::Abs(error));
    }
  }
};

void MeasureBlocks(const MeasureJob& job, int64_t begin, int64_t end, nibble::BlockError* errors) {
  const float* e4m3 = E4m3Table();
  const VF global = hn::Set(df, job.global_decode_scale);
  for (int64_t b = begin; b < end; b += Lanes()) {
    const int64_t lanes = std::min(Lanes(), end - b);
    Stage x, y;
    LoadBlocks(job.x, b * kBlockSize, kBlockSize, lanes, x);
    HWY_ALIGN uint32_t bytes[2 * kMaxLanes] = {};
    HWY_ALIGN uint8_t scales[kMaxLanes] = {};
    std::memcpy(bytes, job.packed + b * 8, lanes * 8);
    std::memcpy(scales, job.scale + b, lanes);
    VU words[2];
    hn::LoadInterleaved2(du, bytes, words[0], words[1]);
    const VF scale = hn::GatherIndex(df, e4m3, hn::PromoteTo(di, hn::Load(D8(), scales)));
    const VF largest = hn::Mul(hn::Mul(hn::Set(df, kE2m1Max), scale), global);
    VI saturated = hn::Zero(di), flushed = hn::Zero(di);  // counted down
    for (int i = 0; i < kBlockSize; ++i) {
      const VU code = words[i / 8];
      const VU index = hn::And(code, hn::Set(du, 7u));
      // The bits of 1 and above lie in the float's as they are; 0 and 0.5 are half the index.
      const VF high = Bits(hn::Add(hn::ShiftLeft<22>(index), hn::Set(du, 126u << 23)));
      const VF low = hn::Mul(hn::ConvertTo(df, hn::BitCast(di, index)), hn::Set(df, 0.5f));
      const MF small = ToFloatMask(hn::Lt(hn::BitCast(di, index), hn::Set(di, 2)));
      const VF magnitude = hn::IfThenElse(small, low, high);
      const VU sign = hn::ShiftLeft<28>(hn::And(code, hn::Set(du, 8u)));
      const VF value = hn::Mul(hn::Mul(Bits(hn::Or(Bits(magnitude), sign)), scale), global);
      y.Set(i, value);
      const VF a = x[i];
      const MF is_saturated = hn::Gt(hn::Abs(a), largest);
      const MF is_flushed = hn::AndNot(hn::Eq(a, hn::Zero(df)), hn::Eq(value, hn::Zero(df)));
      saturated = hn::Add(saturated, hn::BitCast(di, hn::VecFromMask(df, is_saturated)));
      flushed = hn::Add(flushed, hn::BitCast(di, hn::VecFromMask(df, is_flushed)));
      words[i / 8] = hn::ShiftRight<4>(code);
    }
    HWY_ALIGN int32_t saturated_lanes[kMaxLanes], flushed_lanes[kMaxLanes];
    hn::Store(saturated, di, saturated_lanes);
    hn::Store(flushed, di, flushed_lanes);
    const int64_t step = static_cast<int64_t>(hn::Lanes(dd));
    for (int64_t offset = 0; offset < lanes; offset += step) {
      const ErrorSums sums(x, y, offset);
      HWY_ALIGN double values[5][8];
      hn::Store(sums.squared_error, dd, values[0]);
      hn::Store(sums.squared_x, dd, values[1]);
      hn::Store(sums.squared_y, dd, values[2]);
      hn::Store(sums.product, dd, values[3]);
      hn::Store(sums.max_error, dd, values[4]);
      for (int64_t i = 0; i < std::min(step, lanes - offset); ++i) {
        errors[b - begin + offset + i] = {values[0][i],
                                          values[1][i],
                                          values[2][i],
                                          values[3][i],
                                          values[4][i],
                                          -saturated_lanes[offset + i],
                                          -flushed_lanes[offset + i]};
      }
    }
  }
}

const CpuKernels* Kernels() {
  static const CpuKernels kKernels = {
      .name = hwy::TargetName(HWY_TARGET),
      .max_magnitude = MaxMagnitude,
      .block_magnitudes = BlockMagnitudes,
      .raise_magnitudes = RaiseMagnitudes,
      .hessian_chain = HessianChain,
      .encode_blocks = EncodeBlocks,
      .encode_tiles = EncodeTiles,
      .scale_sweep = ScaleSweep,
      .multiplier_search = MultiplierSearch,
      .scale_sweep_hessian = ScaleSweepHessian,
      .hessian_feedback = HessianFeedbackRows,
      .measure_blocks = MeasureBlocks,
  };
  return &kKernels;
}

}  // namespace
const CpuKernels* TargetKernels() { return Kernels(); }
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(TargetKernels);

const CpuKernels& SimdKernels() { return *AllSimdKernels().front(); }

const std::vector<const CpuKernels*>& AllSimdKernels() {
  static const std::vector<const CpuKernels*> all = [] {
    std::vector<const CpuKernels*> kernels;
    for (int64_t targets = hwy::SupportedTargets() & HWY_TARGETS; targets != 0;
         targets &= targets - 1) {
      hwy::SetSupportedTargetsForTest(targets & -targets);
      hwy::GetChosenTarget().Update(hwy::SupportedTargets());
      kernels.push_back(HWY_DYNAMIC_DISPATCH(TargetKernels)());
    }
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    return kernels;
  }();
  return all;
}

}  // namespace nibble
#endif  // HWY_ONCE
