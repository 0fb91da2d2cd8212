#include "kernels/tuning/shipped.h"

#include "base/status.h"

namespace nibble {

const TuningStore& ShippedTuning() {
  static const TuningStore* const store = [] {
    auto* all = new TuningStore;
    for (const auto& [path, text] : ShippedTuningFiles()) {
      const auto picks = TuningStore::Parse(text, path);
      NIBBLE_CHECK(picks.ok());  // a test parses them
      all->Merge(*picks);
    }
    return all;
  }();
  return *store;
}

}  // namespace nibble
