#include "model/routing.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "base/status.h"
#include "model/vector_exp.h"
#include "quant/numerics/float_bits.h"

namespace nibble {
namespace {

constexpr int kLanes = 16;  // of sums
constexpr int64_t kRowsInPiece = 64;

float Largest(const float* x, int64_t count) {
  float lanes[kLanes];
  std::fill(lanes, lanes + kLanes, x[0]);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
  }
  for (; i < count; ++i) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
  return *std::max_element(lanes, lanes + kLanes);
}

float Sum(const float* x, int64_t count) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lanes[j] += x[i + j];
  }
  for (; i < count; ++i) lanes[0] += x[i];
  return std::accumulate(lanes, lanes + kLanes, 0.0f);
}

}  // namespace

void Softmax(float* x, int64_t count) {
  const float max = Largest(x, count);
  for (int64_t i = 0; i < count; ++i) x[i] = VectorExp(x[i] - max);
  const float factor = 1.0f / Sum(x, count);
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

absl::StatusOr<Routing> RouteRows(ThreadPool& pool, std::span<const float> logits, int64_t experts,
                                  int64_t experts_per_token, bool normalize) {
  const auto bad = std::ranges::find_if(logits, [](float v) { return !IsFinite(v); });
  if (bad != logits.end()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "expected finite logits, got ", *bad, " for expert ", (bad - logits.begin()) % experts));
  }
  const int64_t rows = static_cast<int64_t>(logits.size()) / experts;
  Routing routing;
  routing.expert.resize(rows * experts_per_token);
  routing.weight.resize(rows * experts_per_token);
  pool.ParallelFor(rows, kRowsInPiece, [&](int64_t begin, int64_t end) {
    std::vector<float> p(experts);
    std::vector<int32_t> order(experts);
    for (int64_t row = begin; row < end; ++row) {
      const float* in = logits.data() + row * experts;
      std::copy(in, in + experts, p.begin());
      Softmax(p.data(), experts);
      std::iota(order.begin(), order.end(), 0);
      std::partial_sort(
          order.begin(), order.begin() + experts_per_token, order.end(),
          [&](int32_t a, int32_t b) { return in[a] != in[b] ? in[a] > in[b] : a < b; });
      float sum = 0;
      for (int64_t i = 0; i < experts_per_token; ++i) sum += p[order[i]];
      for (int64_t i = 0; i < experts_per_token; ++i) {
        const int64_t at = row * experts_per_token + i;
        routing.expert[at] = order[i];
        routing.weight[at] = normalize ? p[order[i]] / sum : p[order[i]];
      }
    }
  });
  return routing;
}

}  // namespace nibble
