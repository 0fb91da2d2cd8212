// Rotary position embedding: how far each pair of a head's channels is turned at each position.
#ifndef NIBBLE_MODEL_ROPE_H_
#define NIBBLE_MODEL_ROPE_H_

#include <cstdint>
#include <vector>

#include "model/decoder_config.h"

namespace nibble {

// Channel i of a head and channel i + half are turned by the angle of column i. cos and sin have
// yarn's attention factor in them.
struct RopeTable {
  int64_t positions = 0, half = 0;
  std::vector<float> cos, sin;  // positions x half
};

// In float32 as Transformers computes it, so that angles agree at large positions too.
RopeTable MakeRopeTable(const RopeParams& params, int64_t head_dim, int64_t positions);

}  // namespace nibble

#endif  // NIBBLE_MODEL_ROPE_H_
