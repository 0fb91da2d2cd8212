#include "kernels/tuning/tunable_op.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;

constexpr char kBuildOfOp[] = "0123456789abcdef";

struct TwoFields {
  int warps;
  int vector;

  static constexpr ConfigField<TwoFields> kFields[] = {{"warps", &TwoFields::warps},
                                                       {"vector", &TwoFields::vector}};
};

TunableOp Op() {
  return {.name = "op",
          .build_id = kBuildOfOp,
          .configs = {"warps=4", "warps=8", "warps=2"},
          .dtypes = {DType::kBf16, DType::kF32}};
}

TuningStore Store(std::initializer_list<std::pair<int, std::string_view>> picks) {
  TuningStore store;
  for (const auto& [bucket, config] : picks) {
    EXPECT_TRUE(store.Put({"device", "op", kBuildOfOp, DType::kBf16, bucket}, config).ok());
  }
  return store;
}

TEST(DescribeConfigsTest, NamesEveryField) {
  constexpr TwoFields kConfigs[] = {{4, 1}, {8, -2}};
  EXPECT_THAT(DescribeConfigs(kConfigs), ElementsAre("warps=4 vector=1", "warps=8 vector=-2"));
}

TEST(ConfigPicksTest, FindsTheConfigByItsValues) {
  const ConfigPicks picks(Op(), "device", Store({{4, "warps=2"}, {8, "warps=8"}, {9, "warps=4"}}));
  EXPECT_EQ(picks(DType::kBf16, 0), 2);
  EXPECT_EQ(picks(DType::kBf16, 1 << 4), 2);
  EXPECT_EQ(picks(DType::kBf16, (1 << 9) - 1), 1);
  EXPECT_EQ(picks(DType::kBf16, 1 << 9), 0);
  EXPECT_EQ(picks(DType::kBf16, int64_t{1} << 62), 0);

  TunableOp reordered = Op();
  reordered.configs = {"warps=8", "warps=16", "warps=4", "warps=2"};
  const ConfigPicks same(reordered, "device", Store({{4, "warps=2"}, {8, "warps=8"}}));
  EXPECT_EQ(same(DType::kBf16, 1 << 4), 3);
  EXPECT_EQ(same(DType::kBf16, 1 << 8), 0);
}

TEST(ConfigPicksTest, IsTheDefaultWhereNoPickHolds) {
  const TuningStore store = Store({{4, "warps=2"}});
  EXPECT_EQ(ConfigPicks(Op(), "device", TuningStore())(DType::kBf16, 16), 0);
  EXPECT_EQ(ConfigPicks(Op(), "device", store)(DType::kF32, 16), 0);
  EXPECT_EQ(ConfigPicks(Op(), "another", store)(DType::kBf16, 16), 0);
  EXPECT_EQ(ConfigPicks(Op(), "device", Store({{4, "warps=64"}}))(DType::kBf16, 16), 0);
  TunableOp changed = Op();
  changed.build_id = "fedcba9876543210";
  EXPECT_EQ(ConfigPicks(changed, "device", store)(DType::kBf16, 16), 0);
  TunableOp renamed = Op();
  renamed.name = "other";
  EXPECT_EQ(ConfigPicks(renamed, "device", store)(DType::kBf16, 16), 0);
  EXPECT_EQ(ConfigPicks(Op(), "device", store)(DType::kBf16, 16), 2);
}

}  // namespace
}  // namespace nibble
