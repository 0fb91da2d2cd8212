#include "engine/quantize_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/calibration.h"
#include "engine/find_recipe.h"
#include "engine/synthetic.h"
#include "engine/verify_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/safetensors.h"
#include "nlohmann/json.hpp"
#include "tests/testing/is_error.h"
#include "tests/testing/model_folders.h"
#include "tests/testing/temp_dir.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

using namespace testing;  // NOLINT: model folders, files, errors
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::vector<std::string> kConstantInputs = {"activations.algorithm.method=constant"};

std::vector<std::unique_ptr<Backend>> Backends(const std::string& name = "cpu", int threads = 2,
                                               int count = 1) {
  std::vector<std::unique_ptr<Backend>> backends;
  for (int i = 0; i < count; ++i) backends.push_back(*MakeBackend(name, {.threads = threads}));
  return backends;
}

QuantizeModelRequest Overwriting(QuantizeModelRequest request) {
  request.overwrite = true;
  return request;
}

std::string WithoutTimes(ModelSummary summary) {
  summary.seconds = summary.read_seconds = summary.compute_seconds = summary.write_seconds = 0;
  summary.resumed_shards = 0;
  return ModelSummaryAsJson(summary);
}

class QuantizeModelTest : public ::testing::Test {
 protected:
  QuantizeModelRequest Request(const std::string& recipe = "nvfp4",
                               std::vector<std::string> set = kConstantInputs) {
    auto found = FindRecipe(recipe, set);
    EXPECT_TRUE(found.ok()) << found.status();
    return {.model = folder_.path("model"),
            .out = folder_.path("out"),
            .recipe = *std::move(found),
            .version = "test"};
  }

  absl::StatusOr<ModelSummary> Run(const QuantizeModelRequest& request) {
    return QuantizeModel(request, Backends(), nullptr);
  }

  // What Run writes, from a model that is there.
  std::map<std::string, std::string> Result(const QuantizeModelRequest& request,
                                            const std::vector<std::unique_ptr<Backend>>& backends) {
    fs::remove_all(request.out);
    const auto summary = QuantizeModel(request, backends, nullptr);
    EXPECT_TRUE(summary.ok()) << summary.status();
    return summary.ok() ? FilesOf(request.out) : std::map<std::string, std::string>();
  }

  void ExpectVerified(const QuantizeModelRequest& request) {
    const auto backend = MakeBackend("cpu");
    const auto report = VerifyModel(request.out, {.against = request.model}, **backend);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_THAT(report->holes, IsEmpty());
    EXPECT_GT(report->quantized, 0);
  }

  const TempDir folder_;
};

std::vector<std::pair<std::string, ModelOnPaper>> Models(int shards = 2) {
  ModelSize size;
  size.shards = shards;
  return {{"llama", LlamaModel(size)},        {"tied", LlamaModel(size, /*tied=*/true)},
          {"qwen3_moe", Qwen3MoeModel(size)}, {"expert_rows", ExpertRowsModel(size)},
          {"llama4", Llama4Model(size)},      {"qwen3_vl_moe", Qwen3VlMoeModel(size)},
          {"gpt_oss", GptOssModel(size)},     {"mixtral", MixtralModel(size)},
          {"deepseek", DeepseekModel(size)},  {"odd_names", OddNamesModel(size)}};
}

TEST_F(QuantizeModelTest, EveryLayoutRecipeAndFormatIsVerified) {
  for (const auto& [name, model] : Models()) {
    WriteModelFolder(folder_.path("model"), model);
    for (const char* recipe : {"nvfp4", "nvfp4_mse", "nvfp4_four_over_six", "nvfp4_weight_only"}) {
      for (const ExportFormat format :
           {ExportFormat::kModelopt, ExportFormat::kCompressedTensors}) {
        SCOPED_TRACE(name + " " + recipe + " " + std::string(NameOf(format)));
        const bool weight_only = std::string(recipe) == "nvfp4_weight_only";
        QuantizeModelRequest request =
            weight_only ? Request(recipe, {}) : Request(recipe, kConstantInputs);
        request.recipe.output.format = format;
        const auto summary = Run(request);
        if (absl::IsUnimplemented(summary.status())) {
          EXPECT_EQ(format, ExportFormat::kCompressedTensors);
          EXPECT_EQ(name, "gpt_oss") << summary.status();
          continue;
        }
        ASSERT_TRUE(summary.ok()) << summary.status();
        ExpectVerified(request);
        fs::remove_all(request.out);
      }
    }
    fs::remove_all(folder_.path("model"));
  }
}

// q, k and v of a layer, in three shards: the bytes are those of quantizing each under the largest
// amax of the three.
TEST_F(QuantizeModelTest, MembersOfAGroupShareTheirGlobalScale) {
  ModelSize size;
  size.shards = 3;
  ModelOnPaper model = LlamaModel(size);
  WriteModelFolder(folder_.path("model"), model);
  const QuantizeModelRequest request = Request("nvfp4_mse");
  ASSERT_TRUE(Run(request).ok());
  const auto result = SafetensorsReader::Open(request.out + "/model.safetensors");
  ASSERT_TRUE(result.ok()) << result.status();
  const auto backend = *MakeBackend("cpu-scalar");
  const auto matrix = [&](const std::string& name) {
    const Tensor& tensor = model.at(name + ".weight");
    return MatrixView{tensor.bytes.data(), tensor.dtype, tensor.shape[0], tensor.shape[1]};
  };
  for (const std::vector<std::string>& group :
       {std::vector<std::string>{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
        {"mlp.gate_proj", "mlp.up_proj"},
        {"self_attn.o_proj"},
        {"mlp.down_proj"}}) {
    float amax = 0;
    for (const std::string& member : group) {
      amax = std::max(amax, *backend->Amax(matrix("model.layers.1." + member)));
    }
    for (const std::string& member : group) {
      const std::string name = "model.layers.1." + member;
      SCOPED_TRACE(name);
      const auto expected = backend->SweepAndQuantize({.global_amax = amax}, matrix(name));
      ASSERT_TRUE(expected.ok()) << expected.status();
      const auto bytes = [&](const std::string& part) {
        const TensorInfo* info = result->Find(name + part);
        EXPECT_NE(info, nullptr) << part;
        return info == nullptr ? std::vector<std::byte>() : *result->ReadAll(*info);
      };
      const auto same = [](const std::vector<std::byte>& a, const std::vector<uint8_t>& b) {
        return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
      };
      EXPECT_TRUE(same(bytes(".weight"), expected->packed.packed));
      EXPECT_TRUE(same(bytes(".weight_scale"), expected->packed.scale));
      float scale = 0;
      std::memcpy(&scale, bytes(".weight_scale_2").data(), sizeof(scale));
      EXPECT_EQ(scale, amax / (6 * 448.0f));
    }
  }
}

TEST_F(QuantizeModelTest, TheBytesDependOnNeitherThreadsNorBackendsNorTheSourcesShards) {
  for (const char* recipe : {"nvfp4_mse", "nvfp4_four_over_six"}) {
    std::map<std::string, std::map<std::string, std::string>> first;
    for (const int shards : {1, 3, 7}) {
      for (const auto& [name, model] : Models(shards)) {
        if (name != "llama" && name != "expert_rows" && name != "gpt_oss") continue;
        SCOPED_TRACE(name + " in " + std::to_string(shards));
        fs::remove_all(folder_.path("model"));
        WriteModelFolder(folder_.path("model"), model);
        const QuantizeModelRequest request = Request(recipe);
        const auto files = Result(request, Backends("cpu", 1));
        ASSERT_FALSE(files.empty());
        if (first[name].empty()) first[name] = files;
        EXPECT_THAT(DifferentFiles(first[name], files), IsEmpty());
        EXPECT_THAT(DifferentFiles(files, Result(request, Backends("cpu", 2, 3))), IsEmpty());
        EXPECT_THAT(DifferentFiles(files, Result(request, Backends("cpu-scalar", 1))), IsEmpty());
      }
    }
  }
}

TEST_F(QuantizeModelTest, TheBytesAreTheSameOnAGpu) {
  const auto device = MakeBackend("cuda:0");
  if (!device.ok()) GTEST_SKIP() << device.status().message();
  ModelSize size;
  size.hidden = 256;
  size.intermediate = 512;
  for (const ModelOnPaper& model : {LlamaModel(size), ExpertRowsModel(size), GptOssModel(size)}) {
    fs::remove_all(folder_.path("model"));
    WriteModelFolder(folder_.path("model"), model);
    for (const auto& [recipe, set] :
         std::map<std::string, std::vector<std::string>>{{"nvfp4", {"weights.algorithm=max"}},
                                                         {"nvfp4_mse", {}},
                                                         {"nvfp4_local_hessian", {}},
                                                         {"nvfp4_local_hessian_feedback", {}},
                                                         {"nvfp4_four_over_six", {}},
                                                         {"base", {"weights.algorithm=mse"}}}) {
      SCOPED_TRACE(recipe);
      std::vector<std::string> all = set;
      all.insert(all.end(), kConstantInputs.begin(), kConstantInputs.end());
      const QuantizeModelRequest request = Request(recipe, all);
      const auto files = Result(request, Backends());
      ASSERT_FALSE(files.empty());
      EXPECT_THAT(DifferentFiles(files, Result(request, Backends("cuda:0", 0, 3))), IsEmpty());
    }
  }
}

TEST_F(QuantizeModelTest, ShardsAreAsLargeAsAsked) {
  WriteModelFolder(folder_.path("model"), LlamaModel());
  std::map<std::string, std::vector<std::byte>> whole;
  const auto tensors_of = [](const std::string& folder) {
    std::map<std::string, std::vector<std::byte>> tensors;
    for (const auto& entry : fs::directory_iterator(folder)) {
      if (entry.path().extension() != ".safetensors") continue;
      const auto reader = SafetensorsReader::Open(entry.path().string());
      for (const TensorInfo& info : reader->tensors()) tensors[info.name] = *reader->ReadAll(info);
    }
    return tensors;
  };
  QuantizeModelRequest request = Request();
  ASSERT_TRUE(Run(request).ok());
  const auto one = tensors_of(request.out);
  EXPECT_FALSE(fs::exists(request.out + "/model.safetensors.index.json"));
  request.recipe.output.shard_bytes = 20'000;
  request.overwrite = true;
  const auto summary = Run(request);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_GT(summary->shards, 2);
  EXPECT_TRUE(one == tensors_of(request.out));
  EXPECT_FALSE(fs::exists(request.out + "/model.safetensors"));
  ExpectVerified(request);
}

TEST_F(QuantizeModelTest, TheSummaryIsThatOfTheStoredBytes) {
  WriteModelFolder(folder_.path("model"), Qwen3MoeModel());
  const QuantizeModelRequest request = Request("nvfp4_mse");
  const auto summary = Run(request);
  ASSERT_TRUE(summary.ok()) << summary.status();
  const auto backend = MakeBackend("cpu");
  const auto report = VerifyModel(request.out, {.against = request.model}, **backend);
  ASSERT_TRUE(report.ok()) << report.status();
  std::map<std::string, double> errors;
  for (const WeightError& error : report->errors) errors[error.name] = error.relative_mse;
  ASSERT_EQ(summary->tensors.size(), errors.size());
  for (const TensorError& error : summary->tensors) {
    EXPECT_DOUBLE_EQ(error.relative_mse(), errors.at(error.module)) << error.module;
  }
  const std::string text = ModelSummaryAsText(*summary);
  EXPECT_THAT(text, AllOf(HasSubstr("worst tensors"), HasSubstr("expert "), HasSubstr("size")));
  const auto json = nlohmann::json::parse(ModelSummaryAsJson(*summary));
  EXPECT_EQ(json["tensors"].size(), errors.size());
}

TEST_F(QuantizeModelTest, OtherFilesAreCopiedAndTheSourceIsNotTouched) {
  WriteModelFolder(folder_.path("model"), LlamaModel());
  PutFile(folder_.path("model/hf_quant_config.json"), "stale");
  const auto before = FilesOf(folder_.path("model"));
  const QuantizeModelRequest request = Request();
  ASSERT_TRUE(Run(request).ok());
  EXPECT_THAT(DifferentFiles(before, FilesOf(folder_.path("model"))), IsEmpty());
  const auto after = FilesOf(request.out);
  for (const char* name : {"tokenizer.json", "generation_config.json", "README.md"}) {
    EXPECT_EQ(after.at(name), before.at(name)) << name;
  }
  EXPECT_NE(after.at("hf_quant_config.json"), "stale");
  EXPECT_THAT(folder_.Names(), ::testing::ElementsAre("model", "out"));
}

TEST_F(QuantizeModelTest, ActivationsThatNeedDataWithoutAnyNameTheTwoWaysOut) {
  WriteModelFolder(folder_.path("model"), LlamaModel());
  const auto result = Run(Request("nvfp4", {}));
  EXPECT_TRUE(IsError(result, absl::StatusCode::kInvalidArgument, "--calib FILE"));
  EXPECT_TRUE(IsError(result, absl::StatusCode::kInvalidArgument,
                      "--set activations.algorithm.method=constant"));
  EXPECT_THAT(folder_.Names(), ::testing::ElementsAre("model"));
}

TEST_F(QuantizeModelTest, CapturedActivationsGiveInputScalesAndHessians) {
  const ModelSize size;
  WriteModelFolder(folder_.path("model"), LlamaModel(size));
  std::vector<Tensor> captures;
  for (int64_t layer = 0; layer < size.layers; ++layer) {
    const std::string p = absl::StrCat("model.layers.", layer);
    for (const auto& [module, channels] :
         std::map<std::string, int64_t>{{"self_attn.q_proj", size.hidden},
                                        {"self_attn.k_proj", size.hidden},
                                        {"self_attn.v_proj", size.hidden},
                                        {"self_attn.o_proj", size.hidden},
                                        {"mlp.gate_proj", size.hidden},
                                        {"mlp.up_proj", size.hidden},
                                        {"mlp.down_proj", size.intermediate}}) {
      std::vector<float> values =
          SyntheticValues(Distribution::kNormal, 50 * channels, captures.size() + 1);
      values[7] = 100 + static_cast<float>(captures.size());  // the amax
      captures.push_back(
          TensorOf(absl::StrCat(p, ".", module, ".input"), DType::kF32, {50, channels}, values));
    }
  }
  Write(folder_.path("captures"), captures, {});
  QuantizeModelRequest request = Request("nvfp4_local_hessian", {});
  request.calibration = folder_.path("captures");
  const auto summary = Run(request);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_THAT(summary->warnings, IsEmpty());
  ExpectVerified(request);
  const auto result = SafetensorsReader::Open(request.out + "/model.safetensors");
  // q, k and v come 6th, 3rd and 7th in the order of names: the largest amax is v's.
  float scale = 0;
  for (const char* member : {"q", "k", "v"}) {
    const auto bytes = result->ReadAll(
        *result->Find(absl::StrCat("model.layers.0.self_attn.", member, "_proj.input_scale")));
    std::memcpy(&scale, bytes->data(), sizeof(scale));
    EXPECT_EQ(scale, 106.0f / 2688);
  }
  // With them, other scales are chosen than without; without, the run says so.
  const auto with = FilesOf(request.out);
  QuantizeModelRequest plain = Request("nvfp4_local_hessian");
  plain.overwrite = true;
  const auto without = Run(plain);
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_NE(with.at("model.safetensors"), FilesOf(plain.out).at("model.safetensors"));
  EXPECT_THAT(without->warnings, Contains(HasSubstr("plain sweep")));
  // Codes with error feedback are other bytes again, and a folder all the same.
  QuantizeModelRequest feedback = Request("nvfp4_local_hessian_feedback", {});
  feedback.calibration = request.calibration;
  feedback.overwrite = true;
  const auto fed_back = Run(feedback);
  ASSERT_TRUE(fed_back.ok()) << fed_back.status();
  EXPECT_THAT(fed_back->warnings, IsEmpty());
  ExpectVerified(feedback);
  EXPECT_NE(with.at("model.safetensors"), FilesOf(feedback.out).at("model.safetensors"));
  // A module that was not captured.
  std::erase_if(captures, [](const Tensor& capture) {
    return capture.name == "model.layers.1.mlp.down_proj.input";
  });
  Write(folder_.path("captures"), captures, {});
  request.overwrite = true;
  EXPECT_TRUE(
      IsError(Run(request), absl::StatusCode::kFailedPrecondition, "expected activations of"));
}

TEST_F(QuantizeModelTest, NonFiniteWeightsAreAnErrorOrKept) {
  ModelOnPaper model = LlamaModel();
  const std::string bad = "model.layers.1.self_attn.k_proj.weight";
  model.Fill(bad, [](int64_t i) {
    return i == 70 ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(i % 7);
  });
  WriteModelFolder(folder_.path("model"), model);
  const auto result = Run(Request());
  EXPECT_TRUE(IsError(result, absl::StatusCode::kFailedPrecondition, bad));
  EXPECT_FALSE(fs::exists(folder_.path("out")));

  QuantizeModelRequest keep = Request("nvfp4", {kConstantInputs[0], "nonfinite=keep"});
  keep.overwrite = true;
  const auto summary = Run(keep);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_THAT(summary->warnings, Contains(HasSubstr("k_proj: kept: holds NaN")));
  const auto reader = SafetensorsReader::Open(keep.out + "/model.safetensors");
  for (const char* member : {"q", "k", "v"}) {
    const std::string module = absl::StrCat("model.layers.1.self_attn.", member, "_proj");
    EXPECT_EQ(reader->Find(module + ".weight")->dtype, DType::kBf16);
    EXPECT_EQ(reader->Find(module + ".weight_scale"), nullptr);
  }
  EXPECT_NE(reader->Find("model.layers.0.self_attn.q_proj.weight_scale"), nullptr);
}

TEST_F(QuantizeModelTest, NonFiniteValuesOfKeptTensorsAreAnErrorOrCopied) {
  ModelOnPaper model = LlamaModel();
  model.Fill("model.norm.weight",
             [](int64_t i) { return i == 3 ? std::numeric_limits<float>::infinity() : 1.0f; });
  WriteModelFolder(folder_.path("model"), model);
  EXPECT_TRUE(IsError(Run(Request()), absl::StatusCode::kFailedPrecondition,
                      "tensor \"model.norm.weight\": values: expected finite numbers, got NaN or "
                      "infinity at element 3; --set nonfinite=keep"));
  EXPECT_FALSE(fs::exists(folder_.path("out")));
  QuantizeModelRequest keep = Request("nvfp4", {kConstantInputs[0], "nonfinite=keep"});
  keep.overwrite = true;
  ASSERT_TRUE(Run(keep).ok());
  EXPECT_EQ(testing::ReadTensor(keep.out + "/model.safetensors", "model.norm.weight").bytes,
            model.at("model.norm.weight").bytes);
}

TEST_F(QuantizeModelTest, ARunThatFailedHalfwayIsResumedToTheSameBytes) {
  ModelSize size;
  size.layers = 3;
  ModelOnPaper model = LlamaModel(size);
  WriteModelFolder(folder_.path("model"), model);
  QuantizeModelRequest request = Request("nvfp4_mse");
  request.recipe.output.shard_bytes = 15'000;
  const auto straight = Result(request, Backends());
  ASSERT_GT(std::ranges::count_if(
                straight, [](const auto& file) { return file.first.ends_with(".safetensors"); }),
            3);
  const std::string summary = WithoutTimes(*Run(Overwriting(request)));
  // Stopped after each step in turn, then resumed; now and then stopped twice.
  bool complete = false;
  for (int64_t stop = 1; !complete; stop += stop % 5 == 0 ? 7 : 1) {
    SCOPED_TRACE(stop);
    fs::remove_all(request.out);
    fs::remove_all(request.out + ".partial");
    const auto run_until = [&](int64_t step) {
      return QuantizeModel(request, Backends(), [&, calls = int64_t{0}](const auto&) mutable {
        return ++calls == step ? absl::CancelledError("stop") : absl::OkStatus();
      });
    };
    request.resume = false;
    auto result = run_until(stop);
    complete = result.ok();
    if (complete) break;
    ASSERT_TRUE(IsError(result, absl::StatusCode::kCancelled, "stop"));
    EXPECT_FALSE(fs::exists(request.out));
    EXPECT_TRUE(IsError(run_until(0), absl::StatusCode::kInvalidArgument, "--resume"));
    request.resume = true;
    if (stop % 3 == 0) (void)run_until(2);
    result = run_until(0);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_THAT(DifferentFiles(straight, FilesOf(request.out)), IsEmpty());
    EXPECT_EQ(summary, WithoutTimes(*result));
  }
}

TEST_F(QuantizeModelTest, ResumingDoesNotTrustAShardThatSomebodyTouched) {
  WriteModelFolder(folder_.path("model"), LlamaModel());
  QuantizeModelRequest request = Request();
  request.recipe.output.shard_bytes = 15'000;
  const auto straight = Result(request, Backends());
  fs::remove_all(request.out);
  const auto shard = std::ranges::find_if(
      straight, [](const auto& file) { return file.first.starts_with("model-00001-of-"); });
  ASSERT_NE(shard, straight.end());
  const std::string first = request.out + ".partial/" + shard->first;
  const auto until_first_shard = [&](const QuantizeModelProgress&) {
    return fs::exists(first) ? absl::CancelledError("stop") : absl::OkStatus();
  };
  EXPECT_TRUE(absl::IsCancelled(QuantizeModel(request, Backends(), until_first_shard).status()));
  std::string bytes = FileBytes(first);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  PutFile(first, bytes);
  request.resume = true;
  const auto result = Run(request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->resumed_shards, 0);
  EXPECT_THAT(DifferentFiles(straight, FilesOf(request.out)), IsEmpty());
}

TEST_F(QuantizeModelTest, RefusesToResumeWithAnotherRecipeSourceOrVersion) {
  ModelOnPaper model = LlamaModel();
  WriteModelFolder(folder_.path("model"), model);
  const auto stopped = [](const QuantizeModelProgress&) { return absl::CancelledError("stop"); };
  EXPECT_TRUE(absl::IsCancelled(QuantizeModel(Request(), Backends(), stopped).status()));
  const auto refused = [&](QuantizeModelRequest request, const std::string& what) {
    request.resume = true;
    return IsError(Run(request), absl::StatusCode::kFailedPrecondition, "expected the " + what);
  };
  EXPECT_TRUE(refused(Request("nvfp4_mse"), "recipe"));
  QuantizeModelRequest other = Request();
  other.version = "another";
  EXPECT_TRUE(refused(other, "version"));
  model.FillZero("lm_head.weight");
  fs::remove_all(folder_.path("model"));
  WriteModelFolder(folder_.path("model"), model);
  EXPECT_TRUE(refused(Request(), "source"));
  EXPECT_TRUE(Run(Overwriting(Request())).ok());  // which drops it
}

TEST_F(QuantizeModelTest, RefusesToResumeASourceThatChangedBehindItsTime) {
  ModelOnPaper model = LlamaModel();
  WriteModelFolder(folder_.path("model"), model);
  const auto stopped = [](const QuantizeModelProgress&) { return absl::CancelledError("stop"); };
  EXPECT_TRUE(absl::IsCancelled(QuantizeModel(Request(), Backends(), stopped).status()));
  const std::string weights = folder_.path("model/model.safetensors");
  const auto time = fs::last_write_time(weights);
  std::string bytes = FileBytes(weights);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  PutFile(weights, bytes);
  fs::last_write_time(weights, time);
  QuantizeModelRequest request = Request();
  request.resume = true;
  EXPECT_TRUE(IsError(Run(request), absl::StatusCode::kFailedPrecondition, "expected the source"));
}

// A kept module whose name is a pattern or a component of others' names: the lists of kept modules
// cannot say it, lists of quantized ones can.
TEST_F(QuantizeModelTest, NamesThatNoListOfKeptModulesCanTell) {
  ModelOnPaper model = LlamaModel();
  for (const char* name : {"down_proj.weight", "x[0].*?.weight", "model.lay*.weight"}) {
    model.AddWeight(name, {16, 32});
  }
  WriteModelFolder(folder_.path("model"), model);
  PutFile(folder_.path("kept.yaml"),
          "extends: nvfp4_mse\nrules:\n  - {match: [down_proj, 're:x.*', 're:model\\.lay\\*'], "
          "use: keep}\n");
  const QuantizeModelRequest request = Request(folder_.path("kept.yaml"));
  const auto summary = Run(request);
  ASSERT_TRUE(summary.ok()) << summary.status();
  ExpectVerified(request);
  EXPECT_THAT(FileBytes(request.out + "/config.json"), HasSubstr("MIXED_PRECISION"));
}

TEST_F(QuantizeModelTest, ADryRunWritesNothing) {
  WriteModelFolder(folder_.path("model"), LlamaModel());
  QuantizeModelRequest request = Request();
  request.dry_run = true;
  const auto summary = Run(request);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_GT(summary->bytes_before, summary->bytes_after);
  EXPECT_THAT(folder_.Names(), ::testing::ElementsAre("model"));
}

TEST_F(QuantizeModelTest, RefusesWhatIsNoModelAndPlacesThatAreTaken) {
  QuantizeModelRequest request = Request();
  EXPECT_TRUE(IsError(Run(request), absl::StatusCode::kNotFound, "model"));
  WriteModelFolder(folder_.path("model"), LlamaModel());
  request.out = request.model;
  EXPECT_TRUE(IsError(Run(request), absl::StatusCode::kInvalidArgument, "never touched"));
  request.out = folder_.path("out");
  ASSERT_TRUE(Run(request).ok());
  EXPECT_TRUE(IsError(Run(request), absl::StatusCode::kInvalidArgument, "--overwrite"));
  // A shard that is cut short.
  fs::resize_file(folder_.path("model/model.safetensors"), 5000);
  EXPECT_TRUE(IsError(Run(Overwriting(request)), absl::StatusCode::kDataLoss, "model.safetensors"));
  EXPECT_TRUE(fs::exists(request.out + "/config.json"));
}

}  // namespace
}  // namespace nibble
