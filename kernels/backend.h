// The operations of Nibble on one device. Public methods check, private virtuals run; every backend
// refuses the same inputs with the same code and returns the same bytes.
//
// Status codes: InvalidArgument, parameters that contradict each other; FailedPrecondition, data
// that the operation is not defined for (a shape, a NaN).
#ifndef NIBBLE_KERNELS_BACKEND_H_
#define NIBBLE_KERNELS_BACKEND_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/enum_names.h"
#include "base/tensor_view.h"
#include "base/uninitialized_vector.h"
#include "kernels/input_sums.h"
#include "kernels/tuning/store.h"
#include "quant/error_stats.h"
#include "quant/numerics/scale_sweep.h"
#include "quant/observation.h"
#include "quant/packed_tensor.h"
#include "quant/quantize_params.h"

namespace nibble {

enum class SweepMethod : uint8_t { kExhaustive, kPruned };  // the same winners; see scale_sweep.h
template <>
inline constexpr std::array<std::string_view, 2> kEnumNames<SweepMethod> = {"exhaustive", "pruned"};

struct ScaleSweepParams {
  SweepMethod method = SweepMethod::kPruned;
  int e4m3_max = 448;
  // g: the amax that the global scale is made from; the tensor's own where absent.
  std::optional<float> global_amax = {};
};

// Of the two copies that a product and its gradient read. Each is as its own parameters say.
struct QuantizeBothParams {
  QuantizeParams rowwise = {};
  QuantizeParams columnwise = {.columnwise = true};
};

inline constexpr int kMaxMultipliers = 4096;

struct MultiplierSearchParams {
  MultiplierGrid grid = {};
  int e4m3_max = 448;
  std::optional<float> global_amax = {};
};

// What a search found, one entry per block, row-major.
struct SweepResult {
  UninitializedVector<uint8_t> code;     // E4M3, 1..126
  UninitializedVector<float> best_amax;  // the block amax that the code stands for
  UninitializedVector<float> loss;
  float global_amax = 0;    // the g that was used
  int64_t evaluations = 0;  // candidate losses computed, over all blocks
  // Blocks whose runner-up's loss is within 1e-6 of the best, relatively; counted by the exhaustive
  // method only.
  int64_t near_ties = 0;
};

struct SweptTensor {
  PackedTensor packed;
  double loss = 0;  // the blocks' losses, as SumSweepLosses adds them
  int64_t evaluations = 0;
};

// A weight rounded with error feedback.
struct FeedbackTensor {
  PackedTensor packed;
  SweepResult found;        // of the stored codes; `evaluations` and `near_ties` are the sweep's
  double nearest_loss = 0;  // the sweep's losses, with codes rounded to nearest: SumSweepLosses
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string name() const = 0;

  // The largest magnitude of the matrix. FailedPrecondition where an element is NaN or infinite,
  // with their number and the first's place.
  absl::StatusOr<float> Amax(const MatrixView& x);

  // Maxima, binades and non-finite elements of x, in one read. NaN and infinity are counted, not
  // refused.
  absl::StatusOr<Observation> Observe(const ObserveParams& params, const MatrixView& x);

  // hessians += X^T X for each slice of 16 columns of x (tokens x channels): cols / 16 slices of 16
  // x 16 floats, as ScaleSweepHessian takes them. Several calls add up; the bits depend on how the
  // tokens were split over calls (quant/numerics/hessian_sum.h), on nothing else.
  // FailedPrecondition where an element of x or of hessians is NaN or infinite, or where a sum
  // overflows; hessians are untouched then.
  absl::Status AccumulateHessian(const MatrixView& x, std::span<float> hessians);

  // Codes, scales and maxima of x. Column-wise copies need rows, too, to be a multiple of 16;
  // tile_2d needs both.
  absl::StatusOr<PackedTensor> Quantize(const QuantizeParams& params, const MatrixView& x);
  // The same into memory of the caller's; out.layout must be LayoutOf(params, x.rows, x.cols).
  absl::Status Quantize(const QuantizeParams& params, const MatrixView& x,
                        const MutablePackedView& out);

  // The row-wise and the column-wise copy of x: the bytes of two calls of Quantize.
  absl::Status QuantizeBoth(const QuantizeBothParams& params, const MatrixView& x,
                            const MutablePackedView& rowwise, const MutablePackedView& columnwise);

  // The rows of x are those of the groups (the tokens of each expert), one group after another; the
  // results are those of quantizing each group alone. A group may be empty: so are its copies, the
  // column-wise one too.
  absl::StatusOr<std::vector<PackedTensor>> QuantizeGrouped(const QuantizeParams& params,
                                                            const MatrixView& x,
                                                            std::span<const int64_t> group_rows);
  // The same into memory of the caller's, out[i].layout being LayoutOf(params, group_rows[i],
  // x.cols).
  absl::Status QuantizeGrouped(const QuantizeParams& params, const MatrixView& x,
                               std::span<const int64_t> group_rows,
                               std::span<const MutablePackedView> out);

  // The matrix that `packed` stands for, layout.rows x layout.cols values of type bf16 or fp32. A
  // NaN scale makes its block's values NaN.
  absl::Status Dequantize(const PackedView& packed, DType dtype, void* out);

  // Of a GPU its number. Amax, Observe, AccumulateHessian, Quantize of rows as they are (no RHT)
  // and the result of Dequantize may then lie in its memory, too.
  virtual std::optional<int> cuda_device() const { return std::nullopt; }

  // Sums over inputs in the memory of that GPU, which are read in the order of `stream`, a
  // cudaStream_t. FailedPrecondition for channels that are no positive multiple of 16, Unimplemented
  // on other devices and for more channels than the GPU's kernels take. The backend outlives the
  // result.
  virtual absl::StatusOr<std::unique_ptr<InputSums>> MakeInputSums(int64_t channels, bool hessians,
                                                                   void* stream);

  // The best of all 126 block scales, by squared error.
  absl::StatusOr<SweepResult> ScaleSweep(const ScaleSweepParams& params, const MatrixView& x);

  // The best scales and the codes under them, as QuantizeWithScales gives them with the g that was
  // used: per_tensor, checkpoint rule. A GPU reads x once for both.
  absl::StatusOr<SweptTensor> SweepAndQuantize(const ScaleSweepParams& params, const MatrixView& x,
                                               bool swizzle = false);

  // The best of all 126 block scales by d^T H d. hessians: cols / 16 slices of 16 x 16 floats,
  // shared by all rows.
  absl::StatusOr<SweepResult> ScaleSweepHessian(const ScaleSweepParams& params, const MatrixView& x,
                                                std::span<const float> hessians);

  // The same, with codes that make up for one another's errors (quant/numerics/hessian_feedback.h)
  // wherever they do better than codes rounded to nearest, which other blocks keep: no block's loss
  // is above what ScaleSweepHessian finds. per_tensor, checkpoint rule.
  absl::StatusOr<FeedbackTensor> SweepHessianFeedback(const ScaleSweepParams& params,
                                                      const MatrixView& x,
                                                      std::span<const float> hessians);

  // The best of ModelOpt's multipliers of the block amax, by squared error.
  absl::StatusOr<SweepResult> MultiplierSearch(const MultiplierSearchParams& params,
                                               const MatrixView& x);

  // Codes under block scales that a search chose (one per block, 1..126): per_tensor, checkpoint
  // rule.
  absl::StatusOr<PackedTensor> QuantizeWithScales(const MatrixView& x, float global_amax,
                                                  int e4m3_max, std::span<const uint8_t> scales);

  // The error of `packed`, computed from its bytes, against x of the same shape. FailedPrecondition
  // where its bytes stand for values that are NaN or infinite.
  absl::StatusOr<ErrorStats> MeasureError(const MatrixView& x, const PackedView& packed);

  // d[i][j] *= row_decode_scale[i] * col_decode_scale[j], in place, rounded as in post_scale.h: the
  // outer scales of a GEMM's operands on its output. Each has one factor a row or column, or one
  // for all. d: bf16, fp16 or fp32, of any shape and with any values.
  absl::Status PostScale(const MutableMatrixView& d, std::span<const float> row_decode_scale,
                         std::span<const float> col_decode_scale);

 protected:
  // For a matrix that is known to hold some, in host memory: how many, and where the first is.
  static absl::Status NonFiniteError(const MatrixView& x);
  // For a packed tensor with so many blocks that hold some.
  static absl::Status NonFinitePackedError(int64_t blocks);
  // For x whose sums are not finite, in `slice` first: because x is not, or because they overflow.
  static absl::Status HessianSumError(const MatrixView& x, int64_t slice);

 private:
  // Each refuses NaN and infinity with NonFiniteError.
  virtual absl::StatusOr<float> DoAmax(const MatrixView& x) = 0;
  // The exception: it counts them. `result` has its parameters, shape and sizes, and is all zero.
  virtual absl::Status DoObserve(const MatrixView& x, Observation& result) = 0;
  // Uses HessianSumError. x has rows.
  virtual absl::Status DoAccumulateHessian(const MatrixView& x, std::span<float> hessians) = 0;
  virtual absl::Status DoQuantize(const QuantizeParams& params, const MatrixView& x,
                                  const MutablePackedView& out) = 0;
  // One DoQuantize after another.
  virtual absl::Status DoQuantizeBoth(const QuantizeBothParams& params, const MatrixView& x,
                                      const MutablePackedView& rowwise,
                                      const MutablePackedView& columnwise);
  virtual absl::Status DoQuantizeGrouped(const QuantizeParams& params, const MatrixView& x,
                                         std::span<const int64_t> group_rows,
                                         std::span<const MutablePackedView> out);
  virtual absl::Status DoDequantize(const PackedView& packed, DType dtype, void* out) = 0;
  virtual absl::Status DoScaleSweep(const ScaleSweepParams& params, const MatrixView& x,
                                    std::span<const float> hessians, SweepResult& result) = 0;
  // `found` is what DoScaleSweep found for x and hessians, `out` x encoded under it. Of blocks that
  // feedback betters found.code, found.loss and out.packed are replaced. A CPU's unless overridden.
  virtual absl::Status DoHessianFeedback(const MatrixView& x, std::span<const float> hessians,
                                         SweepResult& found, const MutablePackedView& out);
  virtual absl::Status DoSweepAndQuantize(const ScaleSweepParams& params, const MatrixView& x,
                                          const MutablePackedView& out, SweptTensor& result) = 0;
  virtual absl::Status DoMultiplierSearch(const MultiplierSearchParams& params, const MatrixView& x,
                                          SweepResult& result) = 0;
  virtual absl::Status DoQuantizeWithScales(const MatrixView& x, std::span<const uint8_t> scales,
                                            const MutablePackedView& out) = 0;
  virtual absl::StatusOr<ErrorStats> DoMeasureError(const MatrixView& x,
                                                    const PackedView& packed) = 0;
  virtual absl::Status DoPostScale(const MutableMatrixView& d,
                                   std::span<const float> row_decode_scale,
                                   std::span<const float> col_decode_scale) = 0;

  absl::StatusOr<SweepResult> Sweep(const ScaleSweepParams& params, const MatrixView& x,
                                    std::span<const float> hessians);
};

struct BackendOptions {
  int threads = 0;  // of a CPU backend; 0 means one for each CPU this process may use
  // Of a CUDA backend: launch shapes that replace the shipped picks; see `nibble tune`.
  TuningStore tuning = {};
};

// The N of "cuda:N"; nullopt for any other name.
std::optional<int> CudaDeviceOf(std::string_view name);

// By name: "auto" (the CPU: a GPU is never used unasked), "cpu", "cpu-scalar" (the plain
// reference), "cuda:N". One asked for by name never falls back: Unavailable where it does not exist
// here.
absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(std::string_view name,
                                                     const BackendOptions& options = {});

}  // namespace nibble

#endif  // NIBBLE_KERNELS_BACKEND_H_
