#include "cli/report.h"

#include <cstdio>

#include "base/status.h"
#include "base/text.h"

namespace nibble {

ExitCode ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kSuccess;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kUnimplemented:
      return kWrongArguments;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kDataLoss:
      return kBadData;
    default:
      return kFailed;
  }
}

ExitCode Report(const absl::Status& status) {
  if (!status.ok()) {
    std::fprintf(stderr, "nibble: %s\n", Printable(ToStd(status.message())).c_str());
  }
  return ExitCodeOf(status);
}

void ReportWarnings(std::span<const std::string> warnings) {
  for (const std::string& warning : warnings) {
    std::fprintf(stderr, "nibble: warning: %s\n", Printable(warning).c_str());
  }
}

}  // namespace nibble
