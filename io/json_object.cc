#include "io/json_object.h"

#include <set>
#include <vector>

#include "base/status.h"
#include "base/text.h"
#include "io/python_json.h"

namespace nibble {
namespace {

constexpr int kMaxLevels = 100;

template <typename Json>
absl::StatusOr<Json> Parse(const std::string& text) {
  std::vector<std::set<std::string>> keys;
  absl::Status problem;
  using Event = typename Json::parse_event_t;
  const auto check = [&](int depth, Event event, Json& parsed) {
    if (event == Event::object_start || event == Event::array_start) {
      if (depth >= kMaxLevels && problem.ok()) {
        problem =
            absl::DataLossError(absl::StrCat("expected at most ", kMaxLevels, " levels, got more"));
      }
    }
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key) {
      const std::string& key = parsed.template get_ref<const std::string&>();
      if (!keys.back().insert(key).second && problem.ok()) {
        problem = absl::DataLossError(
            absl::StrCat("expected keys that differ, got ", Quoted(key), " twice"));
      }
    }
    return true;
  };
  Json object = Json::parse(QuoteConstants(text), check, /*allow_exceptions=*/false);
  NIBBLE_RETURN_IF_ERROR(problem);
  if (object.is_discarded()) {
    return absl::DataLossError("expected JSON in UTF-8, got something else");
  }
  if (!object.is_object()) {
    return absl::DataLossError(absl::StrCat("expected an object, got ", object.type_name()));
  }
  return object;
}

}  // namespace

absl::StatusOr<nlohmann::json> ParseJsonObject(const std::string& text) {
  return Parse<nlohmann::json>(text);
}

absl::StatusOr<nlohmann::ordered_json> ParseOrderedJsonObject(const std::string& text) {
  return Parse<nlohmann::ordered_json>(text);
}

}  // namespace nibble
