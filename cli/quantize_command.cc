#include "cli/quantize_command.h"

#include <cstdio>
#include <iostream>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/status.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "io/output_folder.h"

namespace nibble {
namespace {

// Groups that may be on a GPU at once, so that copies to and from it overlap with its work.
constexpr int kCudaStreams = 3;

}  // namespace

QuantizeModelCommand::QuantizeModelCommand(CLI::App* app) {
  app->add_option("MODEL", request_.model, "Hugging Face model folder")->required();
  recipe_.Add(app);
  app->add_option("--out", request_.out, "folder to make")->required();
  format_option_ = AddEnum(app, "--format", format_, "instead of the recipe's export.format");
  CLI::Option* calib =
      app->add_option("--calib", request_.calibration,
                      "saved calibrator state, or captured activations (safetensors)")
          ->check(NotEmpty());
  data_.Add(app);
  data_.data->excludes(calib);
  run_.Add(app);
  app->add_flag("--strict", request_.strict, "fail on what would be kept with a warning");
  app->add_flag("--resume", request_.resume, "go on with what a killed run left, if there is any");
  app->add_flag("--overwrite", request_.overwrite, "replace --out when the new one is complete");
  CLI::Option* dry_run =
      app->add_flag("--dry-run", request_.dry_run, "check everything, write nothing")
          ->excludes(data_.data);
  app->add_option("--report", report_, "JSON file for the summary and each tensor's error")
      ->check(NotEmpty())
      ->excludes(dry_run);
  CLI::Option* quiet = app->add_flag("--quiet", quiet_, "no progress, no summary");
  app->add_flag("--json-log", json_log_, "progress, warnings and summary as JSON lines on stderr")
      ->excludes(quiet);
  backend_.Add(app);
  request_.version = NIBBLE_VERSION;
}

// A file that is neither in the model's folder nor in the result's, where it would be found to be
// unwritable only at the end, or would replace a part of them.
absl::StatusOr<AtomicFile> QuantizeModelCommand::BeginReport() const {
  const std::string partial = WithoutSlash(request_.out) + ".partial";
  for (const std::string& folder : {request_.model, request_.out, partial}) {
    if (!IsWithin(report_, folder)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("--report: expected a file outside of ", folder, ", got ", report_));
  }
  return AtomicFile::Create(report_);
}

absl::Status QuantizeModelCommand::Calibrate(Backend& backend, Progress& progress) {
  data_.Reconcile(request_.recipe.calibration);
  // What would be refused in the end is refused before hours of calibrating.
  NIBBLE_RETURN_IF_ERROR(OutputFolder::Check({.out = request_.out,
                                              .source = request_.model,
                                              .identity = {},
                                              .resume = request_.resume,
                                              .overwrite = request_.overwrite}));
  CalibrateModelRequest calibrate = {.model = request_.model,
                                     .out = WithoutSlash(request_.out) + ".calibration",
                                     .recipe = request_.recipe,
                                     .version = request_.version,
                                     .resume = request_.resume,
                                     .overwrite = request_.overwrite,
                                     .keep_partial = true,
                                     .run = run_.Options(backend_)};
  NIBBLE_ASSIGN_OR_RETURN(calibrate.tokens, data_.Read(request_.model));
  const auto summary = CalibrateModel(calibrate, backend, [&](const LayerProgress& step) {
    progress.Show(step);
    return absl::OkStatus();
  });
  progress.Close();
  NIBBLE_RETURN_IF_ERROR(summary.status());
  ReportWarnings(summary->warnings);
  request_.calibration = calibrate.out;
  return absl::OkStatus();
}

absl::Status QuantizeModelCommand::Run() {
  NIBBLE_ASSIGN_OR_RETURN(request_.recipe, recipe_.Load());
  if (format_option_->count() > 0) request_.recipe.output.format = format_;
  std::optional<AtomicFile> report;
  if (!report_.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(AtomicFile begun, BeginReport());
    report.emplace(std::move(begun));
  }
  std::vector<std::unique_ptr<Backend>> backends;
  const int count = CudaDeviceOf(backend_.name) ? kCudaStreams : 1;
  for (int i = 0; i < count; ++i) {
    NIBBLE_ASSIGN_OR_RETURN(auto backend, backend_.Make(request_.recipe.tuning));
    backends.push_back(std::move(backend));
  }
  Progress progress(quiet_      ? Progress::Form::kNone
                    : json_log_ ? Progress::Form::kJson
                                : Progress::FormOfStderr());
  if (data_.data->count() > 0) NIBBLE_RETURN_IF_ERROR(Calibrate(*backends.front(), progress));
  const auto result = QuantizeModel(request_, backends, [&](const QuantizeModelProgress& step) {
    progress.Show(step);
    return absl::OkStatus();
  });
  progress.Close();
  NIBBLE_RETURN_IF_ERROR(result.status());
  if (data_.data->count() > 0) {
    NIBBLE_RETURN_IF_ERROR(DropPartialCalibration(request_.calibration));
  }
  if (report) {
    NIBBLE_RETURN_IF_ERROR(report->Append(ModelSummaryAsJson(*result)));
    NIBBLE_RETURN_IF_ERROR(report->Commit());
  }
  if (json_log_) {
    std::fputs(ModelSummaryAsJsonLine(*result).c_str(), stderr);
  } else if (!quiet_) {
    std::cout << ModelSummaryAsText(*result);
  } else {
    ReportWarnings(result->warnings);
  }
  return absl::OkStatus();
}

}  // namespace nibble
