// NaN, Infinity and -Infinity, which Python writes into JSON and reads from it, and JSON does not
// have. Configurations of Mamba layers hold them ("time_step_limit": [0.0, Infinity]).
#ifndef NIBBLE_IO_PYTHON_JSON_H_
#define NIBBLE_IO_PYTHON_JSON_H_

#include <string>
#include <string_view>

namespace nibble {

// The same text with strings in their place, which no file of a model holds otherwise.
std::string QuoteConstants(std::string_view json);

// What QuoteConstants did undone, in JSON that was written from what was read.
std::string UnquoteConstants(std::string_view json);

}  // namespace nibble

#endif  // NIBBLE_IO_PYTHON_JSON_H_
