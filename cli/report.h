// How the program ends: an exit code, and one line on stderr where it failed; what it warns of.
#ifndef NIBBLE_CLI_REPORT_H_
#define NIBBLE_CLI_REPORT_H_

#include <span>
#include <string>

#include "absl/status/status.h"

namespace nibble {

// 2 wrong arguments, 3 bad data, 1 everything else that fails.
enum ExitCode { kSuccess = 0, kFailed = 1, kWrongArguments = 2, kBadData = 3 };

ExitCode ExitCodeOf(const absl::Status& status);

// Says on stderr what failed, if anything did.
ExitCode Report(const absl::Status& status);

// A line on stderr for each.
void ReportWarnings(std::span<const std::string> warnings);

}  // namespace nibble

#endif  // NIBBLE_CLI_REPORT_H_
