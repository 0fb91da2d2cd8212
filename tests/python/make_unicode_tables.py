"""Prints model/text/unicode_tables.h: where the tokenizers library's Unicode and ours differ.

    python3.11 -m venv /tmp/venv && /tmp/venv/bin/pip install tokenizers==0.23.3
    /tmp/venv/bin/python tests/python/make_unicode_tables.py > model/text/unicode_tables.h

Needs a Python whose unicodedata is of Unicode 14 (3.11), as PCRE2 10.42 is.
"""

import random
import sys
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

assert unicodedata.unidata_version == "14.0.0"

CODES = [c for c in range(1, 0x110000) if not 0xD800 <= c < 0xE000]

# By category and bytes in UTF-8: a code point of Unicode 14 that patterns take for the same.
HAN = (0x31350, 0x2EBF0)  # extensions H and I, whose script has a name in patterns
STAND_INS = {
    "Lu": (0xA640, 0x10400), "Ll": (0xA641, 0x10428), "Lt": (0x1F88, None), "Lm": (0xA4F8, 0x16B40),
    "Lo": (0xA4D0, 0x10450), "Mn": (0xA802, 0x10A01), "Mc": (0xA823, 0x11000),
    "Me": (0xA670, None), "Nd": (0xA8D0, 0x104A0), "Nl": (0xA6E6, 0x10140), "No": (0xA830, 0x10107),
    "Pc": (0x2040, None), "Pd": (0x2E1A, 0x10EAD), "Ps": (0x2E22, None), "Pe": (0x2E23, None),
    "Pi": (0x2E02, None), "Pf": (0x2E03, None), "Po": (0xA60D, 0x10100), "Sm": (0x2A00, 0x1D6C1),
    "Sc": (0xA838, 0x11FDD), "Sk": (0xA700, 0x1F3FB), "So": (0xA490, 0x10137),
    "Zs": (0x2000, None), "Cf": (0x200B, 0x110BD),
}


def stand_in(code, category):
    wide = code >= 0x10000
    if category == "Lo" and (HAN[0] <= code <= 0x323AF or HAN[1] <= code <= 0x2EE5D
                             or 0x2A6DE <= code <= 0x2B81D):
        return 0x20000
    there = STAND_INS[category][wide]
    assert unicodedata.category(chr(there)) == category, (category, hex(there))
    return there


def matches(pattern):
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    return {c for c in CODES if not split.pre_tokenize_str(chr(c))}


def rows(pairs):
    """Of (code, value), sorted: (first, last, value)."""
    merged = []
    for code, value in sorted(pairs):
        if merged and merged[-1][1] == code - 1 and merged[-1][2] == value:
            merged[-1][1] = code
        else:
            merged.append([code, code, value])
    return merged


def additions():
    pairs = [(0x180E, STAND_INS["Cf"][0])]  # PCRE2 calls it a space
    for category in STAND_INS:
        theirs = matches(r"\p{%s}" % category)
        ours = {c for c in CODES if unicodedata.category(chr(c)) == category}
        pairs += [(c, stand_in(c, category)) for c in theirs - ours]
    return pairs


def probes(code):
    c = chr(code)
    return (c, "a" + c + "\u0301\u0323", "\u0323" + c, c + "\u0327\u0308", "q\u0301" + c + "\u0316")


def inert_codes(newer):
    """What the library's NFC passes over, of what Unicode 14 decomposes or reorders."""
    theirs = normalizers.NFC()
    inert = set()
    for code in CODES:
        if any(theirs.normalize_str(p) != unicodedata.normalize("NFC", p) for p in probes(code)):
            inert.add(code)
        parts = unicodedata.normalize("NFD", chr(code))
        if len(parts) > 1 and theirs.normalize_str(parts) != unicodedata.normalize("NFC", parts):
            inert.add(ord(parts[1]))
    stops = inert | newer

    def ours(text):
        parts = [""]
        for c in text:
            if ord(c) in stops:
                parts += [c, ""]
            else:
                parts[-1] += c
        return "".join(unicodedata.normalize("NFC", part) for part in parts)

    rng = random.Random(1)
    marks = [c for c in CODES if unicodedata.combining(chr(c)) or c in stops]
    letters = [c for c in CODES if unicodedata.decomposition(chr(c))] + list(range(0x20, 0x250))
    letters += [ord(p) for c in letters for p in unicodedata.normalize("NFD", chr(c))]
    letters += list(range(0x1100, 0x1200)) + list(range(0xAC00, 0xAD00))
    for _ in range(400000):
        text = "".join(chr(rng.choice(marks if rng.random() < 0.6 else letters))
                       for _ in range(rng.randrange(1, 8)))
        assert theirs.normalize_str(text) == ours(text), ascii(text)
    return inert


def table(name, what, pairs):
    print(f"// {what}\ninline constexpr CodeRange {name}[] = {{")
    for first, last, value in rows(pairs):
        print(f"    {{0x{first:X}, 0x{last:X}, 0x{value:X}}},")
    print("};\n")


def main():
    newer = additions()
    inert = inert_codes({c for c, _ in newer})
    print("""// Made by tests/python/make_unicode_tables.py: where the Unicode of the tokenizers library differs
// from PCRE2's (its patterns know Unicode 16, PCRE2 14) and from utf8proc's (its NFC knows Unicode
// 9).
#ifndef NIBBLE_MODEL_TEXT_UNICODE_TABLES_H_
#define NIBBLE_MODEL_TEXT_UNICODE_TABLES_H_

#include <cstdint>

namespace nibble {

struct CodeRange {
  uint32_t first, last, value;
};
""")
    table("kStandIns", "Each with a code point of the same category and length in UTF-8 that PCRE2 "
          "knows.", newer)
    table("kInert", "What NFC leaves where it is, besides those of kStandIns.",
          ((c, 0) for c in inert))
    print("}  // namespace nibble\n\n#endif  // NIBBLE_MODEL_TEXT_UNICODE_TABLES_H_")


sys.exit(main())
