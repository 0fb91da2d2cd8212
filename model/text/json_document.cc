#include "model/text/json_document.h"

#include <limits>
#include <utility>

#include "base/status.h"
#include "base/text.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxLevels = 64;

// Takes the events of nlohmann's SAX parser, as io/safetensors.cc does and for the same reasons.
class TreeBuilder {
 public:
  const absl::Status& status() const { return status_; }
  Json&& TakeRoot() { return std::move(root_); }

  bool null() { return Add(nullptr); }
  bool boolean(bool value) { return Add(value); }
  bool number_integer(int64_t value) { return Add(value); }
  bool number_unsigned(uint64_t value) { return Add(value); }
  bool number_float(double value, const std::string&) { return Add(value); }
  bool binary(Json::binary_t&) { return Fail("expected JSON, got binary"); }
  bool string(std::string& text) { return Add(std::move(text)); }
  bool start_object(size_t) { return Open(Json::object()); }
  bool start_array(size_t) { return Open(Json::array()); }
  bool end_object() { return Close(); }
  bool end_array() { return Close(); }

  bool key(std::string& name) {
    const auto [member, is_new] = open_.back()->emplace(std::move(name), nullptr);
    if (!is_new) {
      return Fail(absl::StrCat("expected names that differ, got a second ", Quoted(member.key())));
    }
    member_ = &member.value();
    return true;
  }

  bool parse_error(size_t position, const std::string& token, const Json::exception&) {
    return Fail(
        absl::StrCat("expected JSON in UTF-8, got ", Quoted(token), " up to its byte ", position));
  }

 private:
  bool Fail(const std::string& message) {
    status_ = absl::DataLossError(message);
    return false;
  }

  // Puts a value where the next one belongs.
  Json* Place(Json value) {
    if (open_.empty()) return &(root_ = std::move(value));
    Json& parent = *open_.back();
    if (parent.is_object()) return &(*member_ = std::move(value));
    parent.push_back(std::move(value));
    return &parent.back();
  }
  bool Add(Json value) {
    Place(std::move(value));
    return true;
  }
  bool Open(Json value) {
    if (open_.size() == kMaxLevels) {
      return Fail(absl::StrCat("expected at most ", kMaxLevels, " levels, got more"));
    }
    open_.push_back(Place(std::move(value)));
    return true;
  }
  bool Close() {
    open_.pop_back();
    return true;
  }

  absl::Status status_;
  Json root_;
  // A parent does not grow while a child is open, so these stay where they are.
  std::vector<Json*> open_;
  Json* member_ = nullptr;  // of the innermost object
};

const Json kMissing;

std::string Shown(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "nothing";
    case Json::value_t::object:
      return "an object";
    case Json::value_t::array:
      return "an array";
    case Json::value_t::string:
      return Quoted(value.get_ref<const std::string&>());
    default:
      return Printable(value.dump());
  }
}

}  // namespace

absl::StatusOr<Json> ParseJson(std::string_view text) {
  // The parser would take a zero for the end of the text.
  if (const size_t zero = text.find('\0'); zero != text.npos) {
    return absl::DataLossError(absl::StrCat("expected JSON, got a zero at its byte ", zero));
  }
  TreeBuilder builder;
  if (!Json::sax_parse(text.begin(), text.end(), &builder)) return builder.status();
  return builder.TakeRoot();
}

JsonNode JsonNode::operator[](std::string_view key) const {
  std::string path = absl::StrCat(path_, path_.empty() ? "" : ".", Printable(key));
  if (value_->is_object()) {
    const auto found = value_->find(std::string(key));
    if (found != value_->end()) return JsonNode(*found, std::move(path));
  }
  return JsonNode(kMissing, std::move(path));
}

absl::Status JsonNode::Error(std::string_view expected) const {
  return absl::DataLossError(absl::StrCat(path_.empty() ? "file" : path_, ": expected ",
                                          ToAbsl(expected), ", got ", Shown(*value_)));
}

absl::Status JsonNode::Unsupported(std::string_view supported) const {
  return absl::UnimplementedError(
      absl::StrCat(path_, ": expected ", ToAbsl(supported), ", got ", Shown(*value_)));
}

absl::StatusOr<std::string_view> JsonNode::String() const {
  if (!value_->is_string()) return Error("a string");
  return std::string_view(value_->get_ref<const std::string&>());
}

absl::StatusOr<bool> JsonNode::Bool() const {
  if (!value_->is_boolean()) return Error("true or false");
  return value_->get<bool>();
}

absl::StatusOr<bool> JsonNode::BoolOr(bool missing) const {
  if (is_null()) return missing;
  return Bool();
}

absl::StatusOr<uint32_t> JsonNode::Id() const {
  if (!value_->is_number_unsigned() ||
      value_->get<uint64_t>() > std::numeric_limits<int32_t>::max()) {
    return Error("an id from 0 to 2^31-1");
  }
  return static_cast<uint32_t>(value_->get<uint64_t>());
}

absl::StatusOr<std::vector<JsonNode>> JsonNode::Items() const {
  if (!value_->is_array()) return Error("an array");
  std::vector<JsonNode> items;
  for (size_t i = 0; i < value_->size(); ++i) {
    items.push_back(JsonNode((*value_)[i], absl::StrCat(path_, "[", i, "]")));
  }
  return items;
}

absl::Status JsonNode::CheckObject() const {
  return value_->is_object() ? absl::OkStatus() : Error("an object");
}

}  // namespace nibble
