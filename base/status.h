// How the tree reports failure: absl::Status everywhere, annotated on its way up, never an
// exception across a folder. NIBBLE_CHECK is for our own bugs only.
//
// A message reads "<what>: expected <rule>, got <value>".
#ifndef NIBBLE_BASE_STATUS_H_
#define NIBBLE_BASE_STATUS_H_

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace nibble {

// Debian's Abseil keeps its own string_view type; these two are the only bridge.
inline absl::string_view ToAbsl(std::string_view s) { return {s.data(), s.size()}; }
inline std::string_view ToStd(absl::string_view s) { return {s.data(), s.size()}; }

// "<context>: <message>", same code. OK passes through.
absl::Status Annotate(const absl::Status& status, std::string_view context);

// Name of the failed expression and place to stderr, then abort.
[[noreturn]] void CheckFailed(const char* expression, const char* file, int line);

}  // namespace nibble

#define NIBBLE_CHECK(condition) \
  ((condition) ? static_cast<void>(0) : ::nibble::CheckFailed(#condition, __FILE__, __LINE__))

#define NIBBLE_RETURN_IF_ERROR(expression)                                                    \
  do {                                                                                        \
    if (absl::Status nibble_status = (expression); !nibble_status.ok()) return nibble_status; \
  } while (false)

#define NIBBLE_CONCAT_INNER(a, b) a##b
#define NIBBLE_CONCAT(a, b) NIBBLE_CONCAT_INNER(a, b)

// NIBBLE_ASSIGN_OR_RETURN(auto value, MakeValue());
#define NIBBLE_ASSIGN_OR_RETURN(lhs, expression) \
  NIBBLE_ASSIGN_OR_RETURN_IMPL(NIBBLE_CONCAT(nibble_status_or_, __LINE__), lhs, expression)
#define NIBBLE_ASSIGN_OR_RETURN_IMPL(temp, lhs, expression) \
  auto temp = (expression);                                 \
  if (!temp.ok()) return temp.status();                     \
  lhs = std::move(temp).value()

#endif  // NIBBLE_BASE_STATUS_H_
