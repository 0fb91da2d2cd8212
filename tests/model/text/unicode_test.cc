#include "model/text/unicode.h"

#include <string>
#include <string_view>

#include "gtest/gtest.h"
#include "tests/testing/is_error.h"

namespace nibble {
namespace {

using ::nibble::testing::IsError;

TEST(UnicodeTest, WritesAndReadsEveryCodePoint) {
  std::string all;
  for (uint32_t code = 0; code < 0x110000; ++code) {
    if (code >= 0xD800 && code < 0xE000) continue;
    std::string one;
    AppendUtf8(code, one);
    ASSERT_EQ(FindInvalidUtf8(one), one.size());
    ASSERT_EQ(CodePointAt(one, 0).code, code);
    ASSERT_EQ(CodePointAt(one, 0).bytes, one.size());
    ASSERT_EQ(CodePointBefore("x" + one, one.size() + 1).code, code);
    all += one;
  }
  EXPECT_EQ(FindInvalidUtf8(all), all.size());
}

TEST(UnicodeTest, FindsWhatIsNotUtf8) {
  for (const std::string_view bad :
       {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc3", "\xc3(", "\xe0\x9f\xbf", "\xe2\x82",
        "\xe2(\xa1", "\xe2\x82(", "\xed\xa0\x80", "\xed\xbf\xbf", "\xf0\x8f\xbf\xbf",
        "\xf0\x90\x8d", "\xf0\x28\x8c\xbc", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xfe",
        "\xff"}) {
    EXPECT_EQ(FindInvalidUtf8(std::string("\u00e9a") + std::string(bad) + "b"), 3u) << bad;
  }
}

TEST(UnicodeTest, SaysWhereTextIsBad) {
  EXPECT_TRUE(CheckText("").ok());
  EXPECT_TRUE(CheckText("a\u00e9\n\U0001f600").ok());
  EXPECT_TRUE(IsError(CheckText("a\nbc\xff\n\xff"), absl::StatusCode::kFailedPrecondition,
                      "line 2, byte 3: expected text in UTF-8, got the byte 0xff"));
  const std::string_view zero("a\n\0\xff", 4);
  EXPECT_TRUE(IsError(CheckText(zero, 7), absl::StatusCode::kFailedPrecondition,
                      "line 8, byte 1: expected text in UTF-8, got the byte 0x00"));
  EXPECT_TRUE(IsError(CheckUtf8(zero), absl::StatusCode::kFailedPrecondition, "line 2, byte 2"));
}

// As the tokenizers library normalizes; see tests/python/make_unicode_tables.py.
TEST(UnicodeTest, NormalizesAsUnicode9Does) {
  EXPECT_EQ(Nfc("e\u0301\u0323 \u212b \u1100\u1161\u11a8"), "\u1eb9\u0301 \u00c5 \uac01");
  EXPECT_EQ(Nfc("a\u0301b"), "\u00e1b");
  EXPECT_EQ(Nfc("\u0344\u0958"), "\u0308\u0301\u0915\u093c");
  EXPECT_EQ(Nfc("ASCII \u00ff"), "ASCII \u00ff");
  // U+0898 came with Unicode 14, U+1DF6 with 10, U+0897 with 16; U+11938 composes since 13.
  EXPECT_EQ(Nfc("a\u0898\u0323\u0301"), "a\u0898\u0323\u0301");
  EXPECT_EQ(Nfc("a\u1df6\u0323\u0301"), "a\u1df6\u0323\u0301");
  EXPECT_EQ(Nfc("a\u0301\u0897e\u0301"), "\u00e1\u0897\u00e9");
  EXPECT_EQ(Nfc("\U00011935\U00011930"), "\U00011935\U00011930");
  EXPECT_EQ(Nfc(""), "");
}

TEST(UnicodeTest, KnowsSpacesAndWordCharacters) {
  for (const uint32_t code : {0x20u, 0x0Bu, 0x85u, 0xA0u, 0x1680u, 0x200Au, 0x3000u}) {
    EXPECT_TRUE(IsSpace(code)) << code;
    EXPECT_FALSE(IsWordCharacter(code)) << code;
  }
  for (const uint32_t code : {0x1Cu, 0x180Eu, 0x200Bu, 0xFEFFu})
    EXPECT_FALSE(IsSpace(code)) << code;
  for (const uint32_t code : {0x61u, 0x39u, 0x5Fu, 0xE9u, 0x301u, 0x200Du, 0x24B6u, 0x2160u,
                              0x203Fu, 0x5B57u, 0x105C0u}) {
    EXPECT_TRUE(IsWordCharacter(code)) << code;
  }
  for (const uint32_t code : {0x2Du, 0xB2u, 0x2460u, 0x1F600u, 0x378u}) {
    EXPECT_FALSE(IsWordCharacter(code)) << code;
  }
}

TEST(UnicodeTest, StandInsTakeAsManyBytes) {
  EXPECT_EQ(WithStandIns("a\u00e9\u5b57\U0001f600"), "");
  const std::string text = "\u180e\U000105c0a\U00031350\u0897";
  const std::string other = WithStandIns(text);
  EXPECT_EQ(other, "\u200b\U00010450a\U00020000\ua802");
  EXPECT_EQ(other.size(), text.size());
}

}  // namespace
}  // namespace nibble
