// nibble verify OUT [--against SOURCE [--calib STATE] [--recipe R]] [--json]
#ifndef NIBBLE_CLI_VERIFY_COMMAND_H_
#define NIBBLE_CLI_VERIFY_COMMAND_H_

#include <set>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/flags.h"

namespace nibble {

struct VerifyCommand {
  std::string folder, against, calibration, recipe;
  std::vector<std::string> set;
  bool json = false;
  BackendFlags backend;

  explicit VerifyCommand(CLI::App* app);
  // FailedPrecondition where there are holes; each is a line on stdout by then.
  absl::Status Run();

 private:
  absl::StatusOr<std::set<std::string>> PlannedTensors(const std::string& source) const;
};

}  // namespace nibble

#endif  // NIBBLE_CLI_VERIFY_COMMAND_H_
