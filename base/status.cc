#include "base/status.h"

#include <cstdio>
#include <cstdlib>

namespace nibble {

absl::Status Annotate(const absl::Status& status, std::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(ToAbsl(context), ": ", status.message()));
}

void CheckFailed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: internal error, please report: %s\n", file, line, expression);
  std::abort();
}

}  // namespace nibble
