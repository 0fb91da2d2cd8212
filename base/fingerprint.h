// A hash that tells whether inputs have changed; not one that resists an attacker.
#ifndef NIBBLE_BASE_FINGERPRINT_H_
#define NIBBLE_BASE_FINGERPRINT_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

namespace nibble {

// Over everything added, each piece with its length, so that no two lists of pieces are one. Eight
// bytes at a time: calibrations are gigabytes.
class Fingerprint {
 public:
  void Add(std::span<const std::byte> bytes) {
    Mix(bytes.size());
    for (; bytes.size() >= 8; bytes = bytes.subspan(8)) MixWord(bytes.first(8));
    if (!bytes.empty()) MixWord(bytes);
  }
  void Add(std::string_view text) { Add(std::as_bytes(std::span(text.data(), text.size()))); }
  void Add(uint64_t value) { Mix(value); }

  // 16 hexadecimal digits.
  std::string Hex() const {
    constexpr char kDigits[] = "0123456789abcdef";
    std::string hex;
    for (int shift = 60; shift >= 0; shift -= 4) hex += kDigits[hash_ >> shift & 15];
    return hex;
  }

 private:
  void MixWord(std::span<const std::byte> bytes) {  // at most eight
    uint64_t word = 0;
    std::memcpy(&word, bytes.data(), bytes.size());
    Mix(word);
  }
  // Both steps can be undone, so that words that differ give hashes that differ.
  void Mix(uint64_t word) {
    hash_ = (hash_ ^ word) * 0x9E3779B97F4A7C15u;
    hash_ ^= hash_ >> 32;
  }

  uint64_t hash_ = 0x243F6A8885A308D3u;
};

}  // namespace nibble

#endif  // NIBBLE_BASE_FINGERPRINT_H_
