#include "engine/input_observer.h"

#include <algorithm>
#include <utility>

#include "base/status.h"

namespace nibble {

absl::Status InputObserver::Observe(const LinearInput& input) {
  const std::shared_ptr<Inputs> inputs = InputsOf(input.modules);
  if (inputs == nullptr) return absl::OkStatus();
  if (input.stream == nullptr) return inputs->collector.Collect(input.x, backend_);
  if (inputs->sums == nullptr) {
    inputs->columns = input.x.cols;
    NIBBLE_ASSIGN_OR_RETURN(inputs->sums,
                            backend_.MakeInputSums(input.x.cols, inputs->hessians, input.stream));
  }
  return inputs->sums->Add(input.x);
}

absl::StatusOr<CalibrationStates> InputObserver::States() {
  CalibrationStates states;
  for (const auto& [module, hessians] : wanted_) {
    const auto shared = shared_.extract(module);
    if (shared.empty()) {
      states.emplace(module, InputCollector(hessians));
      continue;
    }
    Inputs& inputs = *shared.mapped();
    if (inputs.sums != nullptr) {
      auto result = inputs.sums->Result();
      if (!result.ok()) return Annotate(result.status(), module);
      inputs.collector = InputCollector::Of(*std::move(result), inputs.columns, inputs.hessians);
      inputs.sums = nullptr;
    }
    // The last of those that share it takes it.
    if (shared.mapped().use_count() == 1) {
      states.emplace(module, std::move(inputs.collector));
    } else {
      states.emplace(module, inputs.collector);
    }
  }
  return states;
}

std::shared_ptr<InputObserver::Inputs> InputObserver::InputsOf(
    std::span<const std::string> modules) {
  const auto known = std::ranges::find_if(
      modules, [&](const std::string& module) { return shared_.contains(module); });
  if (known != modules.end()) return shared_.at(*known);
  bool any = false, hessians = false;
  for (const std::string& module : modules) {
    const auto it = wanted_.find(module);
    if (it == wanted_.end()) continue;
    any = true;
    hessians |= it->second;
  }
  if (!any) return nullptr;
  const auto inputs = std::make_shared<Inputs>(hessians);
  for (const std::string& module : modules) {
    if (wanted_.contains(module)) shared_[module] = inputs;
  }
  return inputs;
}

}  // namespace nibble
