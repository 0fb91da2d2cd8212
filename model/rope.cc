#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace nibble {
namespace {

constexpr double kTwoPi = 2 * std::numbers::pi;

// Frequencies below 1 / low_freq_factor of the original context are divided by the factor, those
// above 1 / high_freq_factor stay, those between are mixed.
void ScaleLlama3(const RopeParams& params, std::vector<float>& frequencies) {
  const float factor = static_cast<float>(params.factor);
  const float low = static_cast<float>(params.low_freq_factor);
  const float high = static_cast<float>(params.high_freq_factor);
  const float context = static_cast<float>(params.original_positions);
  for (float& f : frequencies) {
    const float wavelength = static_cast<float>(kTwoPi) / f;
    if (wavelength > context / low) {
      f /= factor;
    } else if (wavelength >= context / high) {
      const float smooth = (context / wavelength - low) / (high - low);
      f = (1 - smooth) * f / factor + smooth * f;
    }
  }
}

// Yarn's factor of lengths of queries and keys.
double YarnMagnitude(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

double YarnAttentionFactor(const RopeParams& params) {
  if (params.attention_factor) return *params.attention_factor;
  if (params.mscale != 0 && params.mscale_all_dim != 0) {
    return YarnMagnitude(params.factor, params.mscale) /
           YarnMagnitude(params.factor, params.mscale_all_dim);
  }
  return YarnMagnitude(params.factor, 1);
}

// Pairs that turn more than beta_fast times in the original context stay, those that turn less than
// beta_slow times are divided by the factor, with a ramp over the pairs between.
void ScaleYarn(const RopeParams& params, int64_t head_dim, std::vector<float>& frequencies) {
  const double dim = static_cast<double>(head_dim);
  const auto pair_of_turns = [&](double turns) {
    return dim * std::log(static_cast<double>(params.original_positions) / (turns * kTwoPi)) /
           (2 * std::log(params.theta));
  };
  double low = pair_of_turns(params.beta_fast), high = pair_of_turns(params.beta_slow);
  if (params.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1);
  if (low == high) high += 0.001;
  const float factor = static_cast<float>(params.factor);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const float ramp = std::clamp(
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f,
        1.0f);
    const float kept = 1 - ramp;
    const float interpolated = 1.0f / (factor * (1.0f / frequencies[i]));
    frequencies[i] = interpolated * (1 - kept) + frequencies[i] * kept;
  }
}

}  // namespace

RopeTable MakeRopeTable(const RopeParams& params, int64_t head_dim, int64_t positions) {
  const int64_t half = head_dim / 2;
  std::vector<float> frequencies(half);
  for (int64_t i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    frequencies[i] = 1.0f / std::pow(static_cast<float>(params.theta), exponent);
  }
  float magnitude = 1;
  switch (params.type) {
    case RopeType::kDefault:
      break;
    case RopeType::kLinear:
      for (float& f : frequencies) f /= static_cast<float>(params.factor);
      break;
    case RopeType::kLlama3:
      ScaleLlama3(params, frequencies);
      break;
    case RopeType::kYarn:
      ScaleYarn(params, head_dim, frequencies);
      magnitude = static_cast<float>(YarnAttentionFactor(params));
      break;
  }
  RopeTable table{positions, half, {}, {}};
  table.cos.resize(positions * half);
  table.sin.resize(positions * half);
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(p) * frequencies[i];
      table.cos[p * half + i] = std::cos(angle) * magnitude;
      table.sin[p * half + i] = std::sin(angle) * magnitude;
    }
  }
  return table;
}

}  // namespace nibble
