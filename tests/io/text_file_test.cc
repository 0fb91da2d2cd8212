#include "io/text_file.h"

#include <sys/stat.h>

#include <string>

#include "gtest/gtest.h"
#include "tests/testing/is_error.h"
#include "tests/testing/temp_dir.h"

namespace nibble {
namespace {

using ::nibble::testing::IsError;
using ::nibble::testing::PutFile;
using ::nibble::testing::TempDir;

TEST(ReadTextFileTest, ReadsAllOfASmallFile) {
  const TempDir folder;
  const std::string path = folder.path("file");
  for (const std::string& text : {std::string(), std::string("a\n\0b", 4), std::string(100, 'x')}) {
    PutFile(path, text);
    const auto read = ReadTextFile(path, 100);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read, text);
  }
  PutFile(path, std::string(101, 'x'));
  EXPECT_TRUE(IsError(ReadTextFile(path, 100), absl::StatusCode::kDataLoss,
                      "file: expected at most 100 bytes, got more"));
}

TEST(ReadFileStartTest, ReadsNoMoreThanAsked) {
  const TempDir folder;
  const std::string path = folder.path("file");
  PutFile(path, "12345");
  for (const size_t most : {0, 1, 4, 5, 6, 100}) {
    const auto read = ReadFileStart(path, most);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read, std::string("12345").substr(0, most));
  }
  EXPECT_TRUE(
      IsError(ReadFileStart(folder.path("missing"), 1), absl::StatusCode::kNotFound, "missing"));
}

TEST(ReadTextFileTest, RefusesWhatIsNoRegularFile) {
  const TempDir folder;
  const std::string pipe = folder.path("pipe");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_TRUE(
      IsError(ReadTextFile(pipe, 100), absl::StatusCode::kInvalidArgument, "got a named pipe"));
  EXPECT_TRUE(IsError(ReadTextFile(folder.path(), 100), absl::StatusCode::kInvalidArgument,
                      "got a folder"));
  EXPECT_TRUE(
      IsError(ReadTextFile("/dev/zero", 100), absl::StatusCode::kInvalidArgument, "got a device"));
  EXPECT_TRUE(
      IsError(ReadTextFile(folder.path("missing"), 100), absl::StatusCode::kNotFound, "missing"));
}

}  // namespace
}  // namespace nibble
