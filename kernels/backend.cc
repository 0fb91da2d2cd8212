#include "kernels/backend.h"

#include "absl/strings/numbers.h"
#include "base/status.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/multiplier_grid.h"
#include "quant/numerics/hessian_sweep.h"

namespace nibble {
namespace {

absl::Status CheckDType(DType dtype) {
  if (IsQuantizable(dtype)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("dtype: expected BF16, F16 or F32, got ", ToAbsl(DTypeName(dtype))));
}

absl::Status CheckMatrix(const MatrixView& x) {
  NIBBLE_RETURN_IF_ERROR(CheckDType(x.dtype));
  int64_t size;
  if (x.rows < 0 || x.cols <= 0 || x.cols % kBlockSize != 0 ||
      __builtin_mul_overflow(x.rows, x.cols, &size)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "shape: expected rows x a positive multiple of 16 columns, got ", x.rows, " x ", x.cols));
  }
  return absl::OkStatus();
}

absl::Status CheckHessians(const MatrixView& x, std::span<const float> hessians) {
  const int64_t slices = x.cols / kBlockSize, size = static_cast<int64_t>(hessians.size());
  constexpr int64_t kSliceSize = kBlockSize * kBlockSize;
  if (size % kSliceSize == 0 && size / kSliceSize == slices) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "hessian: expected ", slices, " slices of 16 x 16, got ", hessians.size(), " numbers"));
}

absl::Status CheckE4m3Max(int e4m3_max) {
  QuantizeParams params;
  params.e4m3_max = e4m3_max;
  return Validate(params);
}

absl::Status CheckGlobalAmax(const std::optional<float>& global_amax) {
  QuantizeParams params;
  params.global_amax = global_amax;
  return Validate(params);
}

absl::Status CheckShape(const QuantizeParams& params, const MatrixView& x) {
  if (params.scheme == Scheme::kTile2d && x.rows % kBlockSize != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("shape: expected a multiple of 16 rows under tile_2d, got ", x.rows));
  }
  // A copy of no rows would have no columns, and as many rows as a file of no bytes likes to claim.
  if (params.columnwise && (x.rows == 0 || x.rows % kBlockSize != 0)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "shape: expected a positive multiple of 16 rows for a column-wise copy, got ", x.rows));
  }
  return absl::OkStatus();
}

absl::Status CheckPackedAmax(const PackedView& packed) {
  for (int64_t i = 0; i < packed.layout.amax_count(); ++i) {
    if (!(packed.amax[i] >= 0.0f) || !IsFinite(packed.amax[i])) {
      return absl::InvalidArgumentError(absl::StrCat(
          "amax: expected finite numbers that are not negative, got ", packed.amax[i]));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckQuantize(const QuantizeParams& params, const MatrixView& x) {
  NIBBLE_RETURN_IF_ERROR(Validate(params));
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(x));
  return CheckShape(params, x);
}

absl::Status CheckLayout(const QuantizeParams& params, const MatrixView& x,
                         const PackedLayout& layout) {
  if (layout == LayoutOf(params, x.rows, x.cols)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "out: expected the layout that LayoutOf gives for these "
      "parameters and this shape, got another");
}

// Calls body(group, its rows of x) until one fails, and says in which.
template <typename Body>
absl::Status ForGroups(const MatrixView& x, std::span<const int64_t> group_rows, const Body& body) {
  MatrixView group = x;
  for (size_t i = 0; i < group_rows.size(); ++i) {
    group.rows = group_rows[i];
    NIBBLE_RETURN_IF_ERROR(Annotate(body(i, group), absl::StrCat("group ", i)));
    group.data = static_cast<const char*>(group.data) + group.size() * DTypeBytes(x.dtype);
  }
  return absl::OkStatus();
}

absl::Status CheckGrouped(const QuantizeParams& params, const MatrixView& x,
                          std::span<const int64_t> group_rows) {
  NIBBLE_RETURN_IF_ERROR(Validate(params));
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(x));
  int64_t left = x.rows;
  for (int64_t rows : group_rows) {
    if (rows < 0 || rows > left) {
      left = -1;
      break;
    }
    left -= rows;
  }
  if (left != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "group_rows: expected numbers that are not negative and add up to the matrix's ", x.rows,
        " rows, got others"));
  }
  return ForGroups(x, group_rows, [&](size_t, const MatrixView& group) {
    return group.rows == 0 ? absl::OkStatus() : CheckShape(params, group);
  });
}

}  // namespace

absl::Status Validate(const MultiplierGrid& grid) {
  const bool numbers = IsFinite(grid.start) && IsFinite(grid.stop) && IsFinite(grid.step);
  if (!numbers || !(grid.start > 0 && grid.stop >= grid.start && grid.step > 0) ||
      (double{grid.stop} - grid.start) / grid.step > kMaxMultipliers - 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "multipliers: expected 0 < start <= stop, step > 0 and at most ", kMaxMultipliers,
        " of them, got start ", grid.start, ", stop ", grid.stop, ", step ", grid.step));
  }
  return absl::OkStatus();
}

absl::Status Backend::NonFiniteError(const MatrixView& x) {
  int64_t count = 0, first = -1;
  for (int64_t i = 0; i < x.size(); ++i) {
    if (IsFinite(LoadElement(x.dtype, x.data, i))) continue;
    if (count++ == 0) first = i;
  }
  return absl::FailedPreconditionError(absl::StrCat("values: expected finite numbers, got ", count,
                                                    " NaN or infinite, the first at row ",
                                                    first / x.cols, ", column ", first % x.cols));
}

absl::Status Backend::NonFinitePackedError(int64_t blocks) {
  return absl::FailedPreconditionError(
      absl::StrCat("packed: expected scales and maxima that give finite values, got ", blocks,
                   " blocks with NaN or infinite ones"));
}

absl::Status Backend::HessianSumError(const MatrixView& x, int64_t slice) {
  for (int64_t i = 0; i < x.size(); ++i) {
    if (!IsFinite(LoadElement(x.dtype, x.data, i))) return NonFiniteError(x);
  }
  return absl::FailedPreconditionError(
      absl::StrCat("hessian: expected sums of at most ", kFloatMax, ", got more in slice ", slice));
}

absl::StatusOr<float> Backend::Amax(const MatrixView& x) {
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(x));
  return DoAmax(x);
}

absl::StatusOr<Observation> Backend::Observe(const ObserveParams& params, const MatrixView& x) {
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(x));
  Observation result;
  result.params = params;
  result.rows = x.rows;
  result.cols = x.cols;
  if (params.row_amax) result.row_amax.resize(x.rows);
  if (params.column_amax) result.column_amax.resize(x.cols);
  if (params.block_amax) result.block_amax.resize(x.size() / kBlockSize);
  if (params.histogram) result.histogram.resize(kLog2Bins);
  NIBBLE_RETURN_IF_ERROR(DoObserve(x, result));
  return result;
}

absl::Status Backend::AccumulateHessian(const MatrixView& x, std::span<float> hessians) {
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(x));
  NIBBLE_RETURN_IF_ERROR(CheckHessians(x, hessians));
  for (size_t i = 0; i < hessians.size(); ++i) {
    if (IsFinite(hessians[i])) continue;
    return absl::FailedPreconditionError(absl::StrCat("hessian: expected finite sums so far, got ",
                                                      hessians[i], " in slice ",
                                                      i / (kBlockSize * kBlockSize)));
  }
  return x.rows == 0 ? absl::OkStatus() : DoAccumulateHessian(x, hessians);
}

absl::StatusOr<std::unique_ptr<InputSums>> Backend::MakeInputSums(int64_t, bool, void*) {
  return absl::UnimplementedError(
      absl::StrCat("input sums: expected a GPU's backend, got ", name()));
}

absl::StatusOr<PackedTensor> Backend::Quantize(const QuantizeParams& params, const MatrixView& x) {
  NIBBLE_RETURN_IF_ERROR(CheckQuantize(params, x));
  PackedTensor out(LayoutOf(params, x.rows, x.cols));
  NIBBLE_RETURN_IF_ERROR(DoQuantize(params, x, out.mutable_view()));
  return out;
}

absl::Status Backend::Quantize(const QuantizeParams& params, const MatrixView& x,
                               const MutablePackedView& out) {
  NIBBLE_RETURN_IF_ERROR(CheckQuantize(params, x));
  NIBBLE_RETURN_IF_ERROR(CheckLayout(params, x, out.layout));
  return DoQuantize(params, x, out);
}

absl::Status Backend::QuantizeBoth(const QuantizeBothParams& params, const MatrixView& x,
                                   const MutablePackedView& rowwise,
                                   const MutablePackedView& columnwise) {
  if (params.rowwise.columnwise || !params.columnwise.columnwise) {
    return absl::InvalidArgumentError(absl::StrCat(
        "columnwise: expected false of the row-wise copy and true of the column-wise one, got ",
        params.rowwise.columnwise, " and ", params.columnwise.columnwise));
  }
  NIBBLE_RETURN_IF_ERROR(CheckQuantize(params.rowwise, x));
  NIBBLE_RETURN_IF_ERROR(CheckQuantize(params.columnwise, x));
  NIBBLE_RETURN_IF_ERROR(CheckLayout(params.rowwise, x, rowwise.layout));
  NIBBLE_RETURN_IF_ERROR(CheckLayout(params.columnwise, x, columnwise.layout));
  return DoQuantizeBoth(params, x, rowwise, columnwise);
}

absl::Status Backend::DoQuantizeBoth(const QuantizeBothParams& params, const MatrixView& x,
                                     const MutablePackedView& rowwise,
                                     const MutablePackedView& columnwise) {
  NIBBLE_RETURN_IF_ERROR(DoQuantize(params.rowwise, x, rowwise));
  return DoQuantize(params.columnwise, x, columnwise);
}

absl::StatusOr<std::vector<PackedTensor>> Backend::QuantizeGrouped(
    const QuantizeParams& params, const MatrixView& x, std::span<const int64_t> group_rows) {
  NIBBLE_RETURN_IF_ERROR(CheckGrouped(params, x, group_rows));
  std::vector<PackedTensor> out;
  std::vector<MutablePackedView> views;
  out.reserve(group_rows.size());
  for (int64_t rows : group_rows) {
    views.push_back(out.emplace_back(LayoutOf(params, rows, x.cols)).mutable_view());
  }
  NIBBLE_RETURN_IF_ERROR(DoQuantizeGrouped(params, x, group_rows, views));
  return out;
}

absl::Status Backend::QuantizeGrouped(const QuantizeParams& params, const MatrixView& x,
                                      std::span<const int64_t> group_rows,
                                      std::span<const MutablePackedView> out) {
  NIBBLE_RETURN_IF_ERROR(CheckGrouped(params, x, group_rows));
  if (out.size() != group_rows.size()) {
    return absl::InvalidArgumentError(absl::StrCat("out: expected one for each of ",
                                                   group_rows.size(), " groups, got ", out.size()));
  }
  NIBBLE_RETURN_IF_ERROR(ForGroups(x, group_rows, [&](size_t i, const MatrixView& group) {
    return CheckLayout(params, group, out[i].layout);
  }));
  return DoQuantizeGrouped(params, x, group_rows, out);
}

absl::Status Backend::DoQuantizeGrouped(const QuantizeParams& params, const MatrixView& x,
                                        std::span<const int64_t> group_rows,
                                        std::span<const MutablePackedView> out) {
  return ForGroups(x, group_rows, [&](size_t i, const MatrixView& group) {
    return DoQuantize(params, group, out[i]);
  });
}

absl::Status Backend::Dequantize(const PackedView& packed, DType dtype, void* out) {
  if (dtype != DType::kBf16 && dtype != DType::kF32) {
    return absl::InvalidArgumentError(
        absl::StrCat("dtype: expected BF16 or F32, got ", ToAbsl(DTypeName(dtype))));
  }
  NIBBLE_RETURN_IF_ERROR(CheckPackedAmax(packed));
  if (packed.layout.blocks() == 0) return absl::OkStatus();
  return DoDequantize(packed, dtype, out);
}

absl::StatusOr<SweepResult> Backend::Sweep(const ScaleSweepParams& params, const MatrixView& x,
                                           std::span<const float> hessians) {
  NIBBLE_RETURN_IF_ERROR(CheckE4m3Max(params.e4m3_max));
  NIBBLE_RETURN_IF_ERROR(CheckGlobalAmax(params.global_amax));
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(x));
  SweepResult result;
  NIBBLE_RETURN_IF_ERROR(DoScaleSweep(params, x, hessians, result));
  return result;
}

absl::StatusOr<SweepResult> Backend::ScaleSweep(const ScaleSweepParams& params,
                                                const MatrixView& x) {
  return Sweep(params, x, {});
}

absl::StatusOr<SweptTensor> Backend::SweepAndQuantize(const ScaleSweepParams& params,
                                                      const MatrixView& x, bool swizzle) {
  NIBBLE_RETURN_IF_ERROR(CheckE4m3Max(params.e4m3_max));
  NIBBLE_RETURN_IF_ERROR(CheckGlobalAmax(params.global_amax));
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(x));
  QuantizeParams quantize;
  quantize.rule = Rule::kCheckpoint;
  quantize.e4m3_max = params.e4m3_max;
  quantize.swizzle = swizzle;
  SweptTensor result = {PackedTensor(LayoutOf(quantize, x.rows, x.cols))};
  NIBBLE_RETURN_IF_ERROR(DoSweepAndQuantize(params, x, result.packed.mutable_view(), result));
  return result;
}

absl::StatusOr<SweepResult> Backend::ScaleSweepHessian(const ScaleSweepParams& params,
                                                       const MatrixView& x,
                                                       std::span<const float> hessians) {
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(x));
  NIBBLE_RETURN_IF_ERROR(CheckHessians(x, hessians));
  return Sweep(params, x, hessians);
}

absl::StatusOr<FeedbackTensor> Backend::SweepHessianFeedback(const ScaleSweepParams& params,
                                                             const MatrixView& x,
                                                             std::span<const float> hessians) {
  NIBBLE_ASSIGN_OR_RETURN(SweepResult found, ScaleSweepHessian(params, x, hessians));
  NIBBLE_ASSIGN_OR_RETURN(PackedTensor packed,
                          QuantizeWithScales(x, found.global_amax, params.e4m3_max, found.code));
  const double nearest_loss =
      SumSweepLosses(found.loss.data(), static_cast<int64_t>(found.loss.size()));
  NIBBLE_RETURN_IF_ERROR(DoHessianFeedback(x, hessians, found, packed.mutable_view()));
  const float bound = static_cast<float>(params.e4m3_max);
  for (size_t b = 0; b < found.code.size(); ++b) {
    found.best_amax[b] = SweepBlockAmax(found.code[b], found.global_amax, bound);
    packed.scale[b] = found.code[b];
  }
  return FeedbackTensor{std::move(packed), std::move(found), nearest_loss};
}

absl::Status Backend::DoHessianFeedback(const MatrixView& x, std::span<const float> hessians,
                                        SweepResult& found, const MutablePackedView& out) {
  return MakeCpuBackend({})->DoHessianFeedback(x, hessians, found, out);
}

absl::StatusOr<SweepResult> Backend::MultiplierSearch(const MultiplierSearchParams& params,
                                                      const MatrixView& x) {
  NIBBLE_RETURN_IF_ERROR(CheckE4m3Max(params.e4m3_max));
  NIBBLE_RETURN_IF_ERROR(CheckGlobalAmax(params.global_amax));
  NIBBLE_RETURN_IF_ERROR(Validate(params.grid));
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(x));
  SweepResult result;
  NIBBLE_RETURN_IF_ERROR(DoMultiplierSearch(params, x, result));
  return result;
}

absl::StatusOr<PackedTensor> Backend::QuantizeWithScales(const MatrixView& x, float global_amax,
                                                         int e4m3_max,
                                                         std::span<const uint8_t> scales) {
  NIBBLE_RETURN_IF_ERROR(CheckE4m3Max(e4m3_max));
  NIBBLE_RETURN_IF_ERROR(CheckGlobalAmax(global_amax));
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(x));
  QuantizeParams params;
  params.rule = Rule::kCheckpoint;
  params.e4m3_max = e4m3_max;
  PackedTensor out(LayoutOf(params, x.rows, x.cols));
  if (static_cast<int64_t>(scales.size()) != out.layout.blocks()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "scales: expected one for each of ", out.layout.blocks(), " blocks, got ", scales.size()));
  }
  for (uint8_t scale : scales) {
    if (scale < 1 || scale > kE4m3Codes) {
      return absl::InvalidArgumentError(
          absl::StrCat("scales: expected E4M3 codes 1..126, got ", int{scale}));
    }
  }
  out.amax[0] = global_amax;
  NIBBLE_RETURN_IF_ERROR(DoQuantizeWithScales(x, scales, out.mutable_view()));
  return out;
}

absl::StatusOr<ErrorStats> Backend::MeasureError(const MatrixView& x, const PackedView& packed) {
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(x));
  if (x.rows != packed.layout.rows || x.cols != packed.layout.cols) {
    return absl::InvalidArgumentError(absl::StrCat("shape: expected the packed tensor's ",
                                                   packed.layout.rows, " x ", packed.layout.cols,
                                                   ", got ", x.rows, " x ", x.cols));
  }
  NIBBLE_RETURN_IF_ERROR(CheckPackedAmax(packed));
  return DoMeasureError(x, packed);
}

absl::Status Backend::PostScale(const MutableMatrixView& d, std::span<const float> row_decode_scale,
                                std::span<const float> col_decode_scale) {
  NIBBLE_RETURN_IF_ERROR(CheckDType(d.dtype));
  int64_t size;
  if (d.rows < 0 || d.cols < 0 || __builtin_mul_overflow(d.rows, d.cols, &size)) {
    return absl::FailedPreconditionError(
        absl::StrCat("shape: expected rows x columns, got ", d.rows, " x ", d.cols));
  }
  const int64_t row_factors = static_cast<int64_t>(row_decode_scale.size());
  const int64_t col_factors = static_cast<int64_t>(col_decode_scale.size());
  if ((row_factors != 1 && row_factors != d.rows) || (col_factors != 1 && col_factors != d.cols)) {
    return absl::InvalidArgumentError(
        absl::StrCat("decode scales: expected one or ", d.rows, " for the rows and one or ", d.cols,
                     " for the columns, got ", row_factors, " and ", col_factors));
  }
  if (size == 0) return absl::OkStatus();
  return DoPostScale(d, row_decode_scale, col_decode_scale);
}

std::optional<int> CudaDeviceOf(std::string_view name) {
  constexpr std::string_view kCuda = "cuda:";
  int device;
  if (!name.starts_with(kCuda) || !absl::SimpleAtoi(ToAbsl(name.substr(kCuda.size())), &device) ||
      device < 0) {
    return std::nullopt;
  }
  return device;
}

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(std::string_view name,
                                                     const BackendOptions& options) {
  if (name == "auto" || name == "cpu") return MakeCpuBackend(options);
  if (name == "cpu-scalar") return MakeScalarBackend(options);
  if (const std::optional<int> device = CudaDeviceOf(name)) {
    return MakeCudaBackend(*device, options.tuning);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("backend: expected auto, cpu, cpu-scalar or cuda:N, got '", ToAbsl(name), "'"));
}

}  // namespace nibble
