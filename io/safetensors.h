// Reads and writes safetensors files. A file is a little-endian uint64 with the length of the
// header, the header (a JSON object), and the data section that the header describes.
//
// The reader trusts nothing: a file that it opens has tensors whose byte ranges are exactly as long
// as their shapes and types say and tile the data section without holes or overlaps.
#ifndef NIBBLE_IO_SAFETENSORS_H_
#define NIBBLE_IO_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/tensor_view.h"
#include "io/atomic_file.h"
#include "io/file_descriptor.h"

namespace nibble {

struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes of the data section

  uint64_t bytes() const { return end - begin; }
};

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  // by begin, then end, then name
  std::map<std::string, std::string> metadata;
};

inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // the reference's limit
// What is read at a time of a tensor that need not be in memory whole.
inline constexpr int64_t kReadBytes = 32 << 20;

// The length of the JSON that follows the first 8 bytes. `start` is the file's first 8 bytes, or
// all of a shorter file. DataLoss unless the JSON fits in the file and in the limit.
absl::StatusOr<uint64_t> ParseSafetensorsHeaderBytes(std::string_view start, uint64_t file_bytes);

// Everything after that: DataLoss unless the JSON is valid and describes a data section of
// `data_bytes` bytes. Takes memory and time in proportion to the JSON (times a logarithm).
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json,
                                                         uint64_t data_bytes);

// An open file. Const members may be called from several threads at once.
class SafetensorsReader {
 public:
  // NotFound, PermissionDenied and so on from the system; InvalidArgument for what is not a regular
  // file; DataLoss for a file that breaks a rule of the format.
  static absl::StatusOr<SafetensorsReader> Open(const std::string& path);

  const std::string& path() const { return path_; }
  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }

  // nullptr where there is none of that name. Valid while the reader, or one moved from it, lives.
  const TensorInfo* Find(std::string_view name) const;

  // The whole tensor; `out` has exactly its size. DataLoss where the file has shrunk.
  absl::Status Read(const TensorInfo& tensor, std::span<std::byte> out) const;
  // out.size() bytes from `offset` in the tensor on; InvalidArgument where they pass its end.
  absl::Status ReadRange(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> out) const;
  // ResourceExhausted where memory does not suffice.
  absl::StatusOr<std::vector<std::byte>> ReadAll(const TensorInfo& tensor) const;

 private:
  SafetensorsReader(std::string path, FileDescriptor file, uint64_t data_begin, uint64_t data_bytes,
                    SafetensorsHeader header);

  std::string path_;
  FileDescriptor file_;
  uint64_t data_begin_, data_bytes_;  // of the data section in the file
  SafetensorsHeader header_;
  std::vector<const TensorInfo*> by_name_;
};

struct TensorSpec {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
};

// Writes a file whose tensors are known before their bytes are, in any order of the bytes. Goes
// through AtomicFile, which has the rules for `path`. Tensors are laid out by descending element
// size, then by name, which aligns each to its element size.
class SafetensorsWriter {
 public:
  // InvalidArgument for what the reader would refuse: names that repeat, are empty or are not
  // UTF-8, or shapes that are too large.
  static absl::StatusOr<SafetensorsWriter> Create(
      const std::string& path, std::span<const TensorSpec> tensors,
      const std::map<std::string, std::string>& metadata);

  // bytes.size() bytes from `offset` in tensors[tensor] on; InvalidArgument where they pass its
  // end. Each byte is written once.
  absl::Status Write(size_t tensor, uint64_t offset, std::span<const std::byte> bytes);

  // FailedPrecondition where bytes are missing.
  absl::Status Commit();

 private:
  struct Place {
    std::string name;
    uint64_t begin, bytes, written;
  };

  SafetensorsWriter(std::string path, AtomicFile file, std::vector<Place> places)
      : path_(std::move(path)), file_(std::move(file)), places_(std::move(places)) {}

  std::string path_;
  AtomicFile file_;
  std::vector<Place> places_;  // as the caller counts tensors
};

struct TensorToWrite {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;
};

// The same for bytes that are all there; InvalidArgument where sizes disagree, too.
absl::Status WriteSafetensors(const std::string& path, std::span<const TensorToWrite> tensors,
                              const std::map<std::string, std::string>& metadata);

}  // namespace nibble

#endif  // NIBBLE_IO_SAFETENSORS_H_
