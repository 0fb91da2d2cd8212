#include "io/atomic_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <system_error>

#include "base/status.h"

namespace nibble {
namespace {

absl::Status NotRegular(std::string_view path, std::string_view got) {
  return absl::InvalidArgumentError(absl::StrCat(
      ToAbsl(path), ": expected the path of a regular file to write, got ", ToAbsl(got)));
}

// The path that a rename must replace: `path` itself, or what its links lead to.
absl::StatusOr<std::string> ResolveTarget(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) == 0) {
    if (!S_ISREG(info.st_mode)) return NotRegular(path, FileKind(info.st_mode));
    std::error_code error;
    std::string target = std::filesystem::canonical(path, error).string();
    if (error) return absl::ErrnoToStatus(error.value(), path);
    return target;
  }
  if (errno != ENOENT) return ErrnoStatus(path, "stat");
  if (path.empty() || path.back() == '/') return NotRegular(path, "no file name");
  if (lstat(path.c_str(), &info) == 0) return NotRegular(path, "a symbolic link to nothing");
  return path;
}

// nullopt where nothing has that name.
absl::StatusOr<std::optional<struct stat>> StatIfPresent(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) == 0) return info;
  if (errno == ENOENT || errno == ENOTDIR) return std::nullopt;
  return ErrnoStatus(path, "stat");
}

// Where linkat finds an open file that has no name.
std::string PathOfOpenFile(int fd) { return absl::StrCat("/proc/self/fd/", fd); }

// A file without a name, or none where the system cannot make or later name one.
FileDescriptor OpenUnnamed(int folder) {
  FileDescriptor file(RetryOnInterrupt(
      [&] { return openat(folder, ".", O_WRONLY | O_TMPFILE | O_CLOEXEC, 0666); }));
  if (file.is_open() && access(PathOfOpenFile(file.get()).c_str(), F_OK) != 0) {
    return FileDescriptor();
  }
  return file;
}

// Calls make(name) with temporary names until one is free, keeps that in `name` and returns the
// result. A name that exists was left by an earlier process of our number, killed halfway.
template <typename Make>
int MakeUnderTemporaryName(const std::string& final_name, const Make& make, std::string& name) {
  static std::atomic<uint64_t> counter{0};
  for (;;) {
    std::string candidate = absl::StrCat(final_name, ".partial-", getpid(), "-", counter++);
    const int result = RetryOnInterrupt([&] { return make(candidate.c_str()); });
    if (result < 0 && errno == EEXIST) continue;
    if (result >= 0) name = std::move(candidate);
    return result;
  }
}

}  // namespace

absl::StatusOr<AtomicFile> AtomicFile::Create(const std::string& path) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string target, ResolveTarget(path));
  const size_t slash = target.rfind('/');
  std::string final_name = target.substr(slash + 1);  // npos + 1 is 0
  const std::string folder_path =
      slash == std::string::npos ? "." : target.substr(0, slash == 0 ? 1 : slash);

  // Names are relative to the open folder, so that they still hold in Commit and in the destructor
  // where the process has changed its working folder by then.
  FileDescriptor folder(RetryOnInterrupt(
      [&] { return open(folder_path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (!folder.is_open()) return ErrnoStatus(path, "open its folder");

  std::string temp_name;
  FileDescriptor file = OpenUnnamed(folder.get());
  if (!file.is_open()) {
    const auto create = [&](const char* name) {
      return openat(folder.get(), name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    };
    file = FileDescriptor(MakeUnderTemporaryName(final_name, create, temp_name));
    if (!file.is_open()) return ErrnoStatus(path, "create a temporary file beside it");
  }
  return AtomicFile(path, std::move(final_name), std::move(temp_name), std::move(folder),
                    std::move(file));
}

AtomicFile& AtomicFile::operator=(AtomicFile other) noexcept {
  std::swap(path_, other.path_);
  std::swap(final_name_, other.final_name_);
  std::swap(temp_name_, other.temp_name_);
  std::swap(folder_, other.folder_);
  std::swap(file_, other.file_);
  return *this;
}

template <typename Write>
absl::Status AtomicFile::WriteAll(std::span<const std::byte> bytes, const Write& write) {
  NIBBLE_RETURN_IF_ERROR(CheckOpen());
  while (!bytes.empty()) {
    const ssize_t written = RetryOnInterrupt([&] { return write(bytes); });
    if (written == 0) errno = ENOSPC;  // no progress and no reason: never loop on it
    if (written <= 0) return Fail("write");
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status AtomicFile::Append(std::string_view bytes) {
  return Append(std::as_bytes(std::span(bytes)));
}

absl::Status AtomicFile::Append(std::span<const std::byte> bytes) {
  return WriteAll(
      bytes, [&](std::span<const std::byte> b) { return write(file_.get(), b.data(), b.size()); });
}

absl::Status AtomicFile::WriteAt(uint64_t offset, std::span<const std::byte> bytes) {
  const std::byte* const begin = bytes.data();
  return WriteAll(bytes, [&](std::span<const std::byte> b) {
    return pwrite(file_.get(), b.data(), b.size(), static_cast<off_t>(offset + (b.data() - begin)));
  });
}

absl::Status AtomicFile::Commit() {
  NIBBLE_RETURN_IF_ERROR(CheckOpen());
  if (RetryOnInterrupt([&] { return fsync(file_.get()); }) != 0) return Fail("fsync");
  NIBBLE_RETURN_IF_ERROR(TakeFinalName());
  file_ = FileDescriptor();
  // EINVAL: a file system that cannot sync folders.
  if (RetryOnInterrupt([&] { return fsync(folder_.get()); }) != 0 && errno != EINVAL) {
    return ErrnoStatus(path_, "fsync its folder");
  }
  return absl::OkStatus();
}

absl::Status AtomicFile::TakeFinalName() {
  if (temp_name_.empty()) {
    const auto link = [&, source = PathOfOpenFile(file_.get())](const char* name) {
      return linkat(AT_FDCWD, source.c_str(), folder_.get(), name, AT_SYMLINK_FOLLOW);
    };
    if (link(final_name_.c_str()) == 0) return absl::OkStatus();
    // A link replaces nothing, a rename does.
    if (errno != EEXIST || MakeUnderTemporaryName(final_name_, link, temp_name_) != 0) {
      return Fail("link it into its folder");
    }
  }
  if (renameat(folder_.get(), temp_name_.c_str(), folder_.get(), final_name_.c_str()) != 0) {
    return Fail("rename the temporary file");
  }
  return absl::OkStatus();
}

absl::Status AtomicFile::CheckOpen() const {
  if (file_.is_open()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      path_, ": expected a file that is being written, got one committed, failed or moved from"));
}

absl::Status AtomicFile::Fail(std::string_view what) {
  absl::Status status = ErrnoStatus(path_, what);
  Discard();
  return status;
}

void AtomicFile::Discard() {
  if (!file_.is_open()) return;
  if (!temp_name_.empty()) unlinkat(folder_.get(), temp_name_.c_str(), 0);
  file_ = FileDescriptor();
}

absl::Status WriteFileAtomically(const std::string& path, std::string_view bytes) {
  NIBBLE_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path));
  NIBBLE_RETURN_IF_ERROR(file.Append(bytes));
  return file.Commit();
}

absl::StatusOr<bool> SameFile(const std::string& path_a, const std::string& path_b) {
  NIBBLE_ASSIGN_OR_RETURN(const auto a, StatIfPresent(path_a));
  NIBBLE_ASSIGN_OR_RETURN(const auto b, StatIfPresent(path_b));
  return a && b && a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

}  // namespace nibble
