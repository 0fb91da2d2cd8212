#include "kernels/cuda/tunable_ops.h"

#include "base/status.h"
#include "kernels/cuda/scale_sweep_config.h"
#include "kernels/tuning/shipped.h"

namespace nibble {
namespace {

// `source` is the <op> of its <op>_config.h.
template <typename Configs>
TunableOp Op(CudaOp op, std::string_view source, const Configs& configs) {
  return {.name = std::string(NameOf(op)),
          .build_id = std::string(TuningBuildId(source)),
          .configs = DescribeConfigs(configs)};
}

}  // namespace

const std::vector<TunableOp>& CudaTunableOps() {
  static const auto* const ops = new std::vector<TunableOp>{
      Op(CudaOp::kScaleSweep, "scale_sweep", kScaleSweepConfigs),
  };
  return *ops;
}

std::vector<ConfigPicks> CudaConfigPicks(std::string_view device, const TuningStore& tuning) {
  TuningStore store = ShippedTuning();
  store.Merge(tuning);
  std::vector<ConfigPicks> picks;
  for (const TunableOp& op : CudaTunableOps()) picks.emplace_back(op, device, store);
  return picks;
}

}  // namespace nibble
