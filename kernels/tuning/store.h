// The launch shapes that tuning picked, and the text that they are kept in.
//
//   nibble tuning 1
//   # device | operation | type | blocks | build | config
//   NVIDIA H200 | scale_sweep | BF16 | 2^21 | 0123456789abcdef | warps=4 blocks_per_thread=2
//
// Empty lines and lines that begin with # say nothing. A config is written as its fields' values,
// so that a pick keeps its meaning where the array that it was picked from is reordered.
#ifndef NIBBLE_KERNELS_TUNING_STORE_H_
#define NIBBLE_KERNELS_TUNING_STORE_H_

#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/dtype.h"

namespace nibble {

inline constexpr int kTuningBuckets = 63;

// floor(log2(blocks)): tensors of a bucket, less than a factor of two apart, share a pick.
int TuningBucket(int64_t blocks);

// What a pick holds for.
struct TuningKey {
  std::string device;    // "NVIDIA H200"
  std::string op;        // "scale_sweep"
  std::string build_id;  // of the operation's kernels, see shipped.h
  DType dtype = DType::kBf16;
  int bucket = 0;

  auto operator<=>(const TuningKey&) const = default;
};

class TuningStore {
 public:
  // `origin` names the text in errors, which are DataLoss and say the line: "<origin>:<line>: ...".
  static absl::StatusOr<TuningStore> Parse(std::string_view text, std::string_view origin);
  // The same picks make the same text; Parse takes it.
  std::string Format() const;

  // Replaces the pick of that key. InvalidArgument for what could not be read back.
  absl::Status Put(const TuningKey& key, std::string_view config);
  // Puts every pick of `other`.
  void Merge(const TuningStore& other);
  // Drops the picks of an operation on a device that are of another build.
  void DropStale(std::string_view device, std::string_view op, std::string_view build_id);

  // The config picked for this key or, where its bucket has none, for the nearest bucket that has
  // (the smaller of two). Valid until the store changes.
  std::optional<std::string_view> Pick(const TuningKey& key) const;

  const std::map<TuningKey, std::string>& picks() const { return picks_; }

 private:
  std::map<TuningKey, std::string> picks_;
};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_TUNING_STORE_H_
