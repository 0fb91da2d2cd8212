#include "engine/quantized_inputs.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "engine/synthetic.h"
#include "gtest/gtest.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {
namespace {

constexpr int64_t kTokens = 5, kChannels = 48;

std::vector<float> Inputs() {
  return SyntheticValues(Distribution::kOutliers, kTokens * kChannels, 3);
}

// What the hook makes of `x`.
std::vector<float> Changed(InputQuantization how, float input_scale, std::vector<float> x) {
  const auto backend = MakeBackend("cpu", {.threads = 1}).value();
  QuantizedInputs inputs(*backend);
  inputs.Add("m", how, input_scale);
  EXPECT_TRUE(inputs.Changes("m"));
  EXPECT_FALSE(inputs.Changes("n"));
  LinearInput input;
  input.x = {x.data(), DType::kF32, kTokens, kChannels};
  const absl::Status status = inputs.Change(input, "m", x);
  EXPECT_TRUE(status.ok()) << status;
  return x;
}

// One block after another by the runtime rule, as docs/numerics.md has it.
std::vector<float> Reference(const std::vector<float>& x, bool per_token, float amax) {
  std::vector<float> result;
  for (size_t block = 0; block < x.size() / 16; ++block) {
    if (per_token && block % (kChannels / 16) == 0) {
      amax = 0;
      for (int64_t i = 0; i < kChannels; ++i) {
        amax = std::max(amax, std::abs(x[block * 16 + static_cast<size_t>(i)]));
      }
    }
    const GlobalScale global = RuntimeGlobalScale(amax, 448);
    float block_amax = 0;
    for (int i = 0; i < 16; ++i) block_amax = std::max(block_amax, std::abs(x[block * 16 + i]));
    const uint8_t scale = RuntimeBlockScale(block_amax, global.encode_scale);
    const float encode = RuntimeBlockEncodeScale(scale, global.decode_scale);
    for (int i = 0; i < 16; ++i) {
      const uint8_t code = E2m1Encode(RuntimeScaled(x[block * 16 + i], encode));
      result.push_back(Dequantize(code, scale, global.decode_scale));
    }
  }
  return result;
}

TEST(QuantizedInputsTest, PerTensorIsUnderTheStoredScale) {
  // Of an amax that some blocks exceed: those are clipped.
  const float input_scale = 2.0f / 2688;
  const std::vector<float> x = Inputs();
  EXPECT_EQ(Changed(InputQuantization::kPerTensor, input_scale, x),
            Reference(x, /*per_token=*/false, input_scale * 2688));
}

TEST(QuantizedInputsTest, PerTokenIsUnderEachTokensOwn) {
  const std::vector<float> x = Inputs();
  EXPECT_EQ(Changed(InputQuantization::kPerToken, 1, x), Reference(x, /*per_token=*/true, 0));
}

TEST(QuantizedInputsTest, FourOverSixErrsLess) {
  const std::vector<float> x = Inputs();
  float amax = 0;
  for (const float value : x) amax = std::max(amax, std::abs(value));
  const auto error = [&](InputQuantization how) {
    const std::vector<float> changed = Changed(how, amax / 2688, x);
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) sum += std::pow(double{changed[i]} - x[i], 2);
    return sum;
  };
  EXPECT_LT(error(InputQuantization::kFourOverSix), error(InputQuantization::kPerTensor));
}

}  // namespace
}  // namespace nibble
