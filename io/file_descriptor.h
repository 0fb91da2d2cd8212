// The POSIX pieces that the readers and writers of this folder share.
#ifndef NIBBLE_IO_FILE_DESCRIPTOR_H_
#define NIBBLE_IO_FILE_DESCRIPTOR_H_

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "base/status.h"

namespace nibble {

// Owns an open file descriptor; a negative one means none.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd = -1) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileDescriptor() {
    if (is_open()) close(fd_);
  }

  int get() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }

 private:
  int fd_;
};

// Calls until the result is not "interrupted by a signal".
template <typename Call>
auto RetryOnInterrupt(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

// The status of errno: "<path>: <what>: <the system's words>". Never one of the codes that speak of
// a caller's arguments or of data: NotFound where a folder of the path is a file, else Unknown.
inline absl::Status ErrnoStatus(std::string_view path, std::string_view what) {
  const int error = errno;
  const absl::Status status =
      absl::ErrnoToStatus(error, absl::StrCat(ToAbsl(path), ": ", ToAbsl(what)));
  if (error == ENOTDIR) return absl::NotFoundError(status.message());
  if (absl::IsFailedPrecondition(status) || absl::IsInvalidArgument(status)) {
    return absl::UnknownError(status.message());
  }
  return status;
}

// "a folder", for messages.
inline std::string_view FileKind(mode_t mode) {
  if (S_ISREG(mode)) return "a regular file";
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a named pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

struct OpenedFile {
  FileDescriptor file;
  uint64_t bytes = 0;  // when it was opened
};

// To read; InvalidArgument for what is no regular file.
inline absl::StatusOr<OpenedFile> OpenRegularFile(const std::string& path) {
  // O_NONBLOCK: a named pipe without a writer must not hang us.
  FileDescriptor file(
      RetryOnInterrupt([&] { return open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); }));
  if (!file.is_open()) return ErrnoStatus(path, "open");
  struct stat info;
  if (fstat(file.get(), &info) != 0) return ErrnoStatus(path, "stat");
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected a regular file to read, got ",
                                                   ToAbsl(FileKind(info.st_mode))));
  }
  return OpenedFile{std::move(file), static_cast<uint64_t>(info.st_size)};
}

}  // namespace nibble

#endif  // NIBBLE_IO_FILE_DESCRIPTOR_H_
