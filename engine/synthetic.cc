#include "engine/synthetic.h"

#include <cmath>
#include <cstring>
#include <numbers>

#include "base/status.h"
#include "quant/numerics/e2m1.h"
#include "quant/numerics/float_bits.h"
#include "quant/numerics/philox.h"
#include "quant/numerics/scale_rules.h"

namespace nibble {
namespace {

// Uniform numbers in (0, 1), four at a time.
class Uniforms {
 public:
  explicit Uniforms(uint64_t seed) : seed_(seed) {}

  double Next() {
    if (used_ == 4) {
      words_ = Philox4x32(seed_, counter_++, 0);
      used_ = 0;
    }
    return (words_.word[used_++] + 0.5) * 0x1p-32;
  }

  double NextNormal() {
    if (has_spare_) {
      has_spare_ = false;
      return spare_;
    }
    const double radius = std::sqrt(-2 * std::log(Next()));
    const double angle = 2 * std::numbers::pi * Next();
    spare_ = radius * std::sin(angle);
    has_spare_ = true;
    return radius * std::cos(angle);
  }

 private:
  uint64_t seed_, counter_ = 0;
  PhiloxWords words_ = {};
  int used_ = 4;
  double spare_ = 0;
  bool has_spare_ = false;
};

}  // namespace

std::vector<float> SyntheticValues(Distribution distribution, int64_t count, uint64_t seed) {
  std::vector<float> values(count);
  Uniforms u(seed);
  double held = 0;  // what a distribution keeps for a whole block
  for (int64_t i = 0; i < count; ++i) {
    const int64_t in_block = i % kBlockSize;
    double v = 0;
    switch (distribution) {
      case Distribution::kNormal:
        v = u.NextNormal();
        break;
      case Distribution::kLaplace: {
        const double p = u.Next() - 0.5;
        v = std::copysign(-std::log(1 - 2 * std::fabs(p)), p);
        break;
      }
      case Distribution::kStudentT5: {
        double squares = 0;
        for (int k = 0; k < 5; ++k) {
          const double n = u.NextNormal();
          squares += n * n;
        }
        v = u.NextNormal() / std::sqrt(squares / 5);
        break;
      }
      case Distribution::kUniform:
        v = 2 * u.Next() - 1;
        break;
      case Distribution::kOutliers:
        v = u.NextNormal() * (u.Next() < 1.0 / 200 ? 20 : 1);
        break;
      case Distribution::kOnGrid:
        if (in_block == 0) held = std::ldexp(1.0, static_cast<int>(u.Next() * 6) - 3);
        v = held * E2m1Decode(static_cast<uint8_t>(u.Next() * 16));
        break;
      case Distribution::kSubnormal:
        v = u.NextNormal() * 0x1p-130;
        break;
      case Distribution::kConstant:
        if (in_block == 0) held = u.NextNormal();
        v = held;
        break;
      case Distribution::kOneHot:
        if (in_block == 0) held = std::floor(u.Next() * kBlockSize);
        v = in_block == static_cast<int64_t>(held) ? u.NextNormal() : 0;
        break;
      case Distribution::kZero:
        break;
      case Distribution::kWeightLike:
        if (i % 1024 == 0) held = 0.02 * std::exp(0.3 * u.NextNormal());
        v = held * u.NextNormal() * (u.Next() < 1.0 / 2000 ? 6 : 1);
        break;
    }
    values[i] = static_cast<float>(v);
  }
  return values;
}

std::vector<std::byte> ToBytes(std::span<const float> values, DType dtype) {
  NIBBLE_CHECK(IsQuantizable(dtype));
  const size_t size = DTypeBytes(dtype);
  std::vector<std::byte> bytes(values.size() * size);
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kF32) {
      std::memcpy(&bytes[i * size], &values[i], size);
    } else {
      const uint16_t bits =
          dtype == DType::kBf16 ? Bf16FromFloat(values[i]) : F16FromFloat(values[i]);
      std::memcpy(&bytes[i * size], &bits, size);
    }
  }
  return bytes;
}

}  // namespace nibble
