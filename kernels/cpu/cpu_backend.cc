#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"
#include "kernels/hessian_factors.h"
#include "quant/numerics/e2m1.h"
#include "quant/numerics/hadamard.h"
#include "quant/numerics/hessian_sum.h"
#include "quant/numerics/post_scale.h"

namespace nibble {
namespace {

constexpr int64_t kGrainBlocks = 4096;  // blocks a thread takes at a time: 64 Ki weights
// The same in rows, of which each lane of a vector has one: a multiple of any vector's lanes.
constexpr int64_t kGrainRows = 64;

// Above every finite magnitude of the type.
uint32_t InfinityBits(DType dtype) {
  return dtype == DType::kF32 ? 0x7F800000u : dtype == DType::kBf16 ? 0x7F80u : 0x7C00u;
}

float MagnitudeFromBits(DType dtype, uint32_t bits) {
  if (dtype == DType::kF32) return FloatFromBits(bits);
  return dtype == DType::kBf16 ? FloatFromBf16(static_cast<uint16_t>(bits))
                               : FloatFromF16(static_cast<uint16_t>(bits));
}

const char* ElementAt(const MatrixView& x, int64_t index) {
  return static_cast<const char*>(x.data) + index * DTypeBytes(x.dtype);
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(const CpuKernels& kernels, std::string name, const BackendOptions& options)
      : kernels_(kernels), name_(std::move(name)), pool_(options.threads) {}

  std::string name() const override { return name_; }

 private:
  absl::StatusOr<float> DoAmax(const MatrixView& x) override {
    std::atomic<uint32_t> largest{0};
    pool_.ParallelFor(x.size(), kGrainBlocks * kBlockSize, [&](int64_t begin, int64_t end) {
      const uint32_t part = kernels_.max_magnitude(x.dtype, ElementAt(x, begin), end - begin);
      uint32_t seen = largest.load(std::memory_order_relaxed);
      while (part > seen && !largest.compare_exchange_weak(seen, part)) {
      }
    });
    if (largest >= InfinityBits(x.dtype)) return NonFiniteError(x);
    return MagnitudeFromBits(x.dtype, largest);
  }

  absl::Status DoObserve(const MatrixView& x, Observation& result) override {
    const int64_t blocks_per_row = x.cols / kBlockSize;
    const int64_t row_bytes = x.cols * DTypeBytes(x.dtype);
    const ObserveParams& params = result.params;
    std::vector<char> columns(params.column_amax ? row_bytes : 0);
    uint32_t largest = 0;
    std::mutex mutex;
    const int64_t grain = std::max<int64_t>(1, kGrainBlocks * kBlockSize / x.cols);
    pool_.ParallelFor(x.rows, grain, [&](int64_t begin, int64_t end) {
      std::vector<char> finite(row_bytes), part_columns(columns.size());
      std::vector<uint32_t> blocks(blocks_per_row);
      Observation part;
      part.histogram.resize(kLog2Bins);
      uint32_t part_largest = 0;
      for (int64_t r = begin; r < end; ++r) {
        const char* row = ElementAt(x, r * x.cols);
        kernels_.block_magnitudes(x.dtype, row, blocks_per_row, blocks.data());
        uint32_t row_largest = *std::max_element(blocks.begin(), blocks.end());
        if (row_largest >= InfinityBits(x.dtype)) {
          CountNonFinite(x, r, part);
          row = KeepFinite(x, r, finite.data());
          kernels_.block_magnitudes(x.dtype, row, blocks_per_row, blocks.data());
          row_largest = *std::max_element(blocks.begin(), blocks.end());
        }
        part_largest = std::max(part_largest, row_largest);
        if (params.row_amax) result.row_amax[r] = MagnitudeFromBits(x.dtype, row_largest);
        if (params.column_amax) {
          kernels_.raise_magnitudes(x.dtype, row, x.cols, part_columns.data());
        }
        for (int64_t b = 0; (params.block_amax || params.histogram) && b < blocks_per_row; ++b) {
          const float amax = MagnitudeFromBits(x.dtype, blocks[b]);
          if (params.block_amax) result.block_amax[r * blocks_per_row + b] = amax;
          ++part.histogram[Log2Bin(amax)];
        }
      }
      std::lock_guard lock(mutex);
      largest = std::max(largest, part_largest);
      if (params.column_amax) {
        kernels_.raise_magnitudes(x.dtype, part_columns.data(), x.cols, columns.data());
      }
      for (size_t i = 0; i < result.histogram.size(); ++i) {
        result.histogram[i] += part.histogram[i];
      }
      result.nan_count += part.nan_count;
      result.inf_count += part.inf_count;
      const int64_t first = part.first_non_finite;
      if (first >= 0 && (result.first_non_finite < 0 || first < result.first_non_finite)) {
        result.first_non_finite = first;
      }
    });
    result.amax = MagnitudeFromBits(x.dtype, largest);
    for (size_t c = 0; c < result.column_amax.size(); ++c) {
      result.column_amax[c] = LoadElement(x.dtype, columns.data(), c);
    }
    return absl::OkStatus();
  }

  // Of row r, into the counts of `part`.
  static void CountNonFinite(const MatrixView& x, int64_t r, Observation& part) {
    for (int64_t i = r * x.cols; i < (r + 1) * x.cols; ++i) {
      const float value = LoadElement(x.dtype, x.data, i);
      if (IsFinite(value)) continue;
      ++(std::isnan(value) ? part.nan_count : part.inf_count);
      if (part.first_non_finite < 0) part.first_non_finite = i;
    }
  }

  // Row r with zeros for NaN and infinity, in `out`.
  static const char* KeepFinite(const MatrixView& x, int64_t r, char* out) {
    const int bytes = DTypeBytes(x.dtype);
    std::memcpy(out, ElementAt(x, r * x.cols), x.cols * bytes);
    for (int64_t i = 0; i < x.cols; ++i) {
      if (!IsFinite(LoadElement(x.dtype, out, i))) std::memset(out + i * bytes, 0, bytes);
    }
    return out;
  }

  absl::Status DoAccumulateHessian(const MatrixView& x, std::span<float> hessians) override {
    const int64_t slices = x.cols / kBlockSize;
    std::vector<float> sums(hessians.size());
    std::atomic<int64_t> bad_slice{slices};
    pool_.ParallelFor(slices, /*grain=*/1, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) {
        float total[kHessianSize];
        HessianTotal(
            x.rows, slices,
            [&](int64_t first, int64_t last, float* sum) {
              kernels_.hessian_chain(x, s, first, last, sum);
            },
            total);
        bool finite = true;
        for (int i = 0; i < kBlockSize; ++i) {
          for (int j = 0; j < kBlockSize; ++j) {
            const int64_t at = s * kHessianSize + i * kBlockSize + j;
            sums[at] = HessianEntry(hessians[at], total, i, j);
            finite = finite && IsFinite(sums[at]);
          }
        }
        int64_t seen = bad_slice;
        while (!finite && s < seen && !bad_slice.compare_exchange_weak(seen, s)) {
        }
      }
    });
    if (bad_slice < slices) return HessianSumError(x, bad_slice);
    std::copy(sums.begin(), sums.end(), hessians.begin());
    return absl::OkStatus();
  }

  // What is given, else the matrix's own, which proves it finite.
  absl::StatusOr<float> GlobalAmax(const MatrixView& x, const std::optional<float>& given) {
    if (given) return *given;
    return DoAmax(x);
  }

  // Whether `blocks` blocks from `first` on are all finite. Asked right before a piece is read for
  // something else, it costs little: they come from the cache then.
  bool AreFinite(const MatrixView& x, int64_t first, int64_t blocks) const {
    return kernels_.max_magnitude(x.dtype, ElementAt(x, first * kBlockSize), blocks * kBlockSize) <
           InfinityBits(x.dtype);
  }

  // Blocks [begin, end) as a row of their own.
  static MatrixView Piece(const MatrixView& x, int64_t begin, int64_t end) {
    return {ElementAt(x, begin * kBlockSize), x.dtype, 1, (end - begin) * kBlockSize};
  }

  // Calls body(begin, end) over the blocks of x in pieces, but not for pieces that are not finite;
  // none is looked at where all are known to be.
  template <typename Body>
  absl::Status ForFinitePieces(const MatrixView& x, bool known_finite, const Body& body) {
    std::atomic<bool> finite{true};
    pool_.ParallelFor(x.size() / kBlockSize, kGrainBlocks, [&](int64_t begin, int64_t end) {
      if (known_finite || AreFinite(x, begin, end - begin)) {
        body(begin, end);
      } else {
        finite = false;
      }
    });
    return finite ? absl::OkStatus() : NonFiniteError(x);
  }

  // Largest magnitude of each row of a matrix that is known to be finite.
  void RowAmax(const MatrixView& x, float* amax) {
    const int64_t grain = std::max<int64_t>(1, kGrainBlocks * kBlockSize / x.cols);
    pool_.ParallelFor(x.rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const uint32_t bits = kernels_.max_magnitude(x.dtype, ElementAt(x, r * x.cols), x.cols);
        amax[r] = MagnitudeFromBits(x.dtype, bits);
      }
    });
  }

  // x transposed, rotated, or both, in its own type.
  std::vector<char> MakeCopy(const QuantizeParams& params, const MatrixView& x) {
    const int64_t rows = params.columnwise ? x.cols : x.rows;
    const int64_t cols = params.columnwise ? x.rows : x.cols;
    std::vector<char> copy(rows * cols * DTypeBytes(x.dtype));
    // A task is one block of 16 of every copy row in a band: reads of column-wise tasks walk along
    // source rows.
    pool_.ParallelFor(cols / kBlockSize, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        for (int64_t r = 0; r < rows; ++r) CopyBlock(params, x, r, b, cols, copy.data());
      }
    });
    return copy;
  }

  static void CopyBlock(const QuantizeParams& params, const MatrixView& x, int64_t r, int64_t b,
                        int64_t copy_cols, char* copy) {
    float block[kBlockSize];
    for (int i = 0; i < kBlockSize; ++i) {
      const int64_t k = b * kBlockSize + i;
      block[i] = LoadElement(x.dtype, x.data, params.columnwise ? k * x.cols + r : r * x.cols + k);
    }
    if (params.rht != Rht::kNone) Rht16(block, RhtSigns(params.rht));
    char* out = copy + (r * copy_cols + b * kBlockSize) * DTypeBytes(x.dtype);
    for (int i = 0; i < kBlockSize; ++i) {
      if (x.dtype == DType::kF32) {
        std::memcpy(out + 4 * i, &block[i], 4);
      } else {
        const uint16_t bits =
            x.dtype == DType::kBf16 ? Bf16FromFloat(block[i]) : F16FromFloat(block[i]);
        std::memcpy(out + 2 * i, &bits, 2);
      }
    }
  }

  absl::Status DoQuantize(const QuantizeParams& params, const MatrixView& source,
                          const MutablePackedView& out) override {
    if (params.global_amax && params.scheme == Scheme::kPerTensor && !params.columnwise &&
        params.rht == Rht::kNone) {
      out.amax[0] = *params.global_amax;
      return Encode(params, source, nullptr, /*known_finite=*/false, out);
    }
    NIBBLE_ASSIGN_OR_RETURN(float amax, DoAmax(source));
    if (source.size() == 0) {
      std::fill_n(out.amax, out.layout.amax_count(), params.global_amax.value_or(0.0f));
      return absl::OkStatus();
    }
    MatrixView x = source;
    std::vector<char> copy;
    if (params.columnwise || params.rht != Rht::kNone) {
      copy = MakeCopy(params, source);
      x = {copy.data(), source.dtype, out.layout.rows, out.layout.cols};
      if (params.rht != Rht::kNone) {
        absl::StatusOr<float> rotated = DoAmax(x);
        if (!rotated.ok()) return Annotate(rotated.status(), "after the Hadamard transform");
        amax = *rotated;
      }
    }
    if (params.scheme == Scheme::kPerToken) {
      RowAmax(x, out.amax);
    } else {
      out.amax[0] = params.global_amax.value_or(amax);
    }
    return Encode(params, x, nullptr, /*known_finite=*/true, out);
  }

  absl::Status DoQuantizeWithScales(const MatrixView& x, std::span<const uint8_t> scales,
                                    const MutablePackedView& out) override {
    QuantizeParams params;
    params.rule = Rule::kCheckpoint;
    params.e4m3_max = out.layout.e4m3_max;
    return Encode(params, x, scales.data(), /*known_finite=*/false, out);
  }

  // tile_2d only of what is known to be finite.
  absl::Status Encode(const QuantizeParams& params, const MatrixView& x,
                      const uint8_t* given_scales, bool known_finite,
                      const MutablePackedView& out) {
    const PackedLayout& layout = out.layout;
    std::vector<uint8_t> linear(layout.swizzled ? layout.blocks() : 0);
    const EncodeJob job = {x,          &params,
                           out.amax,   given_scales,
                           out.packed, layout.swizzled ? linear.data() : out.scale};
    if (params.scheme == Scheme::kTile2d) {
      pool_.ParallelFor(
          layout.blocks() / kBlockSize, kGrainBlocks / kBlockSize,
          [&](int64_t begin, int64_t end) { kernels_.encode_tiles(job, begin, end); });
    } else {
      NIBBLE_RETURN_IF_ERROR(ForFinitePieces(x, known_finite, [&](int64_t begin, int64_t end) {
        kernels_.encode_blocks(job, begin, end);
      }));
    }
    SwizzleTo(out, linear);
    return absl::OkStatus();
  }

  static void SwizzleTo(const MutablePackedView& out, const std::vector<uint8_t>& linear) {
    const PackedLayout& layout = out.layout;
    if (!layout.swizzled) return;
    Swizzle(linear, layout.rows, layout.blocks_per_row(),
            {out.scale, static_cast<size_t>(layout.scale_bytes())});
  }

  // Calls body(first_row, last_row) over the rows of a packed tensor.
  template <typename Body>
  void ForRows(const PackedLayout& layout, const Body& body) {
    const int64_t grain =
        std::max<int64_t>(1, kGrainBlocks / std::max<int64_t>(1, layout.blocks_per_row()));
    pool_.ParallelFor(layout.rows, grain, body);
  }

  // One block's values.
  static void DequantizeBlock(const PackedView& packed, int64_t row, int64_t block,
                              float global_decode_scale, float out[kBlockSize]) {
    const uint8_t scale = packed.scale[packed.layout.scale_offset(row, block)];
    const uint8_t* bytes = packed.packed + (row * packed.layout.blocks_per_row() + block) * 8;
    for (int j = 0; j < kBlockSize / 2; ++j) {
      out[2 * j] = nibble::Dequantize(bytes[j] & 0xF, scale, global_decode_scale);
      out[2 * j + 1] = nibble::Dequantize(bytes[j] >> 4, scale, global_decode_scale);
    }
  }

  static float RowDecodeScale(const PackedView& packed, int64_t row) {
    const bool per_token = packed.layout.scheme == Scheme::kPerToken;
    return packed.layout.GlobalDecodeScale(packed.amax[per_token ? row : 0]);
  }

  absl::Status DoDequantize(const PackedView& packed, DType dtype, void* out) override {
    ForRows(packed.layout, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const float decode_scale = RowDecodeScale(packed, r);
        for (int64_t b = 0; b < packed.layout.blocks_per_row(); ++b) {
          float y[kBlockSize];
          DequantizeBlock(packed, r, b, decode_scale, y);
          const int64_t index = r * packed.layout.cols + b * kBlockSize;
          if (dtype == DType::kF32) {
            std::memcpy(static_cast<float*>(out) + index, y, sizeof(y));
          } else {
            uint16_t* values = static_cast<uint16_t*>(out) + index;
            // Finite stays finite: the few values that would round up to infinity do not.
            for (int i = 0; i < kBlockSize; ++i) {
              values[i] = Bf16FromFloat(Max(Min(y[i], kBf16Max), -kBf16Max));
            }
          }
        }
      }
    });
    return absl::OkStatus();
  }

  absl::StatusOr<ErrorStats> DoMeasureError(const MatrixView& x,
                                            const PackedView& packed) override {
    const PackedLayout& layout = packed.layout;
    std::vector<uint8_t> linear(layout.swizzled ? layout.blocks() : 0);
    if (layout.swizzled) {
      for (int64_t b = 0; b < layout.blocks(); ++b) {
        linear[b] = packed.scale[layout.scale_offset(b / layout.blocks_per_row(),
                                                     b % layout.blocks_per_row())];
      }
    }
    const uint8_t* scale = layout.swizzled ? linear.data() : packed.scale;
    std::mutex mutex;
    ErrorStats total;
    int64_t bad_blocks = 0;
    const auto measure = [&](int64_t begin, int64_t end) {
      constexpr int64_t kStep = 256;
      BlockError errors[kStep];
      ErrorStats part;
      int64_t bad = 0;
      for (int64_t b = begin, next; b < end; b = next) {
        const int64_t row = b / layout.blocks_per_row();
        next = std::min(end, b + kStep);
        if (layout.scheme == Scheme::kPerToken) {
          next = std::min(next, (row + 1) * layout.blocks_per_row());
        }
        kernels_.measure_blocks({x, packed.packed, scale, RowDecodeScale(packed, row)}, b, next,
                                errors);
        for (int64_t i = 0; i < next - b; ++i) {
          if (IsFinite(errors[i].squared_y)) {
            part.AddBlock(errors[i]);
          } else {
            ++bad;
          }
        }
      }
      std::lock_guard lock(mutex);
      total.Merge(part);
      bad_blocks += bad;
    };
    NIBBLE_RETURN_IF_ERROR(ForFinitePieces(x, /*known_finite=*/false, measure));
    if (bad_blocks > 0) return NonFinitePackedError(bad_blocks);
    return total;
  }

  absl::Status DoPostScale(const MutableMatrixView& d, std::span<const float> row_decode_scale,
                           std::span<const float> col_decode_scale) override {
    const int64_t grain = std::max<int64_t>(1, kGrainBlocks * kBlockSize / d.cols);
    pool_.ParallelFor(d.rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * d.cols; i < end * d.cols; ++i) {
        const float a = row_decode_scale[row_decode_scale.size() == 1 ? 0 : i / d.cols];
        const float b = col_decode_scale[col_decode_scale.size() == 1 ? 0 : i % d.cols];
        if (d.dtype == DType::kF32) {
          float& value = static_cast<float*>(d.data)[i];
          value = PostScaled(value, a, b);
        } else {
          uint16_t& value = static_cast<uint16_t*>(d.data)[i];
          value =
              d.dtype == DType::kBf16 ? PostScaledBf16(value, a, b) : PostScaledF16(value, a, b);
        }
      }
    });
    return absl::OkStatus();
  }

  absl::Status DoScaleSweep(const ScaleSweepParams& params, const MatrixView& x,
                            std::span<const float> hessians, SweepResult& result) override {
    // The Hessian sweep's pieces are bands of rows: a check of its own costs it nothing to speak
    // of.
    const bool known_finite = !params.global_amax || !hessians.empty();
    NIBBLE_ASSIGN_OR_RETURN(result.global_amax, GlobalAmax(x, params.global_amax));
    if (params.global_amax && known_finite) NIBBLE_RETURN_IF_ERROR(DoAmax(x).status());
    const float bound = static_cast<float>(params.e4m3_max);
    const SweepTable table = MakeSweepTable(result.global_amax, bound);
    const int64_t blocks_per_row = x.cols / kBlockSize;
    NIBBLE_ASSIGN_OR_RETURN(const auto factors, FactorHessians(hessians, pool_));
    Resize(result, x.rows * blocks_per_row);
    float amax_of_code[kE4m3Codes + 1];
    for (int k = 0; k <= kE4m3Codes; ++k) {
      amax_of_code[k] = SweepBlockAmax(k, result.global_amax, bound);
    }
    const SweepJob job = {x,
                          &table,
                          params.method,
                          factors.empty() ? nullptr : factors.data(),
                          result.code.data(),
                          result.loss.data()};
    std::atomic<int64_t> evaluations{0}, near_ties{0};
    const auto finish = [&](int64_t begin, int64_t end, const SweepCounts& counts) {
      for (int64_t b = begin; b < end; ++b) result.best_amax[b] = amax_of_code[result.code[b]];
      evaluations += counts.evaluations;
      near_ties += counts.near_ties;
    };
    if (factors.empty()) {
      NIBBLE_RETURN_IF_ERROR(ForFinitePieces(x, known_finite, [&](int64_t begin, int64_t end) {
        finish(begin, end, kernels_.scale_sweep(job, begin, end));
      }));
    } else {
      pool_.ParallelFor(x.rows, kGrainRows, [&](int64_t begin, int64_t end) {
        finish(begin * blocks_per_row, end * blocks_per_row,
               kernels_.scale_sweep_hessian(job, begin, end));
      });
    }
    result.evaluations = evaluations;
    result.near_ties = near_ties;
    return absl::OkStatus();
  }

  absl::Status DoHessianFeedback(const MatrixView& x, std::span<const float> hessians,
                                 SweepResult& found, const MutablePackedView& out) override {
    const SweepTable table =
        MakeSweepTable(found.global_amax, static_cast<float>(out.layout.e4m3_max));
    NIBBLE_ASSIGN_OR_RETURN(const auto factors, FactorHessians(hessians, pool_));
    const std::vector<HessianFeedback> feedback = MakeHessianFeedbacks(factors, pool_);
    const FeedbackJob job = {
        x,         &table, factors.data(), feedback.data(), found.code.data(), found.loss.data(),
        out.packed};
    pool_.ParallelFor(x.rows, kGrainRows, [&](int64_t begin, int64_t end) {
      kernels_.hessian_feedback(job, begin, end);
    });
    return absl::OkStatus();
  }

  static void Resize(SweepResult& result, int64_t blocks) {
    result.code.resize(blocks);
    result.best_amax.resize(blocks);
    result.loss.resize(blocks);
  }

  // A piece is searched and encoded before the next one is read.
  absl::Status DoSweepAndQuantize(const ScaleSweepParams& params, const MatrixView& x,
                                  const MutablePackedView& out, SweptTensor& result) override {
    const bool known_finite = !params.global_amax;
    NIBBLE_ASSIGN_OR_RETURN(const float global_amax, GlobalAmax(x, params.global_amax));
    out.amax[0] = global_amax;
    const SweepTable table = MakeSweepTable(global_amax, static_cast<float>(params.e4m3_max));
    QuantizeParams encode;
    encode.rule = Rule::kCheckpoint;
    encode.e4m3_max = params.e4m3_max;
    const PackedLayout& layout = out.layout;
    std::vector<uint8_t> linear(layout.swizzled ? layout.blocks() : 0);
    uint8_t* scales = layout.swizzled ? linear.data() : out.scale;
    static_assert(kGrainBlocks % kLossGroup == 0);
    std::vector<double> group_loss((layout.blocks() + kLossGroup - 1) / kLossGroup);
    std::atomic<int64_t> evaluations{0};
    NIBBLE_RETURN_IF_ERROR(ForFinitePieces(x, known_finite, [&](int64_t begin, int64_t end) {
      float loss[kGrainBlocks];
      const int64_t blocks = end - begin;
      const MatrixView piece = Piece(x, begin, end);
      evaluations +=
          kernels_
              .scale_sweep({piece, &table, params.method, nullptr, scales + begin, loss}, 0, blocks)
              .evaluations;
      kernels_.encode_blocks(
          {piece, &encode, out.amax, scales + begin, out.packed + begin * 8, scales + begin}, 0,
          blocks);
      for (int64_t b = 0; b < blocks; b += kLossGroup) {
        group_loss[(begin + b) / kLossGroup] =
            SumLossGroup(loss + b, std::min<int64_t>(kLossGroup, blocks - b));
      }
    }));
    result.loss = SumLossGroups(group_loss);
    result.evaluations = evaluations;
    SwizzleTo(out, linear);
    return absl::OkStatus();
  }

  // The two levels of SumSweepLosses.
  static double SumLossGroup(const float* loss, int64_t count) {
    double group[kLossGroup] = {};
    std::copy_n(loss, count, group);
    for (int half = kLossGroup / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) group[i] += group[i + half];
    }
    return group[0];
  }
  static double SumLossGroups(const std::vector<double>& group_loss) {
    double sums[kLossSums] = {};
    for (size_t i = 0; i < group_loss.size(); ++i) sums[i % kLossSums] += group_loss[i];
    for (int half = kLossSums / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    }
    return sums[0];
  }

  absl::Status DoMultiplierSearch(const MultiplierSearchParams& params, const MatrixView& x,
                                  SweepResult& result) override {
    const bool known_finite = !params.global_amax;
    NIBBLE_ASSIGN_OR_RETURN(const float global_amax, GlobalAmax(x, params.global_amax));
    result.global_amax = global_amax;
    const float bound = static_cast<float>(params.e4m3_max);
    const SweepTable table = MakeSweepTable(result.global_amax, bound);
    const int count = MultiplierCount(params.grid);
    std::vector<float> multipliers(count);
    for (int i = 0; i < count; ++i) multipliers[i] = MultiplierAt(params.grid, count, i);
    const int64_t blocks = x.rows * (x.cols / kBlockSize);
    Resize(result, blocks);
    const MultiplierJob job = {x,
                               &table,
                               CheckpointGlobalDecodeScale(result.global_amax, bound),
                               multipliers.data(),
                               count,
                               result.code.data(),
                               result.best_amax.data(),
                               result.loss.data()};
    std::atomic<int64_t> evaluations{0};
    NIBBLE_RETURN_IF_ERROR(ForFinitePieces(x, known_finite, [&](int64_t begin, int64_t end) {
      evaluations += kernels_.multiplier_search(job, begin, end).evaluations;
    }));
    result.evaluations = evaluations;
    return absl::OkStatus();
  }

  const CpuKernels& kernels_;
  const std::string name_;
  ThreadPool pool_;
};

}  // namespace

std::unique_ptr<Backend> MakeCpuBackendWith(const CpuKernels& kernels,
                                            const BackendOptions& options) {
  return std::make_unique<CpuBackend>(kernels, absl::StrCat("cpu (", ToAbsl(kernels.name), ")"),
                                      options);
}

std::unique_ptr<Backend> MakeCpuBackend(const BackendOptions& options) {
  return MakeCpuBackendWith(SimdKernels(), options);
}

std::unique_ptr<Backend> MakeScalarBackend(const BackendOptions& options) {
  return MakeCpuBackendWith(ScalarKernels(), options);
}

}  // namespace nibble
