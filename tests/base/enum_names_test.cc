#include "base/enum_names.h"

#include <set>
#include <string>
#include <string_view>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "quant/quantize_params.h"

namespace nibble {

enum class One { kOnly };
enum class Two { kFirst, kSecond };
enum class Three { kRed, kGreen, kBlue };
template <>
inline constexpr std::array<std::string_view, 1> kEnumNames<One> = {"only"};
template <>
inline constexpr std::array<std::string_view, 2> kEnumNames<Two> = {"first", "second"};
template <>
inline constexpr std::array<std::string_view, 3> kEnumNames<Three> = {"red", "green", "blue"};

namespace {

static_assert(NameOf(Three::kBlue) == "blue");
static_assert(FromName<Three>("green") == Three::kGreen);

TEST(EnumNamesTest, ListsNamesAsWords) {
  EXPECT_EQ(NamesOf<One>(), "only");
  EXPECT_EQ(NamesOf<Two>(), "first or second");
  EXPECT_EQ(NamesOf<Three>(), "red, green or blue");
}

TEST(EnumNamesTest, KnowsOnlyWholeNames) {
  for (std::string_view name : {"", "re", "redd", "Red", " red", "red, green or blue"}) {
    EXPECT_EQ(FromName<Three>(name), std::nullopt) << name;
  }
}

template <typename Enum>
class EnumTableTest : public ::testing::Test {};
using Enums =
    ::testing::Types<Scheme, Rule, Rht, ErrorMetric, ErrorPath, SweepMethod, Distribution>;
TYPED_TEST_SUITE(EnumTableTest, Enums);

TYPED_TEST(EnumTableTest, RoundTrips) {
  std::set<std::string_view> names;
  for (size_t i = 0; i < kEnumNames<TypeParam>.size(); ++i) {
    const TypeParam value = static_cast<TypeParam>(i);
    EXPECT_EQ(FromName<TypeParam>(NameOf(value)), value) << i;
    EXPECT_FALSE(NameOf(value).empty()) << i;
    EXPECT_TRUE(names.insert(NameOf(value)).second) << NameOf(value);
  }
  EXPECT_FALSE(names.empty());
}

// The words that files and the command line use, by enumerator.
TEST(EnumNamesTest, HasTheWordsOfTheContract) {
  EXPECT_EQ(NameOf(Scheme::kPerTensor), "per_tensor");
  EXPECT_EQ(NameOf(Scheme::kPerToken), "per_token");
  EXPECT_EQ(NameOf(Scheme::kTile2d), "tile_2d");
  EXPECT_EQ(NameOf(Rule::kRuntime), "runtime");
  EXPECT_EQ(NameOf(Rule::kCheckpoint), "checkpoint");
  EXPECT_EQ(NameOf(ErrorMetric::kMae), "mae");
  EXPECT_EQ(NameOf(ErrorMetric::kMse), "mse");
  EXPECT_EQ(NameOf(ErrorMetric::kAbsMax), "abs_max");
  EXPECT_EQ(NameOf(ErrorPath::kStrict), "strict");
  EXPECT_EQ(NameOf(ErrorPath::kFast), "fast");
  EXPECT_EQ(NameOf(SweepMethod::kExhaustive), "exhaustive");
  EXPECT_EQ(NameOf(SweepMethod::kPruned), "pruned");
  EXPECT_EQ(NameOf(Distribution::kWeightLike), "weight_like");
}

}  // namespace
}  // namespace nibble
