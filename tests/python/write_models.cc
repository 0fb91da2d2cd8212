// `write_models DIR`: a folder of every layout under DIR/source, and what the plain exporter of the
// tests makes of it under DIR/modelopt and DIR/compressed-tensors: food for load_export.py.
#include <cstdio>

#include "gtest/gtest.h"
#include "tests/testing/model_folders.h"
#include "tests/testing/reference_export.h"

int main(int argc, char** argv) {
  using namespace nibble;           // NOLINT: a program of one function
  using namespace nibble::testing;  // NOLINT
  if (argc != 2) {
    std::fprintf(stderr, "write_models: expected DIR\n");
    return 2;
  }
  // Multiples of 64, without which llama.cpp's converter takes no matrix.
  ModelSize size;
  size.hidden = 256;
  size.intermediate = 192;
  size.expert_intermediate = 64;
  ModelSize sharded = size;
  sharded.shards = 3;
  // The names of Qwen3.5-MoE under a configuration without its linear attention, which this has
  // not.
  ModelOnPaper expert_rows = ExpertRowsModel(size);
  expert_rows.config["model_type"] = "qwen2_moe";
  expert_rows.config["architectures"] = {"Qwen2MoeForCausalLM"};
  expert_rows.config["qkv_bias"] = false;
  expert_rows.config["num_experts_per_tok"] = 2;
  const std::pair<const char*, ModelOnPaper> models[] = {
      {"llama", LlamaModel(sharded)},        {"tied", LlamaModel(size, /*tied=*/true)},
      {"qwen3_moe", Qwen3MoeModel(sharded)}, {"expert_rows", expert_rows},
      {"mixtral", MixtralModel(size)},       {"deepseek", DeepseekModel(sharded)},
      {"llama4", Llama4Model(size)},         {"qwen3_vl_moe", Qwen3VlMoeModel(size)},
      {"gpt_oss", GptOssModel(size)},        {"odd_names", OddNamesModel(size)},
  };
  for (const auto& [name, model] : models) {
    const std::string root = argv[1];
    WriteModelFolder(root + "/source/" + name, model);
    for (const ExportFormat format : {ExportFormat::kModelopt, ExportFormat::kCompressedTensors}) {
      const bool takes_turns = std::string(name) == "gpt_oss";
      if (takes_turns && format == ExportFormat::kCompressedTensors) continue;
      Recipe recipe;
      recipe.output.format = format;
      WriteExport(root + "/" + std::string(NameOf(format)) + "/" + name, model,
                  PlanOnPaper(model, {.format = format}), recipe);
    }
  }
  return ::testing::Test::HasFailure() ? 1 : 0;
}
