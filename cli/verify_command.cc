#include "cli/verify_command.h"

#include <iostream>

#include "base/status.h"
#include "engine/verify_model.h"

namespace nibble {

VerifyCommand::VerifyCommand(CLI::App* app) {
  app->add_option("OUT", folder, "folder of the quantized model")->required()->check(NotEmpty());
  app->add_option("--against", against, "folder of the source: compare every tensor with it")
      ->check(NotEmpty());
  app->add_flag("--json", json, "machine-readable");
  backend.Add(app);
}

absl::Status VerifyCommand::Run() {
  NIBBLE_ASSIGN_OR_RETURN(const auto device, backend.Make());
  VerifyOptions options;
  options.against = against;
  NIBBLE_ASSIGN_OR_RETURN(const VerifyReport report, VerifyModel(folder, options, *device));
  std::cout << (json ? VerifyReportAsJson(report) : VerifyReportAsText(report));
  if (report.holes.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(folder, ": expected no hole, got ", report.holes.size()));
}

}  // namespace nibble
