// JSON objects of unknown origin: the configurations of models.
#ifndef NIBBLE_IO_JSON_OBJECT_H_
#define NIBBLE_IO_JSON_OBJECT_H_

#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace nibble {

// DataLoss for what is no JSON object, is nested more than 100 levels deep, or names a key twice,
// where readers would differ. Python's Infinity and NaN become strings (io/python_json.h).
absl::StatusOr<nlohmann::json> ParseJsonObject(const std::string& text);
// Its keys in the order of the text.
absl::StatusOr<nlohmann::ordered_json> ParseOrderedJsonObject(const std::string& text);

}  // namespace nibble

#endif  // NIBBLE_IO_JSON_OBJECT_H_
