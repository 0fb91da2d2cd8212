#include "cli/flags.h"

#include <cstdio>
#include <utility>

#include "base/status.h"
#include "base/text.h"
#include "engine/tune.h"

namespace nibble {

void BackendFlags::Add(CLI::App* app) {
  app->add_option("--backend", name, "auto, cpu, cpu-scalar or cuda:N")->capture_default_str();
  app->add_option("--threads", options.threads, "CPU threads; 0: one for each CPU")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

absl::StatusOr<std::unique_ptr<Backend>> BackendFlags::Make() const {
  BackendOptions with_picks = options;
  absl::Status unread;
  if (CudaDeviceOf(name)) {
    absl::StatusOr<TuningStore> picks = LoadTuning(UserTuningPath());
    unread = picks.status();
    if (picks.ok()) with_picks.tuning = *std::move(picks);
  }
  NIBBLE_ASSIGN_OR_RETURN(auto backend, MakeBackend(name, with_picks));
  if (!unread.ok()) {
    std::fprintf(stderr, "nibble: warning: %s; using the shipped picks\n",
                 Printable(ToStd(unread.message())).c_str());
  }
  return backend;
}

CLI::Validator NotEmpty() {
  return CLI::Validator(
      [](std::string& word) { return word.empty() ? "expected a value, got nothing" : ""; }, "");
}

}  // namespace nibble
