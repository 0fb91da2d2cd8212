// Output that appears whole or not at all.
#ifndef NIBBLE_IO_ATOMIC_FILE_H_
#define NIBBLE_IO_ATOMIC_FILE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "io/file_descriptor.h"

namespace nibble {

// A file that has no name before Commit gives it the final one, so that even a killed process
// leaves nothing behind. Two cases need a temporary name, "<final>.partial-<pid>-<counter>" in the
// folder of the final one, and leave that if killed: a file system without unnamed files, where all
// is written under it, and replacing a file, where Commit uses it between two system calls. Without
// Commit, or after a failure, nothing is left and whatever had the final name is untouched.
class AtomicFile {
 public:
  // InvalidArgument where `path` names something other than a regular file (devices, folders and
  // pipes are never replaced) or a symbolic link that leads nowhere; NotFound where the folder is
  // missing. A symbolic link to a regular file stays: Commit replaces its target. The new file has
  // the mode 0666 less the umask, whatever the mode of the one that it replaces.
  static absl::StatusOr<AtomicFile> Create(const std::string& path);

  AtomicFile(AtomicFile&& other) = default;
  AtomicFile& operator=(AtomicFile other) noexcept;
  ~AtomicFile() { Discard(); }

  // ResourceExhausted where the disk is full. After a failure the file is gone: later calls answer
  // FailedPrecondition.
  absl::Status Append(std::string_view bytes);
  absl::Status Append(std::span<const std::byte> bytes);
  // At a place of the file, wherever Append is; what lies between is zero until it is written.
  absl::Status WriteAt(uint64_t offset, std::span<const std::byte> bytes);

  // Returns once the bytes and the name are on the disk. The one failure that leaves the final name
  // replaced is that of syncing the folder after the rename.
  absl::Status Commit();

 private:
  AtomicFile(std::string path, std::string final_name, std::string temp_name, FileDescriptor folder,
             FileDescriptor file)
      : path_(std::move(path)),
        final_name_(std::move(final_name)),
        temp_name_(std::move(temp_name)),
        folder_(std::move(folder)),
        file_(std::move(file)) {}

  absl::Status CheckOpen() const;
  // Calls write(bytes) until it has taken them all.
  template <typename Write>
  absl::Status WriteAll(std::span<const std::byte> bytes, const Write& write);
  absl::Status TakeFinalName();
  absl::Status Fail(std::string_view what);  // the status of errno, after Discard
  void Discard();

  std::string path_;                    // for messages
  std::string final_name_, temp_name_;  // inside folder_; temp_name_ is empty while there is none
  FileDescriptor folder_, file_;        // file_ is open until Commit or Discard
};

absl::Status WriteFileAtomically(const std::string& path, std::string_view bytes);

// Whether two paths lead to one file, links followed; false where either is missing.
absl::StatusOr<bool> SameFile(const std::string& path_a, const std::string& path_b);

}  // namespace nibble

#endif  // NIBBLE_IO_ATOMIC_FILE_H_
