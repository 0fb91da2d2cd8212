#include "engine/read_model.h"

#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "tests/testing/is_error.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tensors.h"

namespace nibble {
namespace {

using ::nibble::testing::ByteTensor;
using ::nibble::testing::IsError;
using ::nibble::testing::NormalTensor;
using ::nibble::testing::PutFile;
using ::nibble::testing::Shape;
using ::nibble::testing::TempDir;
using ::nibble::testing::Write;

absl::StatusOr<Model> ModelOf(const std::string& config) {
  const TempDir folder;
  PutFile(folder.path("config.json"), config);
  Write(folder.path("model.safetensors"),
        {NormalTensor("b.weight", DType::kBf16, {2, 16}), ByteTensor("a", DType::kU8, {1}, {7})});
  absl::StatusOr<ModelFolder> opened = ModelFolder::Open(folder.path());
  if (!opened.ok()) return opened.status();
  return ReadModel(*opened);
}

TEST(ReadModelTest, ReadsWhatThePlanNeeds) {
  const auto model = ModelOf(R"({"model_type": "qwen3", "num_hidden_layers": 36,
                                 "hidden_size": 4096, "tie_word_embeddings": true})");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->model_type, "qwen3");
  EXPECT_EQ(model->layers, 36);
  EXPECT_EQ(model->hidden_size, 4096);
  EXPECT_TRUE(model->tied_embeddings);
  ASSERT_EQ(model->tensors.size(), 2u);
  EXPECT_EQ(model->tensors[0].name, "a");
  EXPECT_EQ(model->tensors[1], (ModelTensor{"b.weight", DType::kBf16, {2, 16}}));
}

TEST(ReadModelTest, FieldsMayBeMissing) {
  for (const char* config : {"{}", R"({"num_hidden_layers": null, "model_type": null})"}) {
    const auto model = ModelOf(config);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ(model->model_type, "");
    EXPECT_EQ(model->layers, 0);
    EXPECT_EQ(model->hidden_size, 0);
    EXPECT_FALSE(model->tied_embeddings);
  }
}

TEST(ReadModelTest, OlderModelsHaveOtherNames) {
  const auto model = ModelOf(R"({"model_type": "gpt2", "n_layer": 12, "n_embd": 768})");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->layers, 12);
  EXPECT_EQ(model->hidden_size, 768);
}

TEST(ReadModelTest, TheLanguageModelOfAMultimodalOneCounts) {
  const auto model = ModelOf(R"({
    "model_type": "llama4", "tie_word_embeddings": false, "hidden_size": 7,
    "vision_config": {"num_hidden_layers": 34, "hidden_size": 1408},
    "text_config": {"model_type": "llama4_text", "num_hidden_layers": 48, "hidden_size": 5120}})");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->model_type, "llama4");
  EXPECT_EQ(model->layers, 48);
  EXPECT_EQ(model->hidden_size, 5120);
  EXPECT_FALSE(model->tied_embeddings);

  const auto outer = ModelOf(R"({"model_type": "internvl_chat", "tie_word_embeddings": true,
    "hidden_size": 64, "llm_config": {"num_hidden_layers": 2}})");
  ASSERT_TRUE(outer.ok()) << outer.status();
  EXPECT_EQ(outer->layers, 2);
  EXPECT_EQ(outer->hidden_size, 64);
  EXPECT_TRUE(outer->tied_embeddings);

  const auto omni = ModelOf(R"({"thinker_config": {"text_config": {
    "model_type": "x", "num_hidden_layers": 3, "tie_word_embeddings": true}}})");
  ASSERT_TRUE(omni.ok()) << omni.status();
  EXPECT_EQ(omni->model_type, "x");
  EXPECT_EQ(omni->layers, 3);
  EXPECT_TRUE(omni->tied_embeddings);
}

TEST(ReadModelTest, RefusesWhatIsNoConfiguration) {
  const std::pair<std::string, const char*> kBad[] = {
      {"", "expected JSON"},
      {"{", "expected JSON"},
      {"\xff", "expected JSON"},
      {"[]", "expected an object, got array"},
      {"7", "expected an object, got number"},
      {R"({"num_hidden_layers": "36"})", "num_hidden_layers: expected an integer"},
      {R"({"num_hidden_layers": -1})", "num_hidden_layers: expected an integer"},
      {R"({"num_hidden_layers": 1.5})", "num_hidden_layers: expected an integer"},
      {R"({"num_hidden_layers": 1000001})", "from 0 to 1000000, got"},
      {R"({"hidden_size": 18446744073709551615})", "hidden_size: expected an integer"},
      {R"({"hidden_size": [64]})", "hidden_size: expected an integer"},
      {R"({"model_type": 7})", "model_type: expected a string"},
      {R"({"tie_word_embeddings": 1})", "tie_word_embeddings: expected true or false"},
      {R"({"text_config": [1]})", "text_config: expected an object, got array"},
      {R"({"num_hidden_layers": 2, "num_hidden_layers": 3})", "\"num_hidden_layers\" twice"},
      {R"({"text_config": {"x": {"a": 1, "a": 1}}})", "\"a\" twice"},
      {"{\"x\":" + std::string(200, '[') + std::string(200, ']') + "}", "at most 100 levels"},
      {"{\"x\":" + std::string(1'000'000, '['), "at most 100 levels"},
  };
  for (const auto& [config, piece] : kBad) {
    EXPECT_TRUE(IsError(ModelOf(config), absl::StatusCode::kDataLoss, piece));
    EXPECT_TRUE(IsError(ModelOf(config), absl::StatusCode::kDataLoss, "config.json: "));
  }
  // Equal keys of different objects are fine.
  EXPECT_TRUE(ModelOf(R"({"a": {"x": 1}, "b": [{"x": 1}, {"x": 2}], "x": 3})").ok());
}

}  // namespace
}  // namespace nibble
