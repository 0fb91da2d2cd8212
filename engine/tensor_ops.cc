#include "engine/tensor_ops.h"

#include <map>
#include <vector>

#include "absl/strings/str_join.h"
#include "base/status.h"
#include "base/stopwatch.h"
#include "base/tensor_view.h"
#include "base/text.h"
#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "nlohmann/json.hpp"

namespace nibble {
namespace {

struct LoadedTensor {
  std::vector<std::byte> bytes;
  DType dtype;
  std::vector<int64_t> shape;

  absl::StatusOr<MatrixView> matrix() const {
    return AsQuantizableMatrix(bytes.data(), dtype, shape);
  }
};

absl::Status CheckOutput(const std::string& in, const std::string& out) {
  NIBBLE_ASSIGN_OR_RETURN(const bool same, SameFile(in, out));
  if (!same) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--out: expected a file other than the input, got ", out));
}

absl::StatusOr<LoadedTensor> Load(const SafetensorsReader& reader, const std::string& name) {
  const TensorInfo* info = reader.Find(name);
  if (info == nullptr) {
    constexpr size_t kShown = 8;
    std::vector<std::string> names;
    for (const TensorInfo& t : reader.tensors()) {
      if (names.size() == kShown) break;
      names.push_back(Quoted(t.name));
    }
    const size_t more = reader.tensors().size() - names.size();
    return absl::InvalidArgumentError(absl::StrCat(
        reader.path(), ": expected the name of one of its tensors (", absl::StrJoin(names, ", "),
        more > 0 ? absl::StrCat(" and ", more, " more") : "", "), got ", Quoted(name)));
  }
  NIBBLE_ASSIGN_OR_RETURN(std::vector<std::byte> bytes, reader.ReadAll(*info));
  return LoadedTensor{std::move(bytes), info->dtype, info->shape};
}

// Where an error happened, for messages.
std::string PlaceOf(const TensorFile& in) {
  return absl::StrCat(in.path, ": tensor ", Quoted(in.tensor));
}

template <typename Values>
std::span<const std::byte> BytesOf(const Values& values) {
  return std::as_bytes(std::span(values));
}

// The shape of the quantized copy; a row-wise one keeps its leading dimensions.
std::vector<int64_t> CopyShape(const std::vector<int64_t>& shape, const PackedLayout& layout,
                               bool columnwise) {
  return columnwise ? std::vector<int64_t>{layout.rows, layout.cols} : shape;
}

std::vector<int64_t> WithLast(std::vector<int64_t> shape, int64_t last) {
  shape.back() = last;
  return shape;
}

std::map<std::string, std::string> MetadataOf(const QuantizeParams& params,
                                              const std::vector<int64_t>& shape) {
  std::map<std::string, std::string> metadata = {
      {kFormatKey, kPackedFormat},
      {kSchemeKey, std::string(NameOf(params.scheme))},
      {kRuleKey, std::string(NameOf(params.rule))},
      {kE4m3MaxKey, absl::StrCat(params.e4m3_max)},
      {kColumnwiseKey, params.columnwise ? "true" : "false"},
      {kRhtKey, std::string(NameOf(params.rht))},
      {kSwizzledKey, params.swizzle ? "true" : "false"},
      {kShapeKey, nlohmann::json(shape).dump()},
  };
  if (params.four_over_six) {
    metadata[kFourOverSixKey] = absl::StrCat(ToAbsl(NameOf(params.four_over_six->metric)), ",",
                                             ToAbsl(NameOf(params.four_over_six->path)));
  }
  if (params.stochastic) {
    metadata[kStochasticKey] =
        absl::StrCat("seed ", params.stochastic->seed, ", offset ", params.stochastic->offset);
  }
  return metadata;
}

// What MetadataOf wrote, as far as reading the bytes needs it.
struct StoredPacked {
  PackedLayout layout;
  std::vector<int64_t> shape;
};

absl::StatusOr<StoredPacked> ParseMetadata(const std::map<std::string, std::string>& metadata) {
  const auto get = [&](const char* key) -> std::string_view {
    const auto it = metadata.find(key);
    return it == metadata.end() ? std::string_view() : std::string_view(it->second);
  };
  const auto bad = [&](const char* key, const std::string& rule) {
    return absl::DataLossError(
        absl::StrCat("metadata '", key, "': expected ", rule, ", got ", Quoted(get(key))));
  };
  if (get(kFormatKey) != kPackedFormat) {
    return bad(kFormatKey,
               absl::StrCat("'", kPackedFormat, "', which `nibble tensor quantize` writes"));
  }
  const auto scheme = FromName<Scheme>(get(kSchemeKey));
  if (!scheme) return bad(kSchemeKey, NamesOf<Scheme>());
  const auto rule = FromName<Rule>(get(kRuleKey));
  if (!rule) return bad(kRuleKey, NamesOf<Rule>());
  if (get(kE4m3MaxKey) != "448" && get(kE4m3MaxKey) != "256") {
    return bad(kE4m3MaxKey, "448 or 256");
  }
  if (get(kSwizzledKey) != "true" && get(kSwizzledKey) != "false") {
    return bad(kSwizzledKey, "true or false");
  }
  if (!FromName<Rht>(get(kRhtKey))) return bad(kRhtKey, NamesOf<Rht>());
  StoredPacked stored;
  // A parsed value takes many times the memory of its text.
  constexpr size_t kLongestShape = 2000;
  const std::string_view shape_text = get(kShapeKey);
  const nlohmann::json shape = shape_text.size() <= kLongestShape
                                   ? nlohmann::json::parse(shape_text, nullptr, false)
                                   : nlohmann::json();
  bool valid = shape.is_array() && !shape.empty() && shape.size() <= 64;
  for (size_t i = 0; valid && i < shape.size(); ++i) valid = shape[i].is_number_unsigned();
  if (valid) {
    stored.shape = shape.get<std::vector<int64_t>>();
    valid = AsQuantizableMatrix(nullptr, DType::kF32, stored.shape).ok();
  }
  if (!valid) return bad(kShapeKey, "a shape whose last dimension is a positive multiple of 16");
  PackedLayout& layout = stored.layout;
  layout.cols = stored.shape.back();
  layout.rows = *ElementCount(stored.shape) / layout.cols;
  if (scheme == Scheme::kTile2d && layout.rows % kBlockSize != 0) {
    return bad(kShapeKey, "rows in multiples of 16 with scheme tile_2d");
  }
  layout.scheme = *scheme;
  layout.rule = *rule;
  layout.e4m3_max = get(kE4m3MaxKey) == "448" ? 448 : 256;
  layout.swizzled = get(kSwizzledKey) == "true";
  return stored;
}

// A tensor of known type and number of elements.
absl::StatusOr<std::vector<std::byte>> LoadExpected(const SafetensorsReader& reader,
                                                    const char* name, DType dtype, int64_t count) {
  const TensorInfo* info = reader.Find(name);
  if (info == nullptr || info->dtype != dtype || *ElementCount(info->shape) != count) {
    return absl::DataLossError(
        absl::StrCat(reader.path(), ": tensor '", name, "': expected ", ToAbsl(DTypeName(dtype)),
                     " with ", count, " elements, got ",
                     info == nullptr ? std::string("none") : TypeName(info->dtype, info->shape)));
  }
  return reader.ReadAll(*info);
}

absl::StatusOr<SweepResult> Search(const SweepRequest& request, const SafetensorsReader& reader,
                                   const MatrixView& x, Backend& backend) {
  if (const auto* grid = std::get_if<MultiplierSearchParams>(&request.search)) {
    return backend.MultiplierSearch(*grid, x);
  }
  const ScaleSweepParams& params = std::get<ScaleSweepParams>(request.search);
  if (!request.hessian) return backend.ScaleSweep(params, x);
  const absl::StatusOr<LoadedTensor> loaded = Load(reader, *request.hessian);
  if (!loaded.ok()) return Annotate(loaded.status(), "hessian");
  const LoadedTensor& h = *loaded;
  const std::vector<int64_t> expected = {x.cols / kBlockSize, kBlockSize, kBlockSize};
  if (h.dtype != DType::kF32 || h.shape != expected) {
    return absl::FailedPreconditionError(
        absl::StrCat("hessian ", Quoted(*request.hessian), ": expected ",
                     TypeName(DType::kF32, expected), ", got ", TypeName(h.dtype, h.shape)));
  }
  std::vector<float> values(h.bytes.size() / sizeof(float));
  std::memcpy(values.data(), h.bytes.data(), h.bytes.size());
  return backend.ScaleSweepHessian(params, x, values);
}

}  // namespace

absl::StatusOr<QuantizeSummary> QuantizeTensor(const TensorFile& in, const std::string& out,
                                               const QuantizeParams& params, Backend& backend) {
  NIBBLE_RETURN_IF_ERROR(Validate(params));
  NIBBLE_RETURN_IF_ERROR(CheckOutput(in.path, out));
  NIBBLE_ASSIGN_OR_RETURN(const SafetensorsReader reader, SafetensorsReader::Open(in.path));
  NIBBLE_ASSIGN_OR_RETURN(const LoadedTensor tensor, Load(reader, in.tensor));
  const absl::StatusOr<MatrixView> x = tensor.matrix();
  if (!x.ok()) return Annotate(x.status(), PlaceOf(in));

  const Stopwatch watch;
  const absl::StatusOr<PackedTensor> packed = backend.Quantize(params, *x);
  if (!packed.ok()) return Annotate(packed.status(), PlaceOf(in));
  const PackedLayout& layout = packed->layout;
  QuantizeSummary summary = {layout.rows, layout.cols, watch.seconds(), std::nullopt};
  if (!params.columnwise && params.rht == Rht::kNone) {
    NIBBLE_ASSIGN_OR_RETURN(summary.error, backend.MeasureError(*x, packed->view()));
  }

  const std::vector<int64_t> shape = CopyShape(tensor.shape, layout, params.columnwise);
  const std::vector<int64_t> scale_shape = params.swizzle
                                               ? std::vector<int64_t>{layout.scale_bytes()}
                                               : WithLast(shape, layout.blocks_per_row());
  const TensorToWrite tensors[] = {
      {"packed", DType::kU8, WithLast(shape, layout.cols / 2), BytesOf(packed->packed)},
      {"scale", DType::kF8E4M3, scale_shape, BytesOf(packed->scale)},
      {"amax", DType::kF32, {layout.amax_count()}, BytesOf(packed->amax)},
  };
  NIBBLE_RETURN_IF_ERROR(WriteSafetensors(out, tensors, MetadataOf(params, shape)));
  return summary;
}

absl::StatusOr<SweepSummary> SweepTensor(const TensorFile& in, const std::string& out,
                                         const SweepRequest& request, Backend& backend) {
  NIBBLE_RETURN_IF_ERROR(CheckOutput(in.path, out));
  NIBBLE_ASSIGN_OR_RETURN(const SafetensorsReader reader, SafetensorsReader::Open(in.path));
  NIBBLE_ASSIGN_OR_RETURN(const LoadedTensor tensor, Load(reader, in.tensor));
  const absl::StatusOr<MatrixView> x = tensor.matrix();
  if (!x.ok()) return Annotate(x.status(), PlaceOf(in));

  const Stopwatch watch;
  const absl::StatusOr<SweepResult> result = Search(request, reader, *x, backend);
  if (!result.ok()) return Annotate(result.status(), PlaceOf(in));
  const int64_t blocks = static_cast<int64_t>(result->code.size());
  const SweepSummary summary = {blocks, result->evaluations, result->near_ties, watch.seconds()};

  std::vector<TensorToWrite> tensors = {
      {"best_amax", DType::kF32, {blocks}, BytesOf(result->best_amax)},
      {"code", DType::kU8, {blocks}, BytesOf(result->code)},
      {"loss", DType::kF32, {blocks}, BytesOf(result->loss)},
  };
  const int e4m3_max =
      std::visit([](const auto& params) { return params.e4m3_max; }, request.search);
  std::optional<PackedTensor> packed;
  std::vector<float> scale2;
  if (request.packed) {
    NIBBLE_ASSIGN_OR_RETURN(
        packed, backend.QuantizeWithScales(*x, result->global_amax, e4m3_max, result->code));
    scale2 = {packed->layout.GlobalDecodeScale(result->global_amax)};
    const int64_t cols = packed->layout.cols;
    tensors.push_back(
        {"packed", DType::kU8, WithLast(tensor.shape, cols / 2), BytesOf(packed->packed)});
    tensors.push_back({"scale", DType::kF8E4M3, WithLast(tensor.shape, cols / kBlockSize),
                       BytesOf(packed->scale)});
    tensors.push_back({"scale2", DType::kF32, {1}, BytesOf(scale2)});
  }
  const std::map<std::string, std::string> metadata = {
      {kFormatKey, kSweepFormat},
      {kSchemeKey, std::string(NameOf(Scheme::kPerTensor))},
      {kRuleKey, std::string(NameOf(Rule::kCheckpoint))},
      {kE4m3MaxKey, absl::StrCat(e4m3_max)},
      {"nibble.global_amax", absl::StrCat(result->global_amax)},
  };
  NIBBLE_RETURN_IF_ERROR(WriteSafetensors(out, tensors, metadata));
  return summary;
}

absl::Status DequantizeTensor(const std::string& in, const std::string& out, DType dtype,
                              Backend& backend) {
  NIBBLE_RETURN_IF_ERROR(CheckOutput(in, out));
  NIBBLE_ASSIGN_OR_RETURN(const SafetensorsReader reader, SafetensorsReader::Open(in));
  const absl::StatusOr<StoredPacked> stored = ParseMetadata(reader.metadata());
  if (!stored.ok()) return Annotate(stored.status(), in);
  const PackedLayout& layout = stored->layout;
  NIBBLE_ASSIGN_OR_RETURN(const auto packed,
                          LoadExpected(reader, "packed", DType::kU8, layout.packed_bytes()));
  NIBBLE_ASSIGN_OR_RETURN(const auto scale,
                          LoadExpected(reader, "scale", DType::kF8E4M3, layout.scale_bytes()));
  NIBBLE_ASSIGN_OR_RETURN(const auto amax_bytes,
                          LoadExpected(reader, "amax", DType::kF32, layout.amax_count()));
  std::vector<float> amax(layout.amax_count());
  std::memcpy(amax.data(), amax_bytes.data(), amax_bytes.size());
  for (std::byte code : scale) {
    if (std::to_integer<uint8_t>(code) > 0x7E) {
      return absl::DataLossError(absl::StrCat(
          in, ": tensor 'scale': expected E4M3 codes 0..126, got ", std::to_integer<int>(code)));
    }
  }
  for (float a : amax) {
    if (!(a >= 0) || !IsFinite(a)) {
      return absl::DataLossError(
          absl::StrCat(in, ": tensor 'amax': expected finite numbers >= 0, got ", a));
    }
  }
  const int64_t elements = layout.rows * layout.cols;
  std::vector<std::byte> values(elements * DTypeBytes(dtype));
  const PackedView view = {layout, reinterpret_cast<const uint8_t*>(packed.data()),
                           reinterpret_cast<const uint8_t*>(scale.data()), amax.data()};
  NIBBLE_RETURN_IF_ERROR(backend.Dequantize(view, dtype, values.data()));
  const TensorToWrite tensors[] = {{"dequantized", dtype, stored->shape, values}};
  return WriteSafetensors(out, tensors, {});
}

}  // namespace nibble
