// The launch shapes that a recipe asks for, as picks of a backend.
#ifndef NIBBLE_ENGINE_TUNING_CHOICE_H_
#define NIBBLE_ENGINE_TUNING_CHOICE_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/tuning/store.h"
#include "kernels/tuning/tunable_op.h"
#include "policies/recipe.h"

namespace nibble {

// `warps` is the field of that name. `blocks_per_program` is how many NVFP4 blocks a thread block
// takes at a time: 32 threads a warp times warps times the field blocks_per_thread. An operation
// whose shapes lack a field is not asked for it; one that has no shape with the values keeps its
// picks.

// InvalidArgument, with the values that there are, where no operation has a shape with those asked
// for.
absl::Status CheckTuning(const Recipe::Tuning& tuning, const std::vector<TunableOp>& ops);

// For every type and size of tensor on `device`: the shape that `picks` or the shipped picks name
// where it has the values asked for, else the first that has. `picks` alone where nothing is asked
// for.
absl::StatusOr<TuningStore> ChooseLaunchShapes(const Recipe::Tuning& tuning,
                                               const std::vector<TunableOp>& ops,
                                               std::string_view device, const TuningStore& picks);

// The picks in the store that the recipe names (NotFound where there is no such file), else in the
// user's; not yet chosen from.
absl::StatusOr<TuningStore> LoadPicks(const Recipe::Tuning& tuning);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_TUNING_CHOICE_H_
