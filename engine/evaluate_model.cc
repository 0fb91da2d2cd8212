#include "engine/evaluate_model.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/str_format.h"
#include "base/parallel_for.h"
#include "base/status.h"
#include "base/stopwatch.h"
#include "base/tensor_view.h"
#include "base/text.h"
#include "base/uninitialized_vector.h"
#include "engine/export.h"
#include "engine/find_recipe.h"
#include "engine/runnable_model.h"
#include "io/json_object.h"
#include "model/decoder.h"
#include "nlohmann/json.hpp"

namespace nibble {
namespace {

using OrderedJson = nlohmann::ordered_json;

// --- Statistics ---------------------------------------------------------------------------------

template <typename Value>
Estimate EstimateOf(std::span<const SequenceScore> sequences, const Value& value) {
  double sum = 0, count = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    sum += value(i);
    count += static_cast<double>(sequences[i].predictions);
  }
  const double mean = sum / count;
  const int64_t degrees = static_cast<int64_t>(sequences.size()) - 1;
  if (degrees == 0) return {mean, std::numeric_limits<double>::infinity()};
  double squares = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const double off = value(i) - mean * static_cast<double>(sequences[i].predictions);
    squares += off * off;
  }
  const double ratio = static_cast<double>(sequences.size()) / static_cast<double>(degrees);
  return {mean, StudentT975(degrees) * std::sqrt(ratio * squares) / count};
}

// --- One prediction -----------------------------------------------------------------------------

struct Prediction {
  double loss = 0, divergence = 0;
  bool same_top = true;
};

// log(sum of exp(x - max)) and where the maximum is.
struct Softmax {
  float max = 0;
  size_t top = 0;
  double log_sum = 0;

  explicit Softmax(std::span<const float> logits) {
    top = static_cast<size_t>(std::ranges::max_element(logits) - logits.begin());
    max = logits[top];
    double sum = 0;
    for (const float x : logits) sum += std::exp(double{x} - max);
    log_sum = std::log(sum);
  }
  double LogProbability(float x) const { return (double{x} - max) - log_sum; }
};

Prediction Predict(std::span<const float> first, std::span<const float> logits, uint32_t next) {
  const Softmax softmax(logits);
  Prediction prediction;
  prediction.loss = -softmax.LogProbability(logits[next]);
  if (first.data() == logits.data()) return prediction;
  const Softmax reference(first);
  for (size_t i = 0; i < logits.size(); ++i) {
    const double log_p = reference.LogProbability(first[i]);
    prediction.divergence += std::exp(log_p) * (log_p - softmax.LogProbability(logits[i]));
  }
  prediction.same_top = reference.top == softmax.top;
  return prediction;
}

// --- Models -------------------------------------------------------------------------------------

// A model that was run up to its last hidden states.
struct LayersRun {
  const RunnableModel* model = nullptr;
  std::unique_ptr<QuantizedInputs> inputs;
  InputQuantization how = InputQuantization::kNone;  // are inputs quantized
  std::unique_ptr<Decoder> decoder;
  std::optional<HiddenStates> hidden;
};

class Evaluation {
 public:
  Evaluation(const EvaluationRequest& request, Backend& backend, const LayerSink& progress)
      : request_(request), backend_(backend), progress_(progress), pool_(request.run.threads) {}

  absl::StatusOr<std::vector<ModelScore>> Run() {
    NIBBLE_RETURN_IF_ERROR(OpenModels());
    std::vector<ModelScore> scores;
    NIBBLE_ASSIGN_OR_RETURN(const LayersRun first, RunLayers(*models_.front()));
    for (size_t i = 0; i < request_.models.size(); ++i) {
      LayersRun other;
      if (i > 0) {
        NIBBLE_ASSIGN_OR_RETURN(other, RunLayers(*models_[i]));
      }
      const LayersRun& run = i == 0 ? first : other;
      ModelScore score;
      score.model = request_.models[i];
      score.bits_per_weight = run.model->bits_per_weight();
      for (const auto& [module, scale] : run.model->input_scales()) {
        ++score.quantized_modules;
        score.quantized_inputs += run.inputs->Changes(module);
      }
      if (score.quantized_inputs > 0) score.inputs = run.how;
      NIBBLE_ASSIGN_OR_RETURN(score.weight_error, WeightError(*first.model, *run.model));
      NIBBLE_ASSIGN_OR_RETURN(score.sequences, Score(first, run));
      scores.push_back(std::move(score));
    }
    return scores;
  }

 private:
  // And checks everything that can be known before the first layer runs.
  absl::Status OpenModels() {
    if (request_.models.empty()) {
      return absl::InvalidArgumentError("models: expected at least one, got none");
    }
    if (std::ranges::all_of(request_.tokens.lengths, [](int64_t n) { return n < 2; })) {
      return absl::InvalidArgumentError(
          "sequences: expected some of two tokens or more, got none that has a token to predict");
    }
    int64_t vocabulary = 0;
    for (const std::string& path : request_.models) {
      NIBBLE_ASSIGN_OR_RETURN(auto model, RunnableModel::Open(path, request_.run.threads));
      models_.push_back(std::move(model));
      const int64_t own = models_.back()->config().vocabulary;
      if (vocabulary == 0) vocabulary = own;
      if (own == vocabulary) continue;
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": expected a vocabulary of ", vocabulary, " as that of ",
                       request_.models.front(), ", got one of ", own));
    }
    return CheckTokenSet(request_.tokens, vocabulary);
  }

  absl::StatusOr<InputQuantization> InputsOf(const std::string& folder) const {
    if (request_.inputs) return *request_.inputs;
    const std::string path = absl::StrCat(folder, "/", ToAbsl(kRecipeFile));
    std::error_code error;
    if (!std::filesystem::exists(path, error)) return InputQuantization::kPerTensor;
    NIBBLE_ASSIGN_OR_RETURN(const Recipe recipe, FindRecipe(path));
    std::set<Scheme> schemes;
    const auto add = [&](const Treatment& treatment) {
      if (treatment.activations.format != ActivationFormat::kNone) {
        schemes.insert(treatment.activations.scheme);
      }
    };
    add(recipe.treatment);
    for (const RecipeRule& rule : recipe.rules) {
      if (rule.treatment) add(*rule.treatment);
    }
    if (schemes.size() > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(Printable(path),
                       ": activations: expected one scheme for all modules, got several; say "
                       "with --activations which to evaluate"));
    }
    return schemes.contains(Scheme::kPerToken) ? InputQuantization::kPerToken
                                               : InputQuantization::kPerTensor;
  }

  absl::StatusOr<LayersRun> RunLayers(const RunnableModel& model) {
    LayersRun run;
    run.model = &model;
    const std::string& path = model.folder().path();
    run.inputs = std::make_unique<QuantizedInputs>(backend_);
    NIBBLE_ASSIGN_OR_RETURN(run.how, InputsOf(path));
    for (const auto& [module, scale] : model.input_scales()) {
      if (scale && run.how != InputQuantization::kNone) {
        run.inputs->Add(module, run.how, *scale);
      }
    }
    NIBBLE_ASSIGN_OR_RETURN(run.decoder, Decoder::Make(model.config(), model.weights(),
                                                       DecoderOptionsOf(request_.run, backend_)));
    const Stopwatch watch;
    const auto run_layers = [&]() -> absl::Status {
      NIBBLE_ASSIGN_OR_RETURN(HiddenStates hidden, run.decoder->Embed(request_.tokens));
      run.hidden.emplace(std::move(hidden));
      const int64_t layers = model.config().layers;
      while (run.hidden->next_layer() < layers) {
        NIBBLE_RETURN_IF_ERROR(run.decoder->RunLayer(*run.hidden, run.inputs.get()));
        if (!progress_) continue;
        NIBBLE_RETURN_IF_ERROR(progress_({.model = path,
                                          .layer = run.hidden->next_layer(),
                                          .layers = layers,
                                          .seconds = watch.seconds()}));
      }
      return absl::OkStatus();
    };
    const absl::Status status = run_layers();
    if (!status.ok()) return Annotate(status, Printable(path));
    return run;
  }

  absl::StatusOr<double> WeightError(const RunnableModel& first, const RunnableModel& model) {
    struct Squares {
      double error = 0, weights = 0;
    };
    Squares all;
    for (const auto& [module, scale] : model.input_scales()) {
      const std::string name = module + ".weight";
      NIBBLE_ASSIGN_OR_RETURN(const HostTensor expected, first.weights()(name));
      NIBBLE_ASSIGN_OR_RETURN(const HostTensor weight, model.weights()(name));
      if (expected.shape != weight.shape) {
        return absl::FailedPreconditionError(absl::StrCat(
            Printable(model.folder().path()), ": ", name, ": expected the shape ",
            ShapeName(expected.shape), " of the first model's, got ", ShapeName(weight.shape)));
      }
      const int64_t cols = weight.shape.back(), rows = *ElementCount(weight.shape) / cols;
      std::vector<Squares> of_rows(static_cast<size_t>(rows));
      pool_.ParallelFor(rows, 16, [&](int64_t begin, int64_t end) {
        std::vector<float> w(static_cast<size_t>(cols)), q(w.size());
        for (int64_t row = begin; row < end; ++row) {
          WidenValues(expected.bytes.data(), expected.dtype, row * cols, cols, w.data());
          WidenValues(weight.bytes.data(), weight.dtype, row * cols, cols, q.data());
          for (size_t i = 0; i < w.size(); ++i) {
            const double off = double{q[i]} - w[i];
            of_rows[row].error += off * off;
            of_rows[row].weights += double{w[i]} * w[i];
          }
        }
      });
      for (const Squares& row : of_rows) {
        all.error += row.error;
        all.weights += row.weights;
      }
    }
    return all.weights == 0 ? 0 : all.error / all.weights;
  }

  absl::StatusOr<std::vector<SequenceScore>> Score(const LayersRun& first, const LayersRun& run) {
    NIBBLE_ASSIGN_OR_RETURN(const auto first_head, first.decoder->LoadHead());
    std::unique_ptr<LogitsHead> own_head;
    if (&run != &first) {
      NIBBLE_ASSIGN_OR_RETURN(own_head, run.decoder->LoadHead());
    }
    std::vector<SequenceScore> scores;
    int64_t begin = 0;
    for (const int64_t length : request_.tokens.lengths) {
      SequenceScore score;
      for (int64_t at = begin; at < begin + length - 1; at += kLogitRows) {
        const int64_t count = std::min(kLogitRows, begin + length - 1 - at);
        NIBBLE_ASSIGN_OR_RETURN(const std::span<const float> expected,
                                first_head->Logits(*first.hidden, at, count, first.inputs.get()));
        std::span<const float> logits = expected;
        if (own_head != nullptr) {
          NIBBLE_ASSIGN_OR_RETURN(logits,
                                  own_head->Logits(*run.hidden, at, count, run.inputs.get()));
        }
        AddRows(expected, logits, at, count, score);
      }
      scores.push_back(score);
      begin += length;
    }
    return scores;
  }

  void AddRows(std::span<const float> first, std::span<const float> logits, int64_t at,
               int64_t count, SequenceScore& score) {
    const size_t vocabulary = logits.size() / static_cast<size_t>(count);
    std::vector<Prediction> predictions(static_cast<size_t>(count));
    pool_.ParallelFor(count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const size_t row = static_cast<size_t>(i) * vocabulary;
        predictions[i] = Predict(first.subspan(row, vocabulary), logits.subspan(row, vocabulary),
                                 request_.tokens.ids[at + i + 1]);
      }
    });
    for (const Prediction& prediction : predictions) {
      ++score.predictions;
      score.loss += prediction.loss;
      score.divergence += prediction.divergence;
      score.same_top += prediction.same_top;
    }
  }

  static constexpr int64_t kLogitRows = 128;

  const EvaluationRequest& request_;
  Backend& backend_;
  const LayerSink& progress_;
  ThreadPool pool_;
  std::vector<std::unique_ptr<RunnableModel>> models_;  // as in request_.models
};

OrderedJson ToJson(const Estimate& estimate) {
  return {{"mean", estimate.mean}, {"margin", FiniteOrNull(estimate.margin)}};
}

// Perplexities at the ends of the loss's interval; null where there is none.
OrderedJson PerplexityAt(const Estimate& loss, double margin) {
  return std::isfinite(loss.margin) ? OrderedJson(std::exp(loss.mean + margin))
                                    : OrderedJson(nullptr);
}

// "0.0123 +- 0.0045", or the mean alone.
std::string AsText(const Estimate& estimate, int digits) {
  std::string text = absl::StrFormat("%.*f", digits, estimate.mean);
  if (std::isfinite(estimate.margin)) {
    absl::StrAppendFormat(&text, " +- %.*f", digits, estimate.margin);
  }
  return text;
}

// The models from the best on, each with its difference from the one above.
std::string Ranking(std::span<const ModelScore> scores, const std::vector<std::string>& names,
                    double (*value)(const ModelScore&),
                    Estimate (*difference)(const ModelScore&, const ModelScore&)) {
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, {}, [&](size_t i) { return value(scores[i]); });
  size_t width = 0;
  for (const std::string& name : names) width = std::max(width, name.size());
  std::string text;
  for (size_t i = 0; i < order.size(); ++i) {
    absl::StrAppendFormat(&text, "  %-*s %10.6f", static_cast<int>(width), names[order[i]],
                          value(scores[order[i]]));
    if (i > 0) {
      const Estimate more = difference(scores[order[i]], scores[order[i - 1]]);
      absl::StrAppend(&text, "  +", AsText(more, 6),
                      more.mean > more.margin ? "" : ", not told apart");
    }
    text += "\n";
  }
  return text;
}

}  // namespace

Estimate ModelScore::loss() const {
  return EstimateOf(sequences, [&](size_t i) { return sequences[i].loss; });
}

Estimate ModelScore::divergence() const {
  return EstimateOf(sequences, [&](size_t i) { return sequences[i].divergence; });
}

Estimate ModelScore::same_top() const {
  return EstimateOf(sequences,
                    [&](size_t i) { return static_cast<double>(sequences[i].same_top); });
}

double ModelScore::perplexity() const { return std::exp(loss().mean); }

Estimate LossDifference(const ModelScore& a, const ModelScore& b) {
  NIBBLE_CHECK(a.sequences.size() == b.sequences.size());
  return EstimateOf(a.sequences,
                    [&](size_t i) { return a.sequences[i].loss - b.sequences[i].loss; });
}

Estimate DivergenceDifference(const ModelScore& a, const ModelScore& b) {
  NIBBLE_CHECK(a.sequences.size() == b.sequences.size());
  return EstimateOf(
      a.sequences, [&](size_t i) { return a.sequences[i].divergence - b.sequences[i].divergence; });
}

double StudentT975(int64_t degrees) {
  constexpr double kFirst[] = {12.706204736, 4.302652730, 3.182446305, 2.776445105, 2.570581836,
                               2.446911851,  2.364624252, 2.306004135, 2.262157163, 2.228138852};
  NIBBLE_CHECK(degrees >= 1);
  if (degrees <= 10) return kFirst[degrees - 1];
  // Cornish and Fisher's expansion around the normal distribution's quantile.
  constexpr double kZ = 1.959963985, kZ2 = kZ * kZ;
  const double x = 1 / static_cast<double>(degrees);
  constexpr double kTerms[] = {
      (kZ2 + 1) / 4, ((5 * kZ2 + 16) * kZ2 + 3) / 96,
      (((3 * kZ2 + 19) * kZ2 + 17) * kZ2 - 15) / 384,
      ((((79 * kZ2 + 776) * kZ2 + 1482) * kZ2 - 1920) * kZ2 - 945) / 92160};
  return kZ * (1 + x * (kTerms[0] + x * (kTerms[1] + x * (kTerms[2] + x * kTerms[3]))));
}

absl::StatusOr<std::vector<ModelScore>> EvaluateModels(const EvaluationRequest& request,
                                                       Backend& backend,
                                                       const LayerSink& progress) {
  return Evaluation(request, backend, progress).Run();
}

std::string EvaluationAsText(std::span<const ModelScore> scores) {
  size_t width = 5;
  std::vector<std::string> names;
  for (const ModelScore& score : scores) {
    names.push_back(Printable(score.model));
    width = std::max(width, names.back().size());
  }
  const int columns = static_cast<int>(width);
  const ModelScore& first = scores.front();
  int64_t predictions = 0;
  for (const SequenceScore& sequence : first.sequences) predictions += sequence.predictions;
  std::string text = absl::StrFormat("%d sequences, %d predictions; intervals of 95 %%\n",
                                     first.sequences.size(), predictions);
  absl::StrAppendFormat(&text, "%-*s %11s %12s %11s %-21s %-22s %s\n", columns, "model",
                        "bits/weight", "weight error", "perplexity", "  interval", "KL divergence",
                        "same top token");
  for (size_t i = 0; i < scores.size(); ++i) {
    const ModelScore& score = scores[i];
    const Estimate loss = score.loss(), same = score.same_top();
    const std::string weight_error =
        score.quantized_modules == 0 ? "" : absl::StrFormat("%.4e", score.weight_error);
    const std::string interval =
        std::isfinite(loss.margin)
            ? absl::StrFormat("  %.4f .. %.4f", std::exp(loss.mean - loss.margin),
                              std::exp(loss.mean + loss.margin))
            : "";
    absl::StrAppendFormat(&text, "%-*s %11.4f %12s %11.4f %-21s", columns, names[i],
                          score.bits_per_weight, weight_error, score.perplexity(), interval);
    if (i > 0) {
      absl::StrAppendFormat(&text, " %-22s %s %%", AsText(score.divergence(), 6),
                            AsText({100 * same.mean, 100 * same.margin}, 2));
    }
    text.erase(text.find_last_not_of(' ') + 1);
    text += "\n";
  }
  for (size_t i = 0; i < scores.size(); ++i) {
    if (scores[i].inputs == InputQuantization::kNone ||
        scores[i].inputs == InputQuantization::kPerTensor) {
      continue;
    }
    absl::StrAppend(&text, names[i], ": inputs quantized ", ToAbsl(NameOf(scores[i].inputs)), "\n");
  }
  if (scores.size() == 1) return text;

  text += "by perplexity; each with the difference of its mean loss from the one above:\n";
  text += Ranking(
      scores, names, [](const ModelScore& score) { return score.perplexity(); }, LossDifference);
  text += "by KL divergence; each with the difference from the one above:\n";
  text += Ranking(
      scores, names, [](const ModelScore& score) { return score.divergence().mean; },
      DivergenceDifference);
  return text;
}

std::string EvaluationAsJson(std::span<const ModelScore> scores) {
  OrderedJson json = {{"models", OrderedJson::array()}};
  for (const ModelScore& score : scores) {
    const Estimate loss = score.loss();
    OrderedJson sequences = OrderedJson::array();
    for (const SequenceScore& sequence : score.sequences) {
      sequences.push_back({{"predictions", sequence.predictions},
                           {"loss", sequence.loss},
                           {"divergence", sequence.divergence},
                           {"same_top", sequence.same_top}});
    }
    json["models"].push_back({{"model", Printable(score.model)},
                              {"bits_per_weight", score.bits_per_weight},
                              {"weight_error", score.weight_error},
                              {"quantized_modules", score.quantized_modules},
                              {"quantized_inputs", score.quantized_inputs},
                              {"inputs", NameOf(score.inputs)},
                              {"perplexity", score.perplexity()},
                              {"perplexity_low", PerplexityAt(loss, -loss.margin)},
                              {"perplexity_high", PerplexityAt(loss, loss.margin)},
                              {"loss", ToJson(loss)},
                              {"loss_difference", ToJson(LossDifference(score, scores.front()))},
                              {"divergence", ToJson(score.divergence())},
                              {"same_top", ToJson(score.same_top())},
                              {"sequences", std::move(sequences)}});
  }
  return json.dump(2) + "\n";
}

}  // namespace nibble
