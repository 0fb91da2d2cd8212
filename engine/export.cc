#include "engine/export.h"

#include <string_view>

#include "base/status.h"
#include "base/tensor_view.h"
#include "base/text.h"
#include "calib/calibrator.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {
namespace {

// What follows a matrix's base name, in each format.
struct PartNames {
  const char *codes, *block_scale, *global_scale, *input_scale;
  std::vector<int64_t> scalar_shape;
};

const PartNames& NamesOfParts(ExportFormat format) {
  static const PartNames kModelopt = {
      ".weight", ".weight_scale", ".weight_scale_2", ".input_scale", {}};
  static const PartNames kCompressedTensors = {
      ".weight_packed", ".weight_scale", ".weight_global_scale", ".input_global_scale", {1}};
  return format == ExportFormat::kModelopt ? kModelopt : kCompressedTensors;
}

// ModelOpt's names for a parameter that is not called "weight".
const PartNames& NamesOfOtherParameter() {
  static const PartNames kNames = {"", "_weight_scale", "_weight_scale_2", "_input_scale", {}};
  return kNames;
}

// `like` says which expert and rows; its other fields are replaced.
void AddMatrix(const std::string& base, const PartNames& names, std::vector<int64_t> codes,
               std::vector<int64_t> scales, bool input_scale, const OutputTensor& like,
               std::vector<OutputTensor>& outputs) {
  const auto add = [&](const char* name, DType dtype, std::vector<int64_t> shape, OutputPart part) {
    OutputTensor output = like;
    output.tensor = {base + name, dtype, std::move(shape)};
    output.part = part;
    outputs.push_back(std::move(output));
  };
  add(names.codes, DType::kU8, std::move(codes), OutputPart::kCodes);
  add(names.block_scale, DType::kF8E4M3, std::move(scales), OutputPart::kBlockScale);
  add(names.global_scale, DType::kF32, names.scalar_shape, OutputPart::kGlobalScale);
  if (input_scale) {
    add(names.input_scale, DType::kF32, names.scalar_shape, OutputPart::kInputScale);
  }
}

absl::Status NoMatrix(const PlanRow& row, ExportFormat format) {
  return absl::UnimplementedError(absl::StrCat(
      "tensor ", Quoted(row.tensor.name), ": expected a matrix named *.weight for the format ",
      ToAbsl(NameOf(format)), ", got ", ToAbsl(NameOf(row.form)), " of shape ",
      ShapeName(row.tensor.shape), "; the format modelopt can hold it"));
}

// "a.b.experts.gate_up_proj" -> "a.b.experts.", "gate_up_proj"
struct SplitName {
  std::string container, last;
};
SplitName SplitLast(const std::string& module) {
  const size_t dot = module.rfind('.');
  if (dot == module.npos) return {"", module};
  return {module.substr(0, dot + 1), module.substr(dot + 1)};
}

absl::StatusOr<std::vector<OutputTensor>> ExpertsOutputs(const PlanRow& row, ExportFormat format) {
  const std::vector<int64_t>& shape = row.tensor.shape;
  const auto [rows, cols] = MatrixShapeOf(row);
  const SplitName name = SplitLast(row.module);
  struct Half {
    std::string name;
    int64_t begin, end;
  };
  std::vector<Half> halves = {{name.last, 0, rows}};
  if (name.last == "gate_up_proj") {
    if (rows % 2 != 0) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(row.tensor.name),
                                                     ": expected an even number of rows, one half "
                                                     "each for gate and up, got ",
                                                     ShapeName(shape)));
    }
    halves = {{"gate_proj", 0, rows / 2}, {"up_proj", rows / 2, rows}};
  }
  const bool input_scale = row.treatment.activations.format != ActivationFormat::kNone;
  std::vector<OutputTensor> outputs;
  for (int64_t e = 0; e < shape[0]; ++e) {
    for (const Half& half : halves) {
      OutputTensor like;
      like.expert = e;
      like.row_begin = half.begin;
      like.row_end = half.end;
      const int64_t n = half.end - half.begin;
      AddMatrix(absl::StrCat(name.container, e, ".", half.name), NamesOfParts(format),
                {n, cols / 2}, {n, cols / kBlockSize}, input_scale, like, outputs);
    }
  }
  return outputs;
}

}  // namespace

absl::StatusOr<std::vector<OutputTensor>> OutputsOf(const PlanRow& row, ExportFormat format) {
  std::vector<OutputTensor> outputs;
  if (!row.quantize) {
    outputs.push_back({row.tensor, OutputPart::kCopy});
    return outputs;
  }
  const std::vector<int64_t>& shape = row.tensor.shape;
  NIBBLE_CHECK(shape.size() == (row.form == WeightForm::kMatrix ? 2 : 3));
  const int64_t k = MatrixShapeOf(row).cols;
  NIBBLE_CHECK(k % kBlockSize == 0);
  if (SplitsExperts(row.form)) return ExpertsOutputs(row, format);

  const bool is_weight = row.tensor.name.ends_with(kWeight);
  const bool input_scale = row.treatment.activations.format != ActivationFormat::kNone;
  if (format == ExportFormat::kCompressedTensors &&
      (row.form == WeightForm::kExpertColumns || !is_weight)) {
    return NoMatrix(row, format);
  }
  const std::string base = is_weight
                               ? row.tensor.name.substr(0, row.tensor.name.size() - kWeight.size())
                               : row.tensor.name;
  std::vector<int64_t> codes = shape, scales = shape;
  const size_t axis = row.form == WeightForm::kExpertColumns ? 1 : shape.size() - 1;
  codes[axis] = k / 2;
  scales[axis] = k / kBlockSize;
  AddMatrix(base, is_weight ? NamesOfParts(format) : NamesOfOtherParameter(), std::move(codes),
            std::move(scales), input_scale, {}, outputs);
  return outputs;
}

float StoredGlobalScale(float amax, int e4m3_max, ExportFormat format) {
  return StoredScale(
      CheckpointGlobalDecodeScale(ExportableAmax(amax, e4m3_max), static_cast<float>(e4m3_max)),
      format);
}

float StoredScale(float multiplier, ExportFormat format) {
  return format == ExportFormat::kModelopt ? multiplier : DivRn(1.0f, multiplier);
}

}  // namespace nibble
