#include "cli/eval_command.h"

#include <iostream>
#include <vector>

#include "base/status.h"
#include "cli/progress.h"

namespace nibble {

EvalCommand::EvalCommand(CLI::App* app) {
  app->add_option("MODEL", request_.models,
                  "model folders, original or quantized; the first is what others are held to")
      ->required();
  data_.Add(app);
  data_.data->required();
  activations_ =
      AddEnum(app, "--activations", inputs_,
              "how the inputs of W4A4 layers are quantized [as a model's recipe says, or "
              "per_tensor]");
  run_.Add(app);
  app->add_flag("--json", json_, "machine-readable, with the sums of each sequence");
  app->add_flag("--quiet", quiet_, "no progress");
  backend_.Add(app);
}

absl::Status EvalCommand::Run() {
  NIBBLE_ASSIGN_OR_RETURN(request_.tokens, data_.Read(request_.models.front()));
  if (activations_->count() > 0) request_.inputs = inputs_;
  request_.run = run_.Options(backend_);
  NIBBLE_ASSIGN_OR_RETURN(const auto backend, backend_.Make());
  Progress progress(quiet_ ? Progress::Form::kNone : Progress::FormOfStderr());
  const auto scores = EvaluateModels(request_, *backend, [&](const LayerProgress& step) {
    progress.Show(step);
    return absl::OkStatus();
  });
  progress.Close();
  NIBBLE_RETURN_IF_ERROR(scores.status());
  std::cout << (json_ ? EvaluationAsJson(*scores) : EvaluationAsText(*scores));
  return absl::OkStatus();
}

}  // namespace nibble
