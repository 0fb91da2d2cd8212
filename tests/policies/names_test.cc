#include "policies/names.h"

#include <algorithm>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;

TEST(ComponentsTest, SplitsAtDots) {
  EXPECT_THAT(Components("a.b.0"), ElementsAre("a", "b", "0"));
  EXPECT_THAT(Components(""), ElementsAre(""));
  EXPECT_THAT(Components(".a.."), ElementsAre("", "a", "", ""));
}

TEST(ComponentNumberTest, TakesPlainNumbersOnly) {
  EXPECT_EQ(ComponentNumber("0"), 0);
  EXPECT_EQ(ComponentNumber("012"), 12);
  EXPECT_EQ(ComponentNumber("999999999"), 999999999);
  for (const char* other :
       {"", "1000000000", "99999999999999999999", "-1", "+1", " 1", "1a", "a"}) {
    EXPECT_EQ(ComponentNumber(other), std::nullopt) << other;
  }
}

TEST(NaturalLessTest, CountsNumbersAsNumbers) {
  const std::vector<std::string> sorted = {"",
                                           "a",
                                           "a.0.w",
                                           "a.2",
                                           "a.2.w",
                                           "a.10.w",
                                           "a.99999999999999999999.w",
                                           "a.100000000000000000000.w",
                                           "a1b10",
                                           "a2b1",
                                           "a10b1",
                                           "b"};
  std::vector<std::string> names = sorted;
  std::ranges::reverse(names);
  std::ranges::sort(names, NaturalLess);
  EXPECT_EQ(names, sorted);
}

TEST(NaturalLessTest, IsATotalOrder) {
  const std::vector<std::string> names = {"a.0", "a.00", "a.1", "a.01", "a.001", "a", "a.", "a.b"};
  for (const std::string& a : names) {
    for (const std::string& b : names) {
      EXPECT_EQ(NaturalLess(a, b) + NaturalLess(b, a), a == b ? 0 : 1) << a << " " << b;
      for (const std::string& c : names) {
        if (NaturalLess(a, b) && NaturalLess(b, c)) {
          EXPECT_TRUE(NaturalLess(a, c)) << a << " " << b << " " << c;
        }
      }
    }
  }
}

std::vector<std::string> Texts(const std::vector<std::string>& names) {
  std::vector<std::string> texts;
  size_t covered = 0;
  for (const FoldedNames& fold : FoldNames(names)) {
    texts.push_back(fold.text);
    covered += fold.names.size();
    EXPECT_TRUE(std::ranges::is_sorted(fold.names));
  }
  EXPECT_EQ(covered, names.size());
  return texts;
}

TEST(FoldNamesTest, MakesRanges) {
  EXPECT_THAT(Texts({"h.0.w", "h.1.w", "h.2.w", "other"}), ElementsAre("h.0-2.w", "other"));
  EXPECT_THAT(Texts({"h.0.w", "h.2.w", "h.3.w", "h.7.w"}), ElementsAre("h.0,2-3,7.w"));
  EXPECT_THAT(Texts({"h.5.w"}), ElementsAre("h.5.w"));
  EXPECT_THAT(Texts({}), ElementsAre());
}

TEST(FoldNamesTest, SaysExactlyItsNames) {
  // All of a product.
  EXPECT_THAT(Texts({"h.0.e.0", "h.0.e.1", "h.1.e.0", "h.1.e.1"}), ElementsAre("h.0-1.e.0-1"));
  // Not quite a product.
  EXPECT_THAT(Texts({"h.0.e.0", "h.0.e.1", "h.1.e.0"}), ElementsAre("h.0.e.0-1", "h.1.e.0"));
  EXPECT_THAT(Texts({"h.0.e.0", "h.0.e.1", "h.1.e.0", "h.2.e.0", "h.2.e.1"}),
              ElementsAre("h.0,2.e.0-1", "h.1.e.0"));
  // Leading zeros are names, not numbers.
  EXPECT_THAT(Texts({"h.0", "h.00", "h.1"}), ElementsAre("h.0-1", "h.00"));
}

}  // namespace
}  // namespace nibble
