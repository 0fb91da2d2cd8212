// Which experts a token goes to: the same on every device.
#ifndef NIBBLE_MODEL_ROUTING_H_
#define NIBBLE_MODEL_ROUTING_H_

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "base/parallel_for.h"
#include "model/layer_ops.h"

namespace nibble {

// As LayerOps::Route says, of logits in host memory, rows x experts.
absl::StatusOr<Routing> RouteRows(ThreadPool& pool, std::span<const float> logits, int64_t experts,
                                  int64_t experts_per_token, bool normalize);

// x = exp(x - max) / sum, over [0, count), in one order.
void Softmax(float* x, int64_t count);

}  // namespace nibble

#endif  // NIBBLE_MODEL_ROUTING_H_
