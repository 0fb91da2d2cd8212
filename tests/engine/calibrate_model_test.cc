#include "engine/calibrate_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "calib/calibrator.h"
#include "engine/calibration.h"
#include "engine/find_recipe.h"
#include "engine/quantize_model.h"
#include "engine/quantized_inputs.h"
#include "engine/runnable_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "quant/numerics/float_bits.h"
#include "tests/testing/backends.h"
#include "tests/testing/decoders.h"
#include "tests/testing/is_error.h"
#include "tests/testing/model_folders.h"
#include "tests/testing/temp_dir.h"

namespace nibble {
namespace {

using ::nibble::testing::Cpu;

namespace fs = std::filesystem;

using namespace testing;  // NOLINT: model folders, decoders, errors
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

class CalibrateModelTest : public ::testing::Test {
 protected:
  CalibrateModelRequest Request(const std::string& recipe = "nvfp4_local_hessian",
                                std::vector<std::string> set = {}) const {
    auto found = FindRecipe(recipe, set);
    EXPECT_TRUE(found.ok()) << found.status();
    CalibrateModelRequest request;
    request.model = folder_.path("model");
    request.out = folder_.path("state");
    request.recipe = *std::move(found);
    request.tokens = TokensOf({40, 300, 7, 700}, 48);
    request.version = "test";
    request.run.threads = 2;
    return request;
  }

  absl::StatusOr<CalibrationSummary> Run(const CalibrateModelRequest& request,
                                         const LayerSink& sink = {}) const {
    return CalibrateModel(request, *Cpu(request.run.threads), sink);
  }

  CalibrationStates States(const CalibrateModelRequest& request) const {
    const auto summary = Run(request);
    EXPECT_TRUE(summary.ok()) << summary.status();
    auto states = LoadCalibration(request.out);
    EXPECT_TRUE(states.ok()) << states.status();
    return states.value_or(CalibrationStates());
  }

  // What the model's linear layers read, as the decoder gives it to any hook.
  RecordingHook Inputs(const CalibrateModelRequest& request) const {
    const auto model = RunnableModel::Open(request.model).value();
    const auto decoder = Decoder::Make(model->config(), model->weights(), {}).value();
    RecordingHook hook;
    RunDecoder(*decoder, request.tokens, &hook);
    return hook;
  }

  // With the states that the request's run wrote.
  ModelSummary Quantized(const CalibrateModelRequest& request, const std::string& name) const {
    QuantizeModelRequest quantize;
    quantize.model = request.model;
    quantize.out = folder_.path(name);
    quantize.recipe = request.recipe;
    quantize.calibration = request.out;
    quantize.overwrite = true;
    std::vector<std::unique_ptr<Backend>> backends;
    backends.push_back(Cpu());
    const auto summary = QuantizeModel(quantize, backends, nullptr);
    EXPECT_TRUE(summary.ok()) << summary.status();
    return summary.value_or(ModelSummary());
  }

  const TempDir folder_;
};

// The sum of x_i x_j over tokens, in float64, against the mean that the state gives.
void ExpectHessians(const RecordingHook::Record& input, const std::vector<float>& hessians) {
  const int64_t tokens = static_cast<int64_t>(input.tokens.size());
  ASSERT_EQ(hessians.size(), static_cast<size_t>(input.channels * 16));
  for (int64_t slice = 0; slice < input.channels / 16; ++slice) {
    for (int64_t i = 0; i < 16; ++i) {
      for (int64_t j = 0; j < 16; ++j) {
        double sum = 0, size = 0;
        for (int64_t t = 0; t < tokens; ++t) {
          const float* x = input.x.data() + t * input.channels + slice * 16;
          sum += double{x[i]} * x[j];
          size += std::abs(double{x[i]} * x[j]);
        }
        EXPECT_NEAR(hessians[(slice * 16 + i) * 16 + j], sum / static_cast<double>(tokens),
                    1e-6 * size / static_cast<double>(tokens));
      }
    }
  }
}

// The block maximum of rank ceil(percent / 100 * n) of those that are not 0, without its lower 16
// bits; 0 where there is none.
float PercentileOf(const RecordingHook::Record& input, double percent) {
  std::vector<float> maxima;
  for (size_t block = 0; block < input.x.size() / 16; ++block) {
    float amax = 0;
    for (size_t i = 0; i < 16; ++i) amax = std::max(amax, std::abs(input.x[block * 16 + i]));
    if (amax > 0) maxima.push_back(FloatFromBits(FloatBits(amax) & 0xFFFF0000u));
  }
  if (maxima.empty()) return 0;
  std::ranges::sort(maxima);
  const double rank = std::ceil(percent / 100 * static_cast<double>(maxima.size()));
  return maxima[static_cast<size_t>(std::max(rank, 1.0)) - 1];
}

void ExpectStates(const RecordingHook& inputs, const CalibrationStates& states) {
  for (const auto& [module, state] : states) {
    SCOPED_TRACE(module);
    ASSERT_TRUE(inputs.records.contains(module));
    const RecordingHook::Record& input = inputs.records.at(module);
    EXPECT_EQ(state.tokens(), static_cast<int64_t>(input.tokens.size()));
    float amax = 0;
    for (const float x : input.x) amax = std::max(amax, std::abs(x));
    EXPECT_EQ(state.amax(), amax);
    for (const double percent : {1.0, 50.0, 99.0}) {
      ActivationSpec spec;
      spec.method = ActivationMethod::kPercentile;
      spec.percentile = percent;
      EXPECT_EQ(state.InputAmax(spec).value(), PercentileOf(input, percent));
    }
    ASSERT_TRUE(state.Hessians());
    ExpectHessians(input, *state.Hessians());
  }
}

TEST_F(CalibrateModelTest, StatesAreThoseOfWhatTheLayersRead) {
  WriteModelFolder(folder_.path("model"), LlamaModel());
  const CalibrateModelRequest request = Request();
  const CalibrationStates states = States(request);
  EXPECT_THAT(states, SizeIs(2 * 7));
  ExpectStates(Inputs(request), states);
  EXPECT_THAT(folder_.Names(), ElementsAre("model", "state"));
}

TEST_F(CalibrateModelTest, ExpertsSeeTheTokensThatAreRoutedToThem) {
  WriteModelFolder(folder_.path("model"), Qwen3MoeModel());
  const CalibrateModelRequest request = Request();
  CalibrationStates states = States(request);
  int64_t tokens = 0;
  for (const auto& [module, state] : states) {
    if (module.find("layers.0.mlp.experts.") != module.npos && module.ends_with("gate_proj")) {
      tokens += state.tokens();
    }
  }
  EXPECT_EQ(tokens, 2 * request.tokens.tokens());
  std::erase_if(states, [](const auto& entry) { return entry.second.tokens() == 0; });
  ExpectStates(Inputs(request), states);
}

TEST_F(CalibrateModelTest, ExpertsOfFewTokensAreListedAndGetThePlainSweep) {
  WriteModelFolder(folder_.path("model"), Qwen3MoeModel());
  CalibrateModelRequest request = Request();
  request.recipe.calibration.routed_min_tokens = 1'000'000;
  const auto summary = Run(request);
  ASSERT_TRUE(summary.ok()) << summary.status();
  ASSERT_THAT(summary->warnings, SizeIs(2));
  EXPECT_THAT(summary->warnings[0],
              AllOf(HasSubstr("model.layers.0.mlp.experts: 4 of 4 experts saw fewer than 1000000"),
                    HasSubstr("plain sweep")));
  EXPECT_THAT(CalibrationSummaryAsText(*summary), Not(HasSubstr("1000000")));

  const auto quantized = [&](const std::string& name, int64_t least, const std::string& method) {
    request.recipe.calibration.routed_min_tokens = least;
    request.recipe.treatment.weights = DefaultWeightSpec(method).value();
    request.recipe.treatment.weights.fp8_scale_sweep = method == "mse";
    return Quantized(request, name).warnings;
  };
  const auto bytes = [&](const std::string& name) {
    return ReadTensor(folder_.path(name) + "/model.safetensors",
                      "model.layers.0.mlp.experts.0.up_proj.weight_scale")
        .bytes;
  };
  const std::string words = "fewer than routed_min_tokens 1000000";
  EXPECT_THAT(quantized("starved", 1'000'000, "local_hessian"), Contains(HasSubstr(words)));
  EXPECT_THAT(quantized("fed", 1, "local_hessian"), IsEmpty());
  quantized("sweep", 1, "mse");
  EXPECT_EQ(bytes("starved"), bytes("sweep"));
  EXPECT_NE(bytes("fed"), bytes("sweep"));
}

// One token reaches two of four experts.
TEST_F(CalibrateModelTest, ExpertsWithoutTokensGetTheScaleOfTheOthers) {
  WriteModelFolder(folder_.path("model"), Qwen3MoeModel());
  CalibrateModelRequest request = Request();
  request.tokens = TokensOf({1}, 48);
  const auto summary = Run(request);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_THAT(summary->warnings, Each(AllOf(HasSubstr("(0)"), HasSubstr("(1)"))));
  Quantized(request, "out");
  std::set<float> scales;
  for (int expert = 0; expert < 4; ++expert) {
    scales.insert(
        ReadTensor(folder_.path("out") + "/model.safetensors",
                   absl::StrCat("model.layers.0.mlp.experts.", expert, ".down_proj.input_scale"))
            .as<float>()[0]);
  }
  EXPECT_THAT(scales, SizeIs(1));
}

TEST_F(CalibrateModelTest, ForcedExpertsSeeEveryToken) {
  WriteModelFolder(folder_.path("model"), Qwen3MoeModel());
  const CalibrateModelRequest request =
      Request("nvfp4_local_hessian", {"calibration.force_all_experts=true"});
  const auto summary = Run(request);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_THAT(summary->warnings, IsEmpty());
  const CalibrationStates states = LoadCalibration(request.out).value();
  for (const auto& [module, state] : states) {
    EXPECT_EQ(state.tokens(), request.tokens.tokens()) << module;
  }
}

TEST_F(CalibrateModelTest, KeepsWhatTheRecipeNeedsAndNoMore) {
  WriteModelFolder(folder_.path("model"), LlamaModel());
  for (const auto& [module, state] : States(Request("nvfp4"))) EXPECT_FALSE(state.has_hessians());
  const CalibrationStates weight_only =
      States(Request("nvfp4_weight_only", {"weights.algorithm=local_hessian"}));
  EXPECT_THAT(weight_only, SizeIs(14));
  EXPECT_TRUE(weight_only.begin()->second.has_hessians());
  EXPECT_THAT(States(Request("nvfp4", {"rules=[{kinds: attention, use: keep}]"})), SizeIs(6));
  EXPECT_TRUE(IsError(Run(Request("nvfp4_weight_only")).status(),
                      absl::StatusCode::kInvalidArgument, "expected methods that need"));
}

TEST_F(CalibrateModelTest, ObservesTheHeadWhereItIsQuantized) {
  WriteModelFolder(folder_.path("model"), LlamaModel());
  const CalibrateModelRequest request =
      Request("nvfp4_local_hessian", {"rules=[{match: lm_head, use: quantize}]"});
  const CalibrationStates states = States(request);
  ASSERT_TRUE(states.contains("lm_head"));
  ExpectStates(Inputs(request), states);
}

// --- The same bytes -----------------------------------------------------------------------------

TEST_F(CalibrateModelTest, ResumedAtAnyLayerTheBytesAreTheSame) {
  ModelSize size;
  size.layers = 4;
  for (const auto& [name, model] : std::map<std::string, ModelOnPaper>{
           {"llama", LlamaModel(size)}, {"moe", Qwen3MoeModel(size)}}) {
    fs::remove_all(folder_.path("model"));
    WriteModelFolder(folder_.path("model"), model);
    for (const char* propagate : {"original", "quantized"}) {
      SCOPED_TRACE(name + " " + propagate);
      CalibrateModelRequest request =
          Request("nvfp4_local_hessian", {absl::StrCat("calibration.propagate=", propagate)});
      ASSERT_TRUE(Run(request).ok());
      const std::string straight = FileBytes(request.out);
      for (int64_t last = 1; last <= size.layers; ++last) {
        fs::remove(request.out);
        request.resume = false;
        const auto killed = Run(request, [&](const LayerProgress& step) {
          return step.layer == last ? absl::CancelledError("killed") : absl::OkStatus();
        });
        ASSERT_TRUE(IsError(killed.status(), absl::StatusCode::kCancelled, "killed"));
        EXPECT_FALSE(fs::exists(request.out));
        request.resume = true;
        const auto resumed = Run(request);
        ASSERT_TRUE(resumed.ok()) << resumed.status();
        EXPECT_EQ(resumed->resumed_layers, last);
        EXPECT_EQ(FileBytes(request.out), straight) << "from layer " << last;
      }
    }
  }
}

TEST_F(CalibrateModelTest, ThreadsAndSpillingChangeNothing) {
  WriteModelFolder(folder_.path("model"), Qwen3MoeModel());
  CalibrateModelRequest request =
      Request("nvfp4_local_hessian", {"calibration.propagate=quantized"});
  request.run.threads = 1;
  ASSERT_TRUE(Run(request).ok());
  const std::string bytes = FileBytes(request.out);
  request.run.threads = 3;
  request.run.hidden_states = {.memory_budget = 1000, .spill_folder = folder_.path()};
  ASSERT_TRUE(Run(request).ok());
  EXPECT_EQ(FileBytes(request.out), bytes);
}

TEST_F(CalibrateModelTest, AnotherRunIsNotResumed) {
  WriteModelFolder(folder_.path("model"), LlamaModel());
  const CalibrateModelRequest request = Request();
  const LayerSink kill = [](const LayerProgress&) { return absl::CancelledError(""); };
  ASSERT_FALSE(Run(request, kill).ok());
  EXPECT_TRUE(IsError(Run(request).status(), absl::StatusCode::kInvalidArgument, "--resume"));
  CalibrateModelRequest other = request;
  other.resume = true;
  other.tokens.ids[3] ^= 1;
  EXPECT_TRUE(IsError(Run(other).status(), absl::StatusCode::kFailedPrecondition, "data"));
  other = request;
  other.resume = true;
  other.recipe = Request("nvfp4").recipe;
  EXPECT_TRUE(IsError(Run(other).status(), absl::StatusCode::kFailedPrecondition, "recipe"));
  other = request;
  other.resume = true;
  other.run.batch_tokens = 1000;  // another rounding
  EXPECT_TRUE(IsError(Run(other).status(), absl::StatusCode::kFailedPrecondition, "batch tokens"));
  other = request;
  other.overwrite = true;
  EXPECT_TRUE(Run(other).ok());
  EXPECT_THAT(folder_.Names(), ElementsAre("model", "state"));
}

TEST_F(CalibrateModelTest, RefusesWhatItCannotDo) {
  ModelOnPaper model = LlamaModel();
  WriteModelFolder(folder_.path("model"), model);
  CalibrateModelRequest request = Request();
  request.out = folder_.path("model/state");
  EXPECT_TRUE(IsError(Run(request).status(), absl::StatusCode::kInvalidArgument, "outside"));
  request.out = folder_.path("note");
  PutFile(request.out, "not a state");
  EXPECT_TRUE(IsError(Run(request).status(), absl::StatusCode::kInvalidArgument, "free"));
  request = Request();
  request.tokens.ids[5] = 48;
  EXPECT_TRUE(IsError(Run(request).status(), absl::StatusCode::kInvalidArgument, "48"));
  fs::remove_all(request.out + ".partial");
  fs::create_directory(request.out + ".partial");
  PutFile(request.out + ".partial/thesis.tex", "");
  request = Request();
  request.overwrite = true;
  EXPECT_TRUE(IsError(Run(request).status(), absl::StatusCode::kInvalidArgument, "thesis.tex"));
  fs::remove_all(request.out + ".partial");
  model.AddWeight("model.layers.1.mlp.side.weight", {32, 64});
  WriteModelFolder(folder_.path("model"), model);
  EXPECT_TRUE(IsError(Run(Request()).status(), absl::StatusCode::kUnimplemented, "mlp.side"));
}

// --- propagate: quantized -----------------------------------------------------------------------

TEST_F(CalibrateModelTest, LayersBehindQuantizedOnesSeeWhatThoseWrite) {
  for (const auto& [name, model] :
       std::map<std::string, ModelOnPaper>{{"llama", LlamaModel()}, {"moe", Qwen3MoeModel()}}) {
    SCOPED_TRACE(name);
    fs::remove_all(folder_.path("model"));
    WriteModelFolder(folder_.path("model"), model);
    const CalibrationStates original = States(Request());
    const CalibrateModelRequest request =
        Request("nvfp4_local_hessian", {"calibration.propagate=quantized"});
    const CalibrationStates states = States(request);
    const std::string first = "model.layers.0.self_attn.o_proj",
                      second = "model.layers.1.self_attn.q_proj";
    EXPECT_EQ(states.at(first), original.at(first));
    EXPECT_FALSE(states.at(second) == original.at(second));

    // The same from the bytes of the quantized model.
    Quantized(request, "quantized");
    const auto quantized = RunnableModel::Open(folder_.path("quantized")).value();
    const auto decoder = Decoder::Make(quantized->config(), quantized->weights(), {}).value();
    const auto backend = Cpu();
    QuantizedInputs inputs(*backend);
    for (const auto& [module, scale] : quantized->input_scales()) {
      inputs.Add(module, InputQuantization::kPerTensor, scale.value());
    }
    HiddenStates hidden = decoder->Embed(request.tokens).value();
    ASSERT_TRUE(decoder->RunLayer(hidden, &inputs).ok());
    RecordingHook seen;
    ASSERT_TRUE(decoder->ObserveLayer(hidden, seen).ok());
    ExpectStates(seen, {{second, states.at(second)}});
  }
}

}  // namespace
}  // namespace nibble
