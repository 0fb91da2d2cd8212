#include "model/text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <new>
#include <span>

#include "base/status.h"
#include "model/text/unicode_tables.h"

namespace nibble {
namespace {

const CodeRange* FindRange(std::span<const CodeRange> ranges, uint32_t code) {
  const auto next = std::ranges::upper_bound(ranges, code, {}, &CodeRange::first);
  if (next == ranges.begin() || std::prev(next)->last < code) return nullptr;
  return &*std::prev(next);
}

uint8_t ByteAt(std::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }

bool StaysInNfc(uint32_t code) {
  return FindRange(kInert, code) != nullptr || FindRange(kStandIns, code) != nullptr;
}

void AppendNfc(std::string_view text, std::string& out) {
  utf8proc_uint8_t* normal = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &normal,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (size == UTF8PROC_ERROR_NOMEM) throw std::bad_alloc();
  NIBBLE_CHECK(size >= 0);
  out.append(reinterpret_cast<const char*>(normal), static_cast<size_t>(size));
  std::free(normal);
}

// Complains of the byte `at`, unless that is behind the end.
absl::Status CheckUpTo(size_t at, std::string_view text, int64_t line) {
  if (at >= text.size()) return absl::OkStatus();
  const std::string_view before = text.substr(0, at);
  const size_t column = at - (before.rfind('\n') + 1) + 1;
  return absl::FailedPreconditionError(absl::StrCat(
      "line ", line + std::ranges::count(before, '\n'), ", byte ", column,
      ": expected text in UTF-8, got the byte 0x", absl::Hex(ByteAt(text, at), absl::kZeroPad2)));
}

}  // namespace

size_t FindInvalidUtf8(std::string_view text) {
  const size_t size = text.size();
  size_t i = 0;
  while (i < size) {
    const uint8_t lead = ByteAt(text, i);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    // The range of the second byte rules out surrogates, long forms and what is above U+10FFFF.
    size_t more = 0;
    uint8_t low = 0x80, high = 0xBF;
    if (lead >= 0xC2 && lead <= 0xDF) {
      more = 1;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
      more = 2;
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
      more = 3;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    } else {
      return i;
    }
    if (size - i <= more || ByteAt(text, i + 1) < low || ByteAt(text, i + 1) > high) return i;
    for (size_t k = 2; k <= more; ++k) {
      if ((ByteAt(text, i + k) & 0xC0) != 0x80) return i;
    }
    i += more + 1;
  }
  return size;
}

absl::Status CheckUtf8(std::string_view text, int64_t line) {
  return CheckUpTo(FindInvalidUtf8(text), text, line);
}

absl::Status CheckText(std::string_view text, int64_t line) {
  return CheckUpTo(std::min(text.find('\0'), FindInvalidUtf8(text)), text, line);
}

CodePoint CodePointAt(std::string_view text, size_t at) {
  const uint32_t lead = ByteAt(text, at);
  if (lead < 0x80) return {lead, 1};
  const size_t bytes = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  uint32_t code = lead & (0x7F >> bytes);
  for (size_t k = 1; k < bytes; ++k) code = code << 6 | (ByteAt(text, at + k) & 0x3F);
  return {code, bytes};
}

CodePoint CodePointBefore(std::string_view text, size_t end) {
  size_t at = end - 1;
  while ((ByteAt(text, at) & 0xC0) == 0x80) --at;
  return CodePointAt(text, at);
}

void AppendUtf8(uint32_t code, std::string& text) {
  if (code < 0x80) {
    text += static_cast<char>(code);
    return;
  }
  constexpr uint8_t kLead[] = {0, 0xC0, 0xE0, 0xF0};
  const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  text += static_cast<char>(kLead[more] | code >> (6 * more));
  for (int k = more; k-- > 0;) text += static_cast<char>(0x80 | (code >> (6 * k) & 0x3F));
}

bool IsSpace(uint32_t code) {
  return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 ||
         code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 ||
         code == 0x202F || code == 0x205F || code == 0x3000;
}

bool IsWordCharacter(uint32_t code) {
  if (const CodeRange* range = FindRange(kStandIns, code)) code = range->value;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:  // letters in circles and squares, and the joiners
      return (code >= 0x24B6 && code <= 0x24E9) || (code >= 0x1F130 && code <= 0x1F149) ||
             (code >= 0x1F150 && code <= 0x1F169) || (code >= 0x1F170 && code <= 0x1F189) ||
             code == 0x200C || code == 0x200D;
  }
}

std::string Nfc(std::string_view text) {
  // All below U+0300 is normal.
  if (std::ranges::none_of(text, [](char c) { return static_cast<uint8_t>(c) >= 0xCC; })) {
    return std::string(text);
  }
  std::string out;
  out.reserve(text.size());
  size_t begin = 0;  // of what is yet to be normalized
  for (size_t i = 0; i < text.size();) {
    if (ByteAt(text, i) < 0xDF) {  // nothing below U+07C0 stays
      ++i;
      continue;
    }
    const CodePoint point = CodePointAt(text, i);
    if (StaysInNfc(point.code)) {
      AppendNfc(text.substr(begin, i - begin), out);
      out += text.substr(i, point.bytes);
      begin = i + point.bytes;
    }
    i += point.bytes;
  }
  AppendNfc(text.substr(begin), out);
  return out;
}

std::string WithStandIns(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (ByteAt(text, i) < 0xE0) {  // all that are replaced take three bytes or four
      ++i;
      continue;
    }
    const CodePoint point = CodePointAt(text, i);
    if (const CodeRange* range = FindRange(kStandIns, point.code)) {
      if (out.empty()) out = text;
      std::string replacement;
      AppendUtf8(range->value, replacement);
      NIBBLE_CHECK(replacement.size() == point.bytes);
      out.replace(i, point.bytes, replacement);
    }
    i += point.bytes;
  }
  return out;
}

}  // namespace nibble
