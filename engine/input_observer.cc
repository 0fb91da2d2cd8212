#include "engine/input_observer.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"

namespace nibble {
namespace {

constexpr size_t kFetchThreads = 4;

}  // namespace

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

absl::Status InputObserver::FetchSums() {
  std::vector<std::pair<const std::string*, Inputs*>> waiting;
  for (const auto& [module, inputs] : shared_) {
    if (inputs->sums == nullptr) continue;
    const bool known =
        std::ranges::any_of(waiting, [&](const auto& w) { return w.second == inputs.get(); });
    if (!known) waiting.emplace_back(&module, inputs.get());
  }
  if (waiting.empty()) return absl::OkStatus();
  // A matter of copies in host memory, several MB an input.
  std::vector<absl::Status> statuses(waiting.size());
  ThreadPool pool(static_cast<int>(std::min(waiting.size(), kFetchThreads)));
  pool.ParallelFor(std::ssize(waiting), 1, [&](int64_t i, int64_t) {
    Inputs& inputs = *waiting[i].second;
    auto result = inputs.sums->Result();
    if (result.ok()) {
      inputs.collector = InputCollector::Of(*std::move(result), inputs.columns, inputs.hessians);
    } else {
      statuses[i] = Annotate(result.status(), *waiting[i].first);
    }
  });
  for (const absl::Status& status : statuses) NIBBLE_RETURN_IF_ERROR(status);
  for (const auto& [module, inputs] : waiting) inputs->sums = nullptr;
  return absl::OkStatus();
}

absl::StatusOr<CalibrationStates> InputObserver::States() {
  NIBBLE_RETURN_IF_ERROR(FetchSums());
  CalibrationStates states;
  for (const auto& [module, hessians] : wanted_) {
    const auto shared = shared_.extract(module);
    if (shared.empty()) {
      states.emplace(module, InputCollector(hessians));
    } else if (shared.mapped().use_count() == 1) {  // the last of those that share it takes it
      states.emplace(module, std::move(shared.mapped()->collector));
    } else {
      states.emplace(module, shared.mapped()->collector);
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
