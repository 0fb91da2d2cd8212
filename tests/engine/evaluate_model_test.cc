#include "engine/evaluate_model.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "engine/find_recipe.h"
#include "engine/quantize_model.h"
#include "engine/runnable_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
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
using ::testing::HasSubstr;
using ::testing::SizeIs;

// --- Statistics ---------------------------------------------------------------------------------

TEST(StudentTest, IsThatOfTables) {
  EXPECT_NEAR(StudentT975(1), 12.7062, 1e-4);
  EXPECT_NEAR(StudentT975(4), 2.7764, 1e-4);
  EXPECT_NEAR(StudentT975(10), 2.2281, 1e-4);
  EXPECT_NEAR(StudentT975(11), 2.2010, 1e-4);
  EXPECT_NEAR(StudentT975(20), 2.0860, 1e-4);
  EXPECT_NEAR(StudentT975(63), 1.9983, 1e-4);
  EXPECT_NEAR(StudentT975(1'000'000), 1.96, 1e-4);
}

TEST(ModelScoreTest, IntervalsAreOverSequences) {
  // Of means 1, 2, 3 over equally many predictions: mean 2, standard error 1 / sqrt(3).
  ModelScore score;
  for (const double mean : {1.0, 2.0, 3.0}) score.sequences.push_back({10, 10 * mean, 0, 5});
  EXPECT_DOUBLE_EQ(score.loss().mean, 2);
  EXPECT_NEAR(score.loss().margin, 4.302652730 / std::sqrt(3.0), 1e-9);
  EXPECT_DOUBLE_EQ(score.perplexity(), std::exp(2.0));
  EXPECT_EQ(score.same_top(), (Estimate{0.5, 0}));
  // A difference that all sequences share is certain, however they differ from each other.
  ModelScore worse = score;
  for (SequenceScore& sequence : worse.sequences) sequence.loss += 1;
  EXPECT_NEAR(LossDifference(worse, score).mean, 0.1, 1e-12);
  EXPECT_NEAR(LossDifference(worse, score).margin, 0, 1e-12);
  score.sequences.resize(1);
  EXPECT_TRUE(std::isinf(score.loss().margin));
}

// --- Models -------------------------------------------------------------------------------------

class EvaluateModelTest : public ::testing::Test {
 protected:
  EvaluateModelTest() { WriteModelFolder(folder_.path("model"), LlamaModel()); }

  EvaluationRequest Request(const std::vector<std::string>& models) const {
    EvaluationRequest request;
    for (const std::string& model : models) request.models.push_back(folder_.path(model));
    request.tokens = TokensOf({20, 300, 1, 150}, 48);
    request.run.threads = 2;
    return request;
  }

  std::vector<ModelScore> Scores(const EvaluationRequest& request) const {
    const auto scores = EvaluateModels(request, *Cpu(request.run.threads));
    EXPECT_TRUE(scores.ok()) << scores.status();
    return scores.value_or(std::vector<ModelScore>(request.models.size()));
  }

  ModelSummary Quantize(const std::string& name, const std::string& recipe = "nvfp4",
                        ExportFormat format = ExportFormat::kModelopt) const {
    QuantizeModelRequest request;
    request.model = folder_.path("model");
    request.out = folder_.path(name);
    request.recipe =
        FindRecipe(recipe,
                   recipe == "nvfp4_weight_only"
                       ? std::vector<std::string>()
                       : std::vector<std::string>{"activations.algorithm.method=constant",
                                                  "activations.algorithm.input_scale=0.002"})
            .value();
    request.recipe.output.format = format;
    std::vector<std::unique_ptr<Backend>> backends;
    backends.push_back(Cpu());
    const auto summary = QuantizeModel(request, backends, nullptr);
    EXPECT_TRUE(summary.ok()) << summary.status();
    return summary.value_or(ModelSummary());
  }

  const TempDir folder_;
};

std::vector<float> LogitsOfModel(const std::string& path, const TokenSet& tokens,
                                 LinearHook* hook = nullptr) {
  const auto model = RunnableModel::Open(path).value();
  const auto decoder = Decoder::Make(model->config(), model->weights(), {}).value();
  return RunDecoder(*decoder, tokens, hook);
}

TEST_F(EvaluateModelTest, ScoresAreThoseOfTheLogits) {
  Quantize("quantized", "nvfp4_weight_only");
  const EvaluationRequest request = Request({"model", "quantized"});
  const std::vector<ModelScore> scores = Scores(request);
  ASSERT_THAT(scores, SizeIs(2));
  const std::vector<float> first = LogitsOfModel(request.models[0], request.tokens);
  const std::vector<float> second = LogitsOfModel(request.models[1], request.tokens);
  const auto log_p = [](const std::vector<float>& logits, int64_t token, int64_t id) {
    double sum = 0;
    for (int64_t i = 0; i < 48; ++i) sum += std::exp(double{logits[token * 48 + i]});
    return double{logits[token * 48 + id]} - std::log(sum);
  };
  int64_t token = 0;
  for (size_t s = 0; s < request.tokens.lengths.size(); ++s) {
    double loss[2] = {0, 0}, divergence = 0;
    int64_t same = 0;
    for (int64_t i = 0; i + 1 < request.tokens.lengths[s]; ++i, ++token) {
      const int64_t next = request.tokens.ids[token + 1];
      loss[0] -= log_p(first, token, next);
      loss[1] -= log_p(second, token, next);
      for (int64_t id = 0; id < 48; ++id) {
        const double p = log_p(first, token, id);
        divergence += std::exp(p) * (p - log_p(second, token, id));
      }
      const auto top = [&](const std::vector<float>& logits) {
        return std::max_element(logits.begin() + token * 48, logits.begin() + (token + 1) * 48) -
               logits.begin();
      };
      same += top(first) == top(second);
    }
    ++token;
    for (int m = 0; m < 2; ++m) {
      EXPECT_EQ(scores[m].sequences[s].predictions, request.tokens.lengths[s] - 1);
      EXPECT_NEAR(scores[m].sequences[s].loss, loss[m], 1e-7 * (1 + loss[m]));
    }
    EXPECT_NEAR(scores[1].sequences[s].divergence, divergence, 1e-7 * (1 + divergence));
    EXPECT_EQ(scores[1].sequences[s].same_top, same);
    EXPECT_EQ(scores[0].sequences[s].divergence, 0);
    EXPECT_EQ(scores[0].sequences[s].same_top, request.tokens.lengths[s] - 1);
  }
  EXPECT_GT(scores[1].divergence().mean, 1e-6);
}

// Sums of -log p by transformers: tests/golden/README.md.
TEST_F(EvaluateModelTest, LossesOfTheTrainedModelsAreThoseOfTransformers) {
  const std::string root = NIBBLE_SOURCE_DIR;
  const Contents golden = Read(root + "/tests/golden/tiny-models.safetensors");
  EvaluationRequest request;
  const Tensor& ids = golden.tensors.at("long.ids");
  request.tokens.lengths.assign(ids.shape[0], ids.shape[1]);
  ASSERT_EQ(ids.dtype, DType::kI32);
  for (const int32_t id : ids.as<int32_t>()) {
    request.tokens.ids.push_back(static_cast<uint32_t>(id));
  }
  for (const std::string name : {"tiny-llama", "tiny-moe"}) {
    SCOPED_TRACE(name);
    request.models = {root + "/examples/models/" + name};
    const std::vector<ModelScore> scores = Scores(request);
    const Tensor& expected = golden.tensors.at(name + ".long.nll");
    ASSERT_EQ(expected.dtype, DType::kF32);
    const std::vector<float> losses = expected.as<float>();
    ASSERT_EQ(scores[0].sequences.size(), losses.size());
    for (size_t i = 0; i < losses.size(); ++i) {
      EXPECT_NEAR(scores[0].sequences[i].loss, losses[i], 1e-5 * losses[i]);
    }
  }
}

TEST_F(EvaluateModelTest, WeightsAreThoseThatAreStored) {
  for (const ExportFormat format : {ExportFormat::kModelopt, ExportFormat::kCompressedTensors}) {
    SCOPED_TRACE(NameOf(format));
    const std::string name(NameOf(format));
    const ModelSummary summary = Quantize(name, "nvfp4_mse", format);
    double error = 0, weights = 0;
    for (const TensorError& tensor : summary.tensors) {
      error += tensor.squared_error;
      weights += tensor.squared_weights;
    }
    const std::vector<ModelScore> scores = Scores(Request({"model", name}));
    EXPECT_NEAR(scores[1].weight_error, error / weights, 1e-6 * error / weights);
    EXPECT_EQ(scores[1].quantized_modules, 14);
    EXPECT_EQ(scores[1].quantized_inputs, 14);
    EXPECT_NEAR(
        scores[1].bits_per_weight,
        8.0 * static_cast<double>(summary.bytes_after) / static_cast<double>(summary.weights),
        1e-9);
    EXPECT_EQ(scores[0].bits_per_weight, 16);
    EXPECT_EQ(scores[0].quantized_modules, 0);
  }
}

TEST_F(EvaluateModelTest, BothFormatsAreOneModel) {
  Quantize("a", "nvfp4_mse", ExportFormat::kModelopt);
  Quantize("b", "nvfp4_mse", ExportFormat::kCompressedTensors);
  const std::vector<ModelScore> scores = Scores(Request({"a", "b"}));
  // One stores multipliers, the other divisors: the last bit of a scale may differ.
  EXPECT_LT(scores[1].divergence().mean, 1e-5);
  EXPECT_NEAR(scores[1].loss().mean, scores[0].loss().mean, 1e-4);
}

TEST_F(EvaluateModelTest, InputsAreQuantizedAsTheRecipeSays) {
  Quantize("per_tensor");
  Quantize("per_token", "nvfp4_per_token");
  EvaluationRequest request = Request({"model", "per_tensor", "per_token"});
  request.inputs.reset();
  const std::vector<ModelScore> scores = Scores(request);
  EXPECT_EQ(scores[0].inputs, InputQuantization::kNone);
  EXPECT_EQ(scores[1].inputs, InputQuantization::kPerTensor);
  EXPECT_EQ(scores[2].inputs, InputQuantization::kPerToken);
  request.inputs = InputQuantization::kPerToken;
  EXPECT_EQ(Scores(request)[2].sequences, scores[2].sequences);
  EXPECT_THAT(EvaluationAsText(scores), HasSubstr("per_token: inputs quantized per_token\n"));
  // Without the recipe that made it, as checkpoints are made for.
  std::filesystem::remove(folder_.path("per_token/nibble_recipe.yaml"));
  request.inputs.reset();
  EXPECT_EQ(Scores(request)[2].inputs, InputQuantization::kPerTensor);
  // Of several schemes none is taken.
  std::ofstream(folder_.path("per_tensor/nibble_recipe.yaml"))
      << "extends: nvfp4\nrules:\n"
         "- {match: '*q_proj', use: quantize, activations: {scheme: per_token}}\n";
  EXPECT_TRUE(IsError(EvaluateModels(request, *Cpu()), absl::StatusCode::kInvalidArgument,
                      "say with --activations"));
}

TEST_F(EvaluateModelTest, InputsAreQuantizedAsAskedFor) {
  Quantize("w4a4");
  Quantize("w4a16", "nvfp4_weight_only");
  EvaluationRequest request = Request({"model", "w4a4", "w4a16"});
  std::vector<double> divergence;
  for (const InputQuantization how : {InputQuantization::kPerTensor, InputQuantization::kPerToken,
                                      InputQuantization::kFourOverSix, InputQuantization::kNone}) {
    request.inputs = how;
    const std::vector<ModelScore> scores = Scores(request);
    divergence.push_back(scores[1].divergence().mean);
    EXPECT_EQ(scores[1].quantized_inputs, how == InputQuantization::kNone ? 0 : 14);
    EXPECT_EQ(scores[2].quantized_inputs, 0);
  }
  // nvfp4_weight_only stores weights of its own method.
  for (int i = 0; i < 3; ++i) EXPECT_GT(divergence[i], 1.2 * divergence[3]) << i;
  EXPECT_NE(divergence[0], divergence[1]);
  EXPECT_NE(divergence[0], divergence[2]);
}

TEST_F(EvaluateModelTest, AModelIsLikeItself) {
  const std::vector<ModelScore> scores = Scores(Request({"model", "model"}));
  EXPECT_EQ(scores[0].loss(), scores[1].loss());
  EXPECT_NEAR(scores[1].divergence().mean, 0, 1e-12);
  EXPECT_EQ(scores[1].same_top().mean, 1);
}

TEST_F(EvaluateModelTest, ThreadsAndSpillingChangeNothing) {
  Quantize("quantized");
  EvaluationRequest request = Request({"model", "quantized"});
  const std::vector<ModelScore> two = Scores(request);
  request.run.threads = 1;
  EXPECT_EQ(Scores(request), two);
  request.run.threads = 3;
  request.run.hidden_states = {.memory_budget = 100, .spill_folder = folder_.path()};
  EXPECT_EQ(Scores(request), two);
}

TEST_F(EvaluateModelTest, ReportsAreComplete) {
  Quantize("quantized");
  const std::vector<ModelScore> scores = Scores(Request({"model", "quantized"}));
  EXPECT_THAT(EvaluationAsText(scores), AllOf(HasSubstr("4 sequences, 467 predictions"),
                                              HasSubstr("perplexity"), HasSubstr("by perplexity")));
  const auto json = nlohmann::json::parse(EvaluationAsJson(scores));
  EXPECT_EQ(json["models"].size(), 2u);
  EXPECT_DOUBLE_EQ(json["models"][1]["perplexity"], scores[1].perplexity());
  EXPECT_EQ(json["models"][1]["sequences"].size(), 4u);
  EvaluationRequest single = Request({"model"});
  single.tokens = TokensOf({9}, 48);
  EXPECT_EQ(nlohmann::json::parse(EvaluationAsJson(Scores(single)))["models"][0]["loss"]["margin"],
            nullptr);
}

TEST_F(EvaluateModelTest, RefusesWhatCannotBeCompared) {
  const auto fails = [&](const EvaluationRequest& request, absl::StatusCode code,
                         const std::string& words) {
    EXPECT_TRUE(IsError(EvaluateModels(request, *Cpu()).status(), code, words));
  };
  fails(Request({}), absl::StatusCode::kInvalidArgument, "at least one");
  ModelSize size;
  size.vocabulary = 64;
  WriteModelFolder(folder_.path("other"), LlamaModel(size));
  fails(Request({"model", "other"}), absl::StatusCode::kInvalidArgument, "vocabulary of 48");
  EvaluationRequest request = Request({"model"});
  request.tokens = TokensOf({1, 1}, 48);
  fails(request, absl::StatusCode::kInvalidArgument, "two tokens or more");
  Quantize("quantized");
  const std::string path = folder_.path("quantized") + "/model.safetensors";
  Contents contents = Read(path);
  contents.tensors.erase("model.layers.1.mlp.up_proj.weight_scale_2");
  Write(path, contents);
  fails(Request({"model", "quantized"}), absl::StatusCode::kDataLoss,
        "up_proj.weight_scale_2\": expected one F32, got no such tensor");
}

}  // namespace
}  // namespace nibble
