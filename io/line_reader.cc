#include "io/line_reader.h"

#include <unistd.h>

#include "base/status.h"

namespace nibble {
namespace {

constexpr size_t kChunkBytes = size_t{1} << 20;

}  // namespace

absl::StatusOr<LineReader> LineReader::Open(const std::string& path, size_t most) {
  NIBBLE_ASSIGN_OR_RETURN(OpenedFile opened, OpenRegularFile(path));
  return LineReader(path, std::move(opened.file), most);
}

absl::StatusOr<std::optional<std::string_view>> LineReader::Next() {
  size_t searched = begin_;
  while (true) {
    const size_t end = buffer_.find('\n', searched);
    const size_t size = (end == buffer_.npos ? buffer_.size() : end) - begin_;
    if (size > most_) {
      return absl::DataLossError(absl::StrCat(path_, ": line ", number_ + 1, ": expected at most ",
                                              most_, " bytes, got more"));
    }
    if (end != buffer_.npos || at_end_) {
      if (end == buffer_.npos && size == 0) return std::nullopt;
      const std::string_view line = std::string_view(buffer_).substr(begin_, size);
      begin_ += size + (end != buffer_.npos);
      ++number_;
      return line;
    }
    buffer_.erase(0, begin_);
    begin_ = 0;
    searched = buffer_.size();
    buffer_.resize(searched + kChunkBytes);
    const ssize_t got =
        RetryOnInterrupt([&] { return read(file_.get(), buffer_.data() + searched, kChunkBytes); });
    buffer_.resize(searched + (got > 0 ? static_cast<size_t>(got) : 0));
    if (got < 0) return ErrnoStatus(path_, "read");
    at_end_ = got == 0;
  }
}

}  // namespace nibble
