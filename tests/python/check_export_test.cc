// Runs the independent checker, in Python, over folders of every layout.
#include <cstdlib>
#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/model_folders.h"
#include "tests/testing/reference_export.h"
#include "tests/testing/subprocess.h"
#include "tests/testing/temp_dir.h"

namespace nibble {
namespace {

using namespace ::nibble::testing;  // NOLINT: the whole kit
using ::testing::HasSubstr;

constexpr char kPython[] = "/usr/bin/python3";

ProcessResult Check(const std::vector<std::string>& args) {
  std::vector<std::string> line = {
      kPython, std::string(NIBBLE_SOURCE_DIR) + "/tests/python/check_export.py"};
  line.insert(line.end(), args.begin(), args.end());
  return Process(line).Wait();
}

class CheckExportTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(kPython)) GTEST_SKIP() << kPython << " is not there";
  }

  void Make(const ModelOnPaper& model, PaperPlan plan, ExportFormat format) {
    Recipe recipe;
    recipe.output.format = format;
    recipe.kv_cache = KvCacheFormat::kFp8;
    WriteModelFolder(dir_.path("in"), model);
    plan.format = format;
    WriteExport(dir_.path("out"), model, PlanOnPaper(model, plan), recipe);
  }
  ProcessResult CheckAll() {
    return Check({dir_.path("out"), "--against", dir_.path("in"), "--max-scales"});
  }

  TempDir dir_;
};

TEST_F(CheckExportTest, FindsNothingInWhatIsRight) {
  ModelSize sharded, k24;
  sharded.shards = 3;
  k24.intermediate = 24;
  const std::vector<ModelOnPaper> models = {
      LlamaModel(sharded),    LlamaModel({}, /*tied=*/true),
      LlamaModel(k24),        Qwen3MoeModel(sharded),
      ExpertRowsModel(),      MixtralModel(),
      DeepseekModel(sharded), OddNamesModel(),
      Llama4Model(),          Qwen3VlMoeModel(),
      GptOssModel(),
  };
  PaperPlan keep, weight_only, mixed;
  keep.keep = [](const std::string& m) { return m.find("layers.1.") != m.npos; };
  weight_only.weight_only = [](const std::string&) { return true; };
  mixed.weight_only = [](const std::string& m) { return m.find("self_attn") != m.npos; };
  for (size_t i = 0; i < models.size(); ++i) {
    for (const PaperPlan& plan : {PaperPlan(), keep, weight_only, mixed}) {
      for (const ExportFormat format :
           {ExportFormat::kModelopt, ExportFormat::kCompressedTensors}) {
        if (i == 10 && format == ExportFormat::kCompressedTensors) continue;
        std::filesystem::remove_all(dir_.path("in"));
        std::filesystem::remove_all(dir_.path("out"));
        Make(models[i], plan, format);
        const ProcessResult result = CheckAll();
        EXPECT_EQ(result.exit_code, 0) << i << " " << NameOf(format) << "\n" << result.err;
        EXPECT_EQ(result.out, "") << i << " " << NameOf(format);
      }
    }
  }
}

TEST_F(CheckExportTest, SeesDefects) {
  const std::string q = "model.layers.0.self_attn.q_proj.", file = "out/model.safetensors";
  const struct {
    const char* said;
    std::function<void(Contents&)> change;
  } kDefects[] = {
      {"steps beyond its nearest code",
       [&](Contents& c) { c.tensors[q + "weight"].bytes[7] ^= std::byte{1}; }},
      {"block scales like [0]",
       [&](Contents& c) { c.tensors[q + "weight_scale"].bytes[3] = std::byte{0}; }},
      {"block at 48: scale",
       [&](Contents& c) { c.tensors[q + "weight_scale"].bytes[3] ^= std::byte{2}; }},
      {"outer scale is not q_proj's",
       [&](Contents& c) { c.tensors[q + "weight_scale_2"].bytes[0] ^= std::byte{1}; }},
      {"no outer", [&](Contents& c) { c.tensors.erase(q + "weight_scale_2"); }},
      {"input scale and configuration", [&](Contents& c) { c.tensors.erase(q + "input_scale"); }},
      {"model.norm.weight: missing", [](Contents& c) { c.tensors.erase("model.norm.weight"); }},
      {"model.norm.weight: not a copy",
       [](Contents& c) { c.tensors["model.norm.weight"].bytes[0] ^= std::byte{1}; }},
      {"no metadata format=pt", [](Contents& c) { c.metadata.clear(); }},
  };
  for (const auto& defect : kDefects) {
    Make(LlamaModel(), {}, ExportFormat::kModelopt);
    Contents contents = Read(dir_.path(file));
    defect.change(contents);
    Write(dir_.path(file), contents);
    const ProcessResult result = CheckAll();
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_THAT(result.out, HasSubstr(defect.said));
  }
  Make(LlamaModel(), {}, ExportFormat::kModelopt);
  for (const char* name : {"out/config.json", "out/hf_quant_config.json"}) {
    auto json = nlohmann::ordered_json::parse(FileBytes(dir_.path(name)));
    auto& list = json.contains("quantization") ? json["quantization"]["exclude_modules"]
                                               : json["quantization_config"]["ignore"];
    list = {"model.layers.1"};
    PutFile(dir_.path(name), json.dump());
  }
  const ProcessResult result = CheckAll();
  EXPECT_THAT(result.out, HasSubstr("lm_head: SGLang excludes it: False"));
  EXPECT_THAT(result.out, HasSubstr("model.layers.1.mlp.gate_up_proj: vLLM excludes it: True"));
}

}  // namespace
}  // namespace nibble
