#include "policies/nearest_word.h"

#include <string>

#include "gtest/gtest.h"

namespace nibble {
namespace {

constexpr std::string_view kWords[] = {"max", "mse", "local_hessian", "four_over_six"};

TEST(EditDistanceTest, CountsLetters) {
  const struct {
    const char *a, *b;
    int distance;
  } kCases[] = {{"", "", 0},       {"", "abc", 3},           {"abc", "abc", 0},
                {"abc", "abd", 1}, {"abc", "acb", 1},        {"abc", "ab", 1},
                {"ab", "xaby", 2}, {"kitten", "sitting", 3}, {"abcd", "badc", 2}};
  for (const auto& c : kCases) {
    EXPECT_EQ(EditDistance(c.a, c.b), c.distance) << c.a << " " << c.b;
    EXPECT_EQ(EditDistance(c.b, c.a), c.distance) << c.b << " " << c.a;
  }
}

TEST(NearestWordTest, FindsWhatWasMeant) {
  EXPECT_EQ(NearestWord("maxx", kWords), "max");
  EXPECT_EQ(NearestWord("MSE", kWords), "mse");
  EXPECT_EQ(NearestWord("local-hesian", kWords), "local_hessian");
  EXPECT_EQ(NearestWord("four_oversix", kWords), "four_over_six");
  EXPECT_EQ(NearestWord("entropy", kWords), "");
  EXPECT_EQ(NearestWord("", kWords), "");
  EXPECT_EQ(NearestWord(std::string(100'000, 'm'), kWords), "");
  EXPECT_EQ(NearestWord("max", {}), "");
}

TEST(ExpectedWordTest, ListsAndSuggests) {
  EXPECT_EQ(
      ExpectedWord("", kWords, "mxa"),
      "expected max, mse, local_hessian or four_over_six, got \"mxa\"; did you mean \"max\"?");
  EXPECT_EQ(ExpectedWord("the word ", std::span(kWords, 1), "entropy"),
            "expected the word max, got \"entropy\"");
}

}  // namespace
}  // namespace nibble
