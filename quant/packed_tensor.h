// A quantized matrix: codes, block scales, outer maxima.
#ifndef NIBBLE_QUANT_PACKED_TENSOR_H_
#define NIBBLE_QUANT_PACKED_TENSOR_H_

#include <cstdint>
#include <span>
#include <vector>

#include "quant/numerics/scale_rules.h"
#include "quant/quantize_params.h"
#include "quant/swizzle.h"

namespace nibble {

// How the bytes are to be read. rows and cols are those of the quantized copy: the transposed
// tensor's where it was quantized column-wise.
struct PackedLayout {
  int64_t rows = 0;
  int64_t cols = 0;
  Scheme scheme = Scheme::kPerTensor;
  Rule rule = Rule::kRuntime;
  int e4m3_max = 448;
  bool swizzled = false;

  int64_t blocks_per_row() const { return cols / kBlockSize; }
  int64_t blocks() const { return rows * blocks_per_row(); }
  int64_t packed_bytes() const { return rows * (cols / 2); }
  int64_t scale_bytes() const {
    return swizzled ? SwizzledBytes(rows, blocks_per_row()) : blocks();
  }
  int64_t amax_count() const { return scheme == Scheme::kPerToken ? rows : 1; }
  int64_t scale_offset(int64_t row, int64_t block) const {
    return swizzled ? SwizzledOffset(row, block, blocks_per_row()) : row * blocks_per_row() + block;
  }

  // The factor of every dequantized value, from the outer amax of its row or tensor.
  float GlobalDecodeScale(float amax) const {
    const float bound = static_cast<float>(e4m3_max);
    return rule == Rule::kRuntime ? RuntimeGlobalScale(amax, bound).decode_scale
                                  : CheckpointGlobalDecodeScale(amax, bound);
  }

  friend bool operator==(const PackedLayout&, const PackedLayout&) = default;
};

// The layout that quantizing a rows x cols matrix gives.
PackedLayout LayoutOf(const QuantizeParams& params, int64_t rows, int64_t cols);

struct PackedView {
  PackedLayout layout;
  const uint8_t* packed = nullptr;  // byte j of a row = code[2j] | code[2j+1] << 4
  const uint8_t* scale = nullptr;   // E4M3
  const float* amax = nullptr;
};

struct MutablePackedView {
  PackedLayout layout;
  uint8_t* packed = nullptr;
  uint8_t* scale = nullptr;
  float* amax = nullptr;
};

struct PackedTensor {
  PackedLayout layout;
  std::vector<uint8_t> packed;
  std::vector<uint8_t> scale;
  std::vector<float> amax;

  explicit PackedTensor(const PackedLayout& layout);

  PackedView view() const { return {layout, packed.data(), scale.data(), amax.data()}; }
  MutablePackedView mutable_view() { return {layout, packed.data(), scale.data(), amax.data()}; }
};

}  // namespace nibble

#endif  // NIBBLE_QUANT_PACKED_TENSOR_H_
