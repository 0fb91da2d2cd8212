#include "kernels/cuda/quantize_copies.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/cuda/copy_amax_launch.h"
#include "kernels/cuda/copy_encode_launch.h"
#include "kernels/cuda/copy_rows_launch.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/encode_params.h"

namespace nibble {
namespace {

// One kind of copy on the device, groups one after another.
struct DeviceCopy {
  DeviceBuffer<uint8_t> packed, scale;
  DeviceBuffer<float> maxima;  // that the values have
  DeviceBuffer<float> amax;    // that they are encoded under, where that is given

  static absl::StatusOr<DeviceCopy> Make(const CopyRequest& request, cudaStream_t stream) {
    int64_t packed_bytes = 0, scale_bytes = 0, amax_count = 0;
    for (const MutablePackedView& out : request.out) {
      packed_bytes += out.layout.packed_bytes();
      scale_bytes += out.layout.scale_bytes();
      amax_count += out.layout.amax_count();
    }
    const std::vector<float> given(amax_count, request.params->global_amax.value_or(0.0f));
    NIBBLE_ASSIGN_OR_RETURN(auto packed, DeviceBuffer<uint8_t>::Make(packed_bytes, stream));
    NIBBLE_ASSIGN_OR_RETURN(auto scale, DeviceBuffer<uint8_t>::Make(scale_bytes, stream));
    NIBBLE_ASSIGN_OR_RETURN(auto maxima, DeviceBuffer<float>::Make(amax_count, stream));
    NIBBLE_ASSIGN_OR_RETURN(auto amax, DeviceBuffer<float>::Make(amax_count, stream));
    NIBBLE_RETURN_IF_ERROR(amax.CopyFrom(given.data()));
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream));  // `given` ends here
    return DeviceCopy{std::move(packed), std::move(scale), std::move(maxima), std::move(amax)};
  }

  EncodedCopy Args(const QuantizeParams& params) const {
    EncodedCopy args;
    args.packed = packed.get();
    args.scale = scale.get();
    args.amax = params.global_amax ? amax.get() : maxima.get();
    args.scheme = params.scheme;
    args.method = MethodOf(params);
    args.encode = EncodeParamsOf(params);
    args.rht = params.rht;
    args.swizzle = params.swizzle;
    return args;
  }

  absl::Status CopyTo(const CopyRequest& request, cudaStream_t stream) const {
    const uint8_t* from_packed = packed.get();
    const uint8_t* from_scale = scale.get();
    const float* from_amax = request.params->global_amax ? amax.get() : maxima.get();
    for (const MutablePackedView& out : request.out) {
      const PackedLayout& layout = out.layout;
      const auto take = [&](void* to, auto*& from, int64_t count) {
        const auto* source = from;
        from += count;
        return CudaStatus(
            cudaMemcpyAsync(to, source, count * sizeof(*source), cudaMemcpyDeviceToHost, stream),
            "copy from the device");
      };
      NIBBLE_RETURN_IF_ERROR(take(out.packed, from_packed, layout.packed_bytes()));
      NIBBLE_RETURN_IF_ERROR(take(out.scale, from_scale, layout.scale_bytes()));
      NIBBLE_RETURN_IF_ERROR(take(out.amax, from_amax, layout.amax_count()));
    }
    return absl::OkStatus();
  }
};

absl::StatusOr<bool> AllFinite(const DeviceBuffer<float>& maxima, cudaStream_t stream) {
  std::vector<float> values(maxima.count());
  NIBBLE_RETURN_IF_ERROR(maxima.CopyTo(values.data()));
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream));
  return std::all_of(values.begin(), values.end(), [](float value) { return IsFinite(value); });
}

}  // namespace

absl::StatusOr<bool> QuantizeCopies(const MatrixView& x, std::span<const int64_t> group_rows,
                                    const CopyRequest& rowwise, const CopyRequest& columnwise,
                                    const CopyConfigs& configs, cudaStream_t stream) {
  if (x.size() == 0) {
    for (const CopyRequest* request : {&rowwise, &columnwise}) {
      for (const MutablePackedView& out : request->out) {
        std::fill_n(out.amax, out.layout.amax_count(), request->params->global_amax.value_or(0.0f));
      }
    }
    return true;
  }
  const int groups = static_cast<int>(group_rows.size());
  NIBBLE_ASSIGN_OR_RETURN(auto data,
                          DeviceBuffer<char>::Make(x.size() * DTypeBytes(x.dtype), stream));
  NIBBLE_ASSIGN_OR_RETURN(auto source, DeviceBuffer<float>::Make(groups, stream));
  NIBBLE_ASSIGN_OR_RETURN(auto rows, DeviceBuffer<int64_t>::Make(groups, stream));
  NIBBLE_ASSIGN_OR_RETURN(auto starts, DeviceBuffer<RowGroup>::Make(groups + 1, stream));
  NIBBLE_RETURN_IF_ERROR(data.CopyFrom(x.data));
  NIBBLE_RETURN_IF_ERROR(rows.CopyFrom(group_rows.data()));
  NIBBLE_CUDA_RETURN_IF_ERROR(LaunchPlanRowGroups(rows.get(), groups, starts.get(), stream));
  const RowGroup* plan = groups == 1 ? nullptr : starts.get();

  CopyAmaxArgs amax_args = {};
  amax_args.x = data.get();
  amax_args.rows = x.rows;
  amax_args.cols = x.cols;
  amax_args.groups = plan;
  amax_args.group_count = groups;
  amax_args.source = source.get();
  CopyEncodeArgs encode_args = {};
  encode_args.x = data.get();
  encode_args.rows = x.rows;
  encode_args.cols = x.cols;
  encode_args.groups = plan;
  encode_args.group_count = groups;
  encode_args.follows_amax = true;
  std::optional<DeviceCopy> row_copy, column_copy;
  if (rowwise.params != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(auto copy, DeviceCopy::Make(rowwise, stream));
    row_copy.emplace(std::move(copy));
    amax_args.row = row_copy->maxima.get();
    amax_args.per_row = rowwise.params->scheme == Scheme::kPerToken;
    amax_args.row_rht = rowwise.params->rht;
    encode_args.row = row_copy->Args(*rowwise.params);
  }
  if (columnwise.params != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(auto copy, DeviceCopy::Make(columnwise, stream));
    column_copy.emplace(std::move(copy));
    amax_args.column = column_copy->maxima.get();
    amax_args.per_column = columnwise.params->scheme == Scheme::kPerToken;
    amax_args.column_rht = columnwise.params->rht;
    encode_args.column = column_copy->Args(*columnwise.params);
  }
  if (CopyRowsFits(x.dtype, amax_args, encode_args.row)) {
    NIBBLE_CUDA_RETURN_IF_ERROR(
        LaunchCopyRows(x.dtype, amax_args, encode_args.row, configs.rows, stream));
    encode_args.row.packed = nullptr;
  } else {
    NIBBLE_CUDA_RETURN_IF_ERROR(LaunchCopyAmax(x.dtype, amax_args, configs.amax, stream));
  }
  if (encode_args.row.packed != nullptr || encode_args.column.packed != nullptr) {
    NIBBLE_CUDA_RETURN_IF_ERROR(LaunchCopyEncode(x.dtype, encode_args, configs.encode, stream));
  }
  NIBBLE_ASSIGN_OR_RETURN(bool finite, AllFinite(source, stream));
  if (finite && row_copy) {
    NIBBLE_ASSIGN_OR_RETURN(finite, AllFinite(row_copy->maxima, stream));
  }
  if (finite && column_copy) {
    NIBBLE_ASSIGN_OR_RETURN(finite, AllFinite(column_copy->maxima, stream));
  }
  if (!finite) return false;
  if (row_copy) NIBBLE_RETURN_IF_ERROR(row_copy->CopyTo(rowwise, stream));
  if (column_copy) NIBBLE_RETURN_IF_ERROR(column_copy->CopyTo(columnwise, stream));
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream));
  return true;
}

}  // namespace nibble
