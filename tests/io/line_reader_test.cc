#include "io/line_reader.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/is_error.h"
#include "tests/testing/temp_dir.h"

namespace nibble {
namespace {

using ::nibble::testing::IsError;
using ::nibble::testing::PutFile;
using ::nibble::testing::TempDir;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<std::string> LinesOf(const std::string& bytes) {
  const TempDir folder;
  const std::string path = folder.path("file");
  PutFile(path, bytes);
  auto reader = LineReader::Open(path, bytes.size());
  EXPECT_TRUE(reader.ok()) << reader.status();
  std::vector<std::string> lines;
  while (true) {
    const auto line = reader->Next();
    EXPECT_TRUE(line.ok()) << line.status();
    if (!line.ok() || !*line) break;
    lines.emplace_back(**line);
    EXPECT_EQ(reader->number(), static_cast<int64_t>(lines.size()));
  }
  const auto after = reader->Next();
  EXPECT_TRUE(after.ok() && !*after);
  return lines;
}

TEST(LineReaderTest, ReadsLineByLine) {
  EXPECT_THAT(LinesOf(""), IsEmpty());
  EXPECT_THAT(LinesOf("a"), ElementsAre("a"));
  EXPECT_THAT(LinesOf("a\n"), ElementsAre("a"));
  EXPECT_THAT(LinesOf("\n\nab\r\n"), ElementsAre("", "", "ab\r"));
  EXPECT_THAT(LinesOf(std::string("a\0b\nc", 5)), ElementsAre(std::string("a\0b", 3), "c"));
}

TEST(LineReaderTest, ReadsLinesAcrossChunks) {
  std::vector<std::string> lines;
  std::string bytes;
  for (size_t i = 0; i < 40; ++i) {
    lines.emplace_back(i * 7919, static_cast<char>('a' + i % 26));
    bytes += lines.back() + "\n";
  }
  lines.emplace_back((size_t{3} << 20) + 1, 'z');
  bytes += lines.back();
  EXPECT_EQ(LinesOf(bytes), lines);
}

TEST(LineReaderTest, RefusesLinesThatAreTooLongAndWhatIsNoFile) {
  const TempDir folder;
  const std::string path = folder.path("file");
  PutFile(path, "12345\n123456\n1\n");
  auto reader = LineReader::Open(path, 5);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_TRUE(reader->Next().ok());
  EXPECT_TRUE(IsError(reader->Next(), absl::StatusCode::kDataLoss,
                      "file: line 2: expected at most 5 bytes, got more"));
  EXPECT_TRUE(IsError(LineReader::Open(folder.path(), 5).status(),
                      absl::StatusCode::kInvalidArgument, "got a folder"));
  EXPECT_TRUE(IsError(LineReader::Open("/dev/zero", 5).status(), absl::StatusCode::kInvalidArgument,
                      "a device"));
  EXPECT_TRUE(
      IsError(LineReader::Open(folder.path("x"), 5).status(), absl::StatusCode::kNotFound, "x"));
}

}  // namespace
}  // namespace nibble
