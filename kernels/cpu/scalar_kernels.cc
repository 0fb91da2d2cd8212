#include "kernels/cpu/cpu_kernels.h"
#include "quant/numerics/e2m1.h"
#include "quant/numerics/four_over_six.h"
#include "quant/numerics/hessian_feedback.h"
#include "quant/numerics/hessian_sum.h"
#include "quant/numerics/philox.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {
namespace {

uint32_t MaxMagnitude(DType dtype, const void* data, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits = 0;
    if (dtype == DType::kF32) {
      std::memcpy(&bits, static_cast<const char*>(data) + 4 * i, 4);
      bits &= 0x7FFFFFFFu;
    } else {
      std::memcpy(&bits, static_cast<const char*>(data) + 2 * i, 2);
      bits &= 0x7FFFu;
    }
    if (bits > largest) largest = bits;
  }
  return largest;
}

void BlockMagnitudes(DType dtype, const void* data, int64_t blocks, uint32_t* largest) {
  const int64_t block_bytes = kBlockSize * (dtype == DType::kF32 ? 4 : 2);
  for (int64_t b = 0; b < blocks; ++b) {
    largest[b] = MaxMagnitude(dtype, static_cast<const char*>(data) + b * block_bytes, kBlockSize);
  }
}

void RaiseMagnitudes(DType dtype, const void* data, int64_t count, void* largest) {
  const int bytes = dtype == DType::kF32 ? 4 : 2;
  for (int64_t i = 0; i < count; ++i) {
    char* target = static_cast<char*>(largest) + i * bytes;
    const uint32_t magnitude =
        MaxMagnitude(dtype, static_cast<const char*>(data) + i * bytes, /*count=*/1);
    if (magnitude > MaxMagnitude(dtype, target, /*count=*/1)) {
      std::memcpy(target, &magnitude, bytes);
    }
  }
}

void HessianChain(const MatrixView& x, int64_t slice, int64_t first, int64_t last, float* sum) {
  for (int64_t token = first; token < last; ++token) {
    float channels[kBlockSize];
    LoadBlock(x, token * x.cols + slice * kBlockSize, channels);
    HessianAddToken(channels, sum);
  }
}

// Everything that one outer amax decides.
struct Outer {
  FourOverSixContext context;  // runtime rule, and the choice of 4over6 under both rules
  float checkpoint_decode_scale;

  Outer(float amax, const QuantizeParams& params) {
    const float bound = static_cast<float>(params.e4m3_max);
    context = {RuntimeGlobalScale(amax, bound), amax, bound};
    checkpoint_decode_scale = CheckpointGlobalDecodeScale(amax, bound);
  }
};

// The stored form of a winner of 4over6: a scale of 0 is legal at run time, never in a checkpoint.
uint8_t StoredScale(uint8_t winner, float block_amax, const Outer& outer, Rule rule) {
  if (rule == Rule::kRuntime || winner != 0) return winner;
  return CheckpointBlockScale(block_amax, outer.checkpoint_decode_scale);
}

uint8_t PlainScale(float block_amax, const Outer& outer, Rule rule) {
  return rule == Rule::kRuntime ? RuntimeBlockScale(block_amax, outer.context.global.encode_scale)
                                : CheckpointBlockScale(block_amax, outer.checkpoint_decode_scale);
}

void PackCodes(const uint8_t codes[kBlockSize], uint8_t packed[8]) {
  for (int j = 0; j < kBlockSize / 2; ++j) {
    packed[j] = static_cast<uint8_t>(codes[2 * j] | codes[2 * j + 1] << 4);
  }
}

// first_element: index of x[0] in the quantized copy, for stochastic rounding.
void EncodeBlock(const float x[kBlockSize], uint8_t scale, const Outer& outer,
                 const QuantizeParams& params, int64_t first_element, uint8_t packed[8]) {
  uint8_t codes[kBlockSize];
  PhiloxWords uniform = {};
  const float encode_scale = RuntimeBlockEncodeScale(scale, outer.context.global.decode_scale);
  const float decode_scale = CheckpointBlockDecodeScale(scale, outer.checkpoint_decode_scale);
  for (int i = 0; i < kBlockSize; ++i) {
    const float scaled = params.rule == Rule::kRuntime ? RuntimeScaled(x[i], encode_scale)
                                                       : DivRn(x[i], decode_scale);
    if (!params.stochastic) {
      codes[i] = E2m1Encode(scaled);
      continue;
    }
    if (i % 4 == 0) {
      uniform = StochasticUniform31(params.stochastic->seed, params.stochastic->offset,
                                    static_cast<uint64_t>(first_element + i) / 4);
    }
    codes[i] = E2m1EncodeStochastic(scaled, uniform.word[i % 4]);
  }
  PackCodes(codes, packed);
}

void EncodeBlocks(const EncodeJob& job, int64_t begin, int64_t end) {
  const QuantizeParams& params = *job.params;
  const int64_t blocks_per_row = job.x.cols / kBlockSize;
  const bool per_token = params.scheme == Scheme::kPerToken;
  for (int64_t b = begin; b < end; ++b) {
    const Outer outer(job.amax[per_token ? b / blocks_per_row : 0], params);
    float x[kBlockSize];
    LoadBlock(job.x, b * kBlockSize, x);
    const float block_amax = BlockAmax(x);
    uint8_t scale;
    if (job.given_scales) {
      scale = job.given_scales[b];
    } else if (params.four_over_six) {
      const auto [metric, path] = *params.four_over_six;
      const auto [sf6, sf4] = FourOverSixCandidates(block_amax, outer.context.global.encode_scale);
      const float error6 = FourOverSixBlockError(x, sf6, outer.context, metric, path);
      const float error4 = FourOverSixBlockError(x, sf4, outer.context, metric, path);
      scale = StoredScale(error4 < error6 ? sf4 : sf6, block_amax, outer, params.rule);
    } else {
      scale = PlainScale(block_amax, outer, params.rule);
    }
    job.scale[b] = scale;
    EncodeBlock(x, scale, outer, params, b * kBlockSize, job.packed + b * 8);
  }
}

void EncodeTiles(const EncodeJob& job, int64_t begin, int64_t end) {
  const QuantizeParams& params = *job.params;
  const Outer outer(job.amax[0], params);
  const int64_t tiles_per_row = job.x.cols / kBlockSize;
  for (int64_t t = begin; t < end; ++t) {
    // The tile's row r is block first + r * tiles_per_row.
    const int64_t first = t / tiles_per_row * kBlockSize * tiles_per_row + t % tiles_per_row;
    float x[kBlockSize][kBlockSize];
    float tile_amax = 0.0f;
    for (int r = 0; r < kBlockSize; ++r) {
      LoadBlock(job.x, (first + r * tiles_per_row) * kBlockSize, x[r]);
      tile_amax = Max(tile_amax, BlockAmax(x[r]));
    }
    uint8_t scale;
    if (params.four_over_six) {
      const auto [metric, path] = *params.four_over_six;
      const auto [sf6, sf4] = FourOverSixCandidates(tile_amax, outer.context.global.encode_scale);
      float errors6[kBlockSize], errors4[kBlockSize];
      for (int r = 0; r < kBlockSize; ++r) {
        errors6[r] = FourOverSixBlockError(x[r], sf6, outer.context, metric, path);
        errors4[r] = FourOverSixBlockError(x[r], sf4, outer.context, metric, path);
      }
      const float error6 = FourOverSixJoinTile(errors6, metric);
      const float error4 = FourOverSixJoinTile(errors4, metric);
      scale = StoredScale(error4 < error6 ? sf4 : sf6, tile_amax, outer, params.rule);
    } else {
      scale = PlainScale(tile_amax, outer, params.rule);
    }
    for (int r = 0; r < kBlockSize; ++r) {
      const int64_t b = first + r * tiles_per_row;
      job.scale[b] = scale;
      EncodeBlock(x[r], scale, outer, params, b * kBlockSize, job.packed + b * 8);
    }
  }
}

// Loads block b as magnitudes; returns the largest.
float LoadMagnitudes(const MatrixView& x, int64_t b, float a[kBlockSize]) {
  LoadBlock(x, b * kBlockSize, a);
  for (int i = 0; i < kBlockSize; ++i) a[i] = Abs(a[i]);
  return BlockAmax(a);
}

SweepCounts ScaleSweep(const SweepJob& job, int64_t begin, int64_t end) {
  const bool exhaustive = job.method == SweepMethod::kExhaustive;
  SweepCounts counts;
  for (int64_t b = begin; b < end; ++b) {
    float a[kBlockSize];
    const float amax = LoadMagnitudes(job.x, b, a);
    const SweepWinner winner =
        exhaustive ? SweepExhaustive(a, *job.table) : SweepPruned(a, amax, *job.table);
    job.code[b] = static_cast<uint8_t>(winner.code);
    job.loss[b] = winner.loss;
    counts.evaluations += winner.evaluations;
    counts.near_ties += exhaustive && winner.near_tie;
  }
  return counts;
}

SweepCounts ScaleSweepHessian(const SweepJob& job, int64_t begin, int64_t end) {
  const bool exhaustive = job.method == SweepMethod::kExhaustive;
  SweepCounts counts;
  const int64_t blocks_per_row = job.x.cols / kBlockSize;
  for (int64_t b = begin * blocks_per_row; b < end * blocks_per_row; ++b) {
    const HessianFactor& factor = job.factors[b % blocks_per_row];
    float w[kBlockSize];
    LoadBlock(job.x, b * kBlockSize, w);
    const SweepWinner winner = exhaustive ? HessianSweepExhaustive(w, *job.table, factor)
                                          : HessianSweepPruned(w, BlockAmax(w), *job.table, factor);
    job.code[b] = static_cast<uint8_t>(winner.code);
    job.loss[b] = winner.loss;
    counts.evaluations += winner.evaluations;
    counts.near_ties += exhaustive && winner.near_tie;
  }
  return counts;
}

void HessianFeedbackRows(const FeedbackJob& job, int64_t begin, int64_t end) {
  const int64_t blocks_per_row = job.x.cols / kBlockSize;
  for (int64_t b = begin * blocks_per_row; b < end * blocks_per_row; ++b) {
    const int64_t slice = b % blocks_per_row;
    float w[kBlockSize];
    LoadBlock(job.x, b * kBlockSize, w);
    const FeedbackWinner winner =
        HessianFeedbackSearch(w, job.code[b], job.loss[b], job.packed + b * 8, *job.table,
                              job.factors[slice], job.feedback[slice]);
    if (winner.code == 0) continue;
    job.code[b] = static_cast<uint8_t>(winner.code);
    job.loss[b] = winner.loss;
    PackCodes(winner.codes, job.packed + b * 8);
  }
}

SweepCounts MultiplierSearchBlocks(const MultiplierJob& job, int64_t begin, int64_t end) {
  SweepCounts counts;
  for (int64_t b = begin; b < end; ++b) {
    float a[kBlockSize];
    const float amax = LoadMagnitudes(job.x, b, a);
    const MultiplierWinner winner =
        MultiplierSearch(a, amax, *job.table, job.global_decode_scale, job.multipliers, job.count);
    job.code[b] = static_cast<uint8_t>(winner.code);
    job.best_amax[b] = winner.block_amax;
    job.loss[b] = winner.loss;
    counts.evaluations += winner.evaluations;
  }
  return counts;
}

void MeasureBlocks(const MeasureJob& job, int64_t begin, int64_t end, BlockError* errors) {
  for (int64_t b = begin; b < end; ++b) {
    const auto decode = [&](int code) {
      return Dequantize(static_cast<uint8_t>(code), job.scale[b], job.global_decode_scale);
    };
    float x[kBlockSize], y[kBlockSize];
    LoadBlock(job.x, b * kBlockSize, x);
    for (int j = 0; j < kBlockSize / 2; ++j) {
      const uint8_t byte = job.packed[b * 8 + j];
      y[2 * j] = decode(byte & 0xF);
      y[2 * j + 1] = decode(byte >> 4);
    }
    errors[b - begin] = MeasureBlock(x, y, /*largest=*/decode(7));
  }
}

}  // namespace

const CpuKernels& ScalarKernels() {
  static constexpr CpuKernels kKernels = {
      .name = "scalar",
      .max_magnitude = MaxMagnitude,
      .block_magnitudes = BlockMagnitudes,
      .raise_magnitudes = RaiseMagnitudes,
      .hessian_chain = HessianChain,
      .encode_blocks = EncodeBlocks,
      .encode_tiles = EncodeTiles,
      .scale_sweep = ScaleSweep,
      .multiplier_search = MultiplierSearchBlocks,
      .scale_sweep_hessian = ScaleSweepHessian,
      .hessian_feedback = HessianFeedbackRows,
      .measure_blocks = MeasureBlocks,
  };
  return kKernels;
}

}  // namespace nibble
