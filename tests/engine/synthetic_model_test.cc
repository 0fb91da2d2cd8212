#include "engine/synthetic_model.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/is_error.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tensors.h"

namespace nibble {
namespace {

using ::nibble::testing::Contents;
using ::nibble::testing::FileBytes;
using ::nibble::testing::IsError;
using ::nibble::testing::PutFile;
using ::nibble::testing::Read;
using ::nibble::testing::TempDir;

SyntheticModelShape Small() {
  SyntheticModelShape shape;
  shape.layers = 2;
  shape.hidden = 64;
  shape.intermediate = 96;
  shape.heads = 4;
  shape.kv_heads = 2;
  shape.head_dim = 16;
  shape.vocabulary = 48;
  shape.shard_bytes = 60'000;
  return shape;
}

TEST(SyntheticModelTest, ShardsAndIndexAgree) {
  const TempDir dir;
  const auto summary = WriteSyntheticModel(dir.path("m"), Small());
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->tensors, 25);
  EXPECT_EQ(summary->linear_weights, 2 * (64 * 64 * 2 + 2 * 32 * 64 + 3 * 96 * 64));
  EXPECT_GT(summary->shards, 1);
  const auto index = nlohmann::json::parse(FileBytes(dir.path("m/model.safetensors.index.json")));
  EXPECT_EQ(index["metadata"]["total_size"], summary->bytes);
  EXPECT_EQ(index["weight_map"].size(), 25u);
  uint64_t bytes = 0;
  for (const auto& [name, file] : index["weight_map"].items()) {
    const Contents shard = Read(dir.path("m/" + file.get<std::string>()));
    ASSERT_EQ(shard.tensors.count(name), 1u) << name;
    bytes += shard.tensors.at(name).bytes.size();
    EXPECT_EQ(shard.metadata.at("format"), "pt");
  }
  EXPECT_EQ(bytes, summary->bytes);
}

TEST(SyntheticModelTest, SameBytesEachTimeAndNoTensorLikeAnother) {
  const TempDir dir;
  ASSERT_TRUE(WriteSyntheticModel(dir.path("a"), Small()).ok());
  ASSERT_TRUE(WriteSyntheticModel(dir.path("b"), Small()).ok());
  const std::string shard = "/model-00001-of-00003.safetensors";
  EXPECT_EQ(FileBytes(dir.path("a") + shard), FileBytes(dir.path("b") + shard));
  const Contents contents = Read(dir.path("a") + shard);
  EXPECT_NE(contents.tensors.at("model.layers.0.self_attn.q_proj.weight").bytes,
            contents.tensors.at("model.layers.0.self_attn.o_proj.weight").bytes);
}

TEST(SyntheticModelTest, FolderThatCannotBe) {
  const TempDir dir;
  PutFile(dir.path("file"), "x");
  EXPECT_TRUE(IsError(WriteSyntheticModel(dir.path("file/m"), Small()), absl::StatusCode::kUnknown,
                      "file/m"));
}

}  // namespace
}  // namespace nibble
