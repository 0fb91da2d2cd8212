#include "io/output_folder.h"

#include <sys/xattr.h>

#include <filesystem>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/is_error.h"
#include "tests/testing/temp_dir.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

using ::testing::ElementsAre;
using testing::FileBytes;
using testing::IsError;
using testing::PutFile;
using testing::TempDir;

// Of a result that may be replaced.
constexpr char kOld[] = "{\"quantization_config\": {}}";

class OutputFolderTest : public ::testing::Test {
 protected:
  OutputFolderTest() {
    fs::create_directory(folder_.path("model"));
    PutFile(folder_.path("model/config.json"), "{}");
  }

  OutputFolderRequest Request(bool resume = false, bool overwrite = false) const {
    return {.out = folder_.path("out"),
            .source = folder_.path("model"),
            .identity = {{"recipe", "r"}, {"source", "s"}},
            .resume = resume,
            .overwrite = overwrite};
  }
  // As a run that is killed after a step would leave it.
  void LeavePartial() {
    auto out = OutputFolder::Open(Request());
    ASSERT_TRUE(out.ok()) << out.status();
    PutFile(out->path() + "/shard", "bytes");
    ASSERT_TRUE(out->WriteNote("shard", "note").ok());
  }
  void Finish(OutputFolder& out, const std::string& config = "new") {
    PutFile(out.path() + "/config.json", config);
    out.Keep("config.json");
    const absl::Status status = out.Finish();
    ASSERT_TRUE(status.ok()) << status;
  }

  const TempDir folder_;
};

TEST_F(OutputFolderTest, HasItsNameOnlyWhenComplete) {
  auto out = OutputFolder::Open(Request());
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_THAT(folder_.Names(), ElementsAre("model", "out.partial"));
  PutFile(out->path() + "/leftover", "");
  Finish(*out);
  EXPECT_THAT(folder_.Names(), ElementsAre("model", "out"));
  EXPECT_TRUE(fs::exists(folder_.path("out/config.json")));
  EXPECT_FALSE(fs::exists(folder_.path("out/leftover")));
  EXPECT_FALSE(fs::exists(folder_.path("out/.nibble")));
}

TEST_F(OutputFolderTest, RefusesAPartialResultUnlessToldWhatToDo) {
  LeavePartial();
  EXPECT_TRUE(IsError(OutputFolder::Open(Request()), absl::StatusCode::kInvalidArgument,
                      "--resume goes on with it"));
  EXPECT_EQ(FileBytes(folder_.path("out.partial/shard")), "bytes");
}

TEST_F(OutputFolderTest, ResumesWithItsNotes) {
  LeavePartial();
  auto out = OutputFolder::Open(Request(/*resume=*/true));
  ASSERT_TRUE(out.ok()) << out.status();
  const auto note = out->ReadNote("shard");
  ASSERT_TRUE(note.ok());
  EXPECT_EQ(*note, "note");
  const auto none = out->ReadNote("another");
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->has_value());
  out->Keep("shard");
  Finish(*out);
  EXPECT_EQ(FileBytes(folder_.path("out/shard")), "bytes");
}

TEST_F(OutputFolderTest, ResumingNothingBegins) {
  EXPECT_TRUE(OutputFolder::Open(Request(/*resume=*/true)).ok());
}

TEST_F(OutputFolderTest, RefusesToResumeWhatWasMadeFromSomethingElse) {
  LeavePartial();
  OutputFolderRequest request = Request(/*resume=*/true);
  request.identity["recipe"] = "another";
  EXPECT_TRUE(IsError(OutputFolder::Open(request), absl::StatusCode::kFailedPrecondition,
                      "expected the recipe that"));
  PutFile(folder_.path("out.partial/.nibble/run.json"), "nonsense");
  EXPECT_TRUE(IsError(OutputFolder::Open(Request(true)), absl::StatusCode::kDataLoss, "run.json"));
}

TEST_F(OutputFolderTest, OverwriteDropsAPartialResult) {
  LeavePartial();
  auto out = OutputFolder::Open(Request(false, /*overwrite=*/true));
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_FALSE(fs::exists(folder_.path("out.partial/shard")));
  EXPECT_FALSE((*out->ReadNote("shard")).has_value());
}

TEST_F(OutputFolderTest, ReplacesAResultOnlyWhenAskedAndComplete) {
  fs::create_directory(folder_.path("out"));
  PutFile(folder_.path("out/config.json"), kOld);
  EXPECT_TRUE(IsError(OutputFolder::Open(Request()), absl::StatusCode::kInvalidArgument,
                      "--overwrite replaces it"));
  auto out = OutputFolder::Open(Request(false, /*overwrite=*/true));
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_EQ(FileBytes(folder_.path("out/config.json")), kOld);
  Finish(*out);
  EXPECT_EQ(FileBytes(folder_.path("out/config.json")), "new");
  EXPECT_THAT(folder_.Names(), ElementsAre("model", "out"));
}

TEST_F(OutputFolderTest, FinishesAfterAKillBetweenNamingAndCleaning) {
  LeavePartial();
  fs::rename(folder_.path("out.partial"), folder_.path("out"));
  // What the result replaced.
  fs::create_directory(folder_.path("out.partial"));
  PutFile(folder_.path("out.partial/config.json"), kOld);
  auto out = OutputFolder::Open(Request(/*resume=*/true));
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_TRUE(out->complete());
  ASSERT_TRUE(out->Finish().ok());
  EXPECT_THAT(folder_.Names(), ElementsAre("model", "out"));
  EXPECT_EQ(FileBytes(folder_.path("out/shard")), "bytes");
  EXPECT_FALSE(fs::exists(folder_.path("out/.nibble")));
}

TEST_F(OutputFolderTest, AFinishedResultIsLeftAlone) {
  {
    auto out = OutputFolder::Open(Request());
    ASSERT_TRUE(out.ok()) << out.status();
    Finish(*out);
  }
  const std::string path = folder_.path("out");
  if (getxattr(path.c_str(), "user.nibble.finished", nullptr, 0) < 0) {
    GTEST_SKIP() << "no attributes on this file system";
  }
  const auto time = fs::last_write_time(path);
  auto again = OutputFolder::Open(Request(/*resume=*/true));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->finished());
  EXPECT_TRUE(again->Finish().ok());
  EXPECT_EQ(fs::last_write_time(path), time);
  EXPECT_THAT(folder_.Names(), ElementsAre("model", "out"));
  // Without --resume it is in the way, as ever.
  EXPECT_TRUE(IsError(OutputFolder::Open(Request()), absl::StatusCode::kInvalidArgument,
                      "--overwrite replaces it"));
  OutputFolderRequest other = Request(/*resume=*/true);
  other.identity["source"] = "another";
  EXPECT_TRUE(IsError(OutputFolder::Open(other), absl::StatusCode::kFailedPrecondition,
                      "expected the source that"));
  PutFile(path + "/config.json", "edited");
  EXPECT_TRUE(IsError(OutputFolder::Open(Request(true)), absl::StatusCode::kFailedPrecondition,
                      "as they were when it was finished"));
  // One that nobody marked is refused, too.
  fs::remove_all(path);
  fs::create_directory(path);
  PutFile(path + "/config.json", kOld);
  EXPECT_TRUE(IsError(OutputFolder::Open(Request(true)), absl::StatusCode::kInvalidArgument,
                      "--overwrite replaces it"));
}

TEST_F(OutputFolderTest, OneRunAtATime) {
  auto out = OutputFolder::Open(Request());
  ASSERT_TRUE(out.ok());
  EXPECT_TRUE(IsError(OutputFolder::Open(Request(/*resume=*/true)), absl::StatusCode::kUnavailable,
                      "no other run"));
}

TEST_F(OutputFolderTest, NeverTouchesTheSourceOrWhatIsNoResult) {
  const auto refused = [&](const std::string& out, bool overwrite, std::string_view piece) {
    OutputFolderRequest request = Request(false, overwrite);
    request.out = out;
    return IsError(OutputFolder::Open(request), absl::StatusCode::kInvalidArgument, piece);
  };
  EXPECT_TRUE(refused(folder_.path("model"), true, "never touched"));
  EXPECT_TRUE(refused(folder_.path("model/"), true, "never touched"));
  EXPECT_TRUE(refused(folder_.path("model/out"), true, "never touched"));
  EXPECT_TRUE(refused(folder_.path(), true, "never touched"));
  EXPECT_TRUE(refused("", false, "expected a folder"));
  fs::create_directory_symlink(folder_.path("model"), folder_.path("link"));
  EXPECT_TRUE(refused(folder_.path("link"), true, "never touched"));
  PutFile(folder_.path("file"), "");
  EXPECT_TRUE(refused(folder_.path("file"), true, "a name that is free"));
  fs::create_directory(folder_.path("documents"));
  PutFile(folder_.path("documents/thesis"), "");
  EXPECT_TRUE(refused(folder_.path("documents"), true, "a quantized model"));
  PutFile(folder_.path("documents/config.json"), "{}");
  EXPECT_TRUE(refused(folder_.path("documents"), true, "a quantized model"));
  fs::create_directory(folder_.path("out.partial"));
  PutFile(folder_.path("out.partial/thesis"), "");
  EXPECT_TRUE(refused(folder_.path("out"), true, "neither"));
}

TEST_F(OutputFolderTest, CopiesFiles) {
  PutFile(folder_.path("a"), "some bytes");
  ASSERT_TRUE(CopyFile(folder_.path("a"), folder_.path("x/y/b")).ok());
  EXPECT_EQ(FileBytes(folder_.path("x/y/b")), "some bytes");
  EXPECT_TRUE(IsError(CopyFile(folder_.path("missing"), folder_.path("c")),
                      absl::StatusCode::kNotFound, "missing"));
}

TEST_F(OutputFolderTest, SeesAFullDiskBeforehand) {
  EXPECT_TRUE(CheckSpace(folder_.path("not/yet/made"), 1).ok());
  EXPECT_TRUE(IsError(CheckSpace(folder_.path("not/yet/made"), uint64_t{1} << 62),
                      absl::StatusCode::kResourceExhausted, "expected room for"));
}

}  // namespace
}  // namespace nibble
