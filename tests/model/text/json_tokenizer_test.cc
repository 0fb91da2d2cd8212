// What ParseTokenizerJson refuses; what it makes of the rest is in tokenizer_golden_test.cc.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"
#include "model/text/tokenizer.h"
#include "tests/testing/is_error.h"
#include "tests/testing/token_ids.h"

namespace nibble {
namespace {

using ::nibble::testing::IsError;
using ::nibble::testing::SameIds;

constexpr char kByteLevel[] = R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":true})";

// A tokenizer of a, b and ab, with these pieces for the rest.
struct Pieces {
  std::string added = "[]", normalizer = "null", pre_tokenizer = kByteLevel, post = "null";
  std::string type = R"("BPE")", vocab = R"({"a":0,"b":1,"ab":2})", merges = R"(["a b"])";
  std::string more = R"("unk_token":null)";  // of the model

  std::string Json() const {
    return absl::StrCat(R"({"added_tokens":)", added, R"(,"normalizer":)", normalizer,
                        R"(,"pre_tokenizer":)", pre_tokenizer, R"(,"post_processor":)", post,
                        R"(,"model":{"type":)", type, R"(,"vocab":)", vocab, R"(,"merges":)",
                        merges, ",", more, "}}");
  }
};

std::string Added(const std::string& content, int id, const std::string& more = "") {
  return absl::StrCat(R"({"content":")", content, R"(","id":)", id,
                      R"(,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false)",
                      more, "}");
}

std::string Template(const std::string& single) {
  return absl::StrCat(R"({"type":"TemplateProcessing","single":)", single,
                      R"(,"special_tokens":{"<s>":{"id":"<s>","ids":[3]},"x":{"ids":[9]}}})");
}

void ExpectError(const Pieces& pieces, absl::StatusCode code, const std::string& message) {
  EXPECT_TRUE(IsError(ParseTokenizerJson(pieces.Json()), code, message)) << pieces.Json();
}

TEST(JsonTokenizerTest, ReadsTheLeastThatThereIs) {
  const auto tokenizer = ParseTokenizerJson(Pieces().Json());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocabulary(), 3);
  std::vector<uint32_t> ids = {7};
  ASSERT_TRUE((*tokenizer)->Encode("abba", ids).ok());
  EXPECT_TRUE(SameIds(std::vector<uint32_t>{7, 2, 1, 0}, ids));
}

TEST(JsonTokenizerTest, PutsATemplatesTokensAround) {
  Pieces pieces;
  pieces.added = absl::StrCat("[", Added("<s>", 3), "]");
  pieces.post = Template(R"([{"SpecialToken":{"id":"<s>"}},{"Sequence":{"id":"A"}},)"
                         R"({"SpecialToken":{"id":"x"}}])");
  const auto tokenizer = ParseTokenizerJson(pieces.Json());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocabulary(), 10);
  std::vector<uint32_t> ids;
  ASSERT_TRUE((*tokenizer)->Encode("a<s>b", ids).ok());
  EXPECT_TRUE(SameIds(std::vector<uint32_t>{3, 0, 3, 1, 9}, ids));
}

TEST(JsonTokenizerTest, NamesWhatItDoesNotHave) {
  const auto unsupported = [](const Pieces& pieces, const std::string& message) {
    ExpectError(pieces, absl::StatusCode::kUnimplemented, message);
  };
  unsupported({.type = R"("WordPiece")"}, "model.type: expected BPE, got \"WordPiece\"");
  unsupported({.type = R"("Unigram")"}, "model.type: expected BPE, got \"Unigram\"");
  unsupported({.normalizer = R"({"type":"NFKC"})"},
              "normalizer.type: expected one of NFC, Prepend, Replace, Sequence, got \"NFKC\"");
  unsupported({.normalizer = R"({"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"X"}]})"},
              "normalizer.normalizers[1].type: expected one of");
  unsupported({.pre_tokenizer = R"({"type":"BertPreTokenizer"})"},
              "pre_tokenizer.type: expected one of ByteLevel, Split, Digits, Metaspace, Sequence");
  unsupported({.pre_tokenizer = absl::StrCat(R"({"type":"Sequence","pretokenizers":[)", kByteLevel,
                                             ",", kByteLevel, "]}")},
              "pre_tokenizer.pretokenizers[1].type: expected nothing behind ByteLevel");
  unsupported(
      {.pre_tokenizer = R"({"type":"Split","pattern":{"Regex":"^a"},"behavior":"Isolated"})"},
      "pre_tokenizer.pattern: pattern \"^a\": byte 1: expected no anchors");
  unsupported({.post = R"({"type":"BertProcessing"})"},
              "post_processor.type: expected one of ByteLevel, TemplateProcessing, Sequence");
  unsupported({.post = absl::StrCat(R"({"type":"Sequence","processors":[)",
                                    Template(R"([{"Sequence":{"id":"A"}}])"), ",",
                                    Template(R"([{"Sequence":{"id":"A"}}])"), "]}")},
              "processors[1].type: expected one template");
  unsupported({.more = R"("dropout":0.1)"}, "model.dropout: expected none, got 0.1");
  unsupported({.more = R"("end_of_word_suffix":"</w>")"}, "model.end_of_word_suffix");
  unsupported({.more = R"("continuing_subword_prefix":"##")"}, "model.continuing_subword_prefix");
  unsupported({.more = R"("byte_fallback":true)"}, "model.byte_fallback");
  unsupported({.pre_tokenizer = "null", .more = R"("unk_token":"ab")"}, "model.merges");
}

TEST(JsonTokenizerTest, RefusesWhatContradictsItself) {
  const auto bad = [](const Pieces& pieces, const std::string& message) {
    ExpectError(pieces, absl::StatusCode::kDataLoss, message);
  };
  bad({.vocab = R"({"a":0,"a":1})"}, "expected names that differ, got a second \"a\"");
  bad({.vocab = R"({"a":0,"b":0})"}, "model.vocab: \"b\": expected ids that differ");
  bad({.vocab = R"({"a":-1})"}, "model.vocab: \"a\": expected an id from 0 to 2^31-1");
  bad({.vocab = R"({"a":2147483648})"}, "expected an id from 0 to 2^31-1");
  bad({.vocab = "[]"}, "model.vocab: expected an object, got an array");
  bad({.merges = R"(["a b c"])"}, "model.merges[0]: expected two tokens with a space between");
  bad({.merges = R"(["ab"])"}, "model.merges[0]: expected two tokens with a space between");
  bad({.merges = R"(["a b","b a"])"},
      "model.merges[1]: expected tokens of the vocabulary, got \"ba\"");
  bad({.merges = R"([["a","c"]])"}, "expected tokens of the vocabulary, got \"c\"");
  bad({.merges = R"([["a"]])"}, "model.merges[0]: expected two tokens, got another value");
  bad({.vocab = R"({"":0,"a":1})", .merges = R"([" a"])"}, "got an empty one");
  bad({.merges = "{}"}, "model.merges: expected an array");
  bad({.more = R"("unk_token":"<unk>")"}, "model.unk_token: expected a token of the vocabulary");
  bad({.more = R"("fuse_unk":1)"}, "model.fuse_unk: expected true or false, got 1");
  bad({.added = absl::StrCat("[", Added("<s>", 4), "]")},
      "added_tokens[0].id: expected the token's id 3, got 4");
  bad({.added = absl::StrCat("[", Added("a", 3), "]")},
      "added_tokens[0].id: expected the token's id 0, got 3");
  bad({.added = absl::StrCat("[", Added("x", 3), ",", Added("x", 4), "]")},
      "added_tokens[1].content: expected tokens that differ");
  bad({.added = absl::StrCat("[", Added("", 3), "]")}, "added_tokens[0].content: expected a token");
  bad({.added = R"([{"content":"x","id":3}])"},
      "added_tokens[0].single_word: expected true or false");
  bad({.post = Template("[]")}, "post_processor.single: expected one Sequence");
  bad({.post = Template(R"([{"SpecialToken":{"id":"y"}},{"Sequence":{"id":"A"}}])")},
      "post_processor.special_tokens.y.ids: expected an array, got nothing");
  bad({.pre_tokenizer = R"({"type":"Split","pattern":{"Regex":"a"},"behavior":"Sideways"})"},
      "pre_tokenizer.behavior: expected one of Removed");
  bad({.pre_tokenizer = R"({"type":"Split","pattern":{},"behavior":"Isolated"})"},
      "pre_tokenizer.pattern.Regex: expected a string, got nothing");
  bad({.pre_tokenizer = R"({"type":"Metaspace","replacement":"_","prepend_scheme":"second"})"},
      "pre_tokenizer.prepend_scheme: expected one of always, first, never");
}

TEST(JsonTokenizerTest, RefusesWhatIsNoJson) {
  const auto error = [](const std::string& json, const std::string& message) {
    EXPECT_TRUE(IsError(ParseTokenizerJson(json), absl::StatusCode::kDataLoss, message)) << json;
  };
  error("", "expected JSON in UTF-8");
  error("[]", "file: expected an object, got an array");
  error("{}", "model: expected an object, got nothing");
  error("{} x", "expected JSON in UTF-8");
  error(std::string("{}\0", 3), "got a zero at its byte 2");
  error("{\"\xff\":1}", "expected JSON in UTF-8");
  error(std::string(100'000, '['), "expected at most 64 levels, got more");
  const std::string whole = Pieces().Json();
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(ParseTokenizerJson(whole.substr(0, size)).ok()) << size;
  }
}

TEST(JsonTokenizerTest, SaysWhereTextIsNotUtf8) {
  const auto tokenizer = ParseTokenizerJson(Pieces().Json());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  std::vector<uint32_t> ids;
  EXPECT_TRUE(IsError((*tokenizer)->Encode("a\nb\xff", ids), absl::StatusCode::kFailedPrecondition,
                      "line 2, byte 2: expected text in UTF-8, got the byte 0xff"));
}

}  // namespace
}  // namespace nibble
