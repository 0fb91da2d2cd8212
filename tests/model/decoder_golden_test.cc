// Tiny models of every architecture against what Transformers computes for them.
#include <algorithm>
#include <filesystem>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "io/model_folder.h"
#include "io/text_file.h"
#include "model/decoder.h"
#include "quant/numerics/float_bits.h"
#include "tests/testing/bytes.h"
#include "tests/testing/closeness.h"
#include "tests/testing/decoders.h"
#include "tests/testing/golden.h"

namespace nibble {
namespace {

using ::nibble::testing::CosineAbove;
using ::nibble::testing::DifferencesBelow;
using ::nibble::testing::GoldenFile;
using ::nibble::testing::RecordingHook;
using ::nibble::testing::RelativeErrorBelow;
using ::nibble::testing::RunDecoder;
using ::nibble::testing::SameBytes;

const std::string kFolder = std::string(NIBBLE_SOURCE_DIR) + "/tests/golden/decoders";

std::vector<std::string> Cases() {
  std::vector<std::string> cases;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder)) {
    if (entry.is_directory()) cases.push_back(entry.path().filename().string());
  }
  std::sort(cases.begin(), cases.end());
  return cases;
}

struct GoldenDecoder {
  ModelFolder folder;
  GoldenFile golden;
  TokenSet tokens;

  explicit GoldenDecoder(const std::string& name)
      : folder(ModelFolder::Open(kFolder + "/" + name).value()),
        golden("decoders/" + name + "/golden.safetensors") {
    for (const int32_t id : golden.Read<int32_t>("ids")) tokens.ids.push_back(id);
    tokens.lengths = golden.Read<int64_t>("lengths");
  }

  absl::StatusOr<std::unique_ptr<Decoder>> Make(DType dtype,
                                                std::optional<int> cuda_device = {}) const {
    return Decoder::Make(ReadDecoderConfig(folder.config_json()).value(), FolderWeights(folder),
                         {.dtype = dtype, .cuda_device = cuda_device});
  }
};

// X^T X, in double.
std::vector<float> HessianOf(const std::vector<float>& x, int64_t channels) {
  std::vector<double> sums(channels * channels);
  for (size_t row = 0; row < x.size(); row += channels) {
    for (int64_t i = 0; i < channels; ++i) {
      for (int64_t j = 0; j < channels; ++j) {
        sums[i * channels + j] += double{x[row + i]} * x[row + j];
      }
    }
  }
  return {sums.begin(), sums.end()};
}

// A model, and the GPU that runs it or none. Where there is no GPU the tests skip.
using Run = std::tuple<std::string, std::optional<int>>;

class DecoderGoldenTest : public ::testing::TestWithParam<Run> {
 protected:
  DecoderGoldenTest() : golden_(name()) {}
  static std::string name() { return std::get<0>(GetParam()); }

  // Null where the test is to be skipped, and has been told so.
  std::unique_ptr<Decoder> Make(DType dtype) {
    auto decoder = golden_.Make(dtype, std::get<1>(GetParam()));
    EXPECT_TRUE(decoder.ok() || absl::IsUnavailable(decoder.status())) << decoder.status();
    if (decoder.ok()) return *std::move(decoder);
    [&] { GTEST_SKIP() << decoder.status().message(); }();
    return nullptr;
  }

  const GoldenDecoder golden_;
};
INSTANTIATE_TEST_SUITE_P(Decoders, DecoderGoldenTest,
                         ::testing::Combine(::testing::ValuesIn(Cases()),
                                            ::testing::Values(std::nullopt, 0)),
                         [](const auto& info) {
                           return std::get<0>(info.param) +
                                  (std::get<1>(info.param) ? "_on_a_gpu" : "");
                         });

TEST_P(DecoderGoldenTest, LogitsInFloat32) {
  const auto decoder = Make(DType::kF32);
  if (decoder == nullptr) return;
  const GoldenDecoder& golden = golden_;
  const std::vector<float> logits = RunDecoder(*decoder, golden.tokens);
  EXPECT_TRUE(DifferencesBelow(2e-3, golden.golden.Read<float>("logits"), logits));
}

TEST_P(DecoderGoldenTest, LogitsInBf16) {
  const auto decoder = Make(DType::kBf16);
  if (decoder == nullptr) return;
  const GoldenDecoder& golden = golden_;
  const std::vector<float> logits = RunDecoder(*decoder, golden.tokens);
  EXPECT_TRUE(SameBytes(logits, RunDecoder(*Make(DType::kBf16), golden.tokens)));
  EXPECT_TRUE(CosineAbove(0.9999, golden.golden.Read<float>("logits"), logits));
  // Transformers' own bf16 rounds more often than we do.
  std::vector<float> theirs;
  for (const uint16_t bits : golden.golden.Read<uint16_t>("logits_bf16")) {
    theirs.push_back(FloatFromBf16(bits));
  }
  EXPECT_TRUE(CosineAbove(0.9997, theirs, logits));
}

TEST_P(DecoderGoldenTest, InputsOfLinearLayers) {
  const auto decoder = Make(DType::kF32);
  if (decoder == nullptr) return;
  const GoldenDecoder& golden = golden_;
  RecordingHook hook;
  RunDecoder(*decoder, golden.tokens, &hook);
  const auto reader =
      SafetensorsReader::Open(kFolder + "/" + name() + "/golden.safetensors").value();
  int inputs = 0;
  for (const TensorInfo& info : reader.tensors()) {
    constexpr std::string_view kInput = "input.", kTokens = "tokens.";
    if (info.name.starts_with(kInput)) {
      SCOPED_TRACE(info.name);
      const auto found = hook.records.find(info.name.substr(kInput.size()));
      ASSERT_NE(found, hook.records.end());
      const std::vector<float> expected = golden.golden.Read<float>(info.name);
      ASSERT_EQ(found->second.channels, info.shape[1]);
      EXPECT_TRUE(DifferencesBelow(1e-4, expected, found->second.x));
      EXPECT_TRUE(RelativeErrorBelow(1e-4, HessianOf(expected, info.shape[1]),
                                     HessianOf(found->second.x, info.shape[1])));
      ++inputs;
    }
    if (info.name.starts_with(kTokens)) {
      SCOPED_TRACE(info.name);
      EXPECT_EQ(golden.golden.Read<int64_t>(info.name),
                hook.records[info.name.substr(kTokens.size())].tokens);
    }
  }
  EXPECT_GE(inputs, 2);
}

// What the runner does not read right must not hide behind what the golden models leave out.
TEST(DecoderGoldensTest, CoverWhatTheRunnerKnows) {
  std::set<Architecture> architectures;
  std::set<RopeType> ropes;
  bool window = false, tied = false, dense_among_sparse = false;
  for (const std::string& name : Cases()) {
    const DecoderConfig config =
        ReadDecoderConfig(GoldenDecoder(name).folder.config_json()).value();
    architectures.insert(config.architecture);
    ropes.insert(config.rope.type);
    tied |= config.tied_embeddings;
    for (const int64_t w : config.window) window |= w > 0 && w < 24;
    dense_among_sparse |= std::ranges::count(config.has_experts, true) == 1;
  }
  EXPECT_EQ(architectures.size(), kEnumNames<Architecture>.size());
  EXPECT_EQ(ropes.size(), kEnumNames<RopeType>.size());
  EXPECT_TRUE(window && tied && dense_among_sparse);
}

TEST(DecoderGoldensTest, AnotherConfigurationGivesOtherLogits) {
  const GoldenDecoder golden("mistral_window");
  DecoderConfig config = ReadDecoderConfig(golden.folder.config_json()).value();
  const auto run = [&](const DecoderConfig& changed) {
    return RunDecoder(*Decoder::Make(changed, FolderWeights(golden.folder), {}).value(),
                      golden.tokens);
  };
  const std::vector<float> expected = golden.golden.Read<float>("logits");
  EXPECT_TRUE(DifferencesBelow(2e-3, expected, run(config)));
  DecoderConfig wider = config;
  for (int64_t& window : wider.window) ++window;
  EXPECT_FALSE(DifferencesBelow(2e-3, expected, run(wider)));
  DecoderConfig turned = config;
  turned.rope.theta *= 1.01;
  EXPECT_FALSE(DifferencesBelow(2e-3, expected, run(turned)));
}

TEST(ClosenessTest, SeesDifferences) {
  const std::vector<float> a = {1, 2, 3, 4}, near = {1, 2, 3, 4.001f}, far = {1, 2, 3, -4};
  EXPECT_TRUE(DifferencesBelow(2e-3, a, near));
  EXPECT_FALSE(DifferencesBelow(0.5e-3, a, near));
  EXPECT_TRUE(CosineAbove(0.9999, a, near));
  EXPECT_FALSE(CosineAbove(0.9999, a, far));
  EXPECT_TRUE(RelativeErrorBelow(1e-3, a, near));
  EXPECT_FALSE(RelativeErrorBelow(1e-4, a, near));
}

TEST(ClosenessTest, OtherSizesNothingAndNanAreNeverClose) {
  const std::vector<float> a = {1, 2}, shorter = {1}, none,
                           nan = {1, std::numeric_limits<float>::quiet_NaN()};
  for (const auto& [x, y] : {std::pair(a, shorter), std::pair(a, none), std::pair(a, nan),
                             std::pair(nan, a), std::pair(none, none), std::pair(nan, nan)}) {
    EXPECT_FALSE(DifferencesBelow(1e9, x, y));
    EXPECT_FALSE(CosineAbove(-2, x, y));
    EXPECT_FALSE(RelativeErrorBelow(1e9, x, y));
  }
}

}  // namespace
}  // namespace nibble
