// The tokenizers against the libraries that they stand for, id for id.
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/text.h"
#include "gtest/gtest.h"
#include "model/text/pattern.h"
#include "model/text/tokenizer.h"
#include "model/text/unicode.h"
#include "tests/testing/token_ids.h"

namespace nibble {
namespace {

using ::nibble::testing::SameIds;
using ::nibble::testing::TokenizerGoldens;

TEST(TokenizerGoldenTest, EveryKindGivesTheLibrariesIds) {
  const TokenizerGoldens goldens;
  ASSERT_GE(goldens.strings().size(), 200u);
  const std::vector<std::string> kinds = goldens.Kinds();
  ASSERT_GE(kinds.size(), 20u);
  for (const std::string& kind : kinds) {
    SCOPED_TRACE(kind);
    const auto tokenizer = ReadTokenizer(goldens.Folder(kind));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const auto expected = goldens.Ids(kind);
    ASSERT_EQ(expected.size(), goldens.strings().size());
    for (size_t i = 0; i < expected.size(); ++i) {
      std::vector<uint32_t> ids;
      const absl::Status status = (*tokenizer)->Encode(goldens.strings()[i], ids);
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_TRUE(SameIds(expected[i], ids)) << i << ": " << Printable(goldens.strings()[i]);
      for (const uint32_t id : ids) ASSERT_LT(id, (*tokenizer)->vocabulary());
    }
  }
}

// For every code point whether \p{..}, \s and \w match it.
TEST(TokenizerGoldenTest, PatternsSeeTheLibrarysCategories) {
  std::ifstream file(NIBBLE_SOURCE_DIR "/tests/golden/tokenizers/categories.txt");
  std::string all;
  for (uint32_t code = 1; code < 0x110000; ++code) {
    if (code < 0xD800 || code >= 0xE000) AppendUtf8(code, all);
  }
  int names = 0;
  for (std::string line; std::getline(file, line); ++names) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    SCOPED_TRACE(name);
    std::set<uint32_t> expected;
    for (std::string range; words >> range;) {
      char* end;
      const auto first = static_cast<uint32_t>(std::strtoul(range.c_str(), &end, 16));
      const auto last =
          *end == '-' ? static_cast<uint32_t>(std::strtoul(end + 1, nullptr, 16)) : first;
      for (uint32_t code = first; code <= last; ++code) expected.insert(code);
    }
    const auto pattern = Pattern::Compile(name == "space"  ? R"(\s)"
                                          : name == "word" ? R"(\w)"
                                                           : absl::StrCat("\\p{", name, "}"));
    ASSERT_TRUE(pattern.ok()) << pattern.status();
    std::set<uint32_t> matching;
    const absl::Status status = pattern->ForEach(all, [&](size_t begin, size_t end, bool matches) {
      for (size_t i = begin; i < end && matches; i += CodePointAt(all, i).bytes) {
        matching.insert(CodePointAt(all, i).code);
      }
    });
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(matching == expected);
    for (const uint32_t code : matching) {
      EXPECT_TRUE(name != "space" || IsSpace(code)) << std::hex << code;
    }
  }
  EXPECT_GE(names, 28);
}

TEST(SameIdsTest, SeesEveryDifference) {
  const std::vector<uint32_t> ids = {1, 2, 3};
  EXPECT_TRUE(SameIds(ids, ids));
  EXPECT_TRUE(SameIds({}, {}));
  EXPECT_FALSE(SameIds(ids, {}));
  EXPECT_FALSE(SameIds({}, ids));
  for (size_t i = 0; i < ids.size(); ++i) {
    std::vector<uint32_t> other = ids;
    other[i] += 65536;
    EXPECT_FALSE(SameIds(ids, other));
    other = ids;
    other.erase(other.begin() + static_cast<std::ptrdiff_t>(i));
    EXPECT_FALSE(SameIds(ids, other));
    EXPECT_FALSE(SameIds(other, ids));
  }
}

}  // namespace
}  // namespace nibble
