#include "policies/yaml_document.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using ::nibble::testing::IsError;
using ::nibble::testing::kInvalid;
using Kind = YamlNode::Kind;

YamlPtr Parsed(const std::string& text) {
  const absl::StatusOr<YamlPtr> node = ParseYaml(text, "f.yaml");
  EXPECT_TRUE(node.ok()) << node.status();
  return node.ok() ? *node : std::make_shared<const YamlNode>();
}

TEST(ParseYamlTest, KnowsWhereValuesStand) {
  const YamlPtr map = Parsed("# a comment\na: 1\nb:\n  - x\n  - {c: \"2\", d: }\ne: ~\n");
  ASSERT_EQ(map->kind, Kind::kMap);
  ASSERT_EQ(map->entries.size(), 3u);
  EXPECT_EQ(map->entries[0].key, "a");
  EXPECT_EQ(map->entries[0].place, "f.yaml:2:1");
  EXPECT_EQ(map->entries[0].value->place, "f.yaml:2:4");
  EXPECT_EQ(map->entries[0].value->text, "1");
  EXPECT_FALSE(map->entries[0].value->quoted);
  const YamlPtr list = map->Find("b")->value;
  ASSERT_EQ(list->kind, Kind::kSequence);
  ASSERT_EQ(list->items.size(), 2u);
  EXPECT_EQ(list->items[0]->place, "f.yaml:4:5");
  const YamlPtr inner = list->items[1];
  EXPECT_EQ(inner->place, "f.yaml:5:5");
  EXPECT_EQ(inner->Find("c")->value->text, "2");
  EXPECT_TRUE(inner->Find("c")->value->quoted);
  EXPECT_EQ(inner->Find("d")->value->kind, Kind::kNull);
  EXPECT_EQ(map->Find("e")->value->kind, Kind::kNull);
  EXPECT_EQ(map->Find("x"), nullptr);
}

TEST(ParseYamlTest, NothingIsNull) {
  for (const char* text : {"", "\n\n", "# nothing\n", "---\n", "~"}) {
    EXPECT_EQ(Parsed(text)->kind, Kind::kNull) << text;
  }
}

TEST(ParseYamlTest, TakesAliasesWhereTheyAreFew) {
  const YamlPtr map = Parsed("a: &x {b: 1}\nc: *x\n");
  EXPECT_EQ(map->Find("c")->value->Find("b")->value->text, "1");
}

TEST(ParseYamlTest, PlacesWithoutLines) {
  const auto node = ParseYaml("[a, b]", "--set x", /*lines=*/false);
  ASSERT_TRUE(node.ok());
  EXPECT_EQ((*node)->items[1]->place, "--set x");
}

TEST(ParseYamlTest, RefusesWithThePlace) {
  const std::string nul("a: b\0c\n", 7);
  const struct {
    std::string text, piece;
  } kCases[] = {
      {"a: 1\nb: 2\na: 3\n",
       "f.yaml:3:1: key: expected each one once, got \"a\" again, which is "
       "at f.yaml:1:1"},
      {"a: 1\n\"a\": 3\n", "f.yaml:2:1: key: expected each one once"},
      {"a: {b: 1, b: 2}", "f.yaml:1:11: key: expected each one once"},
      {"a: [1, 2", "f.yaml:1:4: document: expected YAML"},
      {"a: \"b", "f.yaml:1:"},
      {"a: b: c", "f.yaml:1:5: document: expected YAML"},
      {"\ta: b", "f.yaml:1:"},
      {"a: 1\n b: 2\n", "f.yaml:2:"},
      {"? [a]\n: b\n", "f.yaml:1:3: key: expected a word, got a list or a mapping"},
      {"{a: b}: c\n", "key: expected a word"},
      {"~: b\n", "f.yaml:1:1: key: expected a word, got nothing"},
      {"a: 1\n---\nb: 1\n", "f.yaml:3:1: document: expected one, got a second"},
      {"a: !!str 1\n", "f.yaml:1:4: tag: expected none, got \"tag:yaml.org,2002:str\""},
      {"a: !python/object:os.system x\n", "f.yaml:1:4: tag: expected none"},
      {"!x {a: 1}", "tag: expected none"},
      {"a: *nobody\n", "f.yaml:1:4: document: expected YAML"},
      {"a: &x [*x]\n", "f.yaml:1:8: alias: expected an anchor that is complete"},
      {"&x *x", "f.yaml:1:"},
      {nul,
       "f.yaml:1:5: document: expected UTF-8 text without control characters, got the byte "
       "0x00"},
      {"a: \x04\nb: 1", "f.yaml:1:4: document: expected UTF-8 text without control characters"},
      {"a: 1\nb: \x1b[2J", "f.yaml:2:4: document: expected UTF-8 text"},
      {"a: \xff",
       "f.yaml:1:4: document: expected UTF-8 text without control characters, got the "
       "byte 0xff"},
      {"a: \xc0\xaf", "got the byte 0xc0"},
      {"a: \xe0\x80\x80", "got the byte 0xe0"},
      {"a: \xed\xa0\x80", "got the byte 0xed"},
      {"a: \xf0\x80\x80\x80", "got the byte 0xf0"},
      {"a: \xf4\x90\x80\x80", "got the byte 0xf4"},
      {"a: \xe2\x82", "got the byte 0xe2"},
      {"\xff\xfe"
       "a\0",
       "f.yaml:1:1: document: expected UTF-8 text"},
  };
  for (const auto& c : kCases) {
    EXPECT_TRUE(IsError(ParseYaml(c.text, "f.yaml"), kInvalid, c.piece)) << c.text;
  }
}

TEST(ParseYamlTest, TakesUnicode) {
  EXPECT_EQ(Parsed("\xef\xbb\xbf"
                   "a: \xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\n")
                ->Find("a")
                ->value->text,
            "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
}

TEST(ParseYamlTest, RefusesWhatIsTooLarge) {
  const std::string comment = "# " + std::string(kMostYamlBytes, 'x');
  EXPECT_TRUE(IsError(ParseYaml(comment, "f.yaml"), kInvalid, "expected at most 1048576 bytes"));
  std::string list = "[";
  for (size_t i = 0; i <= kMostYamlValues; ++i) list += "a,";
  EXPECT_TRUE(IsError(ParseYaml(list + "]", "f.yaml"), kInvalid, "expected at most 50000 values"));
}

TEST(ParseYamlTest, RefusesWhatIsTooDeep) {
  const auto nested = [](size_t levels) {
    return std::string(levels, '[') + "a" + std::string(levels, ']');
  };
  EXPECT_TRUE(ParseYaml(nested(kDeepestYaml), "f").ok());
  EXPECT_TRUE(IsError(ParseYaml(nested(kDeepestYaml + 1), "f"), kInvalid, "at most 32 levels"));
  EXPECT_TRUE(IsError(ParseYaml(std::string(500'000, '['), "f"), kInvalid, ""));
  EXPECT_TRUE(IsError(ParseYaml(std::string(500'000, '{'), "f"), kInvalid, ""));
  std::string maps, lists;
  for (int i = 0; i < 200'000; ++i) maps += "a: ", lists += "- ";
  EXPECT_TRUE(IsError(ParseYaml(maps, "f"), kInvalid, ""));
  EXPECT_TRUE(IsError(ParseYaml(lists, "f"), kInvalid, "at most 32 levels"));
  // Each alias reaches one level deeper.
  std::string chain = "a0: &a0 [x]\n";
  for (int i = 1; i < 1000; ++i) absl::StrAppend(&chain, "a", i, ": &a", i, " [*a", i - 1, "]\n");
  EXPECT_TRUE(IsError(ParseYaml(chain, "f"), kInvalid, "at most 32 levels"));
}

TEST(ParseYamlTest, RefusesBombsOfAliases) {
  std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 12; ++i) {
    absl::StrAppend(&bomb, "a", i, ": &a", i, " [");
    for (int j = 0; j < 10; ++j) absl::StrAppend(&bomb, "*a", i - 1, ", ");
    bomb += "]\n";
  }
  EXPECT_TRUE(IsError(ParseYaml(bomb, "f.yaml"), kInvalid, "expected at most 50000 values"));
}

}  // namespace
}  // namespace nibble
