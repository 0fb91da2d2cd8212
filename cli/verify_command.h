// nibble verify OUT [--against SOURCE] [--json]
#ifndef NIBBLE_CLI_VERIFY_COMMAND_H_
#define NIBBLE_CLI_VERIFY_COMMAND_H_

#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "cli/flags.h"

namespace nibble {

struct VerifyCommand {
  std::string folder, against;
  bool json = false;
  BackendFlags backend;

  explicit VerifyCommand(CLI::App* app);
  // FailedPrecondition where there are holes; each is a line on stdout by then.
  absl::Status Run();
};

}  // namespace nibble

#endif  // NIBBLE_CLI_VERIFY_COMMAND_H_
