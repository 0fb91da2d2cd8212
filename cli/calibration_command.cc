#include "cli/calibration_command.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_format.h"
#include "base/status.h"
#include "engine/calibration.h"
#include "io/atomic_file.h"

namespace nibble {
namespace {

// Something that is no state, or that is read as well, is never replaced by one.
absl::Status CheckOut(const std::string& out, const std::vector<std::string>& in) {
  for (const std::string& input : in) {
    NIBBLE_ASSIGN_OR_RETURN(const bool same, SameFile(out, input));
    if (!same) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("output: expected a file other than the input, got ", out));
  }
  return CheckCalibrationOutput(out);
}

absl::Status SaveAndSay(const std::string& out, const CalibrationStates& states) {
  NIBBLE_RETURN_IF_ERROR(SaveCalibration(out, states));
  int64_t tokens = 0;  // modules of one run see the same ones, experts fewer
  for (const auto& [module, state] : states) tokens = std::max(tokens, state.tokens());
  absl::PrintF("%s: %d modules, up to %d tokens each\n", out, states.size(), tokens);
  return absl::OkStatus();
}

}  // namespace

CalibrationCollectCommand::CalibrationCollectCommand(CLI::App* app) {
  app->add_option("CAPTURES", captures, "safetensors file of tensors '<module>.input'")->required();
  app->add_option("--out", out, "file to write")->required()->check(NotEmpty());
  app->add_flag("--no-hessians", no_hessians, "keep what activation scales need, no more");
  backend.Add(app);
}

absl::Status CalibrationCollectCommand::Run() {
  NIBBLE_RETURN_IF_ERROR(CheckOut(out, {captures}));
  NIBBLE_ASSIGN_OR_RETURN(const auto device, backend.Make());
  NIBBLE_ASSIGN_OR_RETURN(const CalibrationStates states,
                          CollectCalibration(captures, !no_hessians, *device));
  return SaveAndSay(out, states);
}

CalibrationMergeCommand::CalibrationMergeCommand(CLI::App* app) {
  app->add_option("OUT", out, "file to write")->required()->check(NotEmpty());
  app->add_option("IN", in, "files of `nibble calibration collect` or a run")->required();
}

absl::Status CalibrationMergeCommand::Run() {
  NIBBLE_RETURN_IF_ERROR(CheckOut(out, in));
  NIBBLE_ASSIGN_OR_RETURN(const CalibrationStates states, MergeCalibrations(in));
  return SaveAndSay(out, states);
}

}  // namespace nibble
