#include "model/cpu_ops.h"

#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <numeric>
#include <utility>

#include "base/status.h"
#include "model/routing.h"
#include "model/vector_exp.h"
#include "quant/numerics/float_bits.h"

namespace nibble {
namespace {

// A product is cut into tiles of so many rows of x and, unless there would be few, of the weight.
// Large enough for BLAS to run at its speed, many enough to keep several cores busy.
constexpr int64_t kTileTokens = 512, kTileOutputs = 256, kLeastTileOutputs = 128;
constexpr int64_t kManyTiles = 16, kPanelsForThread = 4;
constexpr int64_t kQueryRows = 64;             // of attention
constexpr int64_t kElementsInPiece = 1 << 15;  // of elementwise work
constexpr int64_t kColumnsInPiece = 128;       // of rows that may repeat
constexpr int kSumLanes = 16;

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Of a product with so many tiles of x: depends on shapes alone.
int64_t TileOutputs(int64_t tiles_x, int64_t outputs) {
  const int64_t wanted = CeilDivide(outputs, CeilDivide(kManyTiles, tiles_x));
  return wanted <= kLeastTileOutputs ? kLeastTileOutputs : kTileOutputs;
}

float* Floats(const DeviceMatrix& x) { return static_cast<float*>(x.memory.get()); }

void Widen(const DeviceMatrix& x, int64_t first, int64_t count, float* out) {
  WidenValues(x.memory.get(), x.dtype, first, count, out);
}

std::vector<float> Widened(const DeviceMatrix& x) {
  std::vector<float> values(x.rows * x.cols);
  Widen(x, 0, x.rows * x.cols, values.data());
  return values;
}

// In lanes, so that the compiler may use vectors without changing the order of additions.
float SumOfSquares(const float* x, int64_t count) {
  float lanes[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes) {
    for (int j = 0; j < kSumLanes; ++j) lanes[j] += x[i + j] * x[i + j];
  }
  for (; i < count; ++i) lanes[0] += x[i] * x[i];
  return std::accumulate(lanes, lanes + kSumLanes, 0.0f);
}

// Memory that a thread keeps between pieces of work: what the system hands out anew is zeroed.
float* ThreadScratch(int64_t floats) {
  thread_local UninitializedVector<float> scratch;
  if (static_cast<int64_t>(scratch.size()) < floats) scratch.resize(floats);
  return scratch.data();
}

class CpuOps final : public LayerOps {
 public:
  CpuOps(ThreadPool& pool, DType linear_input)
      : pool_(pool), rounds_(linear_input == DType::kBf16) {
    openblas_set_num_threads(1);
  }

  absl::StatusOr<DeviceMatrix> Allocate(int64_t rows, int64_t cols, Use use) override {
    try {
      auto values = std::make_shared<UninitializedVector<float>>(rows * cols);
      float* data = values->data();
      return DeviceMatrix{{std::move(values), data}, DType::kF32, rows, cols, use};
    } catch (const std::exception&) {
      return absl::ResourceExhaustedError(
          absl::StrCat("expected memory for activations [", rows, ", ", cols, "], got none"));
    }
  }

  absl::StatusOr<DeviceMatrix> Place(HostTensor tensor) override {
    const int64_t cols = tensor.shape.back();
    const int64_t rows = tensor.shape.size() == 2 ? tensor.shape[0] : 1;
    auto bytes = std::make_shared<UninitializedVector<std::byte>>(std::move(tensor.bytes));
    std::byte* data = bytes->data();
    return DeviceMatrix{{std::move(bytes), data}, tensor.dtype, rows, cols};
  }

  absl::Status Upload(std::span<const float> values, const DeviceMatrix& out) override {
    std::copy(values.begin(), values.end(), Floats(out));
    return absl::OkStatus();
  }

  absl::StatusOr<std::span<const float>> Download(const DeviceMatrix& x,
                                                  UninitializedVector<float>&) override {
    return std::span<const float>(Floats(x), x.rows * x.cols);
  }

  absl::Status ReadStates(const HiddenStates& states, int64_t first,
                          const DeviceMatrix& out) override {
    return states.Read(first, {Floats(out), static_cast<size_t>(out.rows * out.cols)});
  }

  absl::Status WriteStates(const DeviceMatrix& x, int64_t first, HiddenStates& states) override {
    const std::span<const float> values(Floats(x), x.rows * x.cols);
    const auto bad = std::ranges::find_if(values, [](float v) { return !IsFinite(v); });
    if (bad == values.end()) return states.Write(first, values);
    return NonFiniteStates(first + (bad - values.begin()) / x.cols);
  }

  bool in_host_memory() const override { return true; }

  absl::Status Copy(const DeviceMatrix& x, const DeviceMatrix& out) override {
    ForElements(x, [&](int64_t begin, int64_t end) {
      std::copy(Floats(x) + begin, Floats(x) + end, Floats(out) + begin);
    });
    return absl::OkStatus();
  }

  absl::Status RmsNorm(const DeviceMatrix& x, const DeviceMatrix& weight, double eps,
                       const DeviceMatrix& out) override {
    const std::vector<float> scale = Widened(weight);
    ForRows(x, [&](int64_t row) {
      const float* in = Floats(x) + row * x.cols;
      float* to = Floats(out) + row * x.cols;
      const float mean = SumOfSquares(in, x.cols) / static_cast<float>(x.cols);
      const float factor = 1.0f / std::sqrt(mean + static_cast<float>(eps));
      for (int64_t i = 0; i < x.cols; ++i) to[i] = scale[i] * (in[i] * factor);
      Round(out, row * x.cols, x.cols);
    });
    return absl::OkStatus();
  }

  absl::Status Linear(const DeviceMatrix& x, const DeviceMatrix& weight, const DeviceMatrix& bias,
                      const DeviceMatrix& out) override {
    const int64_t depth = x.cols;
    const std::vector<float> added = bias.empty() ? std::vector<float>() : Widened(bias);
    const int64_t tiles_x = CeilDivide(x.rows, kTileTokens);
    const int64_t tile_outputs = TileOutputs(tiles_x, weight.rows);
    const int64_t tiles_w = CeilDivide(weight.rows, tile_outputs);
    // Tiles of one panel of the weight follow each other: where there are panels enough, a thread
    // takes all of one and widens it once.
    const int64_t grain = tiles_w >= kPanelsForThread * pool_.threads() ? tiles_x : 1;
    pool_.ParallelFor(tiles_x * tiles_w, grain, [&](int64_t begin, int64_t end) {
      const float* panel = nullptr;
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t row = tile % tiles_x * kTileTokens, col = tile / tiles_x * tile_outputs;
        const int64_t rows = std::min(kTileTokens, x.rows - row);
        const int64_t cols = std::min(tile_outputs, weight.rows - col);
        if (weight.dtype == DType::kF32) {
          panel = Floats(weight) + col * depth;
        } else if (tile == begin || row == 0) {
          float* widened = ThreadScratch(cols * depth);
          Widen(weight, col * depth, cols * depth, widened);
          panel = widened;
        }
        float* to = Floats(out) + row * out.cols + col;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, cols, depth, 1.0f,
                    Floats(x) + row * depth, depth, panel, depth, 0.0f, to, out.cols);
        if (added.empty()) continue;
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t j = 0; j < cols; ++j) to[i * out.cols + j] += added[col + j];
        }
      }
    });
    return absl::OkStatus();
  }

  absl::Status Rope(const RopeTable& table, std::span<const int64_t> lengths,
                    const DeviceMatrix& x) override {
    const int64_t half = table.half;
    const std::vector<int64_t> positions = Positions(lengths);
    ForRows(x, [&](int64_t row) {
      const float* cos = table.cos.data() + positions[row] * half;
      const float* sin = table.sin.data() + positions[row] * half;
      for (float* head = Floats(x) + row * x.cols; head < Floats(x) + (row + 1) * x.cols;
           head += 2 * half) {
        for (int64_t i = 0; i < half; ++i) {
          const float a = head[i], b = head[i + half];
          head[i] = a * cos[i] - b * sin[i];
          head[i + half] = b * cos[i] + a * sin[i];
        }
      }
    });
    return absl::OkStatus();
  }

  absl::Status Attention(const AttentionShape& shape, std::span<const int64_t> lengths,
                         const DeviceMatrix& q, const DeviceMatrix& k, const DeviceMatrix& v,
                         const DeviceMatrix& out) override {
    // Pieces: some queries of a sequence, one head.
    struct Queries {
      int64_t begin, first, count;  // the sequence's first token; the queries, counted from there
    };
    std::vector<Queries> pieces;
    int64_t begin = 0;
    for (const int64_t length : lengths) {
      for (int64_t first = 0; first < length; first += kQueryRows) {
        pieces.push_back({begin, first, std::min(kQueryRows, length - first)});
      }
      begin += length;
    }
    const int64_t dim = shape.head_dim;
    const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(dim)));
    pool_.ParallelFor(pieces.size() * shape.heads, 1, [&](int64_t index, int64_t) {
      const Queries& piece = pieces[index / shape.heads];
      const int64_t head = index % shape.heads;
      const int64_t kv_head = head / (shape.heads / shape.kv_heads);
      // The keys that any of these queries attends to.
      const int64_t low = FirstKey(shape, piece.first), high = piece.first + piece.count;
      const int64_t keys = high - low;
      const int64_t kv_at = (piece.begin + low) * k.cols + kv_head * dim;
      const int64_t q_at = (piece.begin + piece.first) * q.cols + head * dim;
      float* scores = ThreadScratch(piece.count * keys);
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, piece.count, keys, dim, scale,
                  Floats(q) + q_at, q.cols, Floats(k) + kv_at, k.cols, 0.0f, scores, keys);
      for (int64_t i = 0; i < piece.count; ++i) {
        float* row = scores + i * keys;
        const int64_t query = piece.first + i;
        const int64_t from = FirstKey(shape, query) - low, to = query + 1 - low;
        std::fill(row, row + from, 0.0f);
        Softmax(row + from, to - from);
        std::fill(row + to, row + keys, 0.0f);
      }
      float* result = Floats(out) + q_at;
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, piece.count, dim, keys, 1.0f, scores,
                  keys, Floats(v) + kv_at, v.cols, 0.0f, result, out.cols);
      for (int64_t i = 0; i < piece.count; ++i) Round(out, q_at + i * out.cols, dim);
    });
    return absl::OkStatus();
  }

  absl::Status SwiGlu(const DeviceMatrix& gate, const DeviceMatrix& up,
                      const DeviceMatrix& out) override {
    ForElements(gate, [&](int64_t begin, int64_t end) {
      const float *g = Floats(gate), *u = Floats(up);
      float* __restrict to = Floats(out);
      for (int64_t i = begin; i < end; ++i) to[i] = g[i] / (1.0f + VectorExp(-g[i])) * u[i];
      Round(out, begin, end - begin);
    });
    return absl::OkStatus();
  }

  absl::Status Add(const DeviceMatrix& x, const DeviceMatrix& y) override {
    ForElements(x, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) Floats(x)[i] += Floats(y)[i];
    });
    return absl::OkStatus();
  }

  absl::StatusOr<Routing> Route(const DeviceMatrix& logits, int64_t experts_per_token,
                                bool normalize) override {
    return RouteRows(pool_, {Floats(logits), static_cast<size_t>(logits.rows * logits.cols)},
                     logits.cols, experts_per_token, normalize);
  }

  absl::Status SetZero(const DeviceMatrix& x) override {
    ForElements(x, [&](int64_t begin, int64_t end) {
      std::fill(Floats(x) + begin, Floats(x) + end, 0.0f);
    });
    return absl::OkStatus();
  }

  absl::Status Gather(const DeviceMatrix& x, std::span<const int64_t> rows,
                      const DeviceMatrix& out) override {
    ForRows(out, [&](int64_t row) {
      std::copy_n(Floats(x) + rows[row] * x.cols, x.cols, Floats(out) + row * x.cols);
    });
    return absl::OkStatus();
  }

  absl::Status AddScaledRows(const DeviceMatrix& x, std::span<const int64_t> rows,
                             std::span<const float> weights, const DeviceMatrix& out) override {
    // By columns, since rows may repeat.
    pool_.ParallelFor(x.cols, kColumnsInPiece, [&](int64_t begin, int64_t end) {
      for (int64_t row = 0; row < x.rows; ++row) {
        const float* in = Floats(x) + row * x.cols;
        float* to = Floats(out) + rows[row] * x.cols;
        for (int64_t i = begin; i < end; ++i) to[i] += weights[row] * in[i];
      }
    });
    return absl::OkStatus();
  }

 private:
  // `count` elements from `first` on, if they are what a linear layer reads.
  void Round(const DeviceMatrix& x, int64_t first, int64_t count) const {
    if (!rounds_ || x.use != Use::kLinearInput) return;
    float* values = Floats(x) + first;
    for (int64_t i = 0; i < count; ++i) values[i] = FloatFromBf16(Bf16FromFloat(values[i]));
  }

  template <typename Body>
  void ForRows(const DeviceMatrix& x, const Body& body) {
    pool_.ParallelFor(x.rows, std::max<int64_t>(1, kElementsInPiece / x.cols),
                      [&](int64_t begin, int64_t end) {
                        for (int64_t row = begin; row < end; ++row) body(row);
                      });
  }

  void ForElements(const DeviceMatrix& x, const std::function<void(int64_t, int64_t)>& body) {
    pool_.ParallelFor(x.rows * x.cols, kElementsInPiece, body);
  }

  static std::vector<int64_t> Positions(std::span<const int64_t> lengths) {
    std::vector<int64_t> positions;
    for (const int64_t length : lengths) {
      for (int64_t p = 0; p < length; ++p) positions.push_back(p);
    }
    return positions;
  }

  static int64_t FirstKey(const AttentionShape& shape, int64_t query) {
    return shape.window == 0 ? 0 : std::max<int64_t>(0, query + 1 - shape.window);
  }

  ThreadPool& pool_;
  const bool rounds_;
};

}  // namespace

std::unique_ptr<LayerOps> MakeCpuOps(ThreadPool& pool, DType linear_input) {
  return std::make_unique<CpuOps>(pool, linear_input);
}

}  // namespace nibble
