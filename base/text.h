// Text of unknown origin (names from files, arguments) made fit for a line on a terminal.
#ifndef NIBBLE_BASE_TEXT_H_
#define NIBBLE_BASE_TEXT_H_

#include <string>
#include <string_view>

namespace nibble {

// Every byte that is not printable ASCII as \xNN.
std::string Printable(std::string_view text);

// Printable, in quotes, cut to 100 bytes.
std::string Quoted(std::string_view text);

}  // namespace nibble

#endif  // NIBBLE_BASE_TEXT_H_
