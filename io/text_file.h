// Files read into memory: small ones whole, of others the start.
#ifndef NIBBLE_IO_TEXT_FILE_H_
#define NIBBLE_IO_TEXT_FILE_H_

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace nibble {

// NotFound where nothing has that name, InvalidArgument where it names something other than a
// regular file, DataLoss where it holds more than `most` bytes.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t most);

// The first `most` bytes, or all of a shorter file. Statuses as above, but for DataLoss.
absl::StatusOr<std::string> ReadFileStart(const std::string& path, size_t most);

}  // namespace nibble

#endif  // NIBBLE_IO_TEXT_FILE_H_
