// The operations that a decoder's layers are made of, on one device: all that a new device has to
// implement. Shapes are the caller's to get right.
#ifndef NIBBLE_MODEL_LAYER_OPS_H_
#define NIBBLE_MODEL_LAYER_OPS_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/dtype.h"
#include "base/uninitialized_vector.h"
#include "model/hidden_states.h"
#include "model/rope.h"
#include "model/weight_source.h"

namespace nibble {

// What a matrix is for. Products may read another type than everything else is computed in.
enum class Use : uint8_t { kLinearInput, kOther };

// A dense row-major matrix in a device's memory. Copies share the memory.
struct DeviceMatrix {
  std::shared_ptr<void> memory;
  DType dtype = DType::kF32;
  int64_t rows = 0, cols = 0;
  Use use = Use::kOther;
  int64_t spare = 0;  // rows behind these that a product may read, and may write anything to

  // The same elements with another number of columns.
  DeviceMatrix WithColumns(int64_t columns) const {
    return {memory, dtype, rows * cols / columns, columns, use};
  }
  // `count` rows from `first` on; what follows them is spare.
  DeviceMatrix Rows(int64_t first, int64_t count) const {
    char* const begin = static_cast<char*>(memory.get()) + first * cols * DTypeBytes(dtype);
    return {std::shared_ptr<void>(memory, begin), dtype, count, cols, use,
            rows + spare - first - count};
  }
  bool empty() const { return memory == nullptr; }
};

struct AttentionShape {
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  int64_t window = 0;  // 0 for none
};

// For each token its experts, the best first, and what their outputs are multiplied by:
// tokens x experts_per_token.
struct Routing {
  std::vector<int32_t> expert;
  std::vector<float> weight;
};

// All is float32 but what a linear layer reads: that is rounded once, when it is computed, to the
// type that the operations were made with. `lengths` are those of the sequences whose tokens are
// the rows.
class LayerOps {
 public:
  virtual ~LayerOps() = default;

  // Without values. ResourceExhausted where memory does not suffice.
  virtual absl::StatusOr<DeviceMatrix> Allocate(int64_t rows, int64_t cols,
                                                Use use = Use::kOther) = 0;
  // A weight as it is stored, a vector as one row.
  virtual absl::StatusOr<DeviceMatrix> Place(HostTensor tensor) = 0;

  // Whether matrices are float32 in host memory, for all to read.
  virtual bool in_host_memory() const = 0;
  // Else: the stream (a cudaStream_t) that all operations run in, one after another; most return
  // before they are done. Synchronize waits for them.
  virtual void* stream() const { return nullptr; }
  virtual absl::Status Synchronize() { return absl::OkStatus(); }

  // Hidden states of out.rows tokens from `first` on.
  virtual absl::Status ReadStates(const HiddenStates& states, int64_t first,
                                  const DeviceMatrix& out) = 0;
  // x becomes the states from `first` on, at the latest when FinishStates returns.
  // FailedPrecondition, from either, where x holds NaN or infinity. After other failures, too, the
  // states are of no use; FinishStates is called in any case.
  virtual absl::Status WriteStates(const DeviceMatrix& x, int64_t first, HiddenStates& states) = 0;
  virtual absl::Status FinishStates() { return absl::OkStatus(); }

  // Into a float32 matrix, without rounding.
  virtual absl::Status Upload(std::span<const float> values, const DeviceMatrix& out) = 0;
  // The values, in `room` or wherever they lie already; valid until x or room changes.
  virtual absl::StatusOr<std::span<const float>> Download(const DeviceMatrix& x,
                                                          UninitializedVector<float>& room) = 0;

  // The same values; `out` is float32.
  virtual absl::Status Copy(const DeviceMatrix& x, const DeviceMatrix& out) = 0;

  // out = x / sqrt(mean of x^2 + eps) * weight, row by row. out may be x.
  virtual absl::Status RmsNorm(const DeviceMatrix& x, const DeviceMatrix& weight, double eps,
                               const DeviceMatrix& out) = 0;
  // out = x weight^T + bias; no bias where that is empty. x: float32 or what a linear layer reads.
  virtual absl::Status Linear(const DeviceMatrix& x, const DeviceMatrix& weight,
                              const DeviceMatrix& bias, const DeviceMatrix& out) = 0;
  // Turns each head of x in place.
  virtual absl::Status Rope(const RopeTable& table, std::span<const int64_t> lengths,
                            const DeviceMatrix& x) = 0;
  virtual absl::Status Attention(const AttentionShape& shape, std::span<const int64_t> lengths,
                                 const DeviceMatrix& q, const DeviceMatrix& k,
                                 const DeviceMatrix& v, const DeviceMatrix& out) = 0;
  // out = silu(gate) * up
  virtual absl::Status SwiGlu(const DeviceMatrix& gate, const DeviceMatrix& up,
                              const DeviceMatrix& out) = 0;
  // x += y
  virtual absl::Status Add(const DeviceMatrix& x, const DeviceMatrix& y) = 0;

  // The most likely experts of a softmax over each row; of equal ones the first. `normalize`: their
  // weights add up to 1. FailedPrecondition where a logit is not finite.
  virtual absl::StatusOr<Routing> Route(const DeviceMatrix& logits, int64_t experts_per_token,
                                        bool normalize) = 0;
  virtual absl::Status SetZero(const DeviceMatrix& x) = 0;
  // out[i] = x[rows[i]]; both of one use.
  virtual absl::Status Gather(const DeviceMatrix& x, std::span<const int64_t> rows,
                              const DeviceMatrix& out) = 0;
  // out[rows[i]] += weights[i] * x[i], in the order of i.
  virtual absl::Status AddScaledRows(const DeviceMatrix& x, std::span<const int64_t> rows,
                                     std::span<const float> weights, const DeviceMatrix& out) = 0;

 protected:
  static absl::Status NonFiniteStates(int64_t token) {
    return absl::FailedPreconditionError(
        absl::StrCat("expected finite hidden states, got NaN or infinity for token ", token));
  }
};

}  // namespace nibble

#endif  // NIBBLE_MODEL_LAYER_OPS_H_
