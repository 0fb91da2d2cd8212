#include "kernels/tuning/store.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <set>
#include <tuple>

#include "absl/strings/numbers.h"
#include "base/status.h"
#include "base/text.h"

namespace nibble {
namespace {

constexpr std::string_view kFirstLine = "nibble tuning 1";
constexpr std::string_view kColumns = "# device | operation | type | blocks | build | config";
constexpr size_t kLongestField = 256;

constexpr bool IsDigit(char c) { return c >= '0' && c <= '9'; }
constexpr bool IsLower(char c) { return c >= 'a' && c <= 'z'; }

bool IsName(std::string_view text) {
  return !text.empty() &&
         std::ranges::all_of(text, [](char c) { return IsLower(c) || IsDigit(c) || c == '_'; });
}

// As StrCat writes it: no sign +, no leading zero, no space.
std::optional<int> Number(std::string_view text) {
  int value;
  if (!absl::SimpleAtoi(ToAbsl(text), &value) || absl::StrCat(value) != ToAbsl(text)) {
    return std::nullopt;
  }
  return value;
}

// "warps=4 blocks_per_thread=2"
bool IsConfig(std::string_view text) {
  std::set<std::string_view> names;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    const std::string_view word = text.substr(begin, end - begin);
    const size_t equals = std::min(word.find('='), word.size());
    const std::string_view name = word.substr(0, equals);
    if (equals == word.size() || !IsName(name) || !Number(word.substr(equals + 1)) ||
        !names.insert(name).second) {
      return false;
    }
    begin = end + 1;
  }
  return true;
}

bool IsDevice(std::string_view text) {
  return !text.empty() && text.front() != ' ' && text.front() != '#' && text.back() != ' ' &&
         std::ranges::all_of(text, [](char c) { return c >= 0x20 && c <= 0x7E && c != '|'; });
}

bool IsBuildId(std::string_view text) {
  return text.size() == 16 &&
         std::ranges::all_of(text, [](char c) { return IsDigit(c) || (c >= 'a' && c <= 'f'); });
}

std::string Expected(std::string_view what, std::string_view rule, std::string_view got) {
  return absl::StrCat(ToAbsl(what), ": expected ", ToAbsl(rule), ", got ", Quoted(got));
}

// What of a pick could not be written and read back; empty where all can.
std::string Flaw(const TuningKey& key, std::string_view config) {
  for (std::string_view field : {std::string_view(key.device), std::string_view(key.op), config}) {
    if (field.size() > kLongestField) return Expected("field", "at most 256 bytes", field);
  }
  if (!IsDevice(key.device)) {
    return Expected("device", "printable ASCII without | and outer spaces", key.device);
  }
  if (!IsName(key.op)) return Expected("operation", "letters a-z, digits and _", key.op);
  if (!IsBuildId(key.build_id)) return Expected("build", "16 digits 0-9a-f", key.build_id);
  if (key.bucket < 0 || key.bucket >= kTuningBuckets) {
    return Expected("blocks", "2^0 .. 2^62", absl::StrCat("2^", key.bucket));
  }
  if (!IsConfig(config)) {
    return Expected("config", "name=number words, one space between them", config);
  }
  return "";
}

std::string_view WithoutOuterSpaces(std::string_view text) {
  const size_t begin = text.find_first_not_of(' ');
  if (begin == text.npos) return "";
  return text.substr(begin, text.find_last_not_of(' ') + 1 - begin);
}

absl::StatusOr<std::array<std::string_view, 6>> Fields(std::string_view line) {
  const auto bars = std::ranges::count(line, '|');
  if (bars != 5) {
    return absl::DataLossError(
        absl::StrCat("line: expected six fields with | between them, got ", bars + 1));
  }
  std::array<std::string_view, 6> fields;
  for (std::string_view& field : fields) {
    const size_t bar = std::min(line.find('|'), line.size());
    field = WithoutOuterSpaces(line.substr(0, bar));
    line.remove_prefix(std::min(bar + 1, line.size()));
  }
  return fields;
}

}  // namespace

int TuningBucket(int64_t blocks) {
  return blocks < 1 ? 0 : std::bit_width(static_cast<uint64_t>(blocks)) - 1;
}

absl::StatusOr<TuningStore> TuningStore::Parse(std::string_view text, std::string_view origin) {
  TuningStore store;
  int number = 0;
  const auto error = [&](std::string_view message) {
    return absl::DataLossError(absl::StrCat(ToAbsl(origin), ":", number, ": ", ToAbsl(message)));
  };
  while (number == 0 || !text.empty()) {
    ++number;
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (number == 1) {
      if (line != kFirstLine) return error(Expected("first line", kFirstLine, line));
      continue;
    }
    if (WithoutOuterSpaces(line).empty() || line.front() == '#') continue;
    const auto fields = Fields(line);
    if (!fields.ok()) return error(ToStd(fields.status().message()));
    const auto& [device, op, dtype_name, blocks, build_id, config] = *fields;
    const std::optional<DType> dtype = DTypeFromName(dtype_name);
    if (!dtype) return error(Expected("type", "one that safetensors names", dtype_name));
    const std::optional<int> bucket =
        blocks.starts_with("2^") ? Number(blocks.substr(2)) : std::nullopt;
    if (!bucket) return error(Expected("blocks", "2^0 .. 2^62", blocks));
    const TuningKey key = {std::string(device), std::string(op), std::string(build_id), *dtype,
                           *bucket};
    if (const std::string flaw = Flaw(key, config); !flaw.empty()) return error(flaw);
    if (!store.picks_.try_emplace(key, config).second) {
      return error(Expected("line", "one pick a key", line));
    }
  }
  return store;
}

std::string TuningStore::Format() const {
  std::string text = absl::StrCat(ToAbsl(kFirstLine), "\n", ToAbsl(kColumns), "\n");
  for (const auto& [key, config] : picks_) {
    absl::StrAppend(&text, key.device, " | ", key.op, " | ", ToAbsl(DTypeName(key.dtype)), " | 2^",
                    key.bucket, " | ", key.build_id, " | ", config, "\n");
  }
  return text;
}

absl::Status TuningStore::Put(const TuningKey& key, std::string_view config) {
  if (const std::string flaw = Flaw(key, config); !flaw.empty()) {
    return absl::InvalidArgumentError(flaw);
  }
  picks_.insert_or_assign(key, std::string(config));
  return absl::OkStatus();
}

void TuningStore::Merge(const TuningStore& other) {
  for (const auto& [key, config] : other.picks_) picks_.insert_or_assign(key, config);
}

void TuningStore::DropStale(std::string_view device, std::string_view op,
                            std::string_view build_id) {
  std::erase_if(picks_, [&](const auto& pick) {
    const TuningKey& key = pick.first;
    return key.device == device && key.op == op && key.build_id != build_id;
  });
}

std::optional<std::string_view> TuningStore::Pick(const TuningKey& key) const {
  const auto distance = [&](auto pick) {
    const TuningKey& k = pick->first;
    const bool same = std::tie(k.device, k.op, k.build_id, k.dtype) ==
                      std::tie(key.device, key.op, key.build_id, key.dtype);
    return same ? std::abs(k.bucket - key.bucket) : kTuningBuckets;
  };
  const auto above = picks_.lower_bound(key);
  auto best = picks_.end();
  int smallest = kTuningBuckets;
  if (above != picks_.begin()) {
    best = std::prev(above);
    smallest = distance(best);
  }
  if (above != picks_.end() && distance(above) < smallest) {
    best = above;
    smallest = distance(above);
  }
  if (smallest == kTuningBuckets) return std::nullopt;
  return best->second;
}

}  // namespace nibble
