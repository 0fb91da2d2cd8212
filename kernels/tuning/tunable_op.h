// An operation with launch shapes to choose from, as tuning sees it, and a device to measure it on.
#ifndef NIBBLE_KERNELS_TUNING_TUNABLE_OP_H_
#define NIBBLE_KERNELS_TUNING_TUNABLE_OP_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/dtype.h"
#include "kernels/tuning/config_field.h"
#include "kernels/tuning/store.h"
#include "kernels/tuning/tuner.h"

namespace nibble {

struct TunableOp {
  std::string name;
  std::string build_id;
  std::vector<std::string> configs;  // "warps=4 blocks_per_thread=2"; the first is the default
  std::vector<DType> dtypes = {DType::kBf16, DType::kF16, DType::kF32};
};

// TunableOp::configs of an operation's array of configs.
template <typename Config, size_t kCount>
std::vector<std::string> DescribeConfigs(const Config (&configs)[kCount]) {
  static_assert(sizeof(Config) == std::size(Config::kFields) * sizeof(int),
                "kFields names every field of the config");
  std::vector<std::string> described;
  for (const Config& config : configs) {
    std::string text;
    for (const ConfigField<Config>& field : Config::kFields) {
      absl::StrAppend(&text, text.empty() ? "" : " ", field.name, "=", config.*field.value);
    }
    described.push_back(std::move(text));
  }
  return described;
}

// The config of an operation for each type and bucket, looked up once for all calls. The default
// where the store has no pick of this build, or one that is no config any more.
class ConfigPicks {
 public:
  ConfigPicks(const TunableOp& op, std::string_view device, const TuningStore& store);

  // Index of a config.
  int operator()(DType dtype, int64_t blocks) const {
    return picks_[static_cast<size_t>(dtype)][TuningBucket(blocks)];
  }

 private:
  static constexpr size_t kDTypes = static_cast<size_t>(DType::kC64) + 1;
  std::array<std::array<uint16_t, kTuningBuckets>, kDTypes> picks_ = {};
};

struct TuningTrial {
  DType dtype = DType::kBf16;
  int64_t rows = 0;
  int64_t cols = 0;
  std::span<const std::byte> sample;  // elements, repeated to fill the input
};

class TuningDevice {
 public:
  virtual ~TuningDevice() = default;

  virtual std::string name() const = 0;  // TuningKey::device
  virtual const std::vector<TunableOp>& ops() const = 0;

  // Makes inputs, more than any cache holds, and outputs. What it returns measures milliseconds of
  // one run under the candidate's config, owns that memory and must not outlive the device.
  // ResourceExhausted where the memory is not there, FailedPrecondition for a shape that the
  // operation does not take.
  virtual absl::StatusOr<MeasureCandidate> Prepare(const TunableOp& op,
                                                   const TuningTrial& trial) = 0;
};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_TUNING_TUNABLE_OP_H_
