#include "io/output_folder.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "base/fingerprint.h"
#include "base/status.h"
#include "io/atomic_file.h"
#include "io/text_file.h"
#include "nlohmann/json.hpp"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr char kStateFolder[] = ".nibble";  // of the notes, in the partial folder
constexpr char kIdentityNote[] = "run";
// Of a finished folder: what it was made from, and a fingerprint of its files. No file of its own,
// since the same result would then differ from one source's copy to the next.
constexpr char kFinishedAttribute[] = "user.nibble.finished";
constexpr size_t kMostNoteBytes = size_t{1} << 30;

std::string StatePath(const std::string& folder) { return absl::StrCat(folder, "/", kStateFolder); }
std::string NotePath(const std::string& folder, const std::string& step) {
  return absl::StrCat(StatePath(folder), "/", step, ".json");
}

absl::Status FileSystemError(const std::string& path, const std::error_code& error,
                             std::string_view what) {
  errno = error.value();
  return ErrnoStatus(path, what);
}

bool IsFolder(const std::string& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}
bool Exists(const std::string& path) {
  std::error_code error;
  const fs::file_type type = fs::symlink_status(path, error).type();
  return type != fs::file_type::not_found &&
         type != fs::file_type::none;  // none: not allowed to ask
}
bool IsEmptyFolder(const std::string& path) {
  std::error_code error;
  return fs::is_empty(path, error) && !error;
}
// The one kind of folder that may be replaced: a result, ours or another tool's.
bool LooksLikeAResult(const std::string& path) {
  const auto config = ReadTextFile(path + "/config.json", kMostNoteBytes);
  return config.ok() && config->find("\"quantization_config\"") != config->npos;
}

absl::Status CheckPlace(const OutputFolderRequest& request, const std::string& out) {
  if (out.empty()) return absl::InvalidArgumentError("--out: expected a folder, got nothing");
  if (IsWithin(out, request.source) || IsWithin(request.source, out)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--out: expected a folder apart from the model's, got ", out, " for ",
                     request.source, "; the source is never touched"));
  }
  std::error_code error;
  if (Exists(out) && (!IsFolder(out) || fs::is_symlink(out, error))) {
    return absl::InvalidArgumentError(
        absl::StrCat("--out: expected a folder or a name that is free, got ", out));
  }
  if (request.overwrite && IsFolder(out) && !IsEmptyFolder(out) && !LooksLikeAResult(out)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--overwrite: expected a quantized model to replace (a config.json with a "
                     "quantization_config), got ",
                     out));
  }
  return absl::OkStatus();
}

// The first name whose value in `json` is another, or not there; empty where none is.
std::string Difference(const nlohmann::json& json,
                       const std::map<std::string, std::string>& expected) {
  for (const auto& [name, value] : expected) {
    const auto found = json.find(name);
    if (found == json.end() || !found->is_string() || found->get<std::string>() != value) {
      return name;
    }
  }
  return "";
}

absl::Status CheckIdentity(const std::string& folder, const OutputFolderRequest& request) {
  const std::string path = NotePath(folder, kIdentityNote);
  NIBBLE_ASSIGN_OR_RETURN(const std::string note, ReadTextFile(path, kMostNoteBytes));
  const nlohmann::json json = nlohmann::json::parse(note, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::DataLossError(absl::StrCat(
        path,
        ": expected the notes of a partial result, got something else; --overwrite drops it"));
  }
  const std::string difference = Difference(json, request.identity);
  if (difference.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("--resume: expected the ", difference, " that ", folder,
                   " was begun with, got another; --overwrite without --resume starts again"));
}

absl::Status RemoveAll(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  return error ? FileSystemError(path, error, "remove") : absl::OkStatus();
}

absl::StatusOr<FileDescriptor> Lock(const std::string& folder) {
  const std::string path = StatePath(folder) + "/lock";
  FileDescriptor file(RetryOnInterrupt(
      [&] { return open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666); }));
  if (!file.is_open()) return ErrnoStatus(path, "open");
  if (RetryOnInterrupt([&] { return flock(file.get(), LOCK_EX | LOCK_NB); }) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus(path, "lock");
    return absl::UnavailableError(
        absl::StrCat(folder, ": expected no other run that writes it, got one; wait for its end"));
  }
  return file;
}

std::string PartialOf(const std::string& out) { return out + ".partial"; }

// Paths of all files of a result, relative to it.
absl::StatusOr<std::vector<std::string>> FilesOf(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code error;
  for (auto it = fs::recursive_directory_iterator(folder, error);
       !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    const std::string file = it->path().lexically_relative(folder).string();
    if (file == kStateFolder) {
      it.disable_recursion_pending();
    } else if (!it->is_directory()) {
      files.push_back(file);
    }
  }
  if (error) return FileSystemError(folder, error, "list");
  return files;
}

// Of all files of a result, by name, size and time.
absl::StatusOr<std::string> StateOf(const std::string& folder) {
  NIBBLE_ASSIGN_OR_RETURN(std::vector<std::string> files, FilesOf(folder));
  std::ranges::sort(files);
  Fingerprint hash;
  for (const std::string& file : files) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string stamp, FileStamp(absl::StrCat(folder, "/", file)));
    hash.Add(file);
    hash.Add(stamp);
  }
  return hash.Hex();
}

// As short as an attribute of a folder has to be.
std::map<std::string, std::string> HashesOf(const std::map<std::string, std::string>& identity) {
  std::map<std::string, std::string> hashes;
  for (const auto& [name, value] : identity) {
    Fingerprint hash;
    hash.Add(value);
    hashes[name] = hash.Hex();
  }
  return hashes;
}

// Best effort: without it, nothing is lost but that a run can tell that there is nothing to do.
absl::Status MarkAsFinished(const std::string& folder,
                            const std::map<std::string, std::string>& identity) {
  nlohmann::json mark = {{"identity", HashesOf(identity)}};
  NIBBLE_ASSIGN_OR_RETURN(mark["files"], StateOf(folder));
  const std::string text = mark.dump();
  (void)setxattr(folder.c_str(), kFinishedAttribute, text.data(), text.size(), 0);
  return absl::OkStatus();
}

// Whether the folder says that it is finished; a failure where it was made from something else, or
// has changed since.
absl::StatusOr<bool> IsFinished(const std::string& folder,
                                const std::map<std::string, std::string>& identity) {
  char text[4096];
  const ssize_t size = getxattr(folder.c_str(), kFinishedAttribute, text, sizeof(text));
  if (size <= 0) return false;
  const nlohmann::json mark =
      nlohmann::json::parse(text, text + size, nullptr, /*allow_exceptions=*/false);
  const auto made_from = mark.find("identity");
  const std::string difference =
      Difference(made_from == mark.end() ? nlohmann::json() : *made_from, HashesOf(identity));
  if (!difference.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("--resume: expected the ", difference, " that ", folder,
                     " was made from, got another; --overwrite replaces it"));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string files, StateOf(folder));
  if (Difference(mark, {{"files", files}}).empty()) return true;
  return absl::FailedPreconditionError(
      absl::StrCat("--resume: expected the files of ", folder,
                   " as they were when it was finished, got others; --overwrite replaces it"));
}

// A run before was killed after its result had its name.
bool WasCompleted(const std::string& out) { return Exists(NotePath(out, kIdentityNote)); }
bool IsPartial(const std::string& folder) { return IsFolder(StatePath(folder)); }

// What a request finds at `out`.
enum class Found : uint8_t { kWork, kNamedResult, kFinishedResult };

absl::StatusOr<Found> Look(const OutputFolderRequest& request, const std::string& out) {
  NIBBLE_RETURN_IF_ERROR(CheckPlace(request, out));
  const std::string partial = PartialOf(out);
  if (WasCompleted(out) && request.resume) {
    NIBBLE_RETURN_IF_ERROR(CheckIdentity(out, request));
    return Found::kNamedResult;
  }
  if (request.resume && !request.overwrite && !Exists(partial) && IsFolder(out)) {
    NIBBLE_ASSIGN_OR_RETURN(const bool finished, IsFinished(out, request.identity));
    if (finished) return Found::kFinishedResult;
  }
  if (IsFolder(out) && !IsEmptyFolder(out) && !request.overwrite) {
    return absl::InvalidArgumentError(
        absl::StrCat("--out: expected a folder that does not exist yet, got ", out,
                     "; --overwrite replaces it when the new result is complete"));
  }
  if (!Exists(partial) || IsEmptyFolder(partial)) return Found::kWork;
  if (!IsPartial(partial) && !(WasCompleted(out) && LooksLikeAResult(partial))) {
    return absl::InvalidArgumentError(absl::StrCat(
        partial, ": expected a name that is free, or the partial result of a run, got neither"));
  }
  if (request.resume && Exists(NotePath(partial, kIdentityNote))) {
    NIBBLE_RETURN_IF_ERROR(CheckIdentity(partial, request));
  }
  if (request.resume || request.overwrite) return Found::kWork;
  return absl::InvalidArgumentError(
      absl::StrCat(partial,
                   ": expected no partial result, got one; --resume goes on with it, "
                   "--overwrite starts again"));
}

}  // namespace

std::string WithoutSlash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

bool IsWithin(const std::string& path, const std::string& folder) {
  std::error_code error;
  const fs::path inner = fs::weakly_canonical(path, error);
  if (error) return false;
  const fs::path outer = fs::weakly_canonical(folder, error);
  if (error) return false;
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

absl::Status OutputFolder::Check(const OutputFolderRequest& request) {
  return Look(request, WithoutSlash(request.out)).status();
}

bool OutputFolder::HasPartial(const std::string& out) {
  return Exists(PartialOf(WithoutSlash(out)));
}

absl::StatusOr<OutputFolder> OutputFolder::Open(const OutputFolderRequest& request) {
  OutputFolder folder;
  folder.out_ = WithoutSlash(request.out);
  folder.identity_ = request.identity;
  NIBBLE_ASSIGN_OR_RETURN(const Found found, Look(request, folder.out_));
  if (found != Found::kWork) {
    folder.complete_ = true;
    folder.finished_ = found == Found::kFinishedResult;
    folder.path_ = folder.out_;
    if (folder.finished_) return folder;
    NIBBLE_ASSIGN_OR_RETURN(folder.lock_, Lock(folder.path_));
    return folder;
  }
  folder.path_ = PartialOf(folder.out_);
  std::error_code error;
  fs::create_directories(StatePath(folder.path_), error);
  if (error) return FileSystemError(folder.path_, error, "make the folder");
  NIBBLE_ASSIGN_OR_RETURN(folder.lock_, Lock(folder.path_));
  const std::string identity_path = NotePath(folder.path_, kIdentityNote);
  if (request.resume && Exists(identity_path)) return folder;
  // A run before, if any, is dropped: its notes first, so that half of it is never taken up.
  NIBBLE_RETURN_IF_ERROR(RemoveAll(identity_path));
  for (const auto& parent : {StatePath(folder.path_), folder.path_}) {
    std::vector<std::string> old;
    for (auto it = fs::directory_iterator(parent, error); !error && it != fs::directory_iterator();
         it.increment(error)) {
      const std::string name = it->path().filename().string();
      if (name != kStateFolder && name != "lock") old.push_back(it->path().string());
    }
    if (error) return FileSystemError(parent, error, "list");
    for (const std::string& path : old) NIBBLE_RETURN_IF_ERROR(RemoveAll(path));
  }
  NIBBLE_RETURN_IF_ERROR(
      WriteFileAtomically(identity_path, nlohmann::json(request.identity).dump()));
  return folder;
}

absl::StatusOr<std::optional<std::string>> OutputFolder::ReadNote(const std::string& step) const {
  auto text = ReadTextFile(NotePath(path_, step), kMostNoteBytes);
  if (absl::IsNotFound(text.status())) return std::nullopt;
  NIBBLE_RETURN_IF_ERROR(text.status());
  return *std::move(text);
}

absl::Status OutputFolder::WriteNote(const std::string& step, const std::string& text) const {
  return WriteFileAtomically(NotePath(path_, step), text);
}

absl::Status OutputFolder::Finish() {
  if (finished_) return absl::OkStatus();
  std::error_code error;
  const std::string partial = PartialOf(out_);
  if (!complete_) {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> files, FilesOf(path_));
    for (const std::string& file : files) {
      if (kept_.contains(file)) continue;
      NIBBLE_RETURN_IF_ERROR(RemoveAll(absl::StrCat(path_, "/", file)));
    }
    NIBBLE_RETURN_IF_ERROR(MarkAsFinished(path_, identity_));
    // An old result changes places with the new one, where the file system can do that.
    const bool replaces = IsFolder(out_) && !IsEmptyFolder(out_);
    if (replaces &&
        renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, out_.c_str(), RENAME_EXCHANGE) != 0) {
      const std::string replaced = out_ + ".replaced";
      if (Exists(replaced)) {
        return absl::FailedPreconditionError(absl::StrCat(
            replaced, ": expected a name that is free, to move the old result to, got a file"));
      }
      if (rename(out_.c_str(), replaced.c_str()) != 0) return ErrnoStatus(out_, "rename");
      if (rename(path_.c_str(), out_.c_str()) != 0) {
        const absl::Status status = ErrnoStatus(path_, "rename");
        rename(replaced.c_str(), out_.c_str());
        return status;
      }
      NIBBLE_RETURN_IF_ERROR(RemoveAll(replaced));
    } else if (!replaces && rename(path_.c_str(), out_.c_str()) != 0) {
      return ErrnoStatus(path_, "rename");
    }
    path_ = out_;
    complete_ = true;
  }
  // Now `partial` can only be the old result.
  if (Exists(partial)) NIBBLE_RETURN_IF_ERROR(RemoveAll(partial));
  // The note that says what this is goes last: a kill on the way leaves a result to be resumed.
  std::vector<std::string> notes;
  for (auto it = fs::directory_iterator(StatePath(out_), error);
       !error && it != fs::directory_iterator(); it.increment(error)) {
    if (it->path() != NotePath(out_, kIdentityNote)) notes.push_back(it->path().string());
  }
  if (error) return FileSystemError(out_, error, "list its notes");
  for (const std::string& note : notes) NIBBLE_RETURN_IF_ERROR(RemoveAll(note));
  return RemoveAll(StatePath(out_));
}

absl::StatusOr<std::string> FileStamp(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return ErrnoStatus(path, "stat");
  return absl::StrCat(info.st_size, " ", info.st_mtim.tv_sec, " ", info.st_mtim.tv_nsec);
}

absl::Status CheckSpace(const std::string& folder, uint64_t bytes) {
  std::error_code error;
  fs::path place = fs::absolute(folder, error);
  while (!fs::exists(place, error) && place.has_relative_path()) place = place.parent_path();
  struct statvfs info;
  if (statvfs(place.c_str(), &info) != 0) return ErrnoStatus(place.string(), "statvfs");
  const uint64_t available = uint64_t{info.f_bavail} * info.f_frsize;
  if (available >= bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat(place.string(), ": expected room for ", bytes, " bytes, got ", available));
}

absl::Status CopyFile(const std::string& from, const std::string& to) {
  constexpr size_t kChunk = size_t{4} << 20;
  FileDescriptor in(
      RetryOnInterrupt([&] { return open(from.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); }));
  if (!in.is_open()) return ErrnoStatus(from, "open");
  std::error_code error;
  fs::create_directories(fs::path(to).parent_path(), error);
  if (error) return FileSystemError(to, error, "make its folder");
  NIBBLE_ASSIGN_OR_RETURN(AtomicFile out, AtomicFile::Create(to));
  std::vector<std::byte> chunk(kChunk);
  for (;;) {
    const ssize_t got =
        RetryOnInterrupt([&] { return read(in.get(), chunk.data(), chunk.size()); });
    if (got < 0) return ErrnoStatus(from, "read");
    if (got == 0) return out.Commit();
    NIBBLE_RETURN_IF_ERROR(
        out.Append(std::span<const std::byte>(chunk.data(), static_cast<size_t>(got))));
  }
}

}  // namespace nibble
