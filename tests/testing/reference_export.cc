#include "tests/testing/reference_export.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "calib/calibrator.h"
#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/testing/temp_dir.h"

namespace nibble::testing {
namespace {

std::string Last(const std::string& module) { return module.substr(module.rfind('.') + 1); }

ModuleKind KindOf(const std::string& module, int64_t layer, int64_t layers) {
  const auto has = [&](const char* part) { return module.find(part) != module.npos; };
  const std::string last = Last(module);
  if (has("vision") || has("multi_modal")) return ModuleKind::kVision;
  if (has("embed")) return ModuleKind::kEmbedding;
  if (has("norm")) return ModuleKind::kNorm;
  if (has("lm_head")) return ModuleKind::kLmHead;
  if (layer >= layers) return ModuleKind::kMtp;
  if (last == "gate" || last == "router" || last == "shared_expert_gate") {
    return ModuleKind::kRouter;
  }
  if (has(".shared_expert")) return ModuleKind::kSharedExpert;
  if (has(".experts.")) return ModuleKind::kExpert;
  if (has(".self_attn.")) return ModuleKind::kAttention;
  return has(".mlp.") ? ModuleKind::kMlp : ModuleKind::kOther;
}

int64_t LayerOf(const std::string& module) {
  const size_t at = module.find(".layers.");
  return at == module.npos ? -1 : std::stoll(module.substr(at + 8));
}

// The members of a fused group have one name here.
std::string GroupOf(const std::string& module) {
  const std::string last = Last(module), parent = module.substr(0, module.size() - last.size());
  const std::map<std::string, std::string> kGroups = {{"q_proj", "qkv"},
                                                      {"k_proj", "qkv"},
                                                      {"v_proj", "qkv"},
                                                      {"gate_proj", "gate_up"},
                                                      {"up_proj", "gate_up"},
                                                      {"w1", "w13"},
                                                      {"w3", "w13"},
                                                      {"q_a_proj", "qkv_a"},
                                                      {"kv_a_proj_with_mqa", "qkv_a"}};
  const auto it = kGroups.find(last);
  return it == kGroups.end() ? module : parent + it->second;
}

// rows x columns elements of `size` bytes, from columns x rows.
std::vector<std::byte> Transposed(const std::vector<std::byte>& in, int64_t rows, int64_t cols,
                                  int64_t size) {
  std::vector<std::byte> out(in.size());
  for (int64_t i = 0; i < rows * cols; ++i) {
    std::memcpy(&out[i * size], &in[(i % cols * rows + i / cols) * size], size);
  }
  return out;
}

std::vector<std::byte> Part(const std::vector<std::byte>& bytes, int64_t begin, int64_t end) {
  return {bytes.begin() + begin, bytes.begin() + end};
}

float AmaxOf(const Tensor& tensor, Backend& backend) { return backend.Amax(tensor.view()).value(); }

struct Encoded {
  std::vector<std::byte> codes, scales;
};

Encoded Encode(const MatrixView& x, float amax, Backend& backend) {
  QuantizeParams params;
  params.rule = Rule::kCheckpoint;
  if (amax != 0) params.global_amax = ExportableAmax(amax, 448);
  const absl::StatusOr<PackedTensor> packed = backend.Quantize(params, x);
  EXPECT_TRUE(packed.ok()) << packed.status();
  const auto bytes = std::as_bytes(std::span(packed->packed));
  const auto scales = std::as_bytes(std::span(packed->scale));
  return {{bytes.begin(), bytes.end()}, {scales.begin(), scales.end()}};
}

}  // namespace

Plan PlanOnPaper(const ModelOnPaper& model, const PaperPlan& options) {
  const auto& text =
      model.config.contains("text_config") ? model.config["text_config"] : model.config;
  const int64_t layers = text["num_hidden_layers"];
  const std::string type = model.config["model_type"];
  std::vector<Tensor> tensors = model.tensors;
  std::ranges::sort(tensors, {}, &Tensor::name);
  Plan plan;
  std::map<std::string, int> groups;
  for (const Tensor& tensor : tensors) {
    PlanRow row;
    row.tensor = {tensor.name, tensor.dtype, tensor.shape};
    row.module = tensor.name;
    const bool is_weight = row.module.ends_with(".weight");
    if (is_weight) row.module.resize(row.module.size() - 7);
    row.layer = LayerOf(row.module);
    row.kind = KindOf(row.module, row.layer, layers);
    const bool stacked = row.kind == ModuleKind::kExpert && tensor.shape.size() == 3;
    const bool one_tensor =
        type == "gpt_oss" || (type == "llama4" && options.format == ExportFormat::kModelopt);
    row.form = !stacked                                     ? WeightForm::kMatrix
               : one_tensor                                 ? WeightForm::kExpertColumns
               : type == "llama4" || type == "qwen3_vl_moe" ? WeightForm::kTurnedExperts
                                                            : WeightForm::kExpertRows;
    const bool is_matrix = is_weight && tensor.shape.size() == 2;
    const bool is_right_kind = row.kind == ModuleKind::kAttention || row.kind == ModuleKind::kMlp ||
                               row.kind == ModuleKind::kExpert ||
                               row.kind == ModuleKind::kSharedExpert;
    const bool straight = row.form == WeightForm::kMatrix || row.form == WeightForm::kExpertRows;
    const int64_t k = !is_matrix && !stacked ? 1 : straight ? tensor.shape.back() : tensor.shape[1];
    row.quantize = is_right_kind && k % 16 == 0 && !options.keep(row.module);
    if (row.quantize) {
      if (options.weight_only(row.module)) {
        row.treatment.activations.format = ActivationFormat::kNone;
      }
      const std::string name = GroupOf(row.module);
      const auto [it, is_new] = groups.try_emplace(name, static_cast<int>(plan.groups.size()));
      if (is_new) plan.groups.push_back({name, {}});
      row.group = it->second;
      row.input_group = it->second;
      plan.groups[it->second].rows.push_back(static_cast<int>(plan.rows.size()));
    }
    plan.rows.push_back(std::move(row));
  }
  plan.input_groups = static_cast<int>(plan.groups.size());
  return plan;
}

std::vector<Tensor> ExportOnPaper(const ModelOnPaper& model, const Plan& plan,
                                  ExportFormat format) {
  const std::unique_ptr<Backend> backend = MakeBackend("cpu").value();
  std::map<std::string, const Tensor*> sources;
  for (const Tensor& tensor : model.tensors) sources[tensor.name] = &tensor;
  std::vector<float> amax(plan.groups.size(), 0);
  for (const PlanRow& row : plan.rows) {
    if (!row.quantize || SplitsExperts(row.form)) continue;
    amax[row.group] = std::max(amax[row.group], AmaxOf(*sources.at(row.tensor.name), *backend));
  }
  std::vector<Tensor> results;
  for (const PlanRow& row : plan.rows) {
    const Tensor& source = *sources.at(row.tensor.name);
    const auto outputs = OutputsOf(row, format);
    EXPECT_TRUE(outputs.ok()) << outputs.status();
    if (!outputs.ok()) return {};
    const Shape& shape = source.shape;
    const int64_t size = DTypeBytes(source.dtype);
    Encoded encoded;
    float g = 0;
    for (const OutputTensor& output : *outputs) {
      const auto add = [&](std::vector<std::byte> bytes) {
        results.push_back(
            {output.tensor.name, output.tensor.dtype, output.tensor.shape, std::move(bytes)});
      };
      switch (output.part) {
        case OutputPart::kCopy:
          add(source.bytes);
          break;
        case OutputPart::kCodes:
          if (row.form == WeightForm::kMatrix) {
            g = amax[row.group];
            encoded = Encode(source.view(), g, *backend);
          } else if (SplitsExperts(row.form)) {
            const bool turned = row.form == WeightForm::kTurnedExperts;
            const int64_t n = shape[turned ? 2 : 1], k = shape[turned ? 1 : 2];
            const int64_t bytes = n * k * size, row_bytes = k * size;
            Tensor whole = {"",
                            source.dtype,
                            {n, k},
                            Part(source.bytes, output.expert * bytes, (output.expert + 1) * bytes)};
            if (turned) whole.bytes = Transposed(whole.bytes, n, k, size);
            g = AmaxOf(whole, *backend);
            const Tensor part = {
                "",
                source.dtype,
                {output.row_end - output.row_begin, k},
                Part(whole.bytes, output.row_begin * row_bytes, output.row_end * row_bytes)};
            encoded = Encode(part.view(), g, *backend);
          } else {
            g = amax[row.group];
            encoded = {};
            const int64_t k = shape[1], n = shape[2], bytes = k * n * size;
            for (int64_t e = 0; e < shape[0]; ++e) {
              const Tensor one = {
                  "",
                  source.dtype,
                  {n, k},
                  Transposed(Part(source.bytes, e * bytes, (e + 1) * bytes), n, k, size)};
              const Encoded columns = Encode(one.view(), g, *backend);
              const auto codes = Transposed(columns.codes, k / 2, n, 1);
              const auto scales = Transposed(columns.scales, k / 16, n, 1);
              encoded.codes.insert(encoded.codes.end(), codes.begin(), codes.end());
              encoded.scales.insert(encoded.scales.end(), scales.begin(), scales.end());
            }
          }
          add(encoded.codes);
          break;
        case OutputPart::kBlockScale:
          add(encoded.scales);
          break;
        case OutputPart::kGlobalScale:
          add(ToBytes(std::vector<float>{StoredGlobalScale(g, 448, format)}, DType::kF32));
          break;
        case OutputPart::kInputScale:
          add(ToBytes(
              std::vector<float>{StoredScale(row.treatment.activations.input_scale, format)},
              DType::kF32));
          break;
      }
    }
  }
  return results;
}

void WriteExport(const std::string& path, const ModelOnPaper& model, const Plan& plan,
                 const Recipe& recipe) {
  ModelOnPaper result;
  result.config = model.config;
  result.shards = model.shards;
  result.tensors = ExportOnPaper(model, plan, recipe.output.format);
  WriteModelFolder(path, result);
  const auto files = ConfigFilesOf(plan, recipe, model.config.dump());
  EXPECT_TRUE(files.ok()) << files.status();
  if (!files.ok()) return;
  for (const ConfigFile& file : *files) PutFile(path + "/" + file.name, file.text);
}

}  // namespace nibble::testing
