#include "io/json_object.h"

#include <set>
#include <vector>

#include "base/status.h"
#include "base/text.h"
#include "io/python_json.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 100;

}  // namespace

absl::StatusOr<Json> ParseJsonObject(const std::string& text) {
  std::vector<std::set<std::string>> keys;
  absl::Status problem;
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start) {
      if (depth >= kMaxDepth && problem.ok()) {
        problem =
            absl::DataLossError(absl::StrCat("expected at most ", kMaxDepth, " levels, got more"));
      }
    }
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key) {
      const std::string& key = parsed.get_ref<const std::string&>();
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

}  // namespace nibble
