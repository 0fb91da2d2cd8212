// `nibble tune` on a made-up device, and the files that it keeps picks in.
#include "engine/tune.h"

#include <stdlib.h>

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/is_error.h"
#include "tests/testing/temp_dir.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using ::nibble::testing::FileBytes;
using ::nibble::testing::IsError;
using ::nibble::testing::PutFile;
using ::nibble::testing::TempDir;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr char kBuild[] = "0123456789abcdef", kOldBuild[] = "fedcba9876543210";

// "alpha" likes 8 warps where there are more than 2^10 blocks, "beta" its default.
class FakeDevice : public TuningDevice {
 public:
  std::string name() const override { return "Fake 1"; }
  const std::vector<TunableOp>& ops() const override { return ops_; }

  absl::StatusOr<MeasureCandidate> Prepare(const TunableOp& op, const TuningTrial& trial) override {
    EXPECT_FALSE(trial.sample.empty());
    EXPECT_EQ(trial.sample.size() % DTypeBytes(trial.dtype), 0u);
    const int64_t blocks = trial.rows * trial.cols / 16;
    if (blocks > most_blocks) return absl::ResourceExhaustedError("allocation: too large");
    return [this, &op, blocks](int candidate, int) -> absl::StatusOr<double> {
      ++measurements;
      const std::string& config = op.configs[candidate];
      if (fails.contains(config)) return fails.at(config);
      const double cost = static_cast<double>(blocks) * 1e-6;
      return op.name == "alpha" && config == "warps=8" && blocks > 1024 ? 0.5 * cost : cost;
    };
  }

  int64_t most_blocks = int64_t{1} << 40;
  std::map<std::string, absl::Status> fails;  // by config
  int measurements = 0;

 private:
  const std::vector<TunableOp> ops_ = {
      {"alpha", kBuild, {"warps=4", "warps=8", "warps=2"}, {DType::kBf16, DType::kF32}},
      {"beta", kBuild, {"vector=1", "vector=2"}, {DType::kF16}}};
};

TuneRequest Request(std::vector<std::string> ops = {}) {
  return {.ops = std::move(ops), .shapes = {{16, 1024}, {4096, 1024}}};
}

TuningKey Key(std::string op, DType dtype, int bucket, std::string build_id = kBuild) {
  return {"Fake 1", std::move(op), std::move(build_id), dtype, bucket};
}

// --- Measuring ----------------------------------------------------------------------------------

TEST(TuneTest, PicksForEachOperationTypeAndShape) {
  FakeDevice device;
  std::vector<std::string> progress;
  const auto result = Tune(device, Request(), [&](const TuneRow& row, size_t number, size_t of) {
    progress.push_back(absl::StrCat(number, "/", of, " ", row.op, " ", row.shape.rows));
  });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->picks.picks(),
              ElementsAre(std::pair(Key("alpha", DType::kBf16, 10), "warps=4"),
                          std::pair(Key("alpha", DType::kBf16, 18), "warps=8"),
                          std::pair(Key("alpha", DType::kF32, 10), "warps=4"),
                          std::pair(Key("alpha", DType::kF32, 18), "warps=8"),
                          std::pair(Key("beta", DType::kF16, 10), "vector=1"),
                          std::pair(Key("beta", DType::kF16, 18), "vector=1")));
  EXPECT_THAT(progress, ElementsAre("1/6 alpha 16", "2/6 alpha 4096", "3/6 alpha 16",
                                    "4/6 alpha 4096", "5/6 beta 16", "6/6 beta 4096"));
  ASSERT_EQ(result->rows.size(), 6u);
  const TuneRow& row = result->rows[1];
  EXPECT_EQ(row.default_config, "warps=4");
  EXPECT_EQ(row.best_config, "warps=8");
  EXPECT_DOUBLE_EQ(row.best_ms, 0.5 * row.default_ms);
  EXPECT_THAT(row.dropped, IsEmpty());
}

TEST(TuneTest, MeasuresOnlyWhatIsAsked) {
  FakeDevice device;
  const auto result = Tune(device, Request({"beta"}));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->rows.size(), 2u);
  EXPECT_EQ(result->picks.picks().begin()->first.op, "beta");
}

TEST(TuneTest, TheDefaultShapesAreFit) {
  FakeDevice device;
  EXPECT_TRUE(CheckTuneRequest({}, device.ops()).ok());
}

TEST(TuneTest, SaysWhatDoesNotFitAndGoesOn) {
  FakeDevice device;
  device.most_blocks = 1024;
  const auto result = Tune(device, Request());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->picks.picks().size(), 3u);
  EXPECT_TRUE(result->rows[0].status.ok());
  EXPECT_TRUE(IsError(result->rows[1].status, absl::StatusCode::kResourceExhausted, "too large"));
  device.most_blocks = 1;
  EXPECT_TRUE(IsError(Tune(device, Request()), absl::StatusCode::kResourceExhausted, "too large"));
}

TEST(TuneTest, SaysWhichConfigsFail) {
  FakeDevice device;
  device.fails = {{"warps=8", absl::UnknownError("too many registers")}};
  const auto result = Tune(device, Request());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->rows[1].best_config, "warps=4");
  EXPECT_THAT(result->rows[1].dropped, ElementsAre("warps=8: too many registers"));
  device.fails = {{"vector=1", absl::UnknownError("no")}, {"vector=2", absl::UnknownError("no")}};
  const auto partly = Tune(device, Request());
  ASSERT_TRUE(partly.ok()) << partly.status();
  EXPECT_EQ(partly->picks.picks().size(), 4u);
  EXPECT_TRUE(IsError(partly->rows[5].status, absl::StatusCode::kUnknown, "no"));
}

TEST(TuneTest, RefusesWrongRequestsBeforeItMeasures) {
  FakeDevice device;
  EXPECT_TRUE(IsError(Tune(device, Request({"alpha", "gamma"})), absl::StatusCode::kInvalidArgument,
                      "ops: expected some of alpha, beta, got \"gamma\""));
  EXPECT_TRUE(IsError(Tune(device, {.shapes = {{16, 1024}, {17, 1024}}}),
                      absl::StatusCode::kInvalidArgument, "got 16x1024 and 17x1024 from 2^10 on"));
  EXPECT_EQ(device.measurements, 0);
}

TEST(ParseTuneShapeTest, TakesRowsAndColumns) {
  const auto shape = ParseTuneShape("3x4096");
  ASSERT_TRUE(shape.ok());
  EXPECT_EQ(shape->rows, 3);
  EXPECT_EQ(shape->cols, 4096);
  EXPECT_TRUE(ParseTuneShape("17592186044416x16").ok());
  for (const char* text :
       {"", "x", "16", "16x", "x16", "0x16", "-1x16", "1x0", "1x8", "1x-16", "1x16x16", "1X16",
        "4611686018427387904x32", "288230376151711744x16", "281474976710656x16", "1e3x16"}) {
    EXPECT_TRUE(
        IsError(ParseTuneShape(text), absl::StatusCode::kInvalidArgument, "shape: expected"))
        << text;
  }
}

// --- Files --------------------------------------------------------------------------------------

class TuningFileTest : public ::testing::Test {
 protected:
  TuningStore Store(const std::vector<std::pair<TuningKey, std::string>>& picks) {
    TuningStore store;
    for (const auto& [key, config] : picks) EXPECT_TRUE(store.Put(key, config).ok());
    return store;
  }

  TempDir folder_;
  const std::string path_ = folder_.path("cache/nibble/tuning");
};

TEST_F(TuningFileTest, IsMadeWithItsFolder) {
  EXPECT_TRUE(CheckTuningFile(path_).ok());
  EXPECT_THAT(folder_.Names(), IsEmpty());
  const TuningStore store = Store({{Key("alpha", DType::kBf16, 10), "warps=4"}});
  const absl::Status status = SaveTuning(path_, store);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(FileBytes(path_), store.Format());
  EXPECT_EQ(LoadTuning(path_)->picks(), store.picks());
  EXPECT_TRUE(CheckTuningFile(path_).ok());
  EXPECT_EQ(FileBytes(path_), store.Format());
}

TEST_F(TuningFileTest, KeepsWhatItHadButForStalePicks) {
  TuningKey elsewhere = Key("alpha", DType::kBf16, 10, kOldBuild);
  elsewhere.device = "Fake 2";
  ASSERT_TRUE(SaveTuning(path_, Store({{Key("alpha", DType::kBf16, 10, kOldBuild), "warps=1"},
                                       {Key("alpha", DType::kF32, 12, kOldBuild), "warps=1"},
                                       {Key("beta", DType::kF16, 10, kOldBuild), "vector=1"},
                                       {elsewhere, "warps=2"}}))
                  .ok());
  ASSERT_TRUE(SaveTuning(path_, Store({{Key("alpha", DType::kBf16, 11), "warps=3"}})).ok());
  ASSERT_TRUE(SaveTuning(path_, Store({{Key("alpha", DType::kBf16, 10), "warps=4"},
                                       {Key("alpha", DType::kBf16, 11), "warps=5"}}))
                  .ok());
  EXPECT_THAT(LoadTuning(path_)->picks(),
              ElementsAre(std::pair(Key("alpha", DType::kBf16, 10), "warps=4"),
                          std::pair(Key("alpha", DType::kBf16, 11), "warps=5"),
                          std::pair(Key("beta", DType::kF16, 10, kOldBuild), "vector=1"),
                          std::pair(elsewhere, "warps=2")));
}

TEST_F(TuningFileTest, IsEmptyWhereThereIsNone) {
  EXPECT_TRUE(LoadTuning("")->picks().empty());
  EXPECT_TRUE(LoadTuning(path_)->picks().empty());
}

TEST_F(TuningFileTest, IsLeftAloneWhereItCannotBeRead) {
  const std::string path = folder_.path("tuning");
  const TuningStore store = Store({{Key("alpha", DType::kBf16, 10), "warps=4"}});
  for (const std::string& text : {std::string("garbage"), std::string("nibble tuning 1\nx\n"),
                                  std::string((1 << 20) + 1, '#')}) {
    PutFile(path, text);
    for (const absl::Status& status :
         {LoadTuning(path).status(), CheckTuningFile(path), SaveTuning(path, store)}) {
      EXPECT_TRUE(IsError(status, absl::StatusCode::kDataLoss, path));
    }
    EXPECT_EQ(FileBytes(path), text);
  }
  EXPECT_THAT(folder_.Names(), ElementsAre("tuning"));
}

TEST_F(TuningFileTest, MustBeWritable) {
  for (const char* path : {"/proc/tuning", "/dev/null"}) {
    EXPECT_FALSE(SaveTuning(path, {}).ok()) << path;
  }
  EXPECT_FALSE(CheckTuningFile("/dev/null").ok());
  EXPECT_FALSE(CheckTuningFile(folder_.path()).ok());
}

TEST(UserTuningPathTest, FollowsTheEnvironment) {
  const auto path = [](const char* store, const char* cache, const char* home) {
    for (const auto& [name, value] :
         {std::pair("NIBBLE_TUNING_STORE", store), std::pair("XDG_CACHE_HOME", cache),
          std::pair("HOME", home)}) {
      value == nullptr ? unsetenv(name) : setenv(name, value, 1);
    }
    return UserTuningPath();
  };
  EXPECT_EQ(path("/s", "/c", "/h"), "/s");
  EXPECT_EQ(path("", "/c", "/h"), "/c/nibble/tuning");
  EXPECT_EQ(path(nullptr, "", "/h"), "/h/.cache/nibble/tuning");
  EXPECT_EQ(path(nullptr, "relative", "/h"), "/h/.cache/nibble/tuning");
  EXPECT_EQ(path(nullptr, nullptr, "/h"), "/h/.cache/nibble/tuning");
  EXPECT_EQ(path(nullptr, nullptr, ""), "");
  EXPECT_EQ(path(nullptr, nullptr, nullptr), "");
}

}  // namespace
}  // namespace nibble
