#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "base/text.h"
#include "model/text/added_tokens.h"
#include "model/text/bpe.h"
#include "model/text/json_document.h"
#include "model/text/normalizer.h"
#include "model/text/pre_tokenizer.h"
#include "model/text/tokenizer.h"
#include "model/text/unicode.h"

namespace nibble {
namespace {

using Vocabulary = absl::flat_hash_map<std::string, uint32_t>;

struct Frame {
  std::vector<uint32_t> before, after;  // special tokens around a document
};

class JsonTokenizer final : public Tokenizer {
 public:
  JsonTokenizer(AddedTokens raw, AddedTokens normalized, Normalizer normalizer,
                PreTokenizer pre_tokenizer, Bpe bpe, Frame frame, int64_t vocabulary)
      : raw_(std::move(raw)),
        normalized_(std::move(normalized)),
        normalizer_(std::move(normalizer)),
        pre_tokenizer_(std::move(pre_tokenizer)),
        bpe_(std::move(bpe)),
        frame_(std::move(frame)),
        vocabulary_(vocabulary) {}

  int64_t vocabulary() const override { return vocabulary_; }

 private:
  absl::Status DoEncode(std::string_view text, std::vector<uint32_t>& ids) const override {
    ids.insert(ids.end(), frame_.before.begin(), frame_.before.end());
    NIBBLE_RETURN_IF_ERROR(
        raw_.ForEach(text, [&](std::string_view piece, const AddedToken* token) -> absl::Status {
          if (token != nullptr) {
            ids.push_back(token->id);
            return absl::OkStatus();
          }
          const bool is_first = piece.data() == text.data();
          if (normalizer_.empty()) return EncodeNormal(piece, is_first, ids);
          NIBBLE_ASSIGN_OR_RETURN(const std::string normal, normalizer_.Apply(piece));
          return EncodeNormal(normal, is_first, ids);
        }));
    ids.insert(ids.end(), frame_.after.begin(), frame_.after.end());
    return absl::OkStatus();
  }

  absl::Status EncodeNormal(std::string_view text, bool is_first,
                            std::vector<uint32_t>& ids) const {
    return normalized_.ForEach(text, [&](std::string_view piece, const AddedToken* token) {
      if (token != nullptr) {
        ids.push_back(token->id);
        return absl::OkStatus();
      }
      return pre_tokenizer_.Apply(piece, is_first && piece.data() == text.data(),
                                  [&](std::string_view word) { bpe_.Encode(word, ids); });
    });
  }

  AddedTokens raw_, normalized_;  // looked for before and after normalizing
  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  Bpe bpe_;
  Frame frame_;
  int64_t vocabulary_;
};

// --- The model ----------------------------------------------------------------------------------

// The bytes that a ByteLevel token stands for: GPT-2 writes each byte as a character that shows,
// the 188 that do as themselves and the others as U+0100 and up. Nothing where another is in it.
std::optional<std::string> BytesOf(std::string_view token) {
  static const auto kBytes = [] {
    std::array<int, 0x144> bytes;
    bytes.fill(-1);
    int next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool shows = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      bytes[shows ? byte : next++] = byte;
    }
    return bytes;
  }();
  std::string text;
  for (size_t i = 0; i < token.size();) {
    const CodePoint point = CodePointAt(token, i);
    if (point.code >= kBytes.size() || kBytes[point.code] < 0) return std::nullopt;
    text += static_cast<char>(kBytes[point.code]);
    i += point.bytes;
  }
  return text;
}

absl::StatusOr<Vocabulary> ReadVocabulary(const JsonNode& node) {
  NIBBLE_RETURN_IF_ERROR(node.CheckObject());
  Vocabulary vocabulary;
  vocabulary.reserve(node.value().size());
  absl::flat_hash_set<uint32_t> ids;
  for (const auto& [token, id] : node.value().items()) {
    if (!id.is_number_unsigned() ||
        id.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int32_t>::max())) {
      return absl::DataLossError(absl::StrCat(node.path(), ": ", Quoted(token),
                                              ": expected an id from 0 to 2^31-1, got another"));
    }
    vocabulary.emplace(token, id.get<uint32_t>());
    if (!ids.insert(id.get<uint32_t>()).second) {
      return absl::DataLossError(absl::StrCat(node.path(), ": ", Quoted(token),
                                              ": expected ids that differ, got a second ",
                                              id.get<uint32_t>()));
    }
  }
  return vocabulary;
}

absl::StatusOr<std::vector<BpeMerge>> ReadMerges(const JsonNode& node,
                                                 const Vocabulary& vocabulary) {
  if (!node.value().is_array()) return node.Error("an array");
  std::vector<BpeMerge> merges;
  merges.reserve(node.value().size());
  size_t index = 0;
  for (const nlohmann::json& item : node.value()) {
    const auto error = [&](const std::string& problem) {
      return absl::DataLossError(absl::StrCat(node.path(), "[", index, "]: ", problem));
    };
    std::string left, right;
    if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string()) {
      left = item[0].get_ref<const std::string&>();
      right = item[1].get_ref<const std::string&>();
    } else if (item.is_string()) {
      const std::string& text = item.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (text.starts_with("#version")) {
        ++index;
        continue;
      }
      if (space == text.npos || text.find(' ', space + 1) != text.npos) {
        return error(absl::StrCat("expected two tokens with a space between, got ", Quoted(text)));
      }
      left = text.substr(0, space);
      right = text.substr(space + 1);
    } else {
      return error("expected two tokens, got another value");
    }
    if (left.empty() || right.empty()) return error("expected two tokens, got an empty one");
    BpeMerge merge;
    const std::pair<const std::string, uint32_t*> parts[] = {
        {left, &merge.left}, {right, &merge.right}, {left + right, &merge.merged}};
    for (const auto& [token, id] : parts) {
      const auto found = vocabulary.find(token);
      if (found == vocabulary.end()) {
        return error(absl::StrCat("expected tokens of the vocabulary, got ", Quoted(token)));
      }
      *id = found->second;
    }
    merges.push_back(merge);
    ++index;
  }
  return merges;
}

// Refuses what would change words in ways that we do not have.
absl::Status CheckModel(const JsonNode& model) {
  // Files of before the type was written are known by their merges.
  const JsonNode type = model["type"];
  if (!type.is_null() || model["merges"].is_null()) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string_view name, type.String());
    if (name != "BPE") return type.Unsupported("BPE");
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const JsonNode affix = model[key];
    if (affix.is_null()) continue;
    NIBBLE_ASSIGN_OR_RETURN(const std::string_view text, affix.String());
    if (!text.empty()) return affix.Unsupported("none");
  }
  const JsonNode dropout = model["dropout"];
  if (!dropout.is_null() && !(dropout.value().is_number() && dropout.value() == 0)) {
    return dropout.Unsupported("none");
  }
  return absl::OkStatus();
}

absl::StatusOr<Bpe> ReadBpe(const JsonNode& model, const Vocabulary& vocabulary, bool by_bytes) {
  BpeModel bpe;
  bpe.by_bytes = by_bytes;
  NIBBLE_ASSIGN_OR_RETURN(bpe.merges, ReadMerges(model["merges"], vocabulary));
  NIBBLE_ASSIGN_OR_RETURN(bpe.fuse_unknown, model["fuse_unk"].BoolOr(false));
  NIBBLE_ASSIGN_OR_RETURN(bpe.whole_words, model["ignore_merges"].BoolOr(false));
  NIBBLE_ASSIGN_OR_RETURN(const bool byte_fallback, model["byte_fallback"].BoolOr(false));
  if (by_bytes) {
    for (const auto& [token, id] : vocabulary) {
      // A token that is no bytes is part of no word.
      if (std::optional<std::string> bytes = BytesOf(token)) {
        bpe.vocabulary.emplace(*std::move(bytes), id);
      }
    }
  } else {
    bpe.vocabulary = vocabulary;
  }
  int missing = 0;  // bytes without a token
  for (int byte = 0; byte < 256; ++byte) {
    if (by_bytes) {
      missing += !bpe.vocabulary.contains(std::string(1, static_cast<char>(byte)));
    } else {
      const auto token = vocabulary.find(absl::StrFormat("<0x%02X>", byte));
      missing += !byte_fallback || token == vocabulary.end();
      if (byte_fallback && token != vocabulary.end()) bpe.byte_tokens[byte] = token->second;
    }
  }
  if (by_bytes && byte_fallback && missing > 0) {
    return model["byte_fallback"].Unsupported("false where ByteLevel's alphabet is incomplete");
  }
  if (const JsonNode unknown = model["unk_token"]; !unknown.is_null()) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string_view token, unknown.String());
    const auto found = vocabulary.find(ToAbsl(token));
    if (found != vocabulary.end()) {
      bpe.unknown = found->second;
    } else if (missing > 0) {
      return unknown.Error("a token of the vocabulary");
    }
  }
  for (const BpeMerge& merge : bpe.merges) {
    if (merge.merged == bpe.unknown ||
        std::ranges::find(bpe.byte_tokens, merge.merged) != bpe.byte_tokens.end()) {
      return model["merges"].Unsupported("no merge into the unknown token or one of a byte");
    }
  }
  return Bpe(std::move(bpe));
}

// --- Added tokens -------------------------------------------------------------------------------

absl::StatusOr<std::vector<AddedToken>> ReadAddedTokens(const JsonNode& node,
                                                        const Vocabulary& vocabulary) {
  std::vector<AddedToken> tokens;
  if (node.is_null()) return tokens;
  NIBBLE_ASSIGN_OR_RETURN(const auto items, node.Items());
  Vocabulary ids;
  int64_t next = static_cast<int64_t>(vocabulary.size());
  for (const JsonNode& item : items) {
    AddedToken token;
    NIBBLE_ASSIGN_OR_RETURN(token.content, item["content"].String());
    NIBBLE_ASSIGN_OR_RETURN(token.id, item["id"].Id());
    NIBBLE_ASSIGN_OR_RETURN(token.single_word, item["single_word"].Bool());
    NIBBLE_ASSIGN_OR_RETURN(token.lstrip, item["lstrip"].Bool());
    NIBBLE_ASSIGN_OR_RETURN(token.rstrip, item["rstrip"].Bool());
    NIBBLE_ASSIGN_OR_RETURN(token.normalized, item["normalized"].Bool());
    if (token.content.empty()) return item["content"].Error("a token");
    // The library numbers tokens itself and only warns where the file has other numbers.
    const auto known = vocabulary.find(token.content);
    const int64_t id = known != vocabulary.end() ? known->second : next;
    if (token.id != id) return item["id"].Error(absl::StrCat("the token's id ", id));
    if (!ids.emplace(token.content, token.id).second) {
      return item["content"].Error("tokens that differ");
    }
    next = std::max(next, id + 1);
    tokens.push_back(std::move(token));
  }
  return tokens;
}

// --- The post-processor -------------------------------------------------------------------------

absl::Status ReadTemplate(const JsonNode& node, Frame& frame) {
  NIBBLE_ASSIGN_OR_RETURN(const auto items, node["single"].Items());
  int sequences = 0;
  for (const JsonNode& item : items) {
    const JsonNode sequence = item["Sequence"];
    if (!sequence.is_null()) {
      ++sequences;
      continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::string_view name, item["SpecialToken"]["id"].String());
    const JsonNode special = node["special_tokens"][name];
    NIBBLE_ASSIGN_OR_RETURN(const auto ids, special["ids"].Items());
    for (const JsonNode& id_node : ids) {
      NIBBLE_ASSIGN_OR_RETURN(const uint32_t id, id_node.Id());
      (sequences == 0 ? frame.before : frame.after).push_back(id);
    }
  }
  if (sequences != 1) return node["single"].Error("one Sequence");
  return absl::OkStatus();
}

absl::Status ReadPostProcessor(const JsonNode& node, int& templates, Frame& frame) {
  if (node.is_null()) return absl::OkStatus();
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view type, node["type"].String());
  if (type == "Sequence") {
    NIBBLE_ASSIGN_OR_RETURN(const auto items, node["processors"].Items());
    for (const JsonNode& item : items) {
      NIBBLE_RETURN_IF_ERROR(ReadPostProcessor(item, templates, frame));
    }
    return absl::OkStatus();
  }
  if (type == "ByteLevel") return absl::OkStatus();  // moves offsets, which we do not have
  if (type == "TemplateProcessing") {
    if (++templates > 1) return node["type"].Unsupported("one template");
    return ReadTemplate(node, frame);
  }
  return node["type"].Unsupported("one of ByteLevel, TemplateProcessing, Sequence");
}

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeTokenizer(const JsonNode& root) {
  NIBBLE_RETURN_IF_ERROR(root.CheckObject());
  const JsonNode model = root["model"];
  NIBBLE_RETURN_IF_ERROR(model.CheckObject());
  NIBBLE_RETURN_IF_ERROR(CheckModel(model));
  NIBBLE_ASSIGN_OR_RETURN(Normalizer normalizer, Normalizer::Read(root["normalizer"]));
  NIBBLE_ASSIGN_OR_RETURN(PreTokenizer pre_tokenizer, PreTokenizer::Read(root["pre_tokenizer"]));
  Frame frame;
  int templates = 0;
  NIBBLE_RETURN_IF_ERROR(ReadPostProcessor(root["post_processor"], templates, frame));
  NIBBLE_ASSIGN_OR_RETURN(const Vocabulary vocabulary, ReadVocabulary(model["vocab"]));
  NIBBLE_ASSIGN_OR_RETURN(Bpe bpe, ReadBpe(model, vocabulary, pre_tokenizer.by_bytes()));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<AddedToken> added,
                          ReadAddedTokens(root["added_tokens"], vocabulary));

  int64_t size = 0;
  for (const auto& [token, id] : vocabulary) size = std::max(size, int64_t{id} + 1);
  for (const AddedToken& token : added) size = std::max(size, int64_t{token.id} + 1);
  for (const auto* ids : {&frame.before, &frame.after}) {
    for (const uint32_t id : *ids) size = std::max(size, int64_t{id} + 1);
  }
  std::vector<AddedToken> raw, normalized;
  for (AddedToken& token : added) {
    if (!token.normalized) {
      raw.push_back(std::move(token));
      continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(token.content, normalizer.Apply(token.content));
    normalized.push_back(std::move(token));
  }
  return std::make_unique<JsonTokenizer>(
      AddedTokens(std::move(raw)), AddedTokens(std::move(normalized)), std::move(normalizer),
      std::move(pre_tokenizer), std::move(bpe), std::move(frame), size);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> ParseTokenizerJson(std::string_view json) {
  NIBBLE_ASSIGN_OR_RETURN(const nlohmann::json document, ParseJson(json));
  return MakeTokenizer(JsonNode(document));
}

}  // namespace nibble
