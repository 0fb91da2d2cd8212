#include <chrono>
#include <regex>
#include <string>

#include "gtest/gtest.h"
#include "policies/recipe.h"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using ::nibble::testing::IsError;
using ::nibble::testing::kInvalid;

bool Matches(const std::string& pattern, const std::string& name) {
  const absl::StatusOr<bool> matches = MatchesName(pattern, name);
  EXPECT_TRUE(matches.ok()) << matches.status();
  return matches.ok() && *matches;
}

TEST(MatchesNameTest, Globs) {
  const struct {
    const char *glob, *name;
    bool matches;
  } kCases[] = {
      {"*", "", true},
      {"*", "model.layers.0.mlp.gate", true},
      {"?", "", false},
      {"?", "a", true},
      {"?", "ab", false},
      {"lm_head", "lm_head", true},
      {"lm_head", "model.lm_head", false},
      {"*lm_head*", "model.lm_head.x", true},
      {"*.gate", "model.layers.0.mlp.gate", true},
      {"*.gate", "model.layers.0.mlp.gate_proj", false},
      {"model.layers.?.*", "model.layers.1.mlp", true},
      {"model.layers.?.*", "model.layers.11.mlp", false},
      {"a*b*c", "abbbcbc", true},
      {"a*b*c", "abbbcb", false},
      {"a**c", "ac", true},
      {"*a", "aaab", false},
      {"[ab]", "a", false},  // no classes
      {"[ab]", "[ab]", true},
      {"a.b", "axb", false},
      {"re", "re", true},
      {"", "", false},
  };
  for (const auto& c : kCases) {
    if (*c.glob == '\0') continue;
    EXPECT_EQ(Matches(c.glob, c.name), c.matches) << c.glob << " " << c.name;
  }
}

// On words and expressions without what the standard's engine does differently.
TEST(MatchesNameTest, ExpressionsAgreeWithTheStandardLibrary) {
  const std::string kExpressions[] = {
      "",          "a",           "ab|b",
      "a*",        "a+b?",        "(a|b)*",
      "(ab)+",     "(a*)*",       "(a|ab)(c|bcd)",
      "a{2}",      "a{1,2}b",     "a{2,}",
      "a{0}b",     "(a|b){2,3}?", "[ab]c",
      "[^ab]",     "[a-c]+",      "[a\\-]b?",
      "[\\d.]+",   ".*",          ".",
      "\\.",       "\\w+",        "\\W",
      "\\d",       "^a.*",        ".*b$",
      "a^b",       "(?:a|b)c",    "(?=a).*",
      "(?!a).*",   "(?!.*c).*",   "a(?!b).*",
      "\\ba\\b.*", "a\\Bb",       "((a)(b))*",
      "(|a)b",     "(a?b?)*c",
  };
  const std::string kLetters = "abc.1";
  std::vector<std::string> names = {""};
  for (size_t i = 0; names[i].size() < 4; ++i) {
    for (const char c : kLetters) names.push_back(names[i] + c);
  }
  int64_t matched = 0;
  for (const std::string& expression : kExpressions) {
    const std::regex standard(expression, std::regex::ECMAScript);
    for (const std::string& name : names) {
      const bool expected = std::regex_match(name, standard);
      matched += expected;
      ASSERT_EQ(Matches("re:" + expression, name), expected) << expression << " " << name;
    }
  }
  EXPECT_GT(matched, 1000);
}

TEST(MatchesNameTest, ExpressionsOnNames) {
  const char* kQ = "model.layers.17.self_attn.q_proj";
  EXPECT_TRUE(Matches(R"(re:.*\.(q|k|v)_proj)", kQ));
  EXPECT_TRUE(Matches(R"(re:model\.layers\.1\d\..*)", kQ));
  EXPECT_TRUE(Matches(R"(re:^(?!.*lm_head).*$)", kQ));
  EXPECT_FALSE(Matches(R"(re:^(?!.*lm_head).*$)", "lm_head"));
  EXPECT_FALSE(Matches("re:self_attn", kQ));  // the whole name
  EXPECT_FALSE(Matches("re:.*\\.mlp\\..*", kQ));
}

TEST(MatchesNameTest, BrokenPatternsAreErrors) {
  const struct {
    const char *pattern, *piece;
  } kCases[] = {
      {"", "expected 1 to 4096 bytes, got 0"},
      {"re:(", "expected the ')' of a '('"},
      {"re:a)", "character 2 of the expression: expected a '(' before this ')'"},
      {"re:[a", "expected the ']' of a '['"},
      {"re:[b-a]", "from a smaller to a larger"},
      {"re:[\\d-z]", "from a smaller to a larger"},
      {"re:[[:alpha:]]", "expected no [:names:]"},
      {"re:*a", "expected something before it"},
      {"re:a**", "expected something before it"},
      {"re:^*", "expected something before it"},
      {"re:a{,2}", "expected {N}"},
      {"re:a{2,1}", "expected {N}"},
      {"re:a{1001}", "up to 1000"},
      {"re:a{99999999999999999999}", "up to 1000"},
      {"re:a{2", "expected {N}"},
      {"re:\\", "expected a character after the '\\'"},
      {"re:(a)\\1", "expected one of \\d"},
      {"re:\\q", "expected one of \\d"},
      {"re:(?<x>a)", "expected (?:, (?= or (?!"},
      {"re:(?<=a)b", "expected (?:, (?= or (?!"},
  };
  for (const auto& c : kCases) {
    EXPECT_TRUE(IsError(MatchesName(c.pattern, "a"), kInvalid, c.piece)) << c.pattern;
  }
  EXPECT_TRUE(IsError(MatchesName(std::string(5000, 'a'), "a"), kInvalid, "got 5000"));
  EXPECT_TRUE(IsError(MatchesName("re:" + std::string(4000, '('), "a"), kInvalid, "at most 64"));
}

TEST(MatchesNameTest, HostileExpressionsEnd) {
  const std::string name(2000, 'a');
  const auto begin = std::chrono::steady_clock::now();
  for (const char* pattern : {"re:(a*)*b", "re:(a|a)*b", "re:(a|aa)+$b"}) {
    EXPECT_FALSE(Matches(pattern, name.substr(0, 500))) << pattern;
  }
  for (const char* pattern : {"re:((((a{0,1000}){0,1000}){0,1000}){0,1000})b",
                              "re:(?=.*(?=.*(?=.*(?=.*b))))a*", "re:((a?){1000}){1000}b"}) {
    const absl::StatusOr<bool> matches = MatchesName(pattern, name);
    if (matches.ok()) {
      EXPECT_FALSE(*matches);
    } else {
      EXPECT_TRUE(IsError(matches, kInvalid, "easier to match"));
    }
  }
  std::string globs;
  for (int i = 0; i < 2000; ++i) globs += "*a";
  EXPECT_FALSE(Matches(globs + "b", name));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

}  // namespace
}  // namespace nibble
