// How well models predict held-out text, original and quantized ones alike: perplexity, and how far
// each is from the first one.
//
// Every token but the first of a sequence is predicted. Of each prediction: the negative logarithm
// of the probability of the token that follows, the Kullback-Leibler divergence KL(first || model)
// over the vocabulary, and whether the most likely token is the first model's (the lower id of
// equals). Logits are float32; probabilities and sums are float64, in the order of the vocabulary,
// then of tokens, so that results do not depend on the number of threads.
//
// Intervals are of 95 % and over sequences, which are drawn, not over tokens, which depend on each
// other: the mean m = sum s_i / sum n_i of S sequences has the standard error
// sqrt(S / (S - 1) * sum (s_i - m n_i)^2) / sum n_i, and the margin is Student's t of S - 1 degrees
// of freedom times that. Differences of models are paired: s_i is that of the differences.
#ifndef NIBBLE_ENGINE_EVALUATE_MODEL_H_
#define NIBBLE_ENGINE_EVALUATE_MODEL_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/calibrate_model.h"
#include "engine/quantized_inputs.h"
#include "kernels/backend.h"
#include "model/token_set.h"

namespace nibble {

struct EvaluationRequest {
  std::vector<std::string> models;  // folders; at least one, the first is what others are held to
  TokenSet tokens = {};
  // Of modules whose weights are quantized and that have a stored input scale. Where it is not
  // said: by the scheme of the recipe that a model was made by, which its folder has; else
  // kPerTensor.
  std::optional<InputQuantization> inputs = {};
  RunOptions run = {};
};

// Sums over the predictions of one sequence.
struct SequenceScore {
  int64_t predictions = 0;
  double loss = 0;        // natural logarithms
  double divergence = 0;  // from the first model
  int64_t same_top = 0;   // predictions

  friend bool operator==(const SequenceScore&, const SequenceScore&) = default;
};

// A mean and half of its interval's width; infinite where there is one sequence only.
struct Estimate {
  double mean = 0, margin = 0;

  friend bool operator==(const Estimate&, const Estimate&) = default;
};

struct ModelScore {
  std::string model;
  double bits_per_weight = 0;
  int64_t quantized_modules = 0, quantized_inputs = 0;
  InputQuantization inputs = InputQuantization::kNone;  // of quantized_inputs
  // Of the quantized weights, against the first model's: sum of squared differences over that of
  // squares. 0 where none is quantized.
  double weight_error = 0;
  std::vector<SequenceScore> sequences;

  Estimate loss() const;  // its exponential is the perplexity
  Estimate divergence() const;
  Estimate same_top() const;
  double perplexity() const;

  friend bool operator==(const ModelScore&, const ModelScore&) = default;
};

// Of the loss, and of the divergence from the first model, a's less b's, over the same sequences.
Estimate LossDifference(const ModelScore& a, const ModelScore& b);
Estimate DivergenceDifference(const ModelScore& a, const ModelScore& b);

// 97.5 % of Student's distribution lies below it; degrees >= 1.
double StudentT975(int64_t degrees);

// InvalidArgument for models of different vocabularies and for sequences that have nothing to
// predict.
absl::StatusOr<std::vector<ModelScore>> EvaluateModels(const EvaluationRequest& request,
                                                       Backend& backend,
                                                       const LayerSink& progress = {});

// Both end with a newline. The text has a line for each model, and then the models by perplexity
// and by divergence, with the difference of each two neighbours.
std::string EvaluationAsText(std::span<const ModelScore> scores);
std::string EvaluationAsJson(std::span<const ModelScore> scores);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_EVALUATE_MODEL_H_
