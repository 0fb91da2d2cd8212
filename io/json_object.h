// JSON objects of unknown origin, the configurations of models, and numbers for those of our own.
#ifndef NIBBLE_IO_JSON_OBJECT_H_
#define NIBBLE_IO_JSON_OBJECT_H_

#include <cmath>
#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace nibble {

// DataLoss for what is no JSON object, is nested more than 100 levels deep, or names a key twice,
// where readers would differ. Python's Infinity and NaN become strings (io/python_json.h).
absl::StatusOr<nlohmann::json> ParseJsonObject(const std::string& text);
// Its keys in the order of the text.
absl::StatusOr<nlohmann::ordered_json> ParseOrderedJsonObject(const std::string& text);

// JSON has no infinity, such as the SQNR of a tensor without error.
inline nlohmann::ordered_json FiniteOrNull(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json(nullptr);
}

}  // namespace nibble

#endif  // NIBBLE_IO_JSON_OBJECT_H_
