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

int CountDifferentCodes(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b);

// Quantizes every case of Transformer Engine's that `wanted` says yes to; returns how many.
int CheckTransformerEngineCases(Backend& backend,
                                const std::function<bool(const QuantizeParams&)>& wanted);

// The same scales in both layouts.
void CheckSwizzledScales(Backend& backend);

// Model Optimizer's exports, without a search and from the sweep's winners.
void CheckModelOptimizerExports(Backend& backend);

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_GOLDEN_H_
