// The only file that knows yaml-cpp, and that has exceptions: none leaves it.
#include "policies/yaml_document.h"

#include <algorithm>
#include <exception>
#include <map>
#include <sstream>
#include <utility>

#include "absl/status/status.h"
#include "base/status.h"
#include "base/text.h"
#include "yaml-cpp/eventhandler.h"
#include "yaml-cpp/exceptions.h"
#include "yaml-cpp/mark.h"
#include "yaml-cpp/parser.h"

namespace nibble {
namespace {

// How the builder stops yaml-cpp.
struct Refusal {
  std::string place, message;
};

class Places {
 public:
  Places(std::string_view file, bool lines) : file_(file), lines_(lines) {}

  // Counted from 0.
  std::string At(int64_t line, int64_t column) const {
    if (!lines_) return file_;
    return absl::StrCat(file_, ":", line + 1, ":", column + 1);
  }
  std::string Of(const YAML::Mark& mark) const {
    return mark.is_null() ? file_ : At(mark.line, mark.column);
  }

 private:
  const std::string file_;
  const bool lines_;
};

// Makes the tree of what yaml-cpp reads, one event after another: of what is refused nothing is
// built, however large it would have been.
class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(const Places& places) : places_(places) {}

  YamlPtr root() const { return root_; }
  // Of an error. Where the text ends too early yaml-cpp gives none: then of what was not closed.
  YAML::Mark MarkOf(const YAML::Mark& mark) const {
    const bool given = mark.line != 0 || mark.column != 0;
    return given || levels_.empty() ? mark : levels_.back().mark;
  }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto node = Node(mark, "", YamlNode::Kind::kNull);
    Remember(anchor, node);
    Add(mark, node);
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto found = anchors_.find(anchor);
    if (found == anchors_.end()) {
      Refuse(mark, "alias: expected an anchor that is complete, got one inside of itself");
    }
    Add(mark, found->second);
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    const auto node = Node(mark, tag, YamlNode::Kind::kScalar);
    node->text = value;
    node->quoted = tag == "!";
    Remember(anchor, node);
    Add(mark, node);
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Open(mark, tag, anchor, YamlNode::Kind::kSequence);
  }
  void OnSequenceEnd() override { Close(); }

  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Open(mark, tag, anchor, YamlNode::Kind::kMap);
  }
  void OnMapEnd() override { Close(); }

 private:
  // A sequence or a map whose end has not come.
  struct Level {
    std::shared_ptr<YamlNode> node;
    YAML::Mark mark;
    YAML::anchor_t anchor;
    bool has_key = false;
    std::string key = {}, key_place = {};
    std::map<std::string, std::string> key_places = {};
  };

  [[noreturn]] void Refuse(const YAML::Mark& mark, std::string message) const {
    throw Refusal{places_.Of(mark), std::move(message)};
  }

  void CheckDepth(const YAML::Mark& mark, size_t levels) const {
    if (levels > kDeepestYaml) {
      Refuse(mark, absl::StrCat("nesting: expected at most ", kDeepestYaml, " levels, got more"));
    }
  }

  std::shared_ptr<YamlNode> Node(const YAML::Mark& mark, const std::string& tag,
                                 YamlNode::Kind kind) const {
    if (!tag.empty() && tag != "?" && tag != "!") {
      Refuse(mark, absl::StrCat("tag: expected none, got ", Quoted(tag)));
    }
    return std::make_shared<YamlNode>(YamlNode{.kind = kind, .place = places_.Of(mark)});
  }

  void Remember(YAML::anchor_t anchor, const YamlPtr& node) {
    if (anchor != 0) anchors_[anchor] = node;
  }

  void Open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
            YamlNode::Kind kind) {
    CheckDepth(mark, levels_.size() + 1);
    if (!levels_.empty() && levels_.back().node->kind == YamlNode::Kind::kMap &&
        !levels_.back().has_key) {
      Refuse(mark, "key: expected a word, got a list or a mapping");
    }
    levels_.push_back({.node = Node(mark, tag, kind), .mark = mark, .anchor = anchor});
  }

  void Close() {
    const Level level = std::move(levels_.back());
    levels_.pop_back();
    Remember(level.anchor, level.node);
    Add(level.mark, level.node);
  }

  void Add(const YAML::Mark& mark, const YamlPtr& node) {
    if (levels_.empty()) {
      root_ = node;
      return;
    }
    Level& level = levels_.back();
    if (level.node->kind == YamlNode::Kind::kMap && !level.has_key) {
      AddKey(level, mark, *node);
      return;
    }
    CheckDepth(mark, levels_.size() + node->levels);
    level.node->levels = std::max(level.node->levels, node->levels + 1);
    level.node->values += node->values;
    if (level.node->values > kMostYamlValues) {
      Refuse(mark, absl::StrCat("document: expected at most ", kMostYamlValues,
                                " values, aliases counted wherever they are used, got more"));
    }
    if (level.node->kind == YamlNode::Kind::kSequence) {
      level.node->items.push_back(node);
    } else {
      level.node->entries.push_back({std::move(level.key), std::move(level.key_place), node});
      level.has_key = false;
    }
  }

  void AddKey(Level& level, const YAML::Mark& mark, const YamlNode& node) {
    if (node.kind != YamlNode::Kind::kScalar) {
      Refuse(mark, "key: expected a word, got nothing, a list or a mapping");
    }
    const std::string place = places_.Of(mark);
    const auto [first, is_new] = level.key_places.emplace(node.text, place);
    if (!is_new) {
      Refuse(mark, absl::StrCat("key: expected each one once, got ", Quoted(node.text),
                                " again, which is at ", first->second));
    }
    level.has_key = true;
    level.key = node.text;
    level.key_place = place;
  }

  const Places& places_;
  std::vector<Level> levels_;
  std::map<YAML::anchor_t, YamlPtr> anchors_;
  YamlPtr root_;
};

// The bytes of the UTF-8 character that begins here; 0 where none does.
size_t CharacterBytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  if (byte(0) < 0x80) return 1;
  const size_t count = byte(0) >= 0xF0 ? 4 : byte(0) >= 0xE0 ? 3 : 2;
  if (byte(0) < 0xC2 || byte(0) > 0xF4 || text.size() < count) return 0;
  for (size_t i = 1; i < count; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  if (byte(0) == 0xE0 && byte(1) < 0xA0) return 0;  // longer than need be
  if (byte(0) == 0xED && byte(1) > 0x9F) return 0;  // surrogates
  if (byte(0) == 0xF0 && byte(1) < 0x90) return 0;
  if (byte(0) == 0xF4 && byte(1) > 0x8F) return 0;  // beyond Unicode
  return count;
}

// yaml-cpp would guess another encoding, or take a control character for the end.
absl::Status CheckText(std::string_view text, const Places& places) {
  if (text.size() > kMostYamlBytes) {
    return absl::InvalidArgumentError(absl::StrCat(places.At(0, 0), ": document: expected at most ",
                                                   kMostYamlBytes, " bytes, got ", text.size()));
  }
  int64_t line = 0, column = 0;
  for (size_t i = 0; i < text.size();) {
    const unsigned char c = text[i];
    const size_t count = CharacterBytes(text.substr(i));
    const bool control = (c < 0x20 && c != '\t' && c != '\n' && c != '\r') || c == 0x7F;
    if (count == 0 || control) {
      return absl::InvalidArgumentError(absl::StrCat(
          places.At(line, column), ": document: expected UTF-8 text without control characters, ",
          "got the byte 0x", absl::Hex(c, absl::kZeroPad2)));
    }
    i += count;
    column = c == '\n' ? 0 : column + 1;
    line += c == '\n';
  }
  return absl::OkStatus();
}

}  // namespace

const YamlEntry* YamlNode::Find(std::string_view key) const {
  const auto entry = std::ranges::find(entries, key, &YamlEntry::key);
  return entry == entries.end() ? nullptr : &*entry;
}

absl::StatusOr<YamlPtr> ParseYaml(std::string_view text, std::string_view file, bool lines) {
  const Places places(Printable(file), lines);
  NIBBLE_RETURN_IF_ERROR(CheckText(text, places));
  TreeBuilder builder(places);
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    if (!parser.HandleNextDocument(builder)) {
      return std::make_shared<const YamlNode>(YamlNode{.place = places.At(0, 0)});
    }
    TreeBuilder second(places);
    if (parser.HandleNextDocument(second)) {
      return absl::InvalidArgumentError(
          absl::StrCat(second.root()->place, ": document: expected one, got a second"));
    }
    return builder.root();
  } catch (const Refusal& refusal) {
    return absl::InvalidArgumentError(absl::StrCat(refusal.place, ": ", refusal.message));
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(places.Of(builder.MarkOf(error.mark)),
                     ": document: expected YAML, got what the parser calls ", Quoted(error.msg)));
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(places.At(0, 0), ": document: expected YAML, got ", Quoted(error.what())));
  }
}

}  // namespace nibble
