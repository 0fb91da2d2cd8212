#include "io/text_file.h"

#include <unistd.h>

#include <algorithm>

#include "base/status.h"
#include "io/file_descriptor.h"

namespace nibble {

absl::StatusOr<std::string> ReadFileStart(const std::string& path, size_t most) {
  NIBBLE_ASSIGN_OR_RETURN(const OpenedFile opened, OpenRegularFile(path));
  // One byte more, to see the end; the size that fstat told may be old by now.
  std::string text(std::min(most, static_cast<size_t>(opened.bytes) + 1), '\0');
  size_t size = 0;
  while (size < most) {
    if (size == text.size()) text.resize(std::min(most, 2 * size));
    const ssize_t got = RetryOnInterrupt(
        [&] { return read(opened.file.get(), text.data() + size, text.size() - size); });
    if (got < 0) return ErrnoStatus(path, "read");
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  text.resize(size);
  return text;
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t most) {
  NIBBLE_ASSIGN_OR_RETURN(std::string text, ReadFileStart(path, most + 1));
  if (text.size() > most) {
    return absl::DataLossError(absl::StrCat(path, ": expected at most ", most, " bytes, got more"));
  }
  return text;
}

}  // namespace nibble
