// The lines of a file of any size, one after another.
#ifndef NIBBLE_IO_LINE_READER_H_
#define NIBBLE_IO_LINE_READER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "io/file_descriptor.h"

namespace nibble {

class LineReader {
 public:
  // Statuses as ReadTextFile's. `most`: bytes of the longest line.
  static absl::StatusOr<LineReader> Open(const std::string& path, size_t most);

  // The next line without its "\n", valid until the next call; nothing at the end of the file.
  // DataLoss for a line that is too long.
  absl::StatusOr<std::optional<std::string_view>> Next();

  int64_t number() const { return number_; }  // of the line last returned, from 1 on

 private:
  LineReader(std::string path, FileDescriptor file, size_t most)
      : path_(std::move(path)), file_(std::move(file)), most_(most) {}

  std::string path_;
  FileDescriptor file_;
  size_t most_;
  std::string buffer_;
  size_t begin_ = 0;  // of what is yet to be returned
  bool at_end_ = false;
  int64_t number_ = 0;
};

}  // namespace nibble

#endif  // NIBBLE_IO_LINE_READER_H_
