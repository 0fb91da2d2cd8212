// The hidden states of all tokens between two layers: in memory up to a budget, in a file beyond.
#ifndef NIBBLE_MODEL_HIDDEN_STATES_H_
#define NIBBLE_MODEL_HIDDEN_STATES_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/dtype.h"
#include "base/uninitialized_vector.h"
#include "io/file_descriptor.h"

namespace nibble {

struct HiddenStatesOptions {
  uint64_t memory_budget = uint64_t{8} << 30;  // bytes
  // Where the unnamed file of what is beyond the budget lies; it is gone with the process. The
  // system's folder for temporary files where empty.
  std::string spill_folder = {};
};

class HiddenStates {
 public:
  // dtype: fp32 or bf16, what is kept of each value. ResourceExhausted where neither memory nor the
  // disk suffices.
  static absl::StatusOr<HiddenStates> Create(std::vector<int64_t> lengths, int64_t channels,
                                             DType dtype, const HiddenStatesOptions& options = {});

  const std::vector<int64_t>& lengths() const { return lengths_; }  // of the sequences
  int64_t tokens() const { return tokens_; }
  int64_t channels() const { return channels_; }
  DType dtype() const { return dtype_; }
  uint64_t memory_bytes() const { return memory_.size(); }  // the rest is in the file

  // The layer that is to read these. Set by Decoder.
  int64_t next_layer() const { return next_layer_; }
  void set_next_layer(int64_t layer) { next_layer_ = layer; }

  // out.size() / channels tokens from `first` on. bf16 keeps the nearest value.
  absl::Status Read(int64_t first, std::span<float> out) const;
  absl::Status Write(int64_t first, std::span<const float> values);
  // The same in the bytes of dtype(), as they are kept. Disjoint tokens may be read and written
  // from several threads.
  absl::Status ReadStored(int64_t first, std::span<std::byte> out) const;
  absl::Status WriteStored(int64_t first, std::span<const std::byte> bytes);

  // A safetensors file, whole or not at all: a run that was stopped goes on from it with the same
  // bits. `identity` is what the states were made from, by name.
  absl::Status Save(const std::string& path,
                    const std::map<std::string, std::string>& identity = {}) const;
  // DataLoss for a file that Save did not write; FailedPrecondition where its identity is another.
  static absl::StatusOr<HiddenStates> Load(const std::string& path,
                                           const std::map<std::string, std::string>& identity = {},
                                           const HiddenStatesOptions& options = {});

 private:
  HiddenStates() = default;

  uint64_t OffsetOf(int64_t first, size_t bytes) const;  // of whole tokens that are there
  absl::Status ReadBytes(uint64_t offset, std::span<std::byte> out) const;
  absl::Status WriteBytes(uint64_t offset, std::span<const std::byte> bytes);

  std::vector<int64_t> lengths_;
  int64_t tokens_ = 0, channels_ = 0, next_layer_ = 0;
  DType dtype_ = DType::kF32;
  UninitializedVector<std::byte> memory_;  // the first bytes
  FileDescriptor file_;                    // those after them; closed where there are none
};

}  // namespace nibble

#endif  // NIBBLE_MODEL_HIDDEN_STATES_H_
