// The folder that a long run writes: under its final name only when complete, and able to go on
// after a kill.
#ifndef NIBBLE_IO_OUTPUT_FOLDER_H_
#define NIBBLE_IO_OUTPUT_FOLDER_H_

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "io/file_descriptor.h"

namespace nibble {

struct OutputFolderRequest {
  std::string out;
  std::string source;  // a folder that is never touched: neither in `out` nor around it
  // What the result is made from, by name ("recipe": a hash): resuming refuses another one.
  std::map<std::string, std::string> identity;
  bool resume = false, overwrite = false;
};

// Files are written to path(), which is "<out>.partial" until Finish. A step of the run that is
// done leaves a note; a run that resumes finds the notes of the one before.
class OutputFolder {
 public:
  // What can be said without writing: InvalidArgument where `out` is no place for a result, or
  // exists, or is partly there, and the request does not say what to do with it; FailedPrecondition
  // where it is to be resumed but its identity is another, naming what differs, or where it is
  // finished but not as it was left.
  static absl::Status Check(const OutputFolderRequest& request);

  // Whether a run left something to go on with, or another writes it.
  static bool HasPartial(const std::string& out);

  // Checks, then makes the folder or takes up the one that is there. Unavailable while another
  // process writes it.
  static absl::StatusOr<OutputFolder> Open(const OutputFolderRequest& request);

  const std::string& path() const { return path_; }

  // Whether the run before was killed when all was done and named; only Finish is left.
  bool complete() const { return complete_; }
  // Whether a run before did all there is to do, from the same identity: the files are those that
  // it left. Told by an attribute of the folder; on a file system that has none, `out` is refused.
  bool finished() const { return finished_; }

  absl::StatusOr<std::optional<std::string>> ReadNote(const std::string& step) const;
  absl::Status WriteNote(const std::string& step, const std::string& text) const;

  // A file of the folder that was written by this run or by a run before; others are leftovers.
  void Keep(const std::string& file) { kept_.insert(file); }

  // Removes what was not kept, then gives the folder its final name in one step.
  absl::Status Finish();

 private:
  OutputFolder() = default;

  std::string out_, path_;
  std::map<std::string, std::string> identity_;
  bool complete_ = false, finished_ = false;
  FileDescriptor lock_;  // held while the folder is written
  std::set<std::string> kept_;
};

// A path without slashes at its end, so that a suffix makes a sibling of it.
std::string WithoutSlash(std::string path);

// Whether `path` is `folder` or lies in it, wherever links lead; neither has to exist.
bool IsWithin(const std::string& path, const std::string& folder);

// The size of a file and when its bytes were last written, to tell whether they still are what they
// were.
absl::StatusOr<std::string> FileStamp(const std::string& path);

// ResourceExhausted where the file system of `folder`, or of the nearest folder around it that
// exists, has fewer than `bytes` left.
absl::Status CheckSpace(const std::string& folder, uint64_t bytes);

// A regular file's bytes, atomically, in bounded memory; folders on the way are made.
absl::Status CopyFile(const std::string& from, const std::string& to);

}  // namespace nibble

#endif  // NIBBLE_IO_OUTPUT_FOLDER_H_
