// Runs `nibble plan`: what it says of a folder, how it fails.
#include <filesystem>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/models.h"
#include "tests/testing/subprocess.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tensors.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using ::nibble::testing::LlamaShapes;
using ::nibble::testing::Nibble;
using ::nibble::testing::NormalTensor;
using ::nibble::testing::Process;
using ::nibble::testing::ProcessResult;
using ::nibble::testing::PutFile;
using ::nibble::testing::TempDir;
using ::nibble::testing::Tensor;
using ::nibble::testing::Write;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class PlanCommandTest : public ::testing::Test {
 protected:
  PlanCommandTest() {
    PutFile(folder_.path("config.json"),
            R"({"model_type": "llama", "num_hidden_layers": 3, "hidden_size": 64})");
    PutFile(folder_.path("tokenizer.json"), "{}");
    PutFile(folder_.path("pytorch_model.bin"), "x");
    std::vector<Tensor> tensors;
    for (const ModelTensor& tensor : LlamaShapes(3).tensors) {
      tensors.push_back(NormalTensor(tensor.name, tensor.dtype, tensor.shape));
    }
    Write(folder_.path("model.safetensors"), tensors);
  }

  ProcessResult Plan(std::vector<std::string> args) const {
    args.insert(args.begin(), {"plan", folder_.path()});
    return Nibble(std::move(args));
  }
  void ExpectOneErrorLine(const std::vector<std::string>& args, int code,
                          const std::string& piece) const {
    const ProcessResult result = Plan(args);
    EXPECT_EQ(result.exit_code, code) << result.err;
    EXPECT_EQ(result.out, "");
    EXPECT_THAT(result.err, StartsWith("nibble: "));
    EXPECT_EQ(result.err.find('\n') + 1, result.err.size()) << result.err;
    EXPECT_THAT(result.err, HasSubstr(piece));
  }

  TempDir folder_;
};

TEST_F(PlanCommandTest, PrintsATable) {
  const std::vector<std::string> before = folder_.Names();
  const ProcessResult result = Plan({"--recipe", "nvfp4_mse"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  for (const char* piece :
       {"model.layers.0-2.self_attn.q_proj.weight", "nvfp4, mse with fp8_scale_sweep",
        "sharing one global scale", "21 of 30 tensors quantized", "assumes",
        "pytorch_model.bin: neither read nor copied: the model is taken from its safetensors"}) {
    EXPECT_THAT(result.out, HasSubstr(piece));
  }
  EXPECT_EQ(folder_.Names(), before);
}

TEST_F(PlanCommandTest, EveryShippedRecipeHasAPlanOrSaysWhyNot) {
  for (const char* recipe :
       {"nvfp4", "nvfp4_mse", "nvfp4_local_hessian", "nvfp4_local_hessian_feedback",
        "nvfp4_four_over_six", "nvfp4_weight_only", "nvfp4_mlp_only", "nvfp4_per_token"}) {
    EXPECT_EQ(Plan({"--recipe", recipe}).exit_code, 0) << recipe;
  }
  ExpectOneErrorLine({"--recipe", "nvfp4_experts_only"}, 2, "expected something to quantize");
}

TEST_F(PlanCommandTest, WritesJson) {
  const ProcessResult result = Plan({"--recipe", "nvfp4", "--json", "--threads", "3"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const nlohmann::json root = nlohmann::json::parse(result.out, nullptr, false);
  ASSERT_FALSE(root.is_discarded()) << result.out;
  EXPECT_EQ(root["totals"]["quantized"], 21);
  EXPECT_THAT(root["estimate"]["assumes"].get<std::string>(), HasSubstr("3 CPU threads"));
}

TEST_F(PlanCommandTest, SettingsMayBeOverridden) {
  const ProcessResult result = Plan({"--recipe", "nvfp4", "--set", "activations.format=none",
                                     "--set", "weights.algorithm.method=four_over_six"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("nvfp4, four_over_six, weight-only"));
}

TEST_F(PlanCommandTest, FailsInOneLine) {
  ExpectOneErrorLine({}, 2, "--recipe");
  ExpectOneErrorLine({"--recipe", ""}, 2, "--recipe");
  ExpectOneErrorLine({"--recipe", "nvfp5"}, 2, "nvfp4");
  ExpectOneErrorLine({"--recipe", "nvfp4", "--set", "weigths.format=nvfp4"}, 2, "weights");
  PutFile(folder_.path("r.yaml"),
          "extends: nvfp4\nmetadata: {name: r}\nrules:\n  - {match: '*v_proj', use: keep}\n");
  ExpectOneErrorLine({"--recipe", folder_.path("r.yaml")}, 2, "self_attn.{q,k,v}_proj");
  Write(folder_.path("model.safetensors"), {NormalTensor("a.weight", DType::kBf16, {8, 40}),
                                            NormalTensor("b.weight", DType::kBf16, {8, 32})});
  EXPECT_EQ(Plan({"--recipe", "nvfp4"}).exit_code, 0);
  ExpectOneErrorLine({"--recipe", "nvfp4", "--strict"}, 3, "K is 40");
  PutFile(folder_.path("config.json"), "[]");
  ExpectOneErrorLine({"--recipe", "nvfp4"}, 3, "config.json");
  fs::remove(folder_.path("config.json"));
  ExpectOneErrorLine({"--recipe", "nvfp4"}, 1, "config.json");
}

}  // namespace
}  // namespace nibble
