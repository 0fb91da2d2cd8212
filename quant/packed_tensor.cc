#include "quant/packed_tensor.h"

namespace nibble {

PackedLayout LayoutOf(const QuantizeParams& params, int64_t rows, int64_t cols) {
  PackedLayout layout;
  layout.rows = params.columnwise ? cols : rows;
  layout.cols = params.columnwise ? rows : cols;
  layout.scheme = params.scheme;
  layout.rule = params.rule;
  layout.e4m3_max = params.e4m3_max;
  layout.swizzled = params.swizzle;
  return layout;
}

PackedTensor::PackedTensor(const PackedLayout& layout)
    : layout(layout),
      packed(layout.packed_bytes()),
      scale(layout.scale_bytes()),
      amax(layout.amax_count()) {}

}  // namespace nibble
