// The reference results of tests/golden, and the checks that every backend must pass on them.
#ifndef NIBBLE_TESTS_TESTING_GOLDEN_H_
#define NIBBLE_TESTS_TESTING_GOLDEN_H_

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "io/safetensors.h"
#include "kernels/backend.h"
#include "nlohmann/json.hpp"
#include "tests/testing/bytes.h"

namespace nibble::testing {

class GoldenFile {
 public:
  explicit GoldenFile(const std::string& name)
      : reader_(*SafetensorsReader::Open(NIBBLE_SOURCE_DIR "/tests/golden/" + name)) {}

  std::vector<std::string> cases() const {
    return nlohmann::json::parse(reader_.metadata().at("cases")).get<std::vector<std::string>>();
  }

  bool Has(const std::string& name) const { return reader_.Find(name) != nullptr; }

  const TensorInfo& Info(const std::string& name) const {
    const TensorInfo* info = reader_.Find(name);
    EXPECT_NE(info, nullptr) << name;
    return *info;
  }

  template <typename T>
  std::vector<T> Read(const std::string& name) const {
    const auto bytes = *reader_.ReadAll(Info(name));
    std::vector<T> values(bytes.size() / sizeof(T));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }

 private:
  SafetensorsReader reader_;
};

// A tensor of a file and the memory it lies in.
struct GoldenMatrix {
  std::vector<char> bytes;
  MatrixView view;

  GoldenMatrix(const GoldenFile& file, const std::string& name) : bytes(file.Read<char>(name)) {
    const TensorInfo& info = file.Info(name);
    view = *AsQuantizableMatrix(bytes.data(), info.dtype, info.shape);
  }
};

// "<data>.<dtype>.<scheme>.<metric>.<bound>...."
struct GoldenCase {
  std::string x;  // name of the input tensor
  QuantizeParams params;

  explicit GoldenCase(const std::string& name) {
    const std::vector<std::string> part = absl::StrSplit(name, '.');
    x = part[0] + "." + part[1] + ".x";
    if (part[2] == "rht_col") {
      params.columnwise = true;
      params.rht = Rht::kSigns;
      return;
    }
    params.scheme = part[2] == "tensor" ? Scheme::kPerTensor
                    : part[2] == "row"  ? Scheme::kPerToken
                                        : Scheme::kTile2d;
    EXPECT_TRUE(absl::SimpleAtoi(part[4], &params.e4m3_max)) << name;
    if (part[3] != "none") params.four_over_six.emplace().metric = *FromName<ErrorMetric>(part[3]);
    for (size_t i = 5; i < part.size(); ++i) {
      if (part[i] == "col") params.columnwise = true;
      if (part[i] == "rht") params.rht = Rht::kSigns;
      if (part[i] == "nosign") params.rht = Rht::kNoSigns;
      if (part[i] == "fast" && params.four_over_six) params.four_over_six->path = ErrorPath::kFast;
    }
  }
};

inline int CountDifferentCodes(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b) {
  int different = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    different += (a[i] & 0xF) != (b[i] & 0xF);
    different += (a[i] >> 4) != (b[i] >> 4);
  }
  return different;
}

// Quantizes every case of Transformer Engine's that `wanted` says yes to; returns how many.
inline int CheckTransformerEngineCases(Backend& backend,
                                       const std::function<bool(const QuantizeParams&)>& wanted) {
  int cases = 0;
  for (const char* file_name : {"te_shared.safetensors", "te_col_shared.safetensors"}) {
    const GoldenFile file(file_name);
    for (const std::string& name : file.cases()) {
      SCOPED_TRACE(name);
      const GoldenCase c(name);
      if (!wanted(c.params)) continue;
      const GoldenMatrix x(file, c.x);
      const auto packed = backend.Quantize(c.params, x.view);
      ++cases;
      EXPECT_TRUE(packed.ok()) << packed.status();
      if (!packed.ok()) continue;
      const auto expected = file.Read<uint8_t>(name + ".packed");
      if (c.params.rht == Rht::kNone) {
        EXPECT_TRUE(SameBytes(file.Read<float>(name + ".amax"), packed->amax));
        EXPECT_TRUE(SameBytes(file.Read<uint8_t>(name + ".scale"), packed->scale));
        EXPECT_TRUE(SameBytes(expected, packed->packed));
      } else {
        // The reference does not fix its summation order.
        EXPECT_EQ(expected.size(), packed->packed.size());
        if (expected.size() != packed->packed.size()) continue;
        EXPECT_LE(CountDifferentCodes(expected, packed->packed), 0.002 * 2 * expected.size());
      }
      if (file.Has(name + ".swizzled_scale")) {
        QuantizeParams swizzled = c.params;
        swizzled.swizzle = true;
        EXPECT_TRUE(SameBytes(file.Read<uint8_t>(name + ".swizzled_scale"),
                              backend.Quantize(swizzled, x.view)->scale));
      }
    }
  }
  return cases;
}

// The same scales in both layouts.
inline void CheckSwizzledScales(Backend& backend) {
  const GoldenFile file("te_col_shared.safetensors");
  for (const std::string data : {"gauss", "outlier", "zeros"}) {
    SCOPED_TRACE(data);
    const std::string name = data + ".bf16.tensor.none.448";
    const GoldenMatrix x(file, data + ".bf16.x");
    QuantizeParams params;
    EXPECT_TRUE(
        SameBytes(file.Read<uint8_t>(name + ".scale"), backend.Quantize(params, x.view)->scale));
    params.swizzle = true;
    EXPECT_TRUE(SameBytes(file.Read<uint8_t>(name + ".swizzled_scale"),
                          backend.Quantize(params, x.view)->scale));
  }
}

// Model Optimizer's exports, without a search and from the sweep's winners.
inline void CheckModelOptimizerExports(Backend& backend) {
  const GoldenFile file("mo_shared.safetensors");
  for (const std::string& name : file.cases()) {
    if (name == "allzero.bf16") continue;  // the reference divides 0 by 0
    SCOPED_TRACE(name);
    const GoldenMatrix x(file, name + ".x");
    QuantizeParams params;
    params.rule = Rule::kCheckpoint;
    const auto max = backend.Quantize(params, x.view);
    ASSERT_TRUE(max.ok()) << max.status();
    EXPECT_TRUE(SameBytes(file.Read<uint8_t>(name + ".export_max.scale"), max->scale));
    EXPECT_TRUE(SameBytes(file.Read<uint8_t>(name + ".export_max.packed"), max->packed));
    EXPECT_EQ(file.Read<float>(name + ".export_max.scale2")[0],
              max->layout.GlobalDecodeScale(max->amax[0]));

    const auto sweep = backend.ScaleSweep({}, x.view);
    ASSERT_TRUE(sweep.ok()) << sweep.status();
    const auto swept = backend.QuantizeWithScales(x.view, sweep->global_amax, 448, sweep->code);
    ASSERT_TRUE(swept.ok()) << swept.status();
    EXPECT_TRUE(SameBytes(file.Read<uint8_t>(name + ".export_sweep.scale"), swept->scale));
    EXPECT_TRUE(SameBytes(file.Read<uint8_t>(name + ".export_sweep.packed"), swept->packed));
  }
}

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_GOLDEN_H_
