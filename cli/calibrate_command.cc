#include "cli/calibrate_command.h"

#include <iostream>

#include "base/status.h"
#include "base/text.h"
#include "cli/progress.h"
#include "cli/report.h"

namespace nibble {

CalibrateCommand::CalibrateCommand(CLI::App* app) {
  app->add_option("MODEL", request_.model, "Hugging Face model folder")->required();
  recipe_.Add(app);
  data_.Add(app);
  data_.data->required();
  app->add_option("--out", request_.out, "file to write")->required()->check(NotEmpty());
  app->add_flag("--resume", request_.resume, "go on with what a killed run left, if there is any");
  app->add_flag("--overwrite", request_.overwrite, "drop what a killed run left");
  run_.Add(app);
  app->add_flag("--quiet", quiet_, "no progress, no summary");
  backend_.Add(app);
  request_.version = NIBBLE_VERSION;
}

absl::Status CalibrateCommand::Run() {
  NIBBLE_ASSIGN_OR_RETURN(request_.recipe, recipe_.Load());
  data_.Reconcile(request_.recipe.calibration);
  NIBBLE_ASSIGN_OR_RETURN(request_.tokens, data_.Read(request_.model));
  request_.run = run_.Options(backend_);
  NIBBLE_ASSIGN_OR_RETURN(const auto backend, backend_.Make(request_.recipe.tuning));
  Progress progress(quiet_ ? Progress::Form::kNone : Progress::FormOfStderr());
  const auto summary = CalibrateModel(request_, *backend, [&](const LayerProgress& step) {
    progress.Show(step);
    return absl::OkStatus();
  });
  progress.Close();
  NIBBLE_RETURN_IF_ERROR(summary.status());
  if (!quiet_) std::cout << Printable(request_.out) << ": " << CalibrationSummaryAsText(*summary);
  ReportWarnings(summary->warnings);
  return absl::OkStatus();
}

}  // namespace nibble
