#include "model/hidden_states.h"

#include <limits>
#include <string>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "quant/numerics/float_bits.h"
#include "tests/testing/bytes.h"
#include "tests/testing/is_error.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tensors.h"

namespace nibble {
namespace {

using ::nibble::testing::FileBytes;
using ::nibble::testing::IsError;
using ::nibble::testing::PutFile;
using ::nibble::testing::SameBytes;
using ::nibble::testing::TempDir;
using ::nibble::testing::TensorOf;

constexpr int64_t kChannels = 24;
const std::vector<int64_t> kLengths = {7, 1, 12};

std::vector<float> Values() { return SyntheticValues(Distribution::kNormal, 20 * kChannels, 1); }

std::vector<float> All(const HiddenStates& states) {
  std::vector<float> values(states.tokens() * states.channels());
  const absl::Status status = states.Read(0, values);
  EXPECT_TRUE(status.ok()) << status;
  return values;
}

HiddenStates Filled(DType dtype, uint64_t budget) {
  HiddenStates states =
      HiddenStates::Create(kLengths, kChannels, dtype, {.memory_budget = budget}).value();
  const std::vector<float> values = Values();
  // Out of order, and across the end of what is in memory.
  const std::span<const float> all(values);
  EXPECT_TRUE(states.Write(9, all.subspan(9 * kChannels)).ok());
  EXPECT_TRUE(states.Write(0, all.first(9 * kChannels)).ok());
  return states;
}

TEST(HiddenStatesTest, AreTheSameInMemoryAndInAFile) {
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    std::vector<float> expected = Values();
    if (dtype == DType::kBf16) {
      for (float& value : expected) value = FloatFromBf16(Bf16FromFloat(value));
    }
    const uint64_t bytes = 20 * kChannels * DTypeBytes(dtype);
    for (const uint64_t budget : {uint64_t{0}, uint64_t{1}, uint64_t{501}, bytes - 1, bytes,
                                  std::numeric_limits<uint64_t>::max()}) {
      SCOPED_TRACE(budget);
      const HiddenStates states = Filled(dtype, budget);
      EXPECT_EQ(states.memory_bytes(), std::min(bytes, budget));
      EXPECT_TRUE(SameBytes(expected, All(states)));
      std::vector<float> part(2 * kChannels);
      ASSERT_TRUE(states.Read(10, part).ok());
      EXPECT_TRUE(SameBytes(std::span(expected).subspan(10 * kChannels, part.size()),
                            std::span<const float>(part)));
    }
  }
}

TEST(HiddenStatesTest, TheFileHasNoName) {
  const TempDir dir;
  HiddenStates states = HiddenStates::Create(kLengths, kChannels, DType::kF32,
                                             {.memory_budget = 100, .spill_folder = dir.path()})
                            .value();
  ASSERT_TRUE(states.Write(0, Values()).ok());
  EXPECT_TRUE(dir.Names().empty());
  EXPECT_TRUE(SameBytes(Values(), All(states)));
}

TEST(HiddenStatesTest, RefusesWhatCannotBeKept) {
  const auto create = [](std::vector<int64_t> lengths, int64_t channels, DType dtype,
                         const HiddenStatesOptions& options) {
    return HiddenStates::Create(std::move(lengths), channels, dtype, options).status();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_TRUE(IsError(create({3}, 4, DType::kF16, {}), kInvalid, "expected F32 or BF16, got F16"));
  EXPECT_TRUE(IsError(create({3, 0}, 4, DType::kF32, {}), kInvalid, "got 0"));
  EXPECT_TRUE(IsError(create({-3}, 4, DType::kF32, {}), kInvalid, "got -3"));
  EXPECT_TRUE(IsError(create({3}, 0, DType::kF32, {}), kInvalid, "0 channels"));
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  EXPECT_TRUE(IsError(create({kHuge, 1}, 4, DType::kF32, {}), kInvalid, "one token or more"));
  EXPECT_TRUE(IsError(create({kHuge}, 4, DType::kF32, {}), kInvalid, "fits in memory"));
  // More than any disk has, beyond a small budget; no such folder.
  EXPECT_TRUE(IsError(create({int64_t{1} << 50}, 16, DType::kF32, {.memory_budget = 10}),
                      absl::StatusCode::kResourceExhausted, ""));
  EXPECT_FALSE(create({3}, 4, DType::kF32, {.memory_budget = 0, .spill_folder = "/no/such"}).ok());
}

TEST(HiddenStatesTest, SavedOnesGoOn) {
  const TempDir dir;
  const std::string path = dir.path("states.safetensors");
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    HiddenStates states = Filled(dtype, 300);
    states.set_next_layer(17);
    ASSERT_TRUE(states.Save(path, {{"model", "a"}}).ok());
    const HiddenStates loaded =
        HiddenStates::Load(path, {{"model", "a"}}, {.memory_budget = 40}).value();
    EXPECT_EQ(loaded.next_layer(), 17);
    EXPECT_EQ(loaded.lengths(), kLengths);
    EXPECT_EQ(loaded.dtype(), dtype);
    EXPECT_EQ(loaded.memory_bytes(), 40u);
    EXPECT_TRUE(SameBytes(All(states), All(loaded)));
  }
  const auto others = [&](const std::map<std::string, std::string>& identity) {
    return HiddenStates::Load(path, identity);
  };
  constexpr auto kOther = absl::StatusCode::kFailedPrecondition;
  EXPECT_TRUE(IsError(others({{"model", "b"}}), kOther, "the same model"));
  EXPECT_TRUE(IsError(others({}), kOther, "the same model"));
  EXPECT_TRUE(IsError(others({{"model", "a"}, {"data", "c"}}), kOther, "the same data"));
}

TEST(HiddenStatesTest, RefusesDamagedFiles) {
  const TempDir dir;
  const std::string path = dir.path("states.safetensors");
  const testing::Tensor states = TensorOf("states", DType::kF32, {3, 2}, {1, 2, 3, 4, 5, 6});
  testing::Tensor lengths{"lengths", DType::kI64, {1}, std::vector<std::byte>(8)};
  lengths.bytes[0] = std::byte{3};
  const testing::Metadata metadata = {{"nibble_hidden_states", "1"}, {"next_layer", "2"}};
  const auto load = [&](const std::vector<testing::Tensor>& tensors,
                        const testing::Metadata& says) {
    testing::Write(path, tensors, says);
    return HiddenStates::Load(path).status();
  };
  EXPECT_TRUE(load({states, lengths}, metadata).ok());
  constexpr auto kDamaged = absl::StatusCode::kDataLoss;
  EXPECT_TRUE(IsError(load({states, lengths}, {}), kDamaged, "metadata"));
  EXPECT_TRUE(
      IsError(load({states, lengths}, {{"nibble_hidden_states", "1"}, {"next_layer", "-1"}}),
              kDamaged, "layer"));
  EXPECT_TRUE(IsError(load({states}, metadata), kDamaged, "lengths"));
  EXPECT_TRUE(IsError(load({lengths}, metadata), kDamaged, "matrix"));
  lengths.bytes[0] = std::byte{2};
  EXPECT_TRUE(IsError(load({states, lengths}, metadata), kDamaged, "add up"));
  lengths.bytes[7] = std::byte{0xFF};
  EXPECT_TRUE(IsError(load({states, lengths}, metadata), kDamaged, "add up"));
  PutFile(path, FileBytes(path).substr(0, 40));
  EXPECT_FALSE(HiddenStates::Load(path).ok());
}

}  // namespace
}  // namespace nibble
