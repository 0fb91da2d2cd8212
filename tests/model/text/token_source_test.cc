#include "model/text/token_source.h"

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "io/safetensors.h"
#include "tests/testing/is_error.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/token_ids.h"

namespace nibble {
namespace {

using ::nibble::testing::IsError;
using ::nibble::testing::PutFile;
using ::nibble::testing::SameIds;
using ::nibble::testing::TempDir;
using ::nibble::testing::TokenizerGoldens;

// BOS 0, then each byte as itself.
class ByteTokenizer final : public Tokenizer {
 public:
  int64_t vocabulary() const override { return 256; }

 private:
  absl::Status DoEncode(std::string_view text, std::vector<uint32_t>& ids) const override {
    ids.push_back(0);
    for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
    return absl::OkStatus();
  }
};

class TokenSourceTest : public ::testing::Test {
 protected:
  absl::StatusOr<TokenSet> Read(const std::string& name, const std::string& bytes,
                                const TokenCut& cut, const TokenSource& how = {}) const {
    PutFile(folder_.path(name), bytes);
    TokenSource source = how;
    source.path = folder_.path(name);
    return ReadTokens(source, &tokenizer_, cut);
  }
  std::string Ids(const std::vector<uint32_t>& values, size_t width) const {
    std::string bytes;
    for (const uint32_t value : values) {
      for (size_t i = 0; i < width; ++i) bytes += static_cast<char>(value >> (8 * i));
    }
    return bytes;
  }

  const TempDir folder_;
  const ByteTokenizer tokenizer_{};
};

void ExpectSequences(const absl::StatusOr<TokenSet>& tokens, const std::vector<uint32_t>& ids,
                     const std::vector<int64_t>& lengths) {
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_TRUE(SameIds(ids, tokens->ids));
  EXPECT_EQ(tokens->lengths, lengths);
}

TEST_F(TokenSourceTest, CutsTextIntoConsecutivePieces) {
  const std::string text = "abcdefg";  // eight tokens with BOS
  ExpectSequences(Read("t.txt", text, {{}, 3, 256}), {0, 'a', 'b', 'c', 'd', 'e'}, {3, 3});
  ExpectSequences(Read("t.txt", text, {1, 3, 256}), {0, 'a', 'b'}, {3});
  ExpectSequences(Read("t.txt", text, {9, 3, 256}), {0, 'a', 'b', 'c', 'd', 'e'}, {3, 3});
  ExpectSequences(Read("t.txt", text, {2, 4, 256}), {0, 'a', 'b', 'c', 'd', 'e', 'f', 'g'}, {4, 4});
  EXPECT_TRUE(IsError(Read("t.txt", text, {{}, 9, 256}), absl::StatusCode::kFailedPrecondition,
                      "t.txt: expected at least 9 tokens, one sequence, got 8"));
}

TEST_F(TokenSourceTest, DropsAByteOrderMarkAndKeepsTheRest) {
  ExpectSequences(Read("t.txt", "\uFEFFa\r\n", {{}, 4, 256}), {0, 'a', '\r', '\n'}, {4});
}

TEST_F(TokenSourceTest, RefusesTextThatIsNone) {
  const TokenCut cut = {1, 1, 256};
  EXPECT_TRUE(IsError(Read("t.txt", "", cut), absl::StatusCode::kFailedPrecondition,
                      "t.txt: expected at least 1 tokens, one sequence, got 0"));
  EXPECT_TRUE(IsError(Read("t.txt", "a\nb\xff", cut), absl::StatusCode::kFailedPrecondition,
                      "t.txt: line 2, byte 2: expected text in UTF-8, got the byte 0xff"));
  EXPECT_TRUE(IsError(Read("t.txt", std::string("a\0", 2), cut),
                      absl::StatusCode::kFailedPrecondition, "line 1, byte 2"));
  EXPECT_TRUE(IsError(Read("t.txt", "abc", {1, 4, 'c'}), absl::StatusCode::kFailedPrecondition,
                      "t.txt: token 3: expected an id below 99, the model's vocabulary, got 99"));
  const std::string path = folder_.path("t.txt");
  EXPECT_TRUE(IsError(ReadTokens({path, {}}, nullptr, cut), absl::StatusCode::kInvalidArgument,
                      "expected a tokenizer for text, got none"));
  EXPECT_TRUE(IsError(ReadTokens({folder_.path("no.txt"), {}}, &tokenizer_, cut),
                      absl::StatusCode::kNotFound, "no.txt"));
  EXPECT_TRUE(IsError(ReadTokens({folder_.path(), {}}, &tokenizer_, cut),
                      absl::StatusCode::kInvalidArgument, "got a folder"));
}

TEST_F(TokenSourceTest, ConcatenatesTheDocumentsOfJsonl) {
  const std::string lines =
      "{\"text\":\"ab\"}\r\n\n  "
      "\n{\"id\":[1,{}],\"text\":\"c\",\"more\":null}\n{\"text\":\"\"}\n{\"text\":\"d\"}";
  ExpectSequences(Read("d.jsonl", lines, {{}, 2, 256}), {0, 'a', 'b', 0, 'c', 0}, {2, 2, 2});
  TokenSource other;
  other.field = "body";
  ExpectSequences(Read("d.ndjson", "\uFEFF{\"text\":1,\"body\":\"x\"}", {{}, 2, 256}, other),
                  {0, 'x'}, {2});
}

TEST_F(TokenSourceTest, ReadsNoMoreLinesThanItNeeds) {
  ExpectSequences(Read("d.jsonl", "{\"text\":\"ab\"}\n{\"text\":\n", {1, 2, 256}), {0, 'a'}, {2});
}

TEST_F(TokenSourceTest, SaysWhichLineIsWrong) {
  const TokenCut cut = {9, 2, 256};
  const std::string good = "{\"text\":\"a\"}\n";
  const auto bad = [&](const std::string& line, absl::StatusCode code, const std::string& message) {
    EXPECT_TRUE(IsError(Read("d.jsonl", good + line, cut), code, message)) << line;
  };
  bad("{\"text\":}", absl::StatusCode::kDataLoss, "d.jsonl: line 2: expected JSON");
  bad("[]", absl::StatusCode::kDataLoss, "d.jsonl: line 2: file: expected an object, got an array");
  bad("{\"content\":\"a\"}", absl::StatusCode::kDataLoss,
      "d.jsonl: line 2: text: expected a string, got nothing");
  bad("{\"text\":7}", absl::StatusCode::kDataLoss, "line 2: text: expected a string, got 7");
  bad("{\"text\":\"\xff\"}", absl::StatusCode::kFailedPrecondition,
      "d.jsonl: line 2, byte 10: expected text in UTF-8");
  bad("{\"text\":\"a\\u0000\"}", absl::StatusCode::kFailedPrecondition,
      "line 2: text: expected text without zeros, got one at its byte 1");
  bad("{\"text\":\"\\ud800\"}", absl::StatusCode::kDataLoss, "line 2: expected JSON");
}

TEST_F(TokenSourceTest, ReadsIdsOfEveryWidth) {
  const std::vector<uint32_t> ids = {1, 500, 65535, 3, 4};
  const std::vector<uint32_t> whole = {1, 500, 65535, 3};
  const TokenCut cut = {{}, 2, 65536};
  ExpectSequences(Read("i.u16", Ids(ids, 2), cut), whole, {2, 2});
  ExpectSequences(Read("i.u32", Ids(ids, 4), cut), whole, {2, 2});
  TokenSource as_u16;
  as_u16.format = TokenFormat::kUint16;
  ExpectSequences(Read("i.bin", Ids(ids, 2), cut, as_u16), whole, {2, 2});
  ExpectSequences(Read("i.u16", Ids(ids, 2), {1, 2, 501}), {1, 500}, {2});

  EXPECT_TRUE(IsError(Read("i.u16", "abc", cut), absl::StatusCode::kDataLoss,
                      "i.u16: expected a multiple of 2 bytes, got 3"));
  EXPECT_TRUE(IsError(Read("i.u32", "abcde", cut), absl::StatusCode::kDataLoss,
                      "i.u32: expected a multiple of 4 bytes, got 5"));
  EXPECT_TRUE(IsError(Read("i.u16", "", cut), absl::StatusCode::kFailedPrecondition, "got 0"));
  EXPECT_TRUE(IsError(Read("i.u32", Ids({1, 0x80000000u}, 4), cut),
                      absl::StatusCode::kFailedPrecondition,
                      "i.u32: token 1: expected an id from 0 to 2^31-1, got 2147483648"));
  EXPECT_TRUE(IsError(Read("i.u16", Ids({1, 7}, 2), {{}, 2, 7}),
                      absl::StatusCode::kFailedPrecondition,
                      "token 1: expected an id below 7, the model's vocabulary, got 7"));
}

TEST_F(TokenSourceTest, ReadsIdsOfATensor) {
  const std::string path = folder_.path("i.safetensors");
  const auto put = [&](DType dtype, const std::vector<std::string>& names, const std::string& data,
                       const std::vector<int64_t>& shape) {
    std::vector<TensorToWrite> tensors;
    for (const std::string& name : names) {
      tensors.push_back({name, dtype, shape, std::as_bytes(std::span(data))});
    }
    ASSERT_TRUE(WriteSafetensors(path, tensors, {}).ok());
  };
  const TokenCut cut = {{}, 2, 100};
  const std::vector<uint32_t> ids = {1, 2, 3, 4, 5, 6};
  for (const DType dtype : {DType::kU16, DType::kU32, DType::kI32}) {
    put(dtype, {"any"}, Ids(ids, static_cast<size_t>(DTypeBytes(dtype))), {2, 3});
    ExpectSequences(ReadTokens({path, {}}, nullptr, cut), ids, {2, 2, 2});
  }
  std::vector<uint32_t> wide;
  for (const uint32_t id : ids) wide.insert(wide.end(), {id, 0});
  put(DType::kI64, {"attention_mask", "input_ids"}, Ids(wide, 4), {6});
  ExpectSequences(ReadTokens({path, {}}, nullptr, cut), ids, {2, 2, 2});
  ExpectSequences(ReadTokens({path, {}}, nullptr, {1, 4, 100}), {1, 2, 3, 4}, {4});

  put(DType::kI64, {"a", "b"}, Ids(wide, 4), {6});
  EXPECT_TRUE(
      IsError(ReadTokens({path, {}}, nullptr, cut), absl::StatusCode::kDataLoss,
              "i.safetensors: expected a tensor \"input_ids\", or one alone, got 2 others"));
  put(DType::kF32, {"a"}, Ids(ids, 4), {6});
  EXPECT_TRUE(IsError(ReadTokens({path, {}}, nullptr, cut), absl::StatusCode::kDataLoss,
                      "tensor \"a\": expected U16, U32, I32 or I64, got F32"));
  put(DType::kI32, {"a"}, Ids({1, 0xFFFFFFFF}, 4), {2});
  EXPECT_TRUE(IsError(ReadTokens({path, {}}, nullptr, cut), absl::StatusCode::kFailedPrecondition,
                      "token 1: expected an id from 0 to 2^31-1, got -1"));
  PutFile(path, "no safetensors");
  EXPECT_TRUE(IsError(ReadTokens({path, {}}, nullptr, cut), absl::StatusCode::kDataLoss,
                      "i.safetensors: header length"));
}

TEST_F(TokenSourceTest, KnowsFormatsByTheEndOfTheName) {
  EXPECT_EQ(*TokenFormatOf("a.txt"), TokenFormat::kText);
  EXPECT_EQ(*TokenFormatOf("wiki.test.raw"), TokenFormat::kText);
  EXPECT_EQ(*TokenFormatOf("a.jsonl"), TokenFormat::kJsonl);
  EXPECT_EQ(*TokenFormatOf("a.ndjson"), TokenFormat::kJsonl);
  EXPECT_EQ(*TokenFormatOf("a.safetensors"), TokenFormat::kSafetensors);
  EXPECT_EQ(*TokenFormatOf("a.u16"), TokenFormat::kUint16);
  EXPECT_EQ(*TokenFormatOf("a.u32"), TokenFormat::kUint32);
  EXPECT_EQ(*TokenFormatOf("A.JSONL"), TokenFormat::kJsonl);
  for (const char* path : {"a.json", "a.bin", "a.parquet", "a.txt.gz"}) {
    EXPECT_TRUE(IsError(TokenFormatOf(path), absl::StatusCode::kInvalidArgument,
                        "*.safetensors, *.u16 or *.u32, got *"));
  }
}

TEST_F(TokenSourceTest, RefusesCutsThatAreNone) {
  for (const auto& [cut, message] : std::vector<std::pair<TokenCut, const char*>>{
           {{1, 0, 9}, "sequence length: expected at least 1, got 0"},
           {{1, 1, 0}, "vocabulary: expected at least 1, got 0"},
           {{0, 1, 9}, "sequences: expected at least 1, got 0"},
           {{int64_t{1} << 32, 2, 9}, "sequences: expected at most 2^32 tokens in all"},
           {{1, int64_t{1} << 33, 9}, "sequences: expected at most 2^32 tokens in all"}}) {
    EXPECT_TRUE(IsError(Read("t.txt", "a", cut), absl::StatusCode::kInvalidArgument, message));
  }
}

// --- Which file of a folder is the tokenizer ----------------------------------------------------

class ReadTokenizerTest : public ::testing::Test {
 protected:
  std::vector<uint32_t> Encode(const std::string& text) const {
    const auto tokenizer = ReadTokenizer(folder_.path());
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    std::vector<uint32_t> ids;
    EXPECT_TRUE(tokenizer.ok() && (*tokenizer)->Encode(text, ids).ok());
    return ids;
  }
  void Copy(const std::string& kind, const std::string& name) const {
    PutFile(folder_.path(name), ::nibble::testing::FileBytes(goldens_.Folder(kind) + "/" + name));
  }

  const TempDir folder_;
  const TokenizerGoldens goldens_;
};

TEST_F(ReadTokenizerTest, PrefersJsonWhereItIsSupported) {
  EXPECT_TRUE(IsError(ReadTokenizer(folder_.path()).status(), absl::StatusCode::kNotFound,
                      "expected tokenizer.json or tokenizer.model, got neither"));
  Copy("sentencepiece_bpe", "tokenizer.model");
  const std::vector<uint32_t> of_model = Encode("light");
  Copy("gpt2", "tokenizer.json");
  const std::vector<uint32_t> of_json = Encode("light");
  EXPECT_FALSE(SameIds(of_model, of_json));
  PutFile(folder_.path("tokenizer.json"), R"({"model":{"type":"Unigram"}})");
  EXPECT_TRUE(SameIds(of_model, Encode("light")));
  PutFile(folder_.path("tokenizer.json"), "{");
  EXPECT_TRUE(IsError(ReadTokenizer(folder_.path()).status(), absl::StatusCode::kDataLoss,
                      "tokenizer.json: expected JSON"));
  std::filesystem::remove(folder_.path("tokenizer.model"));
  PutFile(folder_.path("tokenizer.json"), R"({"model":{"type":"Unigram"}})");
  EXPECT_TRUE(IsError(ReadTokenizer(folder_.path()).status(), absl::StatusCode::kUnimplemented,
                      "tokenizer.json: model.type: expected BPE"));
}

TEST_F(ReadTokenizerTest, TokenizerConfigSaysWhatIsAroundSentencePieces) {
  Copy("sentencepiece_bpe", "tokenizer.model");
  const std::vector<uint32_t> with_bos = Encode("light");
  ASSERT_GT(with_bos.size(), 1u);
  EXPECT_EQ(with_bos[0], 1u);
  std::vector<uint32_t> with_eos(with_bos.begin() + 1, with_bos.end());
  with_eos.push_back(2);
  PutFile(folder_.path("tokenizer_config.json"), R"({"add_bos_token":false,"add_eos_token":true})");
  EXPECT_TRUE(SameIds(with_eos, Encode("light")));
  PutFile(folder_.path("tokenizer_config.json"), R"({"add_bos_token":null})");
  EXPECT_TRUE(SameIds(with_bos, Encode("light")));
  PutFile(folder_.path("tokenizer_config.json"), R"({"add_bos_token":"yes"})");
  EXPECT_TRUE(IsError(ReadTokenizer(folder_.path()).status(), absl::StatusCode::kDataLoss,
                      "tokenizer_config.json: add_bos_token: expected true or false"));
}

TEST_F(ReadTokenizerTest, RefusesModelsThatAreNone) {
  for (const std::string& bytes :
       {std::string(), std::string("no model"), std::string(100, '\0')}) {
    PutFile(folder_.path("tokenizer.model"), bytes);
    EXPECT_TRUE(IsError(ReadTokenizer(folder_.path()).status(), absl::StatusCode::kDataLoss,
                        "tokenizer.model: expected a model of SentencePiece"))
        << bytes.size();
  }
}

}  // namespace
}  // namespace nibble
