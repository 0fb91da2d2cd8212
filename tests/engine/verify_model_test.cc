#include "engine/verify_model.h"

#include <filesystem>
#include <functional>
#include <limits>
#include <memory>

#include "engine/find_recipe.h"
#include "engine/read_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/model_folder.h"
#include "nlohmann/json.hpp"
#include "policies/plan.h"
#include "tests/testing/backends.h"
#include "tests/testing/is_error.h"
#include "tests/testing/model_folders.h"
#include "tests/testing/reference_export.h"
#include "tests/testing/temp_dir.h"

namespace nibble {
namespace {

using ::nibble::testing::Cpu;
using ::nibble::testing::RecipeFor;

namespace fs = std::filesystem;
using namespace ::nibble::testing;  // NOLINT: the whole kit
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using OrderedJson = nlohmann::ordered_json;

VerifyReport Verify(const std::string& folder, const std::string& against = "") {
  VerifyOptions options;
  options.against = against;
  const auto report = VerifyModel(folder, options, *Cpu());
  EXPECT_TRUE(report.ok()) << report.status();
  return report.ok() ? *report : VerifyReport();
}

ModelSize Sharded(int shards) {
  ModelSize size;
  size.shards = shards;
  return size;
}

struct Case {
  const char* name;
  ModelOnPaper model;
  bool takes_turns = false;  // gate and up of experts: compressed-tensors cannot hold them
};
std::vector<Case> Cases() {
  ModelSize f16, f32;
  f16.dtype = DType::kF16;
  f32.dtype = DType::kF32;
  ModelSize k24;
  k24.intermediate = 24;
  // As a ModelSize is, gate and up of all experts make squares.
  ModelSize no_square, square_down;
  no_square.expert_intermediate = 48;
  square_down.expert_intermediate = square_down.hidden;
  std::vector<Case> cases = {
      {"llama", LlamaModel()},
      {"llama_in_5_shards", LlamaModel(Sharded(5))},
      {"llama_f16", LlamaModel(f16)},
      {"llama_f32", LlamaModel(f32)},
      {"llama_k24", LlamaModel(k24)},
      {"tied", LlamaModel({}, /*tied=*/true)},
      {"qwen3_moe", Qwen3MoeModel(Sharded(3))},
      {"expert_rows", ExpertRowsModel(Sharded(2))},
      {"mixtral", MixtralModel()},
      {"deepseek", DeepseekModel(Sharded(4))},
      {"odd_names", OddNamesModel()},
      {"llama4", Llama4Model()},
      {"llama4_no_square", Llama4Model(no_square)},
      {"llama4_square_down", Llama4Model(square_down)},
      {"qwen3_vl_moe", Qwen3VlMoeModel(Sharded(3))},
      {"gpt_oss", GptOssModel(Sharded(2)), true},
  };
  cases.push_back({"zero_weight", LlamaModel()});
  cases.back().model.FillZero("model.layers.1.mlp.down_proj.weight");
  return cases;
}

TEST(VerifyModelTest, FindsNothingInWhatIsRight) {
  for (const Case& c : Cases()) {
    for (const ExportFormat format : {ExportFormat::kModelopt, ExportFormat::kCompressedTensors}) {
      if (c.takes_turns && format == ExportFormat::kCompressedTensors) continue;
      SCOPED_TRACE(absl::StrCat(c.name, " ", ToAbsl(NameOf(format))));
      const TempDir dir;
      WriteModelFolder(dir.path("in"), c.model);
      WriteExport(dir.path("out"), c.model, PlanOnPaper(c.model, {.format = format}),
                  RecipeFor(format));
      const VerifyReport report = Verify(dir.path("out"), dir.path("in"));
      EXPECT_THAT(report.holes, IsEmpty());
      EXPECT_EQ(report.format, NameOf(format));
      EXPECT_EQ(report.algorithm, "NVFP4");
      EXPECT_EQ(static_cast<int64_t>(report.errors.size()), report.quantized);
      ASSERT_THAT(report.errors, Not(IsEmpty()));
      EXPECT_LT(report.errors[0].relative_mse, 0.02);
      EXPECT_GT(report.errors[0].relative_mse, 0.001);
    }
  }
}

TEST(VerifyModelTest, LayersKeptWeightOnlyAndMixed) {
  struct Plans {
    const char *name, *algorithm;
    PaperPlan plan;
  };
  std::vector<Plans> plans(4);
  plans[0] = {"keep layer 1", "NVFP4", {}};
  plans[0].plan.keep = [](const std::string& m) { return m.find("layers.1.") != m.npos; };
  plans[1] = {"weight-only", "W4A16_NVFP4", {}};
  plans[1].plan.weight_only = [](const std::string&) { return true; };
  plans[2] = {"mixed", "MIXED_PRECISION", {}};
  plans[2].plan.weight_only = [](const std::string& m) { return m.find("self_attn") != m.npos; };
  plans[2].plan.keep = [](const std::string& m) { return m.find("layers.0.mlp") != m.npos; };
  plans[3] = {"attention only", "NVFP4", {}};
  plans[3].plan.keep = [](const std::string& m) { return m.find("self_attn") == m.npos; };
  for (const Case& c : Cases()) {
    for (const Plans& p : plans) {
      for (const ExportFormat format :
           {ExportFormat::kModelopt, ExportFormat::kCompressedTensors}) {
        if (c.takes_turns && format == ExportFormat::kCompressedTensors) continue;
        SCOPED_TRACE(absl::StrCat(c.name, " ", p.name, " ", ToAbsl(NameOf(format))));
        const TempDir dir;
        WriteModelFolder(dir.path("in"), c.model);
        Recipe recipe = RecipeFor(format);
        recipe.kv_cache = KvCacheFormat::kFp8;
        PaperPlan plan = p.plan;
        plan.format = format;
        WriteExport(dir.path("out"), c.model, PlanOnPaper(c.model, plan), recipe);
        const VerifyReport report = Verify(dir.path("out"), dir.path("in"));
        EXPECT_THAT(report.holes, IsEmpty());
        EXPECT_EQ(report.algorithm, p.algorithm);
      }
    }
  }
}

// Plans of the real planner: what shipped recipes make of each layout.
TEST(VerifyModelTest, FindsNothingInPlansOfShippedRecipes) {
  for (const ShippedRecipe& shipped : ShippedRecipes()) {
    for (const Case& c : Cases()) {
      const TempDir dir;
      WriteModelFolder(dir.path("in"), c.model);
      const auto folder = ModelFolder::Open(dir.path("in"));
      ASSERT_TRUE(folder.ok()) << folder.status();
      const auto model = ReadModel(*folder);
      ASSERT_TRUE(model.ok()) << model.status();
      auto recipe = FindRecipe(std::string(shipped.name));
      ASSERT_TRUE(recipe.ok()) << recipe.status();
      for (const ExportFormat format :
           {ExportFormat::kModelopt, ExportFormat::kCompressedTensors}) {
        if (c.takes_turns && format == ExportFormat::kCompressedTensors) continue;
        SCOPED_TRACE(absl::StrCat(ToAbsl(shipped.name), " ", c.name, " ", ToAbsl(NameOf(format))));
        recipe->output.format = format;
        const auto plan = MakePlan(*recipe, *model);
        if (absl::IsInvalidArgument(plan.status())) continue;  // a model without experts
        ASSERT_TRUE(plan.ok()) << plan.status();
        fs::remove_all(dir.path("out"));
        WriteExport(dir.path("out"), c.model, *plan, *recipe);
        EXPECT_THAT(Verify(dir.path("out"), dir.path("in")).holes, IsEmpty());
      }
    }
  }
}

TEST(VerifyModelTest, ComparesWithWhatWasPlanned) {
  const TempDir dir;
  const ModelOnPaper model = LlamaModel();
  WriteModelFolder(dir.path("in"), model);
  WriteExport(dir.path("out"), model, PlanOnPaper(model), RecipeFor(ExportFormat::kModelopt));
  VerifyOptions options;
  options.against = dir.path("in");
  options.planned = [](const std::string&) -> absl::StatusOr<std::set<std::string>> {
    std::set<std::string> planned = {"lm_head.weight"};
    for (const PlanRow& row : PlanOnPaper(LlamaModel()).rows) {
      if (row.quantize) planned.insert(row.tensor.name);
    }
    planned.erase("model.layers.0.mlp.up_proj.weight");
    return planned;
  };
  const auto report = VerifyModel(dir.path("out"), options, *Cpu());
  EXPECT_THAT(report.value().holes,
              ElementsAre(AllOf(HasSubstr("lm_head"), HasSubstr("got it kept")),
                          AllOf(HasSubstr("up_proj"), HasSubstr("got it quantized"))));
}

TEST(VerifyModelTest, NoFolder) {
  const TempDir dir;
  EXPECT_TRUE(IsError(VerifyModel(dir.path("none"), {}, *Cpu()), absl::StatusCode::kNotFound,
                      "expected a folder"));
  EXPECT_THAT(Verify(dir.path()).holes, Contains(HasSubstr("expected *.safetensors, got none")));
}

// --- Each defect is a hole ----------------------------------------------------------------------

class VerifyHolesTest : public ::testing::Test {
 protected:
  void Make(const ModelOnPaper& model, ExportFormat format = ExportFormat::kModelopt,
            PaperPlan plan = {}) {
    plan.format = format;
    fs::remove_all(dir_.path("in"));
    fs::remove_all(dir_.path("out"));
    WriteModelFolder(dir_.path("in"), model);
    WriteExport(out_, model, PlanOnPaper(model, plan), RecipeFor(format));
    ASSERT_THAT(Verify(out_, dir_.path("in")).holes, IsEmpty());
  }

  // Of single-shard folders.
  void ChangeTensors(const std::function<void(Contents&)>& change) {
    Contents contents = Read(out_ + "/model.safetensors");
    change(contents);
    Write(out_ + "/model.safetensors", contents);
  }
  void ChangeJson(const std::string& file, const std::function<void(OrderedJson&)>& change) {
    OrderedJson json = OrderedJson::parse(FileBytes(out_ + "/" + file));
    change(json);
    PutFile(out_ + "/" + file, json.dump(2));
  }
  void SetFloat(const std::string& name, float value) {
    ChangeTensors([&](Contents& contents) {
      std::memcpy(contents.tensors.at(name).bytes.data(), &value, sizeof(value));
    });
  }
  void SetByte(const std::string& name, size_t at, uint8_t value) {
    ChangeTensors(
        [&](Contents& contents) { contents.tensors.at(name).bytes.at(at) = std::byte{value}; });
  }

  void ExpectHole(const std::string& piece, bool against = false) {
    EXPECT_THAT(Verify(out_, against ? dir_.path("in") : "").holes, Contains(HasSubstr(piece)));
  }

  TempDir dir_;
  std::string out_ = dir_.path("out");
  const std::string q_ = "model.layers.0.self_attn.q_proj.";
};

TEST_F(VerifyHolesTest, Tensors) {
  const struct {
    const char* hole;
    std::function<void(Contents&)> change;
  } kDefects[] = {
      {"q_proj\": expected block scales, got none",
       [&](Contents& c) { c.tensors.erase(q_ + "weight_scale"); }},
      {"q_proj\": expected a global scale, got none",
       [&](Contents& c) { c.tensors.erase(q_ + "weight_scale_2"); }},
      {"q_proj\": expected an input scale",
       [&](Contents& c) { c.tensors.erase(q_ + "input_scale"); }},
      {"q_proj\": expected packed codes (U8), got none",
       [&](Contents& c) { c.tensors.erase(q_ + "weight"); }},
      {"weight_scale_2\": expected F32 [], got F32 [1]",
       [&](Contents& c) { c.tensors[q_ + "weight_scale_2"].shape = {1}; }},
      {"weight_scale_2\": expected F32 [], got BF16 []",
       [&](Contents& c) {
         c.tensors[q_ + "weight_scale_2"] =
             TensorOf(q_ + "weight_scale_2", DType::kBf16, {}, {1.0f});
       }},
      {"expected F8_E4M3 [64, 4], got F8_E4M3 [32, 8]",
       [&](Contents& c) {
         c.tensors[q_ + "weight_scale"].shape = {32, 8};
       }},
      {"weight\": expected U8 of 2 dimensions",
       [&](Contents& c) { c.tensors[q_ + "weight"].shape = {2048}; }},
      {"\"model.layers.0.self_attn.q_proj.weight_scale_inv\": expected nothing of an earlier",
       [&](Contents& c) {
         c.tensors[q_ + "weight_scale_inv"] =
             TensorOf(q_ + "weight_scale_inv", DType::kF32, {1, 1}, {1.0f});
       }},
      {"expected the metadata format=pt", [](Contents& c) { c.metadata.clear(); }},
      // q, k and v together: one of the three in bf16 alone cannot be loaded.
      {"expected q_proj, k_proj, v_proj all quantized or none",
       [&](Contents& c) {
         for (const char* part : {"weight", "weight_scale", "weight_scale_2", "input_scale"}) {
           c.tensors.erase(q_ + part);
         }
         c.tensors[q_ + "weight"] = NormalTensor(q_ + "weight", DType::kBf16, {64, 64});
       }},
  };
  for (const auto& defect : kDefects) {
    Make(LlamaModel());
    ChangeTensors(defect.change);
    ExpectHole(defect.hole);
  }
}

TEST_F(VerifyHolesTest, Scalars) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const char* part : {"weight_scale_2", "input_scale"}) {
    for (const float bad : {0.0f, -1.0f, inf, std::nanf(""), 1e-40f, 3e38f}) {
      Make(LlamaModel());
      SetFloat(q_ + part, bad);
      ExpectHole(absl::StrCat(part, "\": expected a positive, normal number"));
    }
  }
}

TEST_F(VerifyHolesTest, BlockScales) {
  const struct {
    uint8_t code;
    const char* hole;
  } kBad[] = {{0, "got 0 NaN, 1 zero and 0 negative ones of 256, the first at byte 9"},
              {0x7F, "got 1 NaN, 0 zero and 0 negative"},
              {0xFF, "got 1 NaN, 0 zero and 0 negative"},
              {0x80, "got 0 NaN, 0 zero and 1 negative"},
              {0xB8, "got 0 NaN, 0 zero and 1 negative"}};
  for (const auto& bad : kBad) {
    Make(LlamaModel());
    SetByte(q_ + "weight_scale", 9, bad.code);
    ExpectHole(bad.hole);
  }
}

TEST_F(VerifyHolesTest, FusedScalarsThatDiffer) {
  const std::string mlp = "model.layers.1.mlp.";
  for (const char* part : {"weight_scale_2", "input_scale"}) {
    for (const std::string& module :
         {std::string("model.layers.0.self_attn.v_proj."), mlp + "up_proj."}) {
      Make(LlamaModel());
      const float value = ReadTensor(out_ + "/model.safetensors", module + part).as<float>()[0];
      SetFloat(module + part, std::nextafter(value, 2.0f));
      ExpectHole(module + part + "\": expected ");
    }
  }
  Make(MixtralModel());
  SetFloat("model.layers.0.block_sparse_moe.experts.2.w3.weight_scale_2", 0.5f);
  ExpectHole("w3.weight_scale_2\": expected ");
  Make(DeepseekModel());
  SetFloat("model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_2", 0.5f);
  ExpectHole("kv_a_proj_with_mqa.weight_scale_2\": expected ");
  Make(Qwen3MoeModel(), ExportFormat::kCompressedTensors);
  SetFloat("model.layers.0.mlp.experts.2.down_proj.input_global_scale", 0.5f);
  ExpectHole("experts of a layer share it");
}

TEST_F(VerifyHolesTest, CompressedTensors) {
  const ExportFormat format = ExportFormat::kCompressedTensors;
  Make(LlamaModel(), format);
  ChangeTensors([&](Contents& c) { c.tensors[q_ + "weight_global_scale"].shape = {}; });
  ExpectHole("expected F32 [1], got F32 []");
  Make(LlamaModel(), format);
  ChangeTensors([&](Contents& c) {
    c.tensors[q_ + "weight"] = NormalTensor(q_ + "weight", DType::kBf16, {64, 64});
  });
  ExpectHole("expected none beside its quantized form");
  Make(LlamaModel(), format);
  PutFile(out_ + "/hf_quant_config.json", "{}");
  ExpectHole("hf_quant_config.json: expected none beside compressed-tensors");
  Make(LlamaModel(), format);
  ChangeJson("config.json", [](OrderedJson& config) {
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["strategy"] = "group";
  });
  ExpectHole("strategy tensor_group");
  Make(LlamaModel(), format);
  ChangeJson("config.json",
             [](OrderedJson& config) { config["quantization_config"]["ignore"] = {"lm_head*"}; });
  ExpectHole("\"lm_head\": expected it not quantized");
  Make(LlamaModel(), format);
  ChangeJson("config.json", [](OrderedJson& config) {
    config["quantization_config"]["config_groups"]["group_0"]["targets"] = {"re:.*mlp.*"};
  });
  ExpectHole("q_proj\": expected it in the configuration as quantized");
}

TEST_F(VerifyHolesTest, ModeloptConfigs) {
  const struct {
    const char *file, *hole;
    std::function<void(OrderedJson&)> change;
  } kDefects[] = {
      {"config.json", "\"lm_head\": expected it not quantized",
       [](OrderedJson& c) { c["quantization_config"]["ignore"] = {"model.embed_tokens"}; }},
      {"config.json", "\"model.layers.1.self_attn.qkv_proj\": expected it quantized",
       [](OrderedJson& c) { c["quantization_config"]["ignore"].push_back("model.layers.1"); }},
      {"config.json", "expected one quantization_config, got text_config.quantization_config, too",
       [](OrderedJson& c) {
         c["text_config"]["quantization_config"] = {{"bits", 8}};
       }},
      {"config.json", "quant_algo: expected NVFP4, W4A16_NVFP4 or MIXED_PRECISION, got FP8",
       [](OrderedJson& c) { c["quantization_config"]["quant_algo"] = "FP8"; }},
      {"config.json", "expected no input scale, since it is weight-only",
       [](OrderedJson& c) { c["quantization_config"]["quant_algo"] = "W4A16_NVFP4"; }},
      {"config.json", "quant_method modelopt or compressed-tensors, got null",
       [](OrderedJson& c) { c.erase("quantization_config"); }},
      {"config.json", "exclude_modules: expected the entries of ignore",
       [](OrderedJson& c) { c["quantization_config"]["ignore"].push_back("x.y"); }},
      {"hf_quant_config.json", "quant_algo: expected NVFP4 as in config.json, got FP8",
       [](OrderedJson& c) { c["quantization"]["quant_algo"] = "FP8"; }},
      {"hf_quant_config.json", "kv_cache_quant_algo: expected null as in config.json, got none",
       [](OrderedJson& c) { c["quantization"].erase("kv_cache_quant_algo"); }},
      {"hf_quant_config.json", "kv_cache_quant_algo: expected null as in config.json, got FP8",
       [](OrderedJson& c) { c["quantization"]["kv_cache_quant_algo"] = "FP8"; }},
      {"hf_quant_config.json", "group_size: expected 16, got 32",
       [](OrderedJson& c) { c["quantization"]["group_size"] = 32; }},
      {"hf_quant_config.json", "producer: expected the name modelopt",
       [](OrderedJson& c) { c["producer"]["name"] = "other"; }},
  };
  for (const auto& defect : kDefects) {
    Make(LlamaModel());
    ChangeJson(defect.file, defect.change);
    ExpectHole(defect.hole);
  }
  Make(LlamaModel());
  fs::remove(out_ + "/hf_quant_config.json");
  ExpectHole("hf_quant_config.json");
  PutFile(out_ + "/config.json", "{");
  ExpectHole("config.json: expected ");
}

TEST_F(VerifyHolesTest, ExpertsKeptButNotListed) {
  PaperPlan keep;
  keep.keep = [](const std::string& m) { return m.find("layers.0.mlp") != m.npos; };
  Make(Qwen3MoeModel(), ExportFormat::kModelopt, keep);
  for (const char* file : {"config.json", "hf_quant_config.json"}) {
    ChangeJson(file, [](OrderedJson& json) {
      OrderedJson& list = json.contains("quantization") ? json["quantization"]["exclude_modules"]
                                                        : json["quantization_config"]["ignore"];
      // Their names, one by one, tell SGLang nothing about the container.
      for (size_t i = list.size(); i-- > 0;) {
        if (list[i].get<std::string>().find("experts") != std::string::npos) list.erase(i);
      }
      for (int e = 0; e < 4; ++e) {
        list.push_back(absl::StrCat("model.layers.0.mlp.experts.", e, ".up_proj"));
      }
    });
  }
  ExpectHole("\"model.layers.0.mlp.experts\": expected it not quantized");
  Make(Qwen3MoeModel());
  ChangeTensors([](Contents& c) {
    const std::string up = "model.layers.0.mlp.experts.1.up_proj.";
    for (const char* part : {"weight", "weight_scale", "weight_scale_2", "input_scale"}) {
      c.tensors.erase(up + part);
    }
    c.tensors[up + "weight"] = NormalTensor(up + "weight", DType::kBf16, {32, 64});
  });
  ExpectHole("expected all of its experts quantized or none");
}

TEST_F(VerifyHolesTest, MixedPrecision) {
  PaperPlan mixed;
  mixed.weight_only = [](const std::string& m) { return m.find("self_attn") != m.npos; };
  const auto change_layers = [&](const std::function<void(OrderedJson&)>& change) {
    Make(LlamaModel(), ExportFormat::kModelopt, mixed);
    ChangeJson("config.json",
               [&](OrderedJson& c) { change(c["quantization_config"]["quantized_layers"]); });
    ChangeJson("hf_quant_config.json",
               [&](OrderedJson& c) { change(c["quantization"]["quantized_layers"]); });
  };
  change_layers([](OrderedJson& layers) { layers.erase("model.layers.0.mlp.down_proj"); });
  ExpectHole("down_proj\": expected it in the configuration as quantized");
  change_layers([](OrderedJson& layers) {
    layers["lm_head"] = {{"quant_algo", "NVFP4"}, {"group_size", 16}};
  });
  ExpectHole("\"lm_head\": expected it not in quantized_layers");
  change_layers([](OrderedJson& layers) { layers = OrderedJson::object(); });
  ExpectHole("quantized_layers: expected the quantized layers");
  Make(LlamaModel(), ExportFormat::kModelopt, mixed);
  ChangeJson("hf_quant_config.json", [](OrderedJson& c) {
    c["quantization"]["quantized_layers"].erase("model.layers.0.mlp.up_proj");
  });
  ExpectHole("expected those of config.json");
}

TEST_F(VerifyHolesTest, Index) {
  const std::string index = "model.safetensors.index.json";
  const auto make = [&] { Make(LlamaModel(Sharded(3))); };
  make();
  ChangeJson(index, [](OrderedJson& json) { json["metadata"]["total_size"] = 1; });
  ExpectHole("total_size: expected ");
  make();
  ChangeJson(index, [](OrderedJson& json) { json["weight_map"].erase("lm_head.weight"); });
  ExpectHole("expected tensor \"lm_head.weight\" of ");
  make();
  ChangeJson(index, [](OrderedJson& json) {
    json["weight_map"]["model.norm.weight"] = "model-00001-of-00003.safetensors";
    json["weight_map"]["extra"] = "model-00001-of-00003.safetensors";
  });
  ExpectHole("\"extra\": expected it in ");
  make();
  ChangeJson(index, [](OrderedJson& json) {
    for (auto& [name, file] : json["weight_map"].items()) file = "model-00002-of-00003.safetensors";
  });
  ExpectHole("where it is, got ");
  make();
  fs::remove(out_ + "/" + index);
  ExpectHole("expected an index of 3 shards");
  make();
  fs::resize_file(out_ + "/model-00002-of-00003.safetensors", 100);
  ExpectHole("model-00002-of-00003.safetensors");
  make();
  fs::copy_file(out_ + "/model-00002-of-00003.safetensors", out_ + "/other.safetensors");
  ExpectHole("expected one, got one in ");
}

TEST_F(VerifyHolesTest, AgainstTheSource) {
  Make(LlamaModel());
  SetByte("model.norm.weight", 5, 1);
  ExpectHole("\"model.norm.weight\": expected the bytes of the source, got others from byte 5",
             true);
  Make(LlamaModel());
  ChangeTensors([](Contents& c) { c.tensors.erase("model.norm.weight"); });
  ExpectHole("\"model.norm.weight\": expected it as in the source or quantized, got none", true);
  Make(LlamaModel());
  ChangeTensors([](Contents& c) {
    c.tensors["extra.bias"] = TensorOf("extra.bias", DType::kF32, {2}, {1, 2});
  });
  ExpectHole("\"extra.bias\": expected one that stands for something of the source", true);
  Make(LlamaModel());
  ChangeJson("config.json", [](OrderedJson& config) { config["rope_theta"] = 1; });
  ExpectHole("expected all of the source's but quantization_config", true);
  Make(LlamaModel());
  fs::remove(out_ + "/tokenizer.json");
  ExpectHole("\"tokenizer.json\": expected a copy", true);
  Make(ExpertRowsModel());
  ChangeTensors([](Contents& c) {
    for (const char* part : {"weight", "weight_scale", "weight_scale_2", "input_scale"}) {
      c.tensors.erase(absl::StrCat("model.layers.0.mlp.experts.3.down_proj.", part));
    }
  });
  ExpectHole("expected all of its experts, got some", true);
}

TEST_F(VerifyHolesTest, ErrorsSayWhichTensorIsWrong) {
  Make(LlamaModel());
  // The codes of one matrix, nibbles exchanged.
  const std::string name = "model.layers.1.mlp.down_proj.weight";
  ChangeTensors([&](Contents& c) {
    for (std::byte& b : c.tensors.at(name).bytes) b = (b << 4) | (b >> 4);
  });
  const VerifyReport report = Verify(out_, dir_.path("in"));
  EXPECT_THAT(report.holes, ElementsAre(HasSubstr("expected the values of the source's")));
  EXPECT_EQ(report.errors[0].name, "model.layers.1.mlp.down_proj");
  EXPECT_GT(report.errors[0].relative_mse, 0.5);
  EXPECT_LT(report.errors[1].relative_mse, 0.02);
}

// What a loader would take without a word.
TEST_F(VerifyHolesTest, LostCodesAndScalesAndWrongGlobalScales) {
  const std::string o = "model.layers.0.self_attn.o_proj.";
  const auto fill = [](std::byte value, double share = 1) {
    return [=](Tensor& t) {
      std::fill_n(t.bytes.begin(), static_cast<size_t>(share * t.bytes.size()), value);
    };
  };
  const auto times = [](float factor) {
    return [=](Tensor& t) {
      float value;
      std::memcpy(&value, t.bytes.data(), sizeof(value));
      value *= factor;
      std::memcpy(t.bytes.data(), &value, sizeof(value));
    };
  };
  const struct {
    const char *part, *said;
    std::function<void(Tensor&)> change;
  } kDefects[] = {
      {"weight", "expected the values", fill(std::byte{0})},
      {"weight", "expected the values", fill(std::byte{0}, 0.5)},
      {"weight_scale", "expected the values", fill(std::byte{0x38})},
      {"weight_scale", "expected the values", fill(std::byte{0x01})},
      {"weight_scale_2", "expected a multiplier", times(0.01f)},
      {"weight_scale_2", "expected a multiplier", times(0.5f)},
      {"weight_scale_2", "expected a multiplier", times(100)},
  };
  for (const auto& [part, said, change] : kDefects) {
    SCOPED_TRACE(absl::StrCat(part, ": ", said));
    Make(LlamaModel());
    ChangeTensors(
        [&, part = part, &change = change](Contents& c) { change(c.tensors.at(o + part)); });
    EXPECT_THAT(Verify(out_, dir_.path("in")).holes, Contains(HasSubstr(said)));
  }
}

TEST_F(VerifyHolesTest, SourcesAreReadAsTheyAreQuantized) {
  // Beside a model, what belongs to none: Mistral's own form of it.
  Make(LlamaModel());
  Contents other;
  other.tensors["layers.0.attention.wq.weight"] =
      TensorOf("layers.0.attention.wq.weight", DType::kF32, {2}, {1, 2});
  Write(dir_.path("in/consolidated.safetensors"), other);
  EXPECT_THAT(Verify(out_, dir_.path("in")).holes, IsEmpty());
}

TEST_F(VerifyHolesTest, CopiedFilesAreCompared) {
  Make(LlamaModel());
  std::ofstream(out_ + "/tokenizer.json") << "{}";
  ExpectHole("\"tokenizer.json\": expected the bytes of the source's", true);
}

TEST_F(VerifyHolesTest, ModeloptGroups) {
  const auto group = [](OrderedJson& config) -> OrderedJson& {
    return config["quantization_config"]["config_groups"]["group_0"];
  };
  Make(LlamaModel());
  ChangeJson("config.json", [&](OrderedJson& config) { group(config)["targets"] = {"Foo"}; });
  ExpectHole("targets [\"Linear\"]");
  Make(LlamaModel());
  ChangeJson("config.json",
             [&](OrderedJson& config) { group(config)["input_activations"]["dynamic"] = true; });
  ExpectHole("dynamic false");
}

TEST(VerifyReportTest, TextAndJson) {
  VerifyReport report;
  report.format = "modelopt";
  report.algorithm = "NVFP4";
  report.holes = {"one", "two"};
  for (int i = 0; i < 7; ++i) report.errors.push_back({absl::StrCat("m", i), 0.5 / (i + 1), 3.0});
  report.errors.push_back({"perfect", 0, std::numeric_limits<double>::infinity()});
  const std::string text = VerifyReportAsText(report);
  EXPECT_THAT(text, AllOf(HasSubstr("hole: one\nhole: two\n"), HasSubstr("2 holes\n"),
                          HasSubstr("m4"), Not(HasSubstr("m5"))));
  const OrderedJson json = OrderedJson::parse(VerifyReportAsJson(report));
  EXPECT_EQ(json["holes"].size(), 2u);
  EXPECT_EQ(json["errors"].size(), 8u);
  EXPECT_TRUE(json["errors"][7]["sqnr_db"].is_null());
}

}  // namespace
}  // namespace nibble
