// No GPU is needed: shapes are chosen from what the operations offer.
#include "engine/tuning_choice.h"

#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include "kernels/cuda/tunable_ops.h"
#include "tests/testing/is_error.h"
#include "tests/testing/temp_dir.h"

namespace nibble {
namespace {

using ::nibble::testing::IsError;
using ::nibble::testing::kInvalid;
using ::nibble::testing::TempDir;

constexpr char kDevice[] = "Some GPU";

std::vector<TunableOp> Ops() {
  const std::vector<DType> bf16 = {DType::kBf16};
  return {{"sweep",
           "0123456789abcdef",
           {"warps=4 blocks_per_thread=1", "warps=4 blocks_per_thread=2",
            "warps=8 blocks_per_thread=1", "warps=8 blocks_per_thread=2"},
           bf16},
          {"amax", "0123456789abcdef", {"warps=8 loads=4", "warps=16 loads=4"}, bf16},
          {"copy", "0123456789abcdef", {"steps=8", "steps=4"}, bf16}};
}

Recipe::Tuning Asked(std::optional<int> blocks_per_program, std::optional<int> warps) {
  Recipe::Tuning tuning;
  tuning.blocks_per_program = blocks_per_program;
  tuning.warps = warps;
  return tuning;
}

// The config that an operation launches.
std::string Config(const std::vector<TunableOp>& ops, size_t op, const TuningStore& store,
                   int64_t blocks = 1000, std::string_view device = kDevice) {
  return ops[op].configs[ConfigPicks(ops[op], device, store)(DType::kBf16, blocks)];
}

TuningStore Choose(const Recipe::Tuning& tuning, const TuningStore& picks = {}) {
  const absl::StatusOr<TuningStore> chosen = ChooseLaunchShapes(tuning, Ops(), kDevice, picks);
  EXPECT_TRUE(chosen.ok()) << chosen.status();
  return chosen.ok() ? *chosen : TuningStore();
}

TEST(ChooseLaunchShapesTest, NothingAskedForLeavesThePicks) {
  TuningStore picks;
  ASSERT_TRUE(picks.Put({kDevice, "sweep", "0123456789abcdef", DType::kBf16, 9}, "x=1").ok());
  EXPECT_EQ(Choose({}, picks).picks(), picks.picks());
  EXPECT_TRUE(Choose({}).picks().empty());
}

TEST(ChooseLaunchShapesTest, TakesTheFirstShapeThatHasTheValues) {
  for (const int64_t blocks : {int64_t{1}, int64_t{1} << 20, int64_t{1} << 62}) {
    TuningStore chosen = Choose(Asked({}, 8));
    EXPECT_EQ(Config(Ops(), 0, chosen, blocks), "warps=8 blocks_per_thread=1");
    EXPECT_EQ(Config(Ops(), 1, chosen, blocks), "warps=8 loads=4");
    EXPECT_EQ(Config(Ops(), 2, chosen, blocks), "steps=8");
    chosen = Choose(Asked(256, {}));
    EXPECT_EQ(Config(Ops(), 0, chosen, blocks), "warps=4 blocks_per_thread=2");
    EXPECT_EQ(Config(Ops(), 1, chosen, blocks), "warps=8 loads=4");  // has no such field
    chosen = Choose(Asked(256, 8));
    EXPECT_EQ(Config(Ops(), 0, chosen, blocks), "warps=8 blocks_per_thread=1");
    EXPECT_EQ(Config(Ops(), 1, chosen, blocks), "warps=8 loads=4");
    // sweep has no shape of 16 warps and keeps its default.
    chosen = Choose(Asked({}, 16));
    EXPECT_EQ(Config(Ops(), 0, chosen, blocks), "warps=4 blocks_per_thread=1");
    EXPECT_EQ(Config(Ops(), 1, chosen, blocks), "warps=16 loads=4");
  }
}

TEST(ChooseLaunchShapesTest, PicksThatHaveTheValuesStay) {
  TuningStore picks;
  const TuningKey key = {kDevice, "sweep", "0123456789abcdef", DType::kBf16, 9};
  ASSERT_TRUE(picks.Put(key, "warps=8 blocks_per_thread=2").ok());
  EXPECT_EQ(Config(Ops(), 0, Choose(Asked({}, 8), picks)), "warps=8 blocks_per_thread=2");
  EXPECT_EQ(Config(Ops(), 0, Choose(Asked({}, 4), picks)), "warps=4 blocks_per_thread=1");
}

TEST(ChooseLaunchShapesTest, OtherDevicesKeepTheirPicks) {
  EXPECT_EQ(Config(Ops(), 0, Choose(Asked({}, 8)), 1000, "Another"), "warps=4 blocks_per_thread=1");
}

TEST(CheckTuningTest, NamesTheValuesThatThereAre) {
  EXPECT_TRUE(CheckTuning({}, Ops()).ok());
  EXPECT_TRUE(IsError(CheckTuning(Asked({}, 5), Ops()), kInvalid,
                      "tuning.warps: expected one of 4, 8, 16, got 5"));
  EXPECT_TRUE(IsError(CheckTuning(Asked(100, {}), Ops()), kInvalid,
                      "tuning.blocks_per_program: expected one of 128, 256, 512, got 100"));
  EXPECT_TRUE(IsError(CheckTuning(Asked(128, 8), Ops()), kInvalid,
                      "tuning.blocks_per_program: expected one of 256, 512 with 8 warps, got 128"));
  EXPECT_TRUE(IsError(CheckTuning(Asked(128, 16), Ops()), kInvalid,
                      "expected one of none with 16 warps, got 128"));
  EXPECT_TRUE(IsError(ChooseLaunchShapes(Asked({}, 5), Ops(), kDevice, {}), kInvalid,
                      "tuning.warps: expected one of"));
}

TEST(CheckTuningTest, TheKernelsOfferBoth) {
  EXPECT_TRUE(CheckTuning(Asked({}, 8), CudaTunableOps()).ok());
  EXPECT_TRUE(CheckTuning(Asked(4096, {}), CudaTunableOps()).ok());
  EXPECT_TRUE(CheckTuning(Asked(1024, 8), CudaTunableOps()).ok());
  EXPECT_TRUE(
      IsError(CheckTuning(Asked({}, 3), CudaTunableOps()), kInvalid, "expected one of 1, 2"));
  const auto chosen = ChooseLaunchShapes(Asked(1024, 8), CudaTunableOps(), "NVIDIA H200", {});
  ASSERT_TRUE(chosen.ok()) << chosen.status();
  const auto configs = CudaConfigPicks("NVIDIA H200", *chosen);
  const auto& op = CudaTunableOps()[static_cast<size_t>(CudaOp::kScaleSweep)];
  const int config = configs[static_cast<size_t>(CudaOp::kScaleSweep)](DType::kBf16, 1 << 21);
  EXPECT_EQ(op.configs[config], "warps=8 blocks_per_thread=4");
}

TEST(LoadPicksTest, TheStoreMustBeThere) {
  const TempDir folder;
  Recipe::Tuning tuning;
  tuning.store = folder.path("picks");
  EXPECT_TRUE(IsError(LoadPicks(tuning), absl::StatusCode::kNotFound, "tuning.store: expected"));
  std::ofstream(tuning.store) << "no picks";
  EXPECT_TRUE(IsError(LoadPicks(tuning), absl::StatusCode::kDataLoss, "tuning.store: "));
  std::ofstream(tuning.store) << TuningStore().Format();
  EXPECT_TRUE(LoadPicks(tuning).ok());
}

TEST(CheckTuningTest, SaysWhereItWasAskedFor) {
  Recipe::Tuning tuning = Asked(std::nullopt, 3);
  EXPECT_TRUE(IsError(CheckTuning(tuning, Ops()), absl::StatusCode::kInvalidArgument,
                      "tuning.warps: expected one of"));
  tuning.place = "r.yaml:2:9";
  EXPECT_TRUE(IsError(CheckTuning(tuning, Ops()), absl::StatusCode::kInvalidArgument,
                      "r.yaml:2:9: tuning.warps: expected one of"));
}

}  // namespace
}  // namespace nibble
