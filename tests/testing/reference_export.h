// The plainest exporter of a model on paper: all in memory, one tensor after another, a plan made
// by names. What the streaming pipeline writes can be compared with it.
#ifndef NIBBLE_TESTS_TESTING_REFERENCE_EXPORT_H_
#define NIBBLE_TESTS_TESTING_REFERENCE_EXPORT_H_

#include <functional>
#include <string>
#include <vector>

#include "engine/export.h"
#include "policies/plan.h"
#include "policies/recipe.h"
#include "tests/testing/model_folders.h"
#include "tests/testing/tensors.h"

namespace nibble::testing {

inline Recipe RecipeFor(ExportFormat format) {
  Recipe recipe;
  recipe.output.format = format;
  return recipe;
}

// Which modules to keep although they could be quantized, or to quantize weight-only.
struct PaperPlan {
  std::function<bool(const std::string& module)> keep = [](const std::string&) { return false; };
  std::function<bool(const std::string& module)> weight_only = [](const std::string&) {
    return false;
  };
  ExportFormat format = ExportFormat::kModelopt;  // decides what becomes of experts [E, K, N]
};

Plan PlanOnPaper(const ModelOnPaper& model, const PaperPlan& options = {});

// The result's tensors, in the order of the plan. Scales without a search; every input scale is
// that of its row's ActivationSpec.
std::vector<Tensor> ExportOnPaper(const ModelOnPaper& model, const Plan& plan, ExportFormat format);

// The whole folder; its shards like the model's.
void WriteExport(const std::string& path, const ModelOnPaper& model, const Plan& plan,
                 const Recipe& recipe);

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_TESTING_REFERENCE_EXPORT_H_
