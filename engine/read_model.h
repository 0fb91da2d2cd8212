// From an open folder to what a plan has to know of it.
#ifndef NIBBLE_ENGINE_READ_MODEL_H_
#define NIBBLE_ENGINE_READ_MODEL_H_

#include "absl/status/statusor.h"
#include "io/model_folder.h"
#include "policies/model.h"

namespace nibble {

// DataLoss where config.json is no JSON object or contradicts itself.
absl::StatusOr<Model> ReadModel(const ModelFolder& folder);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_READ_MODEL_H_
