// JSON of unknown origin as a tree, with places for messages.
#ifndef NIBBLE_MODEL_TEXT_JSON_DOCUMENT_H_
#define NIBBLE_MODEL_TEXT_JSON_DOCUMENT_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble {

// DataLoss for what is no JSON in UTF-8, for names that repeat in an object, and for what nests too
// deeply. Takes memory in proportion to the text.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text);

// A value and where it stands. Valid while the document is. What is missing reads as null.
class JsonNode {
 public:
  explicit JsonNode(const nlohmann::json& root) : value_(&root) {}

  const nlohmann::json& value() const { return *value_; }
  const std::string& path() const { return path_; }
  bool is_null() const { return value_->is_null(); }

  // Null unless this is an object that has it.
  JsonNode operator[](std::string_view key) const;

  // DataLoss "<path>: expected <what>, got <value>" for any other type.
  absl::StatusOr<std::string_view> String() const;  // of the document
  absl::StatusOr<bool> Bool() const;
  absl::StatusOr<bool> BoolOr(bool missing) const;
  absl::StatusOr<uint32_t> Id() const;  // a token's
  absl::StatusOr<std::vector<JsonNode>> Items() const;
  absl::Status CheckObject() const;

  absl::Status Error(std::string_view expected) const;
  // Unimplemented "<path>: expected <supported>, got <value>".
  absl::Status Unsupported(std::string_view supported) const;

 private:
  JsonNode(const nlohmann::json& value, std::string path)
      : value_(&value), path_(std::move(path)) {}

  const nlohmann::json* value_;
  std::string path_;
};

}  // namespace nibble

#endif  // NIBBLE_MODEL_TEXT_JSON_DOCUMENT_H_
