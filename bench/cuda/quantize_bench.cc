#include "absl/strings/str_cat.h"
#include "bench/cuda/bench.h"
#include "kernels/cuda/amax_launch.h"
#include "kernels/cuda/observe_launch.h"
#include "kernels/cuda/quantize_launch.h"
#include "quant/swizzle.h"

namespace nibble::bench {
namespace {

class QuantizeShape {
 public:
  QuantizeShape(int64_t rows, int64_t cols)
      : shape_(absl::StrCat(", ", rows, "x", cols, " bf16")),
        // Two bytes in, half a byte and a sixteenth out.
        bytes_(rows * cols * 2 + rows * cols / 2 + rows * cols / kBlockSize),
        x_(rows, cols),
        amax_(Allocate(4)),
        row_amax_(Allocate(4 * rows)),
        packed_(Allocate(rows * cols / 2)),
        scale_(Allocate(SwizzledBytes(rows, cols / kBlockSize))) {
    args_ = {.dtype = DType::kBf16,
             .rows = rows,
             .cols = cols,
             .amax = As<float>(amax_),
             .packed = As<uint8_t>(packed_),
             .scale = As<uint8_t>(scale_)};
    Check(LaunchAmax(DType::kBf16, x_[0], rows * cols / kBlockSize, As<float>(amax_),
                     /*config=*/0, nullptr));
    const ObserveArgs observe = {
        .x = x_[0], .rows = rows, .cols = cols, .row_amax = As<float>(row_amax_)};
    Check(LaunchObserve(DType::kBf16, observe, /*config=*/0, nullptr));
    copy_ms_ = CopyMs(bytes_);
    Row("device copy of as many bytes" + shape_, "", copy_ms_, bytes_);
  }

  const QuantizeArgs& args() const { return args_; }
  QuantizeArgs PerToken(QuantizeArgs args) const {
    args.scheme = Scheme::kPerToken;
    args.amax = As<float>(row_amax_);
    return args;
  }

  // A row of the table; returns its time.
  double Time(const std::string& work, QuantizeArgs args, int config = 0) {
    const double ms = MedianMs([&](int run) {
      args.x = x_[run];
      return LaunchQuantize(args, config, nullptr);
    });
    const auto [warps, per_thread, thread_blocks] = kQuantizeConfigs[config];
    std::string note = absl::StrCat(static_cast<int>(100 * copy_ms_ / ms + 0.5), " % of the copy");
    if (plain_ms_ != 0) {
      absl::StrAppend(&note, ", plain x ", static_cast<int>(100 * ms / plain_ms_ + 0.5) / 100.0);
    }
    Row("quantize, " + work + shape_,
        absl::StrCat(warps, " warps, ", per_thread, " blocks, ", thread_blocks, " thread blocks"),
        ms, bytes_, note);
    return ms;
  }
  void SetPlain(double ms) { plain_ms_ = ms; }

 private:
  std::string shape_;
  double bytes_;
  RotatedInputs x_;
  DeviceMemory amax_, row_amax_, packed_, scale_;
  QuantizeArgs args_;
  double copy_ms_ = 0, plain_ms_ = 0;
};

void BenchQuantizeShape(int64_t rows, int64_t cols) {
  QuantizeShape shape(rows, cols);
  for (size_t config = 0; config < std::size(kQuantizeConfigs); ++config) {
    const double ms = shape.Time("per_tensor", shape.args(), static_cast<int>(config));
    if (config == 0) shape.SetPlain(ms);
  }
  QuantizeArgs args = shape.args();
  shape.Time("per_token", shape.PerToken(args));
  args.scheme = Scheme::kTile2d;
  shape.Time("tile_2d", args);
  args = shape.args();
  args.swizzle = true;
  shape.Time("per_tensor, swizzled", args);
  args = shape.args();
  args.method = EncodeMethod::kCheckpoint;
  shape.Time("per_tensor, checkpoint rule", args);
  args = shape.args();
  args.encode.stochastic = true;
  shape.Time("per_tensor, stochastic", args);
  for (float bound : {448.0f, 256.0f}) {
    for (ErrorPath path : {ErrorPath::kFast, ErrorPath::kStrict}) {
      for (EncodeMethod method : {EncodeMethod::kFourOverSixMae, EncodeMethod::kFourOverSixMse}) {
        args = shape.args();
        args.method = method;
        args.encode.bound = bound;
        args.encode.path = path;
        shape.Time(
            absl::StrCat("4over6 ", method == EncodeMethod::kFourOverSixMae ? "mae" : "mse",
                         path == ErrorPath::kFast ? " fast " : " strict ", static_cast<int>(bound)),
            args);
      }
    }
  }
  args = shape.args();
  args.method = EncodeMethod::kFourOverSixAbsMax;
  shape.Time("4over6 abs_max strict 448", args);
  args.encode.path = ErrorPath::kFast;
  shape.Time("4over6 abs_max fast 448", args);
  args = shape.args();
  args.method = EncodeMethod::kFourOverSixMse;
  shape.Time("4over6 mse strict 448, per_token", shape.PerToken(args));
  args.scheme = Scheme::kTile2d;
  shape.Time("4over6 mse strict 448, tile_2d", args);
}

}  // namespace

void BenchQuantize() {
  BenchQuantizeShape(98304, 7168);
  BenchQuantizeShape(8192, 4096);
}

}  // namespace nibble::bench
