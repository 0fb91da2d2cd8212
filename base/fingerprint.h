// A hash that tells whether inputs have changed; not one that resists an attacker.
#ifndef NIBBLE_BASE_FINGERPRINT_H_
#define NIBBLE_BASE_FINGERPRINT_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

// FNV-1a over everything added, each piece with its length, so that no two lists of pieces are one.
class Fingerprint {
 public:
  void Add(std::string_view text) {
    Add(text.size());
    for (const char c : text) AddByte(static_cast<uint8_t>(c));
  }
  void Add(uint64_t value) {
    for (int i = 0; i < 8; ++i) AddByte(static_cast<uint8_t>(value >> (8 * i)));
  }

  // 16 hexadecimal digits.
  std::string Hex() const {
    constexpr char kDigits[] = "0123456789abcdef";
    std::string hex;
    for (int shift = 60; shift >= 0; shift -= 4) hex += kDigits[hash_ >> shift & 15];
    return hex;
  }

 private:
  void AddByte(uint8_t byte) { hash_ = (hash_ ^ byte) * 0x100000001b3u; }

  uint64_t hash_ = 0xcbf29ce484222325u;
};

}  // namespace nibble

#endif  // NIBBLE_BASE_FINGERPRINT_H_
