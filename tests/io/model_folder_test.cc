#include "io/model_folder.h"

#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/is_error.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tensors.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using ::nibble::testing::ByteTensor;
using ::nibble::testing::FileBytes;
using ::nibble::testing::IsError;
using ::nibble::testing::kDataLoss;
using ::nibble::testing::kNotFound;
using ::nibble::testing::PutFile;
using ::nibble::testing::TempDir;
using ::nibble::testing::Tensor;
using ::nibble::testing::Write;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr const char* kIndex = "model.safetensors.index.json";

class ModelFolderTest : public ::testing::Test {
 protected:
  ModelFolderTest() { PutFile(path("config.json"), "{}"); }

  std::string path(const std::string& name) const { return folder_.path(name); }

  // A shard whose tensors have these names.
  void PutShard(const std::string& file, const std::vector<std::string>& names) {
    fs::create_directories(fs::path(path(file)).parent_path());
    std::vector<Tensor> tensors;
    for (const std::string& name : names) tensors.push_back(ByteTensor(name, DType::kU8, {1}, {7}));
    Write(path(file), tensors);
  }
  void PutIndex(const std::vector<std::pair<std::string, std::string>>& map) {
    std::string text;
    for (const auto& [tensor, file] : map) {
      absl::StrAppend(&text, text.empty() ? "" : ",", "\"", tensor, "\":\"", file, "\"");
    }
    PutFile(path(kIndex), R"({"metadata": {"total_size": 2}, "weight_map": {)" + text + "}}");
  }

  ModelFolder Opened() {
    absl::StatusOr<ModelFolder> folder = ModelFolder::Open(folder_.path());
    EXPECT_TRUE(folder.ok()) << folder.status();
    NIBBLE_CHECK(folder.ok());
    return *std::move(folder);
  }
  std::vector<std::string> Shards() {
    std::vector<std::string> names;
    const ModelFolder folder = Opened();
    for (const SafetensorsReader& shard : folder.shards()) {
      names.push_back(shard.path().substr(folder_.path().size() + 1));
    }
    return names;
  }
  void ExpectError(absl::StatusCode code, const std::string& piece) {
    EXPECT_TRUE(IsError(ModelFolder::Open(folder_.path()), code, piece));
  }

  TempDir folder_;
};

TEST_F(ModelFolderTest, ReadsASingleFile) {
  PutShard("model.safetensors", {"b", "a", "c"});
  const ModelFolder folder = Opened();
  EXPECT_EQ(folder.path(), folder_.path());
  EXPECT_EQ(folder.config_json(), "{}");
  ASSERT_EQ(folder.tensors().size(), 3u);
  for (int i = 0; i < 3; ++i) {
    const FolderTensor& tensor = folder.tensors()[i];
    EXPECT_EQ(tensor.info->name, std::string(1, static_cast<char>('a' + i)));
    EXPECT_EQ(folder.Find(tensor.info->name), &tensor);
    EXPECT_EQ(folder.ReaderOf(tensor).ReadAll(*tensor.info).value().size(), 1u);
  }
  EXPECT_EQ(folder.Find("ab"), nullptr);
  EXPECT_EQ(folder.Find(""), nullptr);
  EXPECT_EQ(folder.Find("z"), nullptr);
}

TEST_F(ModelFolderTest, SurvivesAMove) {
  PutShard("model.safetensors", {"a"});
  ModelFolder first = Opened();
  const ModelFolder second = std::move(first);
  const FolderTensor* a = second.Find("a");
  ASSERT_NE(a, nullptr);
  EXPECT_TRUE(second.ReaderOf(*a).ReadAll(*a->info).ok());
}

TEST_F(ModelFolderTest, ReadsTheShardsOfAnIndex) {
  PutShard("model-00001-of-00002.safetensors", {"b", "d"});
  PutShard("model-00002-of-00002.safetensors", {"a", "c"});
  PutIndex({{"d", "model-00001-of-00002.safetensors"},
            {"a", "model-00002-of-00002.safetensors"},
            {"b", "model-00001-of-00002.safetensors"},
            {"c", "model-00002-of-00002.safetensors"}});
  const ModelFolder folder = Opened();
  ASSERT_EQ(folder.shards().size(), 2u);
  ASSERT_EQ(folder.tensors().size(), 4u);
  EXPECT_EQ(folder.Find("a")->shard, 1);
  EXPECT_EQ(folder.Find("b")->shard, 0);
}

TEST_F(ModelFolderTest, ReadsShardsWithoutAnIndex) {
  PutShard("model-00001-of-00002.safetensors", {"b"});
  PutShard("model-00002-of-00002.safetensors", {"a"});
  PutShard("extra.safetensors", {"a"});
  EXPECT_THAT(Shards(),
              ElementsAre("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"));
  EXPECT_THAT(Opened().unread_weights(), ElementsAre("extra.safetensors"));
}

TEST_F(ModelFolderTest, ShardsMayCountFromZero) {
  PutShard("model-00000-of-00002.safetensors", {"b"});
  PutShard("model-00001-of-00002.safetensors", {"a"});
  EXPECT_EQ(Shards().size(), 2u);
}

TEST_F(ModelFolderTest, ReadsFilesOfAnyName) {
  PutShard("part_a.safetensors", {"b"});
  PutShard("part_b.safetensors", {"a"});
  PutShard("consolidated.safetensors", {"a", "b"});
  PutShard("adapter_model.safetensors", {"lora"});
  EXPECT_THAT(Shards(), ElementsAre("part_a.safetensors", "part_b.safetensors"));
}

TEST_F(ModelFolderTest, ReadsMistralsSecondCopyOnlyWhereItIsAlone) {
  PutShard("consolidated.safetensors", {"layers.0.attention.wq.weight"});
  EXPECT_THAT(Shards(), ElementsAre("consolidated.safetensors"));
  PutShard("model-00001-of-00001.safetensors", {"model.layers.0.self_attn.q_proj.weight"});
  EXPECT_THAT(Shards(), ElementsAre("model-00001-of-00001.safetensors"));
  PutIndex({{"model.layers.0.self_attn.q_proj.weight", "model-00001-of-00001.safetensors"}});
  EXPECT_THAT(Shards(), ElementsAre("model-00001-of-00001.safetensors"));
  EXPECT_THAT(Opened().unread_weights(), ElementsAre("consolidated.safetensors"));
}

// A hub cache: a folder of links to files elsewhere.
TEST_F(ModelFolderTest, FollowsLinks) {
  PutShard("model.safetensors", {"a"});
  PutFile(path("tokenizer.json"), "{}");
  const TempDir cache;
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"}) {
    fs::create_symlink(path(name), cache.path(name));
  }
  fs::create_directory_symlink(cache.path(), path("link"));
  const auto folder = ModelFolder::Open(path("link"));
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_EQ(folder->tensors().size(), 1u);
  EXPECT_THAT(folder->other_files(), ElementsAre("tokenizer.json"));
}

// --- What else a copy needs ---------------------------------------------------------------------

TEST_F(ModelFolderTest, ListsOtherFiles) {
  PutShard("model.safetensors", {"a"});
  for (const char* name : {"tokenizer.json",
                           "tokenizer.model",
                           "generation_config.json",
                           "modeling_x.py",
                           "LICENSE",
                           "original/params.json",
                           "a/b/c.txt",
                           "model-card.md",
                           ".gitattributes",
                           ".git/HEAD",
                           ".cache/x.json",
                           "__pycache__/x.pyc",
                           "hf_quant_config.json",
                           "pytorch_model.bin",
                           "pytorch_model.bin.index.json",
                           "original/consolidated.00.pth",
                           "m.gguf",
                           "onnx/m.onnx",
                           "onnx/m.onnx_data",
                           "tf_model.h5",
                           "flax_model.msgpack",
                           "M.GGUF",
                           "consolidated.safetensors.index.json"}) {
    fs::create_directories(fs::path(path(name)).parent_path());
    PutFile(path(name), "x");
  }
  PutShard("original/model.safetensors", {"a"});
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  fs::create_directory_symlink(folder_.path(), path("around"));
  const ModelFolder folder = Opened();
  EXPECT_THAT(
      folder.other_files(),
      ElementsAre("LICENSE", "a/b/c.txt", "generation_config.json", "model-card.md",
                  "modeling_x.py", "original/params.json", "tokenizer.json", "tokenizer.model"));
  EXPECT_THAT(folder.unread_weights(),
              ElementsAre("M.GGUF", "consolidated.safetensors.index.json", "flax_model.msgpack",
                          "m.gguf", "onnx/m.onnx", "onnx/m.onnx_data",
                          "original/consolidated.00.pth", "original/model.safetensors",
                          "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5"));
}

TEST_F(ModelFolderTest, RefusesAFileThatCouldNotBeCopied) {
  PutShard("model.safetensors", {"a"});
  fs::create_symlink("nowhere", path("tokenizer.json"));
  ExpectError(kNotFound, "tokenizer.json: expected a file, got a symbolic link that leads nowhere");
}

TEST_F(ModelFolderTest, RefusesFoldersWithoutEnd) {
  PutShard("model.safetensors", {"a"});
  std::string deep;
  for (int i = 0; i < 40; ++i) deep += "d/";
  fs::create_directories(path(deep));
  ExpectError(absl::StatusCode::kInvalidArgument, "at most 32 deep");
}

// --- What is no model ---------------------------------------------------------------------------

TEST_F(ModelFolderTest, RefusesWhatIsNoFolder) {
  EXPECT_TRUE(IsError(ModelFolder::Open(path("none")), kNotFound, "none"));
  EXPECT_TRUE(IsError(ModelFolder::Open(path("config.json")), absl::StatusCode::kInvalidArgument,
                      "expected a model folder, got a regular file"));
  EXPECT_TRUE(IsError(ModelFolder::Open(""), kNotFound, ""));
}

TEST_F(ModelFolderTest, RefusesAFolderWithoutItsParts) {
  ExpectError(kNotFound, "expected *.safetensors files, got none");
  PutFile(path("pytorch_model.bin"), "");
  ExpectError(kNotFound, "got weights as pytorch_model.bin, a format that is not read; save");
  PutShard("model.safetensors", {"a"});
  fs::remove(path("config.json"));
  ExpectError(kNotFound, "expected a model folder with config.json, got none");
  fs::create_directory(path("config.json"));
  ExpectError(absl::StatusCode::kInvalidArgument, "config.json");
}

TEST_F(ModelFolderTest, RefusesABrokenShard) {
  PutShard("model.safetensors", {"a"});
  fs::resize_file(path("model.safetensors"), 20);
  ExpectError(kDataLoss, "model.safetensors");
}

TEST_F(ModelFolderTest, RefusesShardsThatAreNotAllThere) {
  PutShard("model-00001-of-00003.safetensors", {"a"});
  PutShard("model-00002-of-00003.safetensors", {"b"});
  ExpectError(kDataLoss, "expected 3 shards, as their names say, got 2");
  PutShard("model-00003-of-00003.safetensors", {"c"});
  EXPECT_EQ(Shards().size(), 3u);
  fs::remove(path("model-00002-of-00003.safetensors"));
  ExpectError(kDataLoss, "got 3 of 3 next");
  PutShard("model-00002-of-00004.safetensors", {"b"});
  ExpectError(kDataLoss, "got 2 of 4 beside them");
}

TEST_F(ModelFolderTest, RefusesTwoModels) {
  PutShard("model.safetensors", {"a"});
  PutShard("model-00001-of-00001.safetensors", {"a"});
  ExpectError(kDataLoss, "expected one model");
  PutIndex({{"a", "model-00001-of-00001.safetensors"}});
  ExpectError(kDataLoss, "expected one model");
  PutIndex({{"a", "model.safetensors"}});
  EXPECT_THAT(Shards(), ElementsAre("model.safetensors"));
}

TEST_F(ModelFolderTest, RefusesATensorInTwoShards) {
  PutShard("x.safetensors", {"a", "b"});
  PutShard("y.safetensors", {"b"});
  ExpectError(kDataLoss,
              "tensor \"b\": expected in one shard, got in x.safetensors and in "
              "y.safetensors");
  PutIndex({{"a", "x.safetensors"}, {"b", "y.safetensors"}});
  ExpectError(kDataLoss, "got in x.safetensors and in y.safetensors");
}

TEST_F(ModelFolderTest, RefusesAnIndexThatContradictsItsShards) {
  PutShard("x.safetensors", {"a"});
  PutShard("y.safetensors", {"b"});
  PutIndex({{"a", "y.safetensors"}, {"b", "x.safetensors"}});
  ExpectError(kDataLoss, "tensor \"a\": expected in y.safetensors");
  for (const char* name : {"0", "aa", "c"}) {
    PutIndex({{"a", "x.safetensors"}, {"b", "y.safetensors"}, {name, "y.safetensors"}});
    ExpectError(kDataLoss, absl::StrCat("tensor \"", name, "\": expected in y.safetensors, as ",
                                        kIndex, " says, got no tensor of that name"));
  }
  PutShard("y.safetensors", {"0", "b"});
  PutIndex({{"a", "x.safetensors"}, {"b", "y.safetensors"}});
  ExpectError(kDataLoss, "tensor \"0\": expected an entry in");
  PutShard("y.safetensors", {"b", "c"});
  ExpectError(kDataLoss, "tensor \"c\": expected an entry in");
}

TEST_F(ModelFolderTest, RefusesAnIndexThatNamesMissingFiles) {
  PutShard("x.safetensors", {"a"});
  PutIndex({{"a", "x.safetensors"}, {"b", "y.safetensors"}});
  ExpectError(kDataLoss, "model.safetensors.index.json: expected y.safetensors, which it names");
}

TEST_F(ModelFolderTest, RefusesFilesOutsideOfTheFolder) {
  const TempDir elsewhere;
  Write(elsewhere.path("x.safetensors"), {ByteTensor("a", DType::kU8, {1}, {7})});
  PutShard("x.safetensors", {"a"});
  fs::create_directory(path("sub"));
  for (const std::string& file :
       {elsewhere.path("x.safetensors"), std::string("../x.safetensors"),
        std::string("sub/../x.safetensors"), std::string("./x.safetensors"), std::string(".."),
        std::string("/"), std::string(""), std::string("config.json"),
        std::string("x\\u0000.safetensors"), std::string("pytorch_model.bin")}) {
    PutIndex({{"a", file}});
    ExpectError(kDataLoss, "expected *.safetensors files inside of the folder, got");
  }
  PutShard("sub/x.safetensors", {"a"});
  PutIndex({{"a", "sub/x.safetensors"}});
  EXPECT_THAT(Shards(), ElementsAre("sub/x.safetensors"));
  EXPECT_THAT(Opened().unread_weights(), ElementsAre("x.safetensors"));
}

TEST_F(ModelFolderTest, RefusesWhatIsNoIndex) {
  PutShard("x.safetensors", {"a"});
  const std::pair<const char*, const char*> kBad[] = {
      {"", "expected JSON"},
      {"{", "expected JSON"},
      {"[]", "expected an object, got an array"},
      {"7", "expected an object, got a number"},
      {"null", "expected an object, got null"},
      {"{}", "expected a weight_map, got none"},
      {R"({"weight_map": []})", "weight_map"},
      {R"({"weight_map": null})", "weight_map: expected an object, got null"},
      {R"({"weight_map": {}})", "weight_map: expected tensors, got none"},
      {R"({"weight_map": {"a": 1}})", "\"a\": expected a file, got a number"},
      {R"({"weight_map": {"a": {"b": "x.safetensors"}}})", "\"a\": expected a file, got"},
      {R"({"weight_map": {"a": ["x.safetensors"]}})", "\"a\": expected a file, got"},
      {R"({"weight_map": {"": "x.safetensors"}})", "got an empty one"},
      {R"({"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}})", "\"a\" twice"},
      {R"({"weight_map": {"a": "x.safetensors"}, "weight_map": {"a": "x.safetensors"}})",
       "expected one weight_map, got a second"},
      {"{\"weight_map\": {\"\xff\": \"x.safetensors\"}}", "expected JSON in UTF-8"},
  };
  for (const auto& [text, piece] : kBad) {
    PutFile(path(kIndex), text);
    ExpectError(kDataLoss, piece);
    ExpectError(kDataLoss, kIndex);
  }
  // Whatever else stands in it is nobody's business.
  PutFile(path(kIndex), R"({"x": {"weight_map": {"b": 1}}, "y": [{"weight_map": {}}, [1.5, true]],
                            "weight_map": {"a": "x.safetensors"}, "metadata": null})");
  EXPECT_THAT(Shards(), ElementsAre("x.safetensors"));
  // A hundred thousand levels cost neither the stack nor much memory.
  PutFile(path(kIndex), "{\"x\":" + std::string(100'000, '[') + std::string(100'000, ']') +
                            ",\"weight_map\": {\"a\": \"x.safetensors\"}}");
  EXPECT_THAT(Shards(), ElementsAre("x.safetensors"));
}

TEST_F(ModelFolderTest, RefusesHugeTexts) {
  PutShard("x.safetensors", {"a"});
  PutIndex({{"a", "x.safetensors"}});
  fs::resize_file(path(kIndex), 100'000'001);
  ExpectError(kDataLoss, "expected at most 100000000 bytes, got more");
  fs::resize_file(path("config.json"), 32'000'001);
  ExpectError(kDataLoss, "expected at most 32000000 bytes, got more");
}

TEST_F(ModelFolderTest, MessagesEscapeNames) {
  PutShard("x.safetensors", {"a"});
  PutIndex({{"a", "x.safetensors"}, {"\\u001b[31m", "x.safetensors"}});
  ExpectError(kDataLoss, "\\x1b[31m");
}

// --- Fingerprint --------------------------------------------------------------------------------

TEST_F(ModelFolderTest, TheFingerprintFollowsTheSource) {
  PutShard("model.safetensors", {"a"});
  PutFile(path("tokenizer.json"), "{}");
  std::string before = Opened().Fingerprint();
  EXPECT_EQ(before.size(), 16u);
  EXPECT_EQ(Opened().Fingerprint(), before);
  // What is neither read nor copied does not count.
  PutFile(path("m.gguf"), "x");
  EXPECT_EQ(Opened().Fingerprint(), before);
  // Other bytes of the same size, whose time was set back.
  const auto time = fs::last_write_time(path("model.safetensors"));
  PutShard("model.safetensors", {"b"});
  fs::last_write_time(path("model.safetensors"), time);
  EXPECT_NE(Opened().Fingerprint(), before);
  PutShard("model.safetensors", {"a"});
  before = Opened().Fingerprint();
  PutFile(path("config.json"), "[]");
  EXPECT_NE(Opened().Fingerprint(), before);
  PutFile(path("config.json"), "{}");
  PutFile(path("new.json"), "{}");
  EXPECT_NE(Opened().Fingerprint(), before);
}

TEST_F(ModelFolderTest, TheFingerprintIsNotOfThePlace) {
  PutShard("model.safetensors", {"a"});
  const std::string before = Opened().Fingerprint();
  const std::string other = folder_.path() + "_moved";
  fs::rename(folder_.path(), other);
  EXPECT_EQ(ModelFolder::Open(other).value().Fingerprint(), before);
  EXPECT_EQ(ModelFolder::Open(other + "/").value().Fingerprint(), before);
  fs::rename(other, folder_.path());
}

}  // namespace
}  // namespace nibble
