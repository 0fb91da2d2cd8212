// The output errors that VerifyModel reports with a calibration.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/calibrate_model.h"
#include "engine/calibration.h"
#include "engine/find_recipe.h"
#include "engine/model_data.h"
#include "engine/quantize_model.h"
#include "engine/synthetic.h"
#include "engine/verify_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "quant/numerics/e2m1.h"
#include "quant/numerics/e4m3.h"
#include "tests/testing/backends.h"
#include "tests/testing/is_error.h"
#include "tests/testing/model_folders.h"
#include "tests/testing/reference_export.h"
#include "tests/testing/temp_dir.h"

namespace nibble {
namespace {

using namespace ::nibble::testing;  // NOLINT: the whole kit
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr int64_t kTokens = 96;

// Each channel like the one before it, so that H is far from diagonal.
Tensor CorrelatedCapture(const std::string& module, int64_t channels, uint64_t seed,
                         int64_t tokens = kTokens) {
  std::vector<float> x = SyntheticValues(Distribution::kNormal, tokens * channels, seed);
  for (int64_t i = 1; i < tokens * channels; ++i) {
    if (i % channels != 0) x[i] = 0.8f * x[i - 1] + 0.6f * x[i];
  }
  return TensorOf(module + ".input", DType::kF32, {tokens, channels}, x);
}

// Rows of K values each, in double; stacks of [K, N] as [N, K] one after another.
struct MatrixValues {
  int64_t k = 0;
  std::vector<double> values;

  MatrixValues Rows(int64_t begin, int64_t end) const {
    return {k, {values.begin() + begin * k, values.begin() + end * k}};
  }
};

MatrixValues InRows(const std::vector<double>& values, const Shape& shape, bool columns) {
  if (!columns) return {shape.back(), values};
  const int64_t k = shape[1], n = shape[2];
  MatrixValues result{k, std::vector<double>(values.size())};
  for (size_t i = 0; i < values.size(); ++i) {
    const int64_t at = static_cast<int64_t>(i), e = at / (k * n);
    result.values[(e * n + at % n) * k + at / n % k] = values[i];
  }
  return result;
}

MatrixValues SourceValues(const Tensor& tensor, bool columns) {
  std::vector<double> values;
  for (const uint16_t bits : tensor.as<uint16_t>()) values.push_back(FloatFromBf16(bits));
  return InRows(values, tensor.shape, columns);
}

MatrixValues StoredValues(const Contents& out, const std::string& module, bool modelopt,
                          bool columns) {
  const std::string dot = columns ? "_" : ".";
  const Tensor& codes = out.tensors.at(columns    ? module
                                       : modelopt ? module + ".weight"
                                                  : module + ".weight_packed");
  const Tensor& scales = out.tensors.at(module + dot + "weight_scale");
  const double stored =
      out.tensors.at(module + dot + (modelopt ? "weight_scale_2" : "weight_global_scale"))
          .as<float>()[0];
  std::vector<double> bytes, block_scales;
  for (const uint8_t byte : codes.as<uint8_t>()) bytes.push_back(byte);
  for (const uint8_t byte : scales.as<uint8_t>()) block_scales.push_back(E4m3Decode(byte));
  const MatrixValues packed = InRows(bytes, codes.shape, columns),
                     scale = InRows(block_scales, scales.shape, columns);
  MatrixValues result{packed.k * 2, {}};
  for (size_t i = 0; i < packed.values.size() * 2; ++i) {
    const int byte = static_cast<int>(packed.values[i / 2]);
    result.values.push_back(E2m1Decode(i % 2 == 0 ? byte & 15 : byte >> 4) * scale.values[i / 16] *
                            (modelopt ? stored : 1 / stored));
  }
  return result;
}

// The mean over the tokens of what a block's part of the output squared is, over blocks and rows:
// no second moments anywhere.
double MeanSquaredOutput(const MatrixValues& d, const Tensor& capture) {
  const std::vector<float> x = capture.as<float>();
  double sum = 0;
  for (size_t block = 0; block < d.values.size(); block += 16) {
    for (int64_t t = 0; t < capture.shape[0]; ++t) {
      double part = 0;
      for (int64_t i = 0; i < 16; ++i) {
        part += d.values[block + i] * x[t * d.k + static_cast<int64_t>(block) % d.k + i];
      }
      sum += part * part;
    }
  }
  return sum / static_cast<double>(capture.shape[0]);
}

// d^T H d of each block, written out.
std::vector<double> BlockErrors(const MatrixValues& w, const MatrixValues& stored,
                                const std::vector<float>& hessians) {
  std::vector<double> errors;
  for (size_t block = 0; block < w.values.size(); block += 16) {
    const float* h = &hessians[block % static_cast<size_t>(w.k) * 16];
    double d[16], sum = 0;
    for (size_t i = 0; i < 16; ++i) d[i] = w.values[block + i] - stored.values[block + i];
    for (size_t i = 0; i < 16; ++i) {
      for (size_t j = 0; j < 16; ++j) sum += d[i] * h[i * 16 + j] * d[j];
    }
    errors.push_back(sum);
  }
  return errors;
}

class VerifyOutputErrorTest : public ::testing::Test {
 protected:
  void Export(const ModelOnPaper& model, ExportFormat format = ExportFormat::kModelopt) {
    WriteModelFolder(dir_.path("in"), model);
    WriteExport(dir_.path("out"), model, PlanOnPaper(model, {.format = format}), RecipeFor(format));
  }

  std::vector<Tensor> CapturesOf(const ModelOnPaper& model) {
    std::vector<Tensor> captures;
    for (const PlanRow& row : PlanOnPaper(model).rows) {
      if (!row.quantize) continue;
      captures.push_back(
          CorrelatedCapture(row.module, MatrixShapeOf(row).cols, captures.size() + 1));
    }
    return captures;
  }

  absl::StatusOr<VerifyReport> Verify(const std::string& calibration,
                                      const std::string& out = "out", int threads = 2) {
    return VerifyModel(
        dir_.path(out),
        {.against = source_, .calibration = dir_.path(calibration), .threads = threads}, *Cpu());
  }
  VerifyReport Report(const std::string& calibration, const std::string& out = "out") {
    const auto report = Verify(calibration, out);
    EXPECT_TRUE(report.ok()) << report.status();
    if (!report.ok()) return {};
    EXPECT_THAT(report->holes, IsEmpty());
    return *report;
  }

  void SaveState(const std::string& captures, const std::string& state, bool hessians = true) {
    const auto states = CollectCalibration(dir_.path(captures), hessians, *Cpu());
    ASSERT_TRUE(states.ok()) << states.status();
    ASSERT_TRUE(SaveCalibration(dir_.path(state), *states).ok());
  }

  TempDir dir_;
  std::string source_ = dir_.path("in");
};

std::map<std::string, WeightError> ByModule(const VerifyReport& report) {
  std::map<std::string, WeightError> errors;
  for (const WeightError& error : report.errors) errors[error.name] = error;
  return errors;
}

void ExpectOutput(const std::optional<OutputError>& actual, double error, double output) {
  ASSERT_TRUE(actual.has_value());
  if (output == 0) {
    EXPECT_EQ(*actual, OutputError());
    return;
  }
  // H is rounded to float32 once.
  EXPECT_NEAR(actual->squared_error, error, 1e-5 * error);
  EXPECT_NEAR(actual->squared_output, output, 1e-5 * output);
}

TEST_F(VerifyOutputErrorTest, IsThatOfADirectComputation) {
  const std::vector<std::pair<std::string, ModelOnPaper>> models = {
      {"llama", LlamaModel()},
      {"qwen3_moe", Qwen3MoeModel()},
      {"mixtral", MixtralModel()},
      {"expert_rows", ExpertRowsModel()},
      {"llama4", Llama4Model()},
      {"gpt_oss", GptOssModel()},
      {"qwen3_vl_moe", Qwen3VlMoeModel()},
  };
  for (const auto& [name, model] : models) {
    for (const bool modelopt : {true, false}) {
      if (!modelopt && name == "gpt_oss") continue;  // no such format
      SCOPED_TRACE(name + (modelopt ? " modelopt" : " compressed-tensors"));
      const ExportFormat format =
          modelopt ? ExportFormat::kModelopt : ExportFormat::kCompressedTensors;
      Export(model, format);
      std::map<std::string, Tensor> captures;
      for (const Tensor& capture : CapturesOf(model)) captures[capture.name] = capture;
      std::vector<Tensor> list;
      for (const auto& [input, capture] : captures) list.push_back(capture);
      Write(dir_.path("captures"), list);
      const VerifyReport report = Report("captures");
      const std::map<std::string, WeightError> errors = ByModule(report);
      const Contents out = Read(dir_.path("out/model.safetensors"));
      size_t seen = 0;
      double error = 0, output = 0;
      for (const PlanRow& row : PlanOnPaper(model, {.format = format}).rows) {
        if (!row.quantize) continue;
        const bool columns = row.form == WeightForm::kExpertColumns;
        ModelOnPaper copy = model;
        const MatrixValues source = SourceValues(copy.at(row.tensor.name),
                                                 columns || row.form == WeightForm::kTurnedExperts);
        const Tensor& capture = captures.at(row.module + ".input");
        // What became of it: a module and its rows of the source.
        std::vector<std::tuple<std::string, int64_t, int64_t>> parts;
        const int64_t rows = static_cast<int64_t>(source.values.size()) / source.k;
        if (SplitsExperts(row.form)) {
          const std::string experts = row.module.substr(0, row.module.rfind('.'));
          const int64_t each = MatrixShapeOf(row).rows, half = each / 2;
          for (int64_t e = 0; e < row.tensor.shape[0]; ++e) {
            const std::string expert = absl::StrCat(experts, ".", e, ".");
            if (row.module.ends_with("gate_up_proj")) {
              parts.push_back({expert + "gate_proj", e * each, e * each + half});
              parts.push_back({expert + "up_proj", e * each + half, (e + 1) * each});
            } else {
              parts.push_back({expert + "down_proj", e * each, (e + 1) * each});
            }
          }
        } else {
          parts.push_back({row.module, 0, rows});
        }
        for (const auto& [module, begin, end] : parts) {
          SCOPED_TRACE(module);
          const MatrixValues w = source.Rows(begin, end);
          MatrixValues d = StoredValues(out, module, modelopt, columns);
          ASSERT_EQ(d.values.size(), w.values.size());
          for (size_t i = 0; i < w.values.size(); ++i) d.values[i] = w.values[i] - d.values[i];
          const double d_h_d = MeanSquaredOutput(d, capture), w_h_w = MeanSquaredOutput(w, capture);
          ASSERT_TRUE(errors.contains(module));
          ExpectOutput(errors.at(module).output, d_h_d, w_h_w);
          error += d_h_d;
          output += w_h_w;
          ++seen;
        }
      }
      EXPECT_EQ(seen, report.errors.size());
      ExpectOutput(report.all.output, error, output);
      // A state of the same inputs is the same, and threads are nothing to it.
      SaveState("captures", "state");
      EXPECT_EQ(Report("state").errors, report.errors);
      EXPECT_EQ(Verify("state", "out", 1)->errors, report.errors);
      std::filesystem::remove_all(dir_.path("in"));
      std::filesystem::remove_all(dir_.path("out"));
    }
  }
}

TEST_F(VerifyOutputErrorTest, MatricesFindTheirInputsByOtherNames) {
  // k and v read what q reads.
  Export(LlamaModel());
  std::vector<Tensor> captures = CapturesOf(LlamaModel());
  Write(dir_.path("all"), captures);
  std::erase_if(captures, [](const Tensor& capture) {
    return capture.name.ends_with("k_proj.input") || capture.name.ends_with("v_proj.input") ||
           capture.name.ends_with("layers.1.mlp.gate_proj.input");
  });
  Write(dir_.path("some"), captures);
  VerifyReport report = Report("some");
  const Contents inputs = Read(dir_.path("some"));
  const Contents in = Read(dir_.path("in/model.safetensors"));
  for (const auto& [module, of] : std::map<std::string, std::string>{
           {"model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.q_proj"},
           {"model.layers.1.self_attn.v_proj", "model.layers.1.self_attn.q_proj"},
           {"model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"},
           {"model.layers.0.mlp.gate_proj", "model.layers.0.mlp.gate_proj"}}) {
    SCOPED_TRACE(module);
    const double w_h_w = MeanSquaredOutput(SourceValues(in.tensors.at(module + ".weight"), false),
                                           inputs.tensors.at(of + ".input"));
    EXPECT_NEAR(ByModule(report).at(module).output.value().squared_output, w_h_w, 1e-5 * w_h_w);
  }

  // An expert's own inputs go before those of all of them.
  std::filesystem::remove_all(dir_.path("in"));
  std::filesystem::remove_all(dir_.path("out"));
  const ModelOnPaper experts = ExpertRowsModel();
  Export(experts);
  captures = CapturesOf(experts);
  Write(dir_.path("together"), captures);
  const std::string own = "model.layers.0.mlp.experts.2.down_proj";
  const auto without = ByModule(Report("together"));
  ASSERT_TRUE(without.contains(own));
  captures.push_back(CorrelatedCapture(own, ModelSize().expert_intermediate, 99));
  Write(dir_.path("apart"), captures);
  for (const auto& [module, error] : ByModule(Report("apart"))) {
    EXPECT_EQ(error.output == without.at(module).output, module != own) << module;
  }
}

TEST_F(VerifyOutputErrorTest, MatricesWithoutSecondMomentsAreNamed) {
  Export(LlamaModel());
  std::vector<Tensor> captures = CapturesOf(LlamaModel());
  const std::string down = "model.layers.1.mlp.down_proj", o = "model.layers.0.self_attn.o_proj";
  std::erase_if(captures, [&](const Tensor& capture) { return capture.name == down + ".input"; });
  // None of its tokens came.
  std::ranges::find(captures, o + ".input", &Tensor::name)->shape[0] = 0;
  std::ranges::find(captures, o + ".input", &Tensor::name)->bytes.clear();
  Write(dir_.path("captures"), captures);
  const VerifyReport report = Report("captures");
  OutputError sum;
  for (const WeightError& error : report.errors) {
    EXPECT_EQ(error.output.has_value(), error.name != down && error.name != o) << error.name;
    if (error.output) sum.Merge(*error.output);
  }
  EXPECT_NEAR(report.all.output->relative(), sum.relative(), 1e-12);
  const std::string text = VerifyReportAsText(report);
  EXPECT_THAT(text, AllOf(HasSubstr("output error"), HasSubstr("all of them together"),
                          HasSubstr("2 of 14 matrices without second moments"), HasSubstr(down),
                          HasSubstr(o)));
  const auto json = nlohmann::json::parse(VerifyReportAsJson(report));
  EXPECT_EQ(json["without_second_moments"].size(), 2u);
  EXPECT_EQ(json["all"]["output_error"], report.all.output->relative());
  EXPECT_EQ(json["all"]["d_h_d"], report.all.output->squared_error);
  for (const auto& error : json["errors"]) {
    const bool named = error["name"] == down || error["name"] == o;
    EXPECT_EQ(error.at("output_error").is_null(), named);
    EXPECT_EQ(error.contains("w_h_w"), !named);
  }
  // Without a calibration nothing is said about outputs.
  const VerifyReport plain = VerifyModel(dir_.path("out"), {.against = source_}, *Cpu()).value();
  EXPECT_FALSE(plain.all.output.has_value());
  EXPECT_DOUBLE_EQ(plain.all.relative_mse, report.all.relative_mse);
  EXPECT_THAT(VerifyReportAsText(plain), Not(HasSubstr("output")));
  EXPECT_FALSE(
      nlohmann::json::parse(VerifyReportAsJson(plain))["errors"][0].contains("output_error"));
}

TEST_F(VerifyOutputErrorTest, Errors) {
  Export(LlamaModel());
  Write(dir_.path("captures"), CapturesOf(LlamaModel()));
  EXPECT_TRUE(IsError(VerifyModel(dir_.path("out"), {.calibration = dir_.path("captures")}, *Cpu()),
                      kInvalid, "--calib: expected --against SOURCE with it"));
  EXPECT_TRUE(IsError(Verify("nothing"), kNotFound, "nothing"));
  EXPECT_TRUE(IsError(Verify("in/model.safetensors"), kDataLoss, "got neither"));

  SaveState("captures", "light", /*hessians=*/false);
  for (const char* words : {"light: expected second moments (Hessians)",
                            "nibble calibrate SOURCE --recipe nvfp4_local_hessian"}) {
    EXPECT_TRUE(IsError(Verify("light"), kPrecondition, words));
  }

  ModelSize wide;
  wide.hidden = 128;
  Write(dir_.path("wide"), CapturesOf(LlamaModel(wide)));
  SaveState("wide", "wide.state");
  for (const char* file : {"wide", "wide.state"}) {
    EXPECT_TRUE(IsError(Verify(file), kPrecondition, "model.layers.0.mlp.gate_proj"));
    EXPECT_TRUE(IsError(Verify(file), kPrecondition,
                        "expected 64 channels, got 128; is it a calibration of another model?"));
  }

  Write(dir_.path("other"), CapturesOf(MixtralModel()));
  const Contents other = Read(dir_.path("other"));
  Contents experts;
  for (const auto& [name, tensor] : other.tensors) {
    if (name.find("experts") != name.npos) experts.tensors[name] = tensor;
  }
  Write(dir_.path("other"), experts);
  EXPECT_TRUE(IsError(Verify("other"), kPrecondition, "expected a calibration of this model"));
}

// What the methods are for: each leaves less than the one before, in a trained model, on the inputs
// that it was calibrated with and on others.
class TrainedModelTest : public VerifyOutputErrorTest {
 protected:
  void SetUp() override {
    const std::string examples = std::string(NIBBLE_SOURCE_DIR) + "/examples/models/";
    source_ = examples + "tiny-llama";
    for (const char* text : {"calibration", "heldout"}) {
      CalibrateModelRequest request;
      request.model = source_;
      request.out = dir_.path(text);
      request.recipe = FindRecipe("nvfp4_local_hessian").value();
      const ModelDataRequest data = {
          .path = absl::StrCat(examples, text, ".txt"), .sequences = 16, .length = 512};
      request.tokens = ReadModelData(source_, data).value().tokens;
      ASSERT_EQ(request.tokens.ids.size(), 16u * 512);
      request.version = "test";
      ASSERT_TRUE(CalibrateModel(request, *Cpu(), nullptr).ok());
    }
    for (const std::string& recipe : recipes_) {
      QuantizeModelRequest request = {
          .model = source_, .out = dir_.path(recipe), .recipe = FindRecipe(recipe).value()};
      request.calibration = dir_.path("calibration");
      std::vector<std::unique_ptr<Backend>> backends;
      backends.push_back(Cpu());
      const auto summary = QuantizeModel(request, backends, nullptr);
      ASSERT_TRUE(summary.ok()) << summary.status();
    }
  }

  const std::vector<std::string> recipes_ = {"nvfp4", "nvfp4_mse", "nvfp4_local_hessian",
                                             "nvfp4_local_hessian_feedback"};
};

TEST_F(TrainedModelTest, OutputErrorsFallFromMethodToMethod) {
  for (const std::string text : {"calibration", "heldout"}) {
    for (size_t i = 1; i < recipes_.size(); ++i) {
      SCOPED_TRACE(absl::StrCat(recipes_[i], " ", text));
      const VerifyReport before = Report(text, recipes_[i - 1]), after = Report(text, recipes_[i]);
      EXPECT_EQ(after.errors.size(), 42u);
      EXPECT_LT(after.all.output->relative(), 0.99 * before.all.output->relative());
      EXPECT_EQ(after.all.output->squared_output, before.all.output->squared_output);
      if (text != "calibration") continue;
      const auto errors_before = ByModule(before);
      for (const auto& [module, error] : ByModule(after)) {
        EXPECT_LT(error.output->squared_error, errors_before.at(module).output->squared_error)
            << module;
      }
    }
  }
  // The error of the weights would say the contrary.
  EXPECT_GT(Report("heldout", recipes_[2]).all.relative_mse,
            Report("heldout", recipes_[1]).all.relative_mse);
}

// On the calibration's own inputs, that is; on others blocks may rise.
TEST_F(TrainedModelTest, BlocksFallOrStay) {
  std::map<std::string, Contents> results;
  for (const std::string& recipe : recipes_) {
    results[recipe] = Read(dir_.path(recipe + "/model.safetensors"));
  }
  const Contents source = Read(source_ + "/model.safetensors");
  const auto calibration = Calibration::Open(dir_.path("calibration")).value();
  for (size_t i = 2; i < recipes_.size(); ++i) {
    long long lower = 0, higher = 0, blocks = 0;
    double error = 0;
    const VerifyReport report = Report("calibration", recipes_[i]);
    for (const WeightError& matrix : report.errors) {
      const MatrixValues w = SourceValues(source.tensors.at(matrix.name + ".weight"), false);
      const std::vector<float> hessians =
          calibration->Hessians(matrix.name, w.k, *Cpu()).value().value();
      const auto errors_of = [&](const std::string& recipe) {
        return BlockErrors(w, StoredValues(results.at(recipe), matrix.name, true, false), hessians);
      };
      const std::vector<double> before = errors_of(recipes_[i - 1]), after = errors_of(recipes_[i]);
      for (size_t block = 0; block < after.size(); ++block) {
        lower += after[block] < before[block] * (1 - 1e-6);
        higher += after[block] > before[block] * (1 + 1e-6);
        error += after[block];
      }
      blocks += static_cast<long long>(after.size());
    }
    EXPECT_NEAR(error, report.all.output->squared_error, 1e-9 * error);
    std::printf("%s: of %lld blocks %lld lower than %s, %lld higher\n", recipes_[i].c_str(), blocks,
                lower, recipes_[i - 1].c_str(), higher);
    EXPECT_GT(lower, blocks / 5);
    if (recipes_[i] == "nvfp4_local_hessian_feedback") {
      EXPECT_EQ(higher, 0);
    } else {
      // The search's scales and the stored ones are rounded apart: an element that lies between two
      // codes may go to the one in the search, to the other in the bytes.
      EXPECT_LT(higher, blocks / 1000);
    }
  }
}

}  // namespace
}  // namespace nibble
