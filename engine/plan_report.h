// A plan for programs, and how long it will take to carry it out.
#ifndef NIBBLE_ENGINE_PLAN_REPORT_H_
#define NIBBLE_ENGINE_PLAN_REPORT_H_

#include <string>

#include "policies/plan.h"

namespace nibble {

// Not measured: rates of one machine (bench/results/cpu.md) applied to this many threads.
struct PlanEstimate {
  double compute_seconds = 0, disk_seconds = 0;
  std::string assumes;  // one line

  // They overlap.
  double seconds() const { return compute_seconds > disk_seconds ? compute_seconds : disk_seconds; }
};
// `threads` of a CPU; at least 1.
PlanEstimate EstimatePlan(const Plan& plan, int threads);

// Ends with a newline.
std::string EstimateAsText(const PlanEstimate& estimate);
std::string PlanAsJson(const Plan& plan, const PlanEstimate& estimate);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_PLAN_REPORT_H_
