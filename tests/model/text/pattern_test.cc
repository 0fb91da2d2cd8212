#include "model/text/pattern.h"

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using ::nibble::testing::IsError;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

// The pieces of `text`, matches in brackets.
std::vector<std::string> Pieces(const Pattern& pattern, std::string_view text) {
  std::vector<std::string> pieces;
  const absl::Status status = pattern.ForEach(text, [&](size_t begin, size_t end, bool matches) {
    const std::string piece(text.substr(begin, end - begin));
    pieces.push_back(matches ? "[" + piece + "]" : piece);
  });
  EXPECT_TRUE(status.ok()) << status;
  return pieces;
}
std::vector<std::string> Pieces(std::string_view expression, std::string_view text) {
  const auto pattern = Pattern::Compile(expression);
  EXPECT_TRUE(pattern.ok()) << pattern.status();
  return pattern.ok() ? Pieces(*pattern, text) : std::vector<std::string>();
}

TEST(PatternTest, TellsOfMatchesAndOfWhatLiesBetween) {
  EXPECT_THAT(Pieces("b+", "abbcb"), ElementsAre("a", "[bb]", "c", "[b]"));
  EXPECT_THAT(Pieces("b+", "ac"), ElementsAre("ac"));
  EXPECT_THAT(Pieces("b+", ""), IsEmpty());
  EXPECT_THAT(Pieces("x*", "axxb"), ElementsAre("[]", "a", "[xx]", "b", "[]"));
  EXPECT_THAT(Pieces("a|b(?!c)|(?<=b)c", "abcb"), ElementsAre("[a]", "b", "[c]", "[b]"));
}

// What tokenizers' Split(Regex(...)) gave for each, where PCRE2 by itself would differ.
TEST(PatternTest, MeansWhatItMeansToOniguruma) {
  EXPECT_THAT(Pieces(R"(\s)", "a\u180eb\u200bc\u0085"), ElementsAre("a\u180eb\u200bc", "[\u0085]"));
  EXPECT_THAT(Pieces(R"(\v)", "\v\n\u2028"), ElementsAre("[\v]", "\n\u2028"));
  EXPECT_THAT(Pieces(R"(\w+)", "a\u0301\u24b6 _1\u2460"),
              ElementsAre("[a\u0301\u24b6]", " ", "[_1]", "\u2460"));
  EXPECT_THAT(Pieces(R"(a.b)", "a\nba\rb"), ElementsAre("a\nb", "[a\rb]"));
  EXPECT_THAT(Pieces(R"(a{,2})", "aaa"), ElementsAre("[aa]", "[a]"));
  EXPECT_THAT(Pieces(R"(\u0041\x{42}\x43)", "ABC"), ElementsAre("[ABC]"));
  EXPECT_THAT(Pieces(R"([^\S\n]+)", "a \n b"), ElementsAre("a", "[ ]", "\n", "[ ]", "b"));
  EXPECT_THAT(Pieces(R"([\P{L}]+)", "a1\U000105C0 "), ElementsAre("a", "[1]", "\U000105C0", "[ ]"));
  EXPECT_THAT(Pieces(R"(\p{Han})", "a\u5b57\U00031350"),
              ElementsAre("a", "[\u5b57]", "[\U00031350]"));
  EXPECT_THAT(Pieces(R"((?i:'s))", "'\u017f'S's"), ElementsAre("['\u017f]", "['S]", "['s]"));
  EXPECT_THAT(Pieces(R"([a-c\-z-])", "b-y"), ElementsAre("[b]", "[-]", "y"));
  EXPECT_THAT(Pieces(R"(#x |\/)", "#x /"), ElementsAre("[#x ]", "[/]"));
}

TEST(PatternTest, RefusesWhereTheLibrariesDisagree) {
  for (const auto& [expression, got] : std::vector<std::pair<std::string, std::string>>{
           {R"(\p{N}{1,3}+)", "byte 11: expected no + or ? after {n}"},
           {R"(a{2}?)", "expected no + or ? after {n}"},
           {R"(^a)", "expected no anchors"},
           {R"(a$)", "expected no anchors"},
           {R"(\bx)", "\\b"},
           {R"(\Ax)", "\\A"},
           {R"(\h)", "\\h"},
           {R"((a)\1)", "\\1"},
           {R"((?i)a)", "(?i)"},
           {R"((?<n>a))", "(?<n"},
           {R"((?m:a))", "(?m:"},
           {R"([a&&b])", "&&"},
           {R"([[:alpha:]])", "class inside of a class"},
           {R"([[a]])", "class inside of a class"},
           {R"([])", "a class of something"},
           {R"([\W])", "no opposite"},
           {R"([a-\d])", "a range that ends"},
           {R"([\d-z])", "no range that begins with a set"},
           {R"([a-c-e])", "a - that is first"},
           {R"([z-a])", "no lower"},
           {R"([a)", "every [ to end"},
           {R"((a)", "every group to end"},
           {R"(a))", "no ) without a group"},
           {R"(x**)", "no second one"},
           {R"(*)", "a quantifier after"},
           {R"(a{x})", "{n}, {n,}"},
           {R"(a{)", "{n}, {n,}"},
           {R"(a{99999})", "{n}, {n,}"},
           {R"(\p{Foo})", "a general category"},
           {R"(\p{^L})", "a general category"},
           {R"(\pL)", "a general category"},
           {R"(\p{L)", "a general category"},
           {R"((?i:\p{Lu}))", "no upper"},
           {R"(\x{110000})", "a code point"},
           {R"(\ud800)", "a code point"},
           {R"(\xe9)", "a code point"},
           {R"(\x{41)", "expected }"},
           {"\\", "something after"},
           {"\\\u00e9", "a sign"},
       }) {
    EXPECT_TRUE(IsError(Pattern::Compile(expression), absl::StatusCode::kUnimplemented, got))
        << expression;
  }
  std::string deep;
  for (int i = 0; i < 101; ++i) deep += "(?:";
  EXPECT_TRUE(IsError(Pattern::Compile(deep), absl::StatusCode::kUnimplemented, "less deeply"));
  EXPECT_TRUE(IsError(Pattern::Compile(std::string(70'000, 'a')),
                      absl::StatusCode::kInvalidArgument, "at most 65536 bytes"));
  EXPECT_TRUE(IsError(Pattern::Compile("\xff"), absl::StatusCode::kInvalidArgument, "UTF-8"));
  EXPECT_TRUE(IsError(Pattern::Compile("(?<=a+)b"), absl::StatusCode::kInvalidArgument,
                      "expected an expression for PCRE2"));
}

TEST(PatternTest, LiteralsAreNoExpressions) {
  const auto pattern = Pattern::Literal(".*\U000105C0");
  ASSERT_TRUE(pattern.ok()) << pattern.status();
  EXPECT_THAT(Pieces(*pattern, "a.*\U000105C0\U000105C1"),
              ElementsAre("a", "[.*\U000105C0]", "\U000105C1"));
}

// An exponential match ends with a status; long runs and deep stacks match.
TEST(PatternTest, BoundsTheWork) {
  const auto hostile = Pattern::Compile("(?:a+)+b|(?:(?:a|aa)+)+c");
  ASSERT_TRUE(hostile.ok()) << hostile.status();
  const std::string run(100, 'a');
  EXPECT_TRUE(IsError(hostile->ForEach(run, [](size_t, size_t, bool) {}),
                      absl::StatusCode::kResourceExhausted, "byte 0: expected a pattern"));
  const std::string spaces(1 << 20, ' ');
  EXPECT_EQ(Pieces(R"(\s*[\r\n]+|\s+(?!\S)|\s+)", spaces + "x").size(), 3u);
  EXPECT_EQ(Pieces("(?:a|b)+", std::string(1 << 20, 'a')).size(), 1u);
}

}  // namespace
}  // namespace nibble
