// The operations of `nibble tensor`: one tensor of a safetensors file in, a safetensors file out.
//
// Status codes: InvalidArgument for a request that cannot be, FailedPrecondition and DataLoss for
// data that is bad.
#ifndef NIBBLE_ENGINE_TENSOR_OPS_H_
#define NIBBLE_ENGINE_TENSOR_OPS_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "quant/error_stats.h"
#include "quant/quantize_params.h"

namespace nibble {

// The file that QuantizeTensor writes and DequantizeTensor and inspect read: tensors "packed" (U8),
// "scale" (F8_E4M3), "amax" (F32), and how to read them in the metadata, under these keys.
inline constexpr char kPackedFormat[] = "nibble.packed.1";
inline constexpr char kSweepFormat[] = "nibble.sweep.1";  // what SweepTensor writes
inline constexpr char kFormatKey[] = "nibble.format";
inline constexpr char kSchemeKey[] = "nibble.scheme";
inline constexpr char kRuleKey[] = "nibble.rule";
inline constexpr char kE4m3MaxKey[] = "nibble.e4m3_max";
inline constexpr char kFourOverSixKey[] = "nibble.four_over_six";
inline constexpr char kColumnwiseKey[] = "nibble.columnwise";
inline constexpr char kRhtKey[] = "nibble.rht";
inline constexpr char kStochasticKey[] = "nibble.stochastic";
inline constexpr char kSwizzledKey[] = "nibble.swizzled";
inline constexpr char kShapeKey[] = "nibble.shape";  // of the quantized copy, as a JSON array

struct TensorFile {
  std::string path;
  std::string tensor;
};

struct QuantizeSummary {
  int64_t rows = 0, cols = 0;  // of the quantized copy
  double seconds = 0;          // in the backend
  // Against the source; absent where the copy was transposed or rotated.
  std::optional<ErrorStats> error;
};

absl::StatusOr<QuantizeSummary> QuantizeTensor(const TensorFile& in, const std::string& out,
                                               const QuantizeParams& params, Backend& backend);

struct SweepRequest {
  std::variant<ScaleSweepParams, MultiplierSearchParams> search = {};
  std::optional<std::string> hessian = {};  // name of a tensor [cols / 16, 16, 16] of the same file
  bool packed = false;                      // write packed, scale and scale2, too (checkpoint rule)
};

struct SweepSummary {
  int64_t blocks = 0;
  int64_t evaluations = 0;
  int64_t near_ties = 0;  // see SweepResult
  double seconds = 0;
};

absl::StatusOr<SweepSummary> SweepTensor(const TensorFile& in, const std::string& out,
                                         const SweepRequest& request, Backend& backend);

// Writes one tensor, "dequantized": the values of the quantized copy as it is stored (a column-wise
// copy stays transposed, a rotated one rotated).
absl::Status DequantizeTensor(const std::string& in, const std::string& out, DType dtype,
                              Backend& backend);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_TENSOR_OPS_H_
