#include "kernels/tuning/tunable_op.h"

#include <algorithm>

namespace nibble {

ConfigPicks::ConfigPicks(const TunableOp& op, std::string_view device, const TuningStore& store) {
  TuningKey key = {.device = std::string(device), .op = op.name, .build_id = op.build_id};
  for (DType dtype : op.dtypes) {
    key.dtype = dtype;
    for (key.bucket = 0; key.bucket < kTuningBuckets; ++key.bucket) {
      const std::optional<std::string_view> pick = store.Pick(key);
      if (!pick) continue;
      const auto config = std::ranges::find(op.configs, *pick);
      if (config == op.configs.end()) continue;
      picks_[static_cast<size_t>(dtype)][key.bucket] =
          static_cast<uint16_t>(config - op.configs.begin());
    }
  }
}

}  // namespace nibble
