#include "model/hidden_states.h"

#include <fcntl.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <optional>
#include <set>
#include <stdexcept>
#include <utility>

#include "absl/strings/numbers.h"
#include "base/status.h"
#include "base/tensor_view.h"
#include "base/text.h"
#include "io/output_folder.h"
#include "io/safetensors.h"
#include "quant/numerics/float_bits.h"

namespace nibble {
namespace {

constexpr char kKind[] = "nibble_hidden_states", kNextLayer[] = "next_layer";
constexpr char kIdentity[] = "identity.";  // before the names of an identity's parts
constexpr char kLengths[] = "lengths", kStates[] = "states";
constexpr size_t kPieceBytes = size_t{4} << 20;

std::string TemporaryFolder(const std::string& folder) {
  if (!folder.empty()) return folder;
  const char* from_environment = std::getenv("TMPDIR");
  return from_environment != nullptr && *from_environment != '\0' ? from_environment : "/tmp";
}

// A file that is gone with its descriptor.
absl::StatusOr<FileDescriptor> OpenSpillFile(const std::string& folder) {
  FileDescriptor file(
      RetryOnInterrupt([&] { return open(folder.c_str(), O_RDWR | O_TMPFILE | O_CLOEXEC, 0600); }));
  if (file.is_open()) return file;
  // A file system without unnamed files.
  std::string path = folder + "/nibble-hidden-XXXXXX";
  file = FileDescriptor(mkostemp(path.data(), O_CLOEXEC));
  if (!file.is_open()) return ErrnoStatus(folder, "making a temporary file");
  unlink(path.c_str());
  return file;
}

// Calls transfer(bytes done) until it has moved `size`.
template <typename Transfer>
absl::Status TransferAll(size_t size, const char* what, const Transfer& transfer) {
  for (size_t done = 0; done < size;) {
    const ssize_t moved = RetryOnInterrupt([&] { return transfer(done); });
    if (moved < 0) return ErrnoStatus("hidden states", what);
    if (moved == 0)
      return absl::DataLossError("hidden states: expected more of the file, got none");
    done += static_cast<size_t>(moved);
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> SumOf(const std::vector<int64_t>& lengths) {
  int64_t sum = 0;
  for (const int64_t length : lengths) {
    if (length < 1 || length > std::numeric_limits<int64_t>::max() - sum) {
      return absl::InvalidArgumentError(
          absl::StrCat("hidden states: expected sequences of one token or more, got ", length));
    }
    sum += length;
  }
  return sum;
}

}  // namespace

absl::StatusOr<HiddenStates> HiddenStates::Create(std::vector<int64_t> lengths, int64_t channels,
                                                  DType dtype, const HiddenStatesOptions& options) {
  if (dtype != DType::kF32 && dtype != DType::kBf16) {
    return absl::InvalidArgumentError(
        absl::StrCat("hidden states: expected F32 or BF16, got ", ToAbsl(DTypeName(dtype))));
  }
  HiddenStates states;
  NIBBLE_ASSIGN_OR_RETURN(states.tokens_, SumOf(lengths));
  states.lengths_ = std::move(lengths);
  states.channels_ = channels;
  states.dtype_ = dtype;
  const auto values = ElementCount(std::vector<int64_t>{states.tokens_, channels});
  if (channels < 1 || !values || *values > std::numeric_limits<int64_t>::max() / 4) {
    return absl::InvalidArgumentError(
        absl::StrCat("hidden states: expected a size that fits in memory, got ", states.tokens_,
                     " tokens of ", channels, " channels"));
  }
  const uint64_t bytes = static_cast<uint64_t>(*values) * DTypeBytes(dtype);
  const uint64_t in_memory = std::min(bytes, options.memory_budget);
  try {
    states.memory_.resize(in_memory);
  } catch (const std::exception&) {
    return absl::ResourceExhaustedError(
        absl::StrCat("hidden states: expected memory for ", in_memory, " bytes, got none"));
  }
  if (in_memory == bytes) return states;
  const std::string folder = TemporaryFolder(options.spill_folder);
  NIBBLE_RETURN_IF_ERROR(CheckSpace(folder, bytes - in_memory));
  NIBBLE_ASSIGN_OR_RETURN(states.file_, OpenSpillFile(folder));
  const off_t file_bytes = static_cast<off_t>(bytes - in_memory);
  if (RetryOnInterrupt([&] { return ftruncate(states.file_.get(), file_bytes); }) != 0) {
    return ErrnoStatus(folder, "growing a temporary file");
  }
  return states;
}

uint64_t HiddenStates::OffsetOf(int64_t first, size_t bytes) const {
  const uint64_t token_bytes = static_cast<uint64_t>(channels_) * DTypeBytes(dtype_);
  NIBBLE_CHECK(first >= 0 && bytes % token_bytes == 0 &&
               first + static_cast<int64_t>(bytes / token_bytes) <= tokens_);
  return static_cast<uint64_t>(first) * token_bytes;
}

absl::Status HiddenStates::ReadBytes(uint64_t offset, std::span<std::byte> out) const {
  const size_t here =
      offset >= memory_.size() ? 0 : std::min<uint64_t>(out.size(), memory_.size() - offset);
  if (here > 0) std::memcpy(out.data(), memory_.data() + offset, here);
  const uint64_t from = offset + here - memory_.size();
  return TransferAll(out.size() - here, "reading", [&](size_t done) {
    return pread(file_.get(), out.data() + here + done, out.size() - here - done,
                 static_cast<off_t>(from + done));
  });
}

absl::Status HiddenStates::WriteBytes(uint64_t offset, std::span<const std::byte> bytes) {
  const size_t here =
      offset >= memory_.size() ? 0 : std::min<uint64_t>(bytes.size(), memory_.size() - offset);
  if (here > 0) std::memcpy(memory_.data() + offset, bytes.data(), here);
  const uint64_t from = offset + here - memory_.size();
  return TransferAll(bytes.size() - here, "writing", [&](size_t done) {
    return pwrite(file_.get(), bytes.data() + here + done, bytes.size() - here - done,
                  static_cast<off_t>(from + done));
  });
}

absl::Status HiddenStates::Read(int64_t first, std::span<float> out) const {
  if (dtype_ == DType::kF32) return ReadStored(first, std::as_writable_bytes(out));
  UninitializedVector<uint16_t> values(out.size());
  NIBBLE_RETURN_IF_ERROR(ReadStored(first, std::as_writable_bytes(std::span(values))));
  for (size_t i = 0; i < values.size(); ++i) out[i] = FloatFromBf16(values[i]);
  return absl::OkStatus();
}

absl::Status HiddenStates::Write(int64_t first, std::span<const float> values) {
  if (dtype_ == DType::kF32) return WriteStored(first, std::as_bytes(values));
  UninitializedVector<uint16_t> rounded(values.size());
  for (size_t i = 0; i < values.size(); ++i) rounded[i] = Bf16FromFloat(values[i]);
  return WriteStored(first, std::as_bytes(std::span(rounded)));
}

absl::Status HiddenStates::ReadStored(int64_t first, std::span<std::byte> out) const {
  return ReadBytes(OffsetOf(first, out.size()), out);
}

absl::Status HiddenStates::WriteStored(int64_t first, std::span<const std::byte> bytes) {
  return WriteBytes(OffsetOf(first, bytes.size()), bytes);
}

absl::Status HiddenStates::Save(const std::string& path,
                                const std::map<std::string, std::string>& identity) const {
  std::map<std::string, std::string> metadata = {{kKind, "1"},
                                                 {kNextLayer, absl::StrCat(next_layer_)}};
  for (const auto& [name, value] : identity) metadata[kIdentity + name] = value;
  const std::vector<TensorSpec> specs = {
      {kLengths, DType::kI64, {static_cast<int64_t>(lengths_.size())}},
      {kStates, dtype_, {tokens_, channels_}}};
  NIBBLE_ASSIGN_OR_RETURN(auto writer, SafetensorsWriter::Create(path, specs, metadata));
  NIBBLE_RETURN_IF_ERROR(writer.Write(0, 0, std::as_bytes(std::span(lengths_))));
  const uint64_t bytes = static_cast<uint64_t>(tokens_) * channels_ * DTypeBytes(dtype_);
  std::vector<std::byte> piece(std::min<uint64_t>(bytes, kPieceBytes));
  for (uint64_t done = 0; done < bytes; done += piece.size()) {
    piece.resize(std::min<uint64_t>(piece.size(), bytes - done));
    NIBBLE_RETURN_IF_ERROR(ReadBytes(done, piece));
    NIBBLE_RETURN_IF_ERROR(writer.Write(1, done, piece));
  }
  return writer.Commit();
}

absl::StatusOr<HiddenStates> HiddenStates::Load(const std::string& path,
                                                const std::map<std::string, std::string>& identity,
                                                const HiddenStatesOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const SafetensorsReader reader, SafetensorsReader::Open(path));
  const auto damaged = [&](std::string_view rule) {
    return absl::DataLossError(absl::StrCat(Printable(path), ": expected ", ToAbsl(rule),
                                            ", got a file that is none of saved hidden states"));
  };
  const auto& metadata = reader.metadata();
  const TensorInfo* lengths = reader.Find(kLengths);
  const TensorInfo* states = reader.Find(kStates);
  if (!metadata.contains(kKind) || !metadata.contains(kNextLayer)) return damaged("its metadata");
  int64_t next_layer = 0;
  if (!absl::SimpleAtoi(metadata.at(kNextLayer), &next_layer) || next_layer < 0) {
    return damaged("the number of a layer");
  }
  if (lengths == nullptr || lengths->dtype != DType::kI64 || lengths->shape.size() != 1) {
    return damaged("the sequences' lengths");
  }
  if (states == nullptr || states->shape.size() != 2 ||
      (states->dtype != DType::kF32 && states->dtype != DType::kBf16)) {
    return damaged("a matrix of states");
  }
  std::map<std::string, std::string> made_from;
  for (const auto& [name, value] : metadata) {
    if (name.starts_with(kIdentity)) made_from[name.substr(sizeof(kIdentity) - 1)] = value;
  }
  std::set<std::string> names;
  for (const auto& [name, value] : identity) names.insert(name);
  for (const auto& [name, value] : made_from) names.insert(name);
  for (const std::string& name : names) {
    if (identity.contains(name) && made_from.contains(name) &&
        identity.at(name) == made_from.at(name)) {
      continue;
    }
    return absl::FailedPreconditionError(absl::StrCat(
        Printable(path), ": expected hidden states of the same ", Printable(name), ", got others"));
  }
  std::vector<int64_t> sequence_lengths(lengths->shape[0]);
  NIBBLE_RETURN_IF_ERROR(
      reader.Read(*lengths, std::as_writable_bytes(std::span(sequence_lengths))));
  const auto sum = SumOf(sequence_lengths);
  if (!sum.ok() || *sum != states->shape[0] || states->shape[1] < 1) {
    return damaged("lengths that add up to its rows");
  }
  NIBBLE_ASSIGN_OR_RETURN(HiddenStates result, Create(std::move(sequence_lengths), states->shape[1],
                                                      states->dtype, options));
  result.next_layer_ = next_layer;
  std::vector<std::byte> piece(std::min<uint64_t>(states->bytes(), kPieceBytes));
  for (uint64_t done = 0; done < states->bytes(); done += piece.size()) {
    piece.resize(std::min<uint64_t>(piece.size(), states->bytes() - done));
    NIBBLE_RETURN_IF_ERROR(reader.ReadRange(*states, done, piece));
    NIBBLE_RETURN_IF_ERROR(result.WriteBytes(done, piece));
  }
  return result;
}

}  // namespace nibble
