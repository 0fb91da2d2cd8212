#include "model/decoder.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"
#include "base/tensor_view.h"
#include "model/cpu_ops.h"
#include "model/cuda/cuda_ops.h"
#include "model/layer_ops.h"
#include "model/rope.h"
#include "quant/numerics/float_bits.h"

namespace nibble {
namespace {

constexpr int64_t kScanPiece = 1 << 18;  // elements
constexpr int64_t kEmbedTokens = 1024;
constexpr int64_t kNoLayer = -1;  // next_layer() of states that a failed run left

// A slice of this many columns begins where a product's operand may, whatever its first row.
constexpr int64_t kAlignedColumns = 128;

// Consecutive whole sequences.
struct Batch {
  int64_t first = 0, tokens = 0;  // of the set
  std::span<const int64_t> lengths;
};

std::vector<Batch> BatchesOf(const std::vector<int64_t>& lengths, int64_t batch_tokens) {
  std::vector<Batch> batches;
  int64_t first = 0;
  for (size_t i = 0; i < lengths.size();) {
    Batch batch{first, lengths[i], {}};
    size_t end = i + 1;
    while (end < lengths.size() && lengths[end] <= batch_tokens - batch.tokens) {
      batch.tokens += lengths[end++];
    }
    batch.lengths = std::span(lengths).subspan(i, end - i);
    batches.push_back(batch);
    first += batch.tokens;
    i = end;
  }
  return batches;
}

std::vector<int64_t> Counted(int64_t first, int64_t count) {
  std::vector<int64_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), first);
  return numbers;
}

// Linear layers of one decoder layer, each with its name, as LinearModules lists them.
struct LinearWeights {
  std::vector<std::string> names;
  std::vector<DeviceMatrix> weights, biases;
};

// Places in that list.
constexpr size_t kQkv = 0, kOutput = 3, kGateUp = 4, kDown = 6, kRouter = 4, kFirstExpert = 5;
constexpr size_t kOfExpert = 3;  // linear layers of one

struct LayerWeights {
  DeviceMatrix input_norm, post_norm, q_norm, k_norm;
  LinearWeights linear;
};

// What the products of one run of a layer have in common.
struct Run {
  int64_t layer = 0;
  const LinearWeights* linear = nullptr;
  LinearHook* hook = nullptr;
};

// Rows of a product's input.
struct Rows {
  std::span<const int64_t> tokens;
  int64_t expert = -1;
  bool routed = true;
};

// What an expert gets of a batch.
struct ExpertShare {
  int64_t expert = 0;
  bool routed = true;  // else what routing sent elsewhere
  std::vector<int64_t> rows = {};
  std::vector<float> weights = {};  // of what is routed
};

// By expert, without empty ones. `all`: also what is not routed.
std::vector<ExpertShare> SharesOf(const Routing& routing, int64_t experts, int64_t rows, bool all) {
  std::vector<ExpertShare> routed(experts), shares;
  const int64_t experts_per_token = std::ssize(routing.expert) / std::max<int64_t>(1, rows);
  for (int64_t i = 0; i < std::ssize(routing.expert); ++i) {
    ExpertShare& share = routed[routing.expert[i]];
    share.rows.push_back(i / experts_per_token);
    share.weights.push_back(routing.weight[i]);
  }
  for (int64_t e = 0; e < experts; ++e) {
    routed[e].expert = e;
    ExpertShare rest{.expert = e, .routed = false};
    if (all) {
      std::ranges::set_difference(Counted(0, rows), routed[e].rows, std::back_inserter(rest.rows));
    }
    for (ExpertShare* share : {&routed[e], &rest}) {
      if (!share->rows.empty()) shares.push_back(std::move(*share));
    }
  }
  return shares;
}

class LayerwiseDecoder final : public Decoder {
  class Head;

 public:
  LayerwiseDecoder(DecoderConfig config, WeightSource weights, const DecoderOptions& options)
      : Decoder(options.logit_rows),
        config_(std::move(config)),
        weights_(std::move(weights)),
        options_(options),
        pool_(options.threads) {}

  absl::Status Prepare() {
    if (!options_.cuda_device) {
      ops_ = MakeCpuOps(pool_, options_.dtype);
      return absl::OkStatus();
    }
    NIBBLE_ASSIGN_OR_RETURN(ops_, MakeCudaOps(*options_.cuda_device, pool_, options_.dtype));
    return absl::OkStatus();
  }

  const DecoderConfig& config() const override { return config_; }

  absl::StatusOr<HiddenStates> Embed(const TokenSet& tokens) override;
  absl::Status RunLayer(HiddenStates& hidden, LinearHook* hook) override;
  absl::Status ObserveLayer(const HiddenStates& hidden, LinearHook& hook) override;
  absl::StatusOr<std::unique_ptr<LogitsHead>> LoadHead() override;

 private:
  std::string EmbeddingName() const { return "model.embed_tokens.weight"; }

  // Checks all that is said of tensors in decoder.h.
  absl::StatusOr<HostTensor> ReadWeight(const std::string& name, const std::vector<int64_t>& shape);
  absl::Status CheckFinite(const HostTensor& tensor);
  absl::StatusOr<DeviceMatrix> PlaceWeight(const std::string& name,
                                           const std::vector<int64_t>& shape);
  absl::Status AddLinear(const LinearModule& module, const std::string& weight_name,
                         LinearWeights& linear);
  absl::StatusOr<LayerWeights> LoadLayer(int64_t layer);

  absl::Status CheckStates(const HiddenStates& hidden, bool after_last) const;
  // Reads from `in`; writes to `out` unless that is null.
  absl::Status RunBatches(const HiddenStates& in, HiddenStates* out, LinearHook* hook);
  // Changes x, the batch's hidden states, from the layer's input into its output; without `output`
  // only as far as hooks have something to see.
  absl::Status RunBatch(const Run& run, const LayerWeights& weights, const Batch& batch,
                        bool output, const DeviceMatrix& x);
  absl::Status Attention(const Run& run, const LayerWeights& weights, const Batch& batch,
                         const Rows& rows, const DeviceMatrix& x, const DeviceMatrix& out);
  // What a gated MLP of at most so many rows needs in between.
  struct GatedRoom {
    DeviceMatrix gate, up, product;
  };
  absl::StatusOr<GatedRoom> AllocateGated(const Run& run, size_t gate, int64_t rows);
  // down(silu(gate(x)) * up(x)) of the three linear layers from `gate` on; out is empty where only
  // hooks are to see it.
  absl::Status GatedMlp(const Run& run, size_t gate, const Rows& rows, const DeviceMatrix& x,
                        const GatedRoom& room, const DeviceMatrix& out);
  absl::Status Experts(const Run& run, const Rows& rows, const DeviceMatrix& x, bool output,
                       const DeviceMatrix& out);
  // Adds what these experts make of their rows of x, unless out is empty. All are routed, or there
  // is one.
  absl::Status RunExperts(const Run& run, const Rows& rows, std::span<const ExpertShare> shares,
                          const DeviceMatrix& x, const GatedRoom& room, const DeviceMatrix& out);
  // outs[i] = x times the linear layer first + i, after the hook has seen x. No products where outs
  // are empty matrices.
  absl::Status Linear(const Run& run, size_t first, const Rows& rows, const DeviceMatrix& x,
                      std::span<const DeviceMatrix> outs);

  const DecoderConfig config_;
  const WeightSource weights_;
  const DecoderOptions options_;
  ThreadPool pool_;
  std::unique_ptr<LayerOps> ops_;
  RopeTable rope_;  // for as many positions as were needed so far
};

absl::Status LayerwiseDecoder::CheckFinite(const HostTensor& tensor) {
  const int64_t count = static_cast<int64_t>(tensor.bytes.size()) / DTypeBytes(tensor.dtype);
  std::atomic<int64_t> first{count};
  const auto scan = [&](const auto* bits, auto exponent) {
    pool_.ParallelFor(count, kScanPiece, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if ((bits[i] & exponent) != exponent) continue;
        for (int64_t seen = first; i < seen && !first.compare_exchange_weak(seen, i);) {
        }
        return;
      }
    });
  };
  const void* data = tensor.bytes.data();
  if (tensor.dtype == DType::kF32) {
    scan(static_cast<const uint32_t*>(data), uint32_t{0x7F800000});
  } else {
    scan(static_cast<const uint16_t*>(data),
         static_cast<uint16_t>(tensor.dtype == DType::kBf16 ? 0x7F80 : 0x7C00));
  }
  if (first == count) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("expected finite values, got NaN or infinity at element ", first.load()));
}

absl::StatusOr<HostTensor> LayerwiseDecoder::ReadWeight(const std::string& name,
                                                        const std::vector<int64_t>& shape) {
  const auto read = [&]() -> absl::StatusOr<HostTensor> {
    NIBBLE_ASSIGN_OR_RETURN(HostTensor tensor, weights_(name));
    if (!IsQuantizable(tensor.dtype)) {
      return absl::DataLossError(
          absl::StrCat("expected BF16, F16 or F32, got ", ToAbsl(DTypeName(tensor.dtype))));
    }
    if (tensor.shape != shape) {
      return absl::DataLossError(absl::StrCat("expected the shape ", ShapeName(shape),
                                              " that config.json asks for, got ",
                                              ShapeName(tensor.shape)));
    }
    const uint64_t bytes = static_cast<uint64_t>(*ElementCount(shape)) * DTypeBytes(tensor.dtype);
    if (tensor.bytes.size() != bytes) {
      return absl::DataLossError(
          absl::StrCat("expected ", bytes, " bytes, got ", tensor.bytes.size()));
    }
    NIBBLE_RETURN_IF_ERROR(CheckFinite(tensor));
    return tensor;
  };
  absl::StatusOr<HostTensor> tensor = read();
  if (!tensor.ok()) return Annotate(tensor.status(), name);
  return tensor;
}

absl::StatusOr<DeviceMatrix> LayerwiseDecoder::PlaceWeight(const std::string& name,
                                                           const std::vector<int64_t>& shape) {
  NIBBLE_ASSIGN_OR_RETURN(HostTensor tensor, ReadWeight(name, shape));
  return ops_->Place(std::move(tensor));
}

absl::Status LayerwiseDecoder::AddLinear(const LinearModule& module, const std::string& weight_name,
                                         LinearWeights& linear) {
  NIBBLE_ASSIGN_OR_RETURN(DeviceMatrix weight,
                          PlaceWeight(weight_name, {module.rows, module.cols}));
  DeviceMatrix bias;
  if (module.bias) {
    NIBBLE_ASSIGN_OR_RETURN(bias, PlaceWeight(module.name + ".bias", {module.rows}));
  }
  linear.names.push_back(module.name);
  linear.weights.push_back(std::move(weight));
  linear.biases.push_back(std::move(bias));
  return absl::OkStatus();
}

absl::StatusOr<LayerWeights> LayerwiseDecoder::LoadLayer(int64_t layer) {
  LayerWeights weights;
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  NIBBLE_ASSIGN_OR_RETURN(weights.input_norm,
                          PlaceWeight(prefix + "input_layernorm.weight", {config_.hidden}));
  NIBBLE_ASSIGN_OR_RETURN(
      weights.post_norm, PlaceWeight(prefix + "post_attention_layernorm.weight", {config_.hidden}));
  if (config_.qk_norm) {
    NIBBLE_ASSIGN_OR_RETURN(weights.q_norm,
                            PlaceWeight(prefix + "self_attn.q_norm.weight", {config_.head_dim}));
    NIBBLE_ASSIGN_OR_RETURN(weights.k_norm,
                            PlaceWeight(prefix + "self_attn.k_norm.weight", {config_.head_dim}));
  }
  for (const LinearModule& module : LinearModules(config_, layer)) {
    NIBBLE_RETURN_IF_ERROR(AddLinear(module, module.name + ".weight", weights.linear));
  }
  return weights;
}

absl::StatusOr<HiddenStates> LayerwiseDecoder::Embed(const TokenSet& tokens) {
  NIBBLE_RETURN_IF_ERROR(CheckTokenSet(tokens, config_.vocabulary));
  NIBBLE_ASSIGN_OR_RETURN(const HostTensor table,
                          ReadWeight(EmbeddingName(), {config_.vocabulary, config_.hidden}));
  NIBBLE_ASSIGN_OR_RETURN(
      HiddenStates hidden,
      HiddenStates::Create(tokens.lengths, config_.hidden, options_.dtype, options_.hidden_states));
  std::vector<float> values;
  for (int64_t first = 0; first < tokens.tokens(); first += kEmbedTokens) {
    const int64_t count = std::min(kEmbedTokens, tokens.tokens() - first);
    values.resize(count * config_.hidden);
    for (int64_t t = 0; t < count; ++t) {
      WidenValues(table.bytes.data(), table.dtype, tokens.ids[first + t] * config_.hidden,
                  config_.hidden, values.data() + t * config_.hidden);
    }
    NIBBLE_RETURN_IF_ERROR(hidden.Write(first, values));
  }
  return hidden;
}

absl::Status LayerwiseDecoder::CheckStates(const HiddenStates& hidden, bool after_last) const {
  if (hidden.next_layer() == kNoLayer) {
    return absl::FailedPreconditionError(
        "hidden states: expected those of a run that did not fail");
  }
  if (hidden.channels() != config_.hidden || hidden.dtype() != options_.dtype) {
    return absl::InvalidArgumentError(
        absl::StrCat("hidden states: expected ", config_.hidden, " channels of ",
                     ToAbsl(DTypeName(options_.dtype)), ", got ", hidden.channels(), " of ",
                     ToAbsl(DTypeName(hidden.dtype()))));
  }
  if (after_last ? hidden.next_layer() != config_.layers : hidden.next_layer() >= config_.layers) {
    return absl::FailedPreconditionError(absl::StrCat(
        "hidden states: expected those ", after_last ? "behind the last" : "before one", " of ",
        config_.layers, " layers, got those before layer ", hidden.next_layer()));
  }
  return absl::OkStatus();
}

absl::Status LayerwiseDecoder::RunLayer(HiddenStates& hidden, LinearHook* hook) {
  NIBBLE_RETURN_IF_ERROR(CheckStates(hidden, /*after_last=*/false));
  return RunBatches(hidden, &hidden, hook);
}

absl::Status LayerwiseDecoder::ObserveLayer(const HiddenStates& hidden, LinearHook& hook) {
  NIBBLE_RETURN_IF_ERROR(CheckStates(hidden, /*after_last=*/false));
  return RunBatches(hidden, nullptr, &hook);
}

absl::Status LayerwiseDecoder::RunBatches(const HiddenStates& in, HiddenStates* out,
                                          LinearHook* hook) {
  const int64_t layer = in.next_layer();
  NIBBLE_ASSIGN_OR_RETURN(const LayerWeights weights, LoadLayer(layer));
  const int64_t longest = *std::ranges::max_element(in.lengths());
  if (rope_.positions < longest) rope_ = MakeRopeTable(config_.rope, config_.head_dim, longest);

  if (out != nullptr) out->set_next_layer(kNoLayer);
  const Run run{layer, &weights.linear, hook};
  const auto run_batch = [&](const Batch& batch) -> absl::Status {
    NIBBLE_ASSIGN_OR_RETURN(const DeviceMatrix x, ops_->Allocate(batch.tokens, config_.hidden));
    NIBBLE_RETURN_IF_ERROR(ops_->ReadStates(in, batch.first, x));
    NIBBLE_RETURN_IF_ERROR(RunBatch(run, weights, batch, out != nullptr, x));
    return out == nullptr ? absl::OkStatus() : ops_->WriteStates(x, batch.first, *out);
  };
  absl::Status status;
  for (const Batch& batch : BatchesOf(in.lengths(), options_.batch_tokens)) {
    status = run_batch(batch);
    if (!status.ok()) break;
  }
  status.Update(ops_->FinishStates());
  if (!status.ok()) return Annotate(status, absl::StrCat("layer ", layer));
  if (out != nullptr) out->set_next_layer(layer + 1);
  return absl::OkStatus();
}

absl::Status LayerwiseDecoder::RunBatch(const Run& run, const LayerWeights& weights,
                                        const Batch& batch, bool output, const DeviceMatrix& x) {
  const std::vector<int64_t> tokens = Counted(batch.first, batch.tokens);
  const Rows rows{tokens};
  NIBBLE_ASSIGN_OR_RETURN(const DeviceMatrix normed,
                          ops_->Allocate(x.rows, x.cols, Use::kLinearInput));
  NIBBLE_ASSIGN_OR_RETURN(const DeviceMatrix added, ops_->Allocate(x.rows, x.cols));
  NIBBLE_RETURN_IF_ERROR(ops_->RmsNorm(x, weights.input_norm, config_.rms_norm_eps, normed));
  NIBBLE_RETURN_IF_ERROR(Attention(run, weights, batch, rows, normed, added));
  NIBBLE_RETURN_IF_ERROR(ops_->Add(x, added));

  NIBBLE_RETURN_IF_ERROR(ops_->RmsNorm(x, weights.post_norm, config_.rms_norm_eps, normed));
  if (config_.has_experts[run.layer]) {
    NIBBLE_RETURN_IF_ERROR(Experts(run, rows, normed, output, added));
  } else {
    NIBBLE_ASSIGN_OR_RETURN(const GatedRoom room, AllocateGated(run, kGateUp, x.rows));
    NIBBLE_RETURN_IF_ERROR(
        GatedMlp(run, kGateUp, rows, normed, room, output ? added : DeviceMatrix()));
  }
  return output ? ops_->Add(x, added) : absl::OkStatus();
}

absl::Status LayerwiseDecoder::Attention(const Run& run, const LayerWeights& weights,
                                         const Batch& batch, const Rows& rows,
                                         const DeviceMatrix& x, const DeviceMatrix& out) {
  const AttentionShape shape{config_.heads, config_.kv_heads, config_.head_dim,
                             config_.window[run.layer]};
  const int64_t q_cols = shape.heads * shape.head_dim, kv_cols = shape.kv_heads * shape.head_dim;
  NIBBLE_ASSIGN_OR_RETURN(const DeviceMatrix q, ops_->Allocate(x.rows, q_cols));
  NIBBLE_ASSIGN_OR_RETURN(const DeviceMatrix k, ops_->Allocate(x.rows, kv_cols));
  NIBBLE_ASSIGN_OR_RETURN(const DeviceMatrix v, ops_->Allocate(x.rows, kv_cols));
  NIBBLE_ASSIGN_OR_RETURN(const DeviceMatrix mixed,
                          ops_->Allocate(x.rows, q_cols, Use::kLinearInput));
  const DeviceMatrix qkv[] = {q, k, v};
  NIBBLE_RETURN_IF_ERROR(Linear(run, kQkv, rows, x, qkv));
  if (config_.qk_norm) {
    const DeviceMatrix q_heads = q.WithColumns(shape.head_dim);
    const DeviceMatrix k_heads = k.WithColumns(shape.head_dim);
    NIBBLE_RETURN_IF_ERROR(ops_->RmsNorm(q_heads, weights.q_norm, config_.rms_norm_eps, q_heads));
    NIBBLE_RETURN_IF_ERROR(ops_->RmsNorm(k_heads, weights.k_norm, config_.rms_norm_eps, k_heads));
  }
  NIBBLE_RETURN_IF_ERROR(ops_->Rope(rope_, batch.lengths, q));
  NIBBLE_RETURN_IF_ERROR(ops_->Rope(rope_, batch.lengths, k));
  NIBBLE_RETURN_IF_ERROR(ops_->Attention(shape, batch.lengths, q, k, v, mixed));
  return Linear(run, kOutput, rows, mixed, std::span(&out, 1));
}

absl::StatusOr<LayerwiseDecoder::GatedRoom> LayerwiseDecoder::AllocateGated(const Run& run,
                                                                            size_t gate,
                                                                            int64_t rows) {
  const int64_t width = run.linear->weights[gate].rows;
  GatedRoom room;
  NIBBLE_ASSIGN_OR_RETURN(room.gate, ops_->Allocate(rows, width));
  NIBBLE_ASSIGN_OR_RETURN(room.up, ops_->Allocate(rows, width));
  NIBBLE_ASSIGN_OR_RETURN(room.product, ops_->Allocate(rows, width, Use::kLinearInput));
  return room;
}

absl::Status LayerwiseDecoder::GatedMlp(const Run& run, size_t gate, const Rows& rows,
                                        const DeviceMatrix& x, const GatedRoom& room,
                                        const DeviceMatrix& out) {
  const DeviceMatrix gate_up[] = {room.gate.Rows(0, x.rows), room.up.Rows(0, x.rows)};
  const DeviceMatrix product = room.product.Rows(0, x.rows);
  NIBBLE_RETURN_IF_ERROR(Linear(run, gate, rows, x, gate_up));
  NIBBLE_RETURN_IF_ERROR(ops_->SwiGlu(gate_up[0], gate_up[1], product));
  return Linear(run, gate + kDown - kGateUp, rows, product, std::span(&out, 1));
}

absl::Status LayerwiseDecoder::Experts(const Run& run, const Rows& rows, const DeviceMatrix& x,
                                       bool output, const DeviceMatrix& out) {
  NIBBLE_ASSIGN_OR_RETURN(const DeviceMatrix logits, ops_->Allocate(x.rows, config_.experts));
  NIBBLE_RETURN_IF_ERROR(Linear(run, kRouter, rows, x, std::span(&logits, 1)));
  const auto routing = ops_->Route(logits, config_.experts_per_token, config_.normalize_routing);
  if (!routing.ok()) return Annotate(routing.status(), run.linear->names[kRouter]);

  if (output) NIBBLE_RETURN_IF_ERROR(ops_->SetZero(out));
  NIBBLE_ASSIGN_OR_RETURN(const GatedRoom room, AllocateGated(run, kFirstExpert, x.rows));
  const std::vector<ExpertShare> shares = SharesOf(
      *routing, config_.experts, x.rows, options_.force_all_experts && run.hook != nullptr);
  for (std::span<const ExpertShare> left = shares; !left.empty();) {
    // As many at a time as need no more memory than a layer without experts.
    size_t count = 0;
    int64_t together = 0;
    do {
      together += std::ssize(left[count++].rows);
    } while (count < left.size() && left[0].routed && left[count].routed &&
             x.cols % kAlignedColumns == 0 && together + std::ssize(left[count].rows) <= x.rows);
    NIBBLE_RETURN_IF_ERROR(
        RunExperts(run, rows, left.first(count), x, room, output ? out : DeviceMatrix()));
    left = left.subspan(count);
  }
  return absl::OkStatus();
}

absl::Status LayerwiseDecoder::RunExperts(const Run& run, const Rows& rows,
                                          std::span<const ExpertShare> shares,
                                          const DeviceMatrix& x, const GatedRoom& room,
                                          const DeviceMatrix& out) {
  std::vector<int64_t> from;
  std::vector<float> weights;
  for (const ExpertShare& share : shares) {
    from.insert(from.end(), share.rows.begin(), share.rows.end());
    weights.insert(weights.end(), share.weights.begin(), share.weights.end());
  }
  const bool output = !out.empty() && shares[0].routed;
  NIBBLE_ASSIGN_OR_RETURN(const DeviceMatrix gathered,
                          ops_->Allocate(std::ssize(from), x.cols, x.use));
  NIBBLE_RETURN_IF_ERROR(ops_->Gather(x, from, gathered));
  DeviceMatrix results;
  if (output) {
    NIBBLE_ASSIGN_OR_RETURN(results, ops_->Allocate(std::ssize(from), x.cols));
  }
  // In the order of rows: what a product writes behind its own is written again.
  int64_t first = 0;
  std::vector<int64_t> tokens;
  for (const ExpertShare& share : shares) {
    const int64_t count = std::ssize(share.rows);
    tokens.clear();
    for (const int64_t row : share.rows) tokens.push_back(rows.tokens[row]);
    NIBBLE_RETURN_IF_ERROR(GatedMlp(
        run, kFirstExpert + share.expert * kOfExpert, {tokens, share.expert, share.routed},
        gathered.Rows(first, count), room, output ? results.Rows(first, count) : DeviceMatrix()));
    first += count;
  }
  return output ? ops_->AddScaledRows(results, from, weights, out) : absl::OkStatus();
}

absl::Status LayerwiseDecoder::Linear(const Run& run, size_t first, const Rows& rows,
                                      const DeviceMatrix& x, std::span<const DeviceMatrix> outs) {
  LinearInput input{.layer = run.layer,
                    .modules = std::span(run.linear->names).subspan(first, outs.size()),
                    .x = {nullptr, DType::kF32, x.rows, x.cols},
                    .tokens = rows.tokens,
                    .expert = rows.expert,
                    .routed = rows.routed};
  UninitializedVector<float> room, changed;
  std::span<const float> values;
  // Whether the hook sees x where it lies.
  const bool in_place =
      run.hook != nullptr && (ops_->in_host_memory() || run.hook->ReadsDeviceMemory());
  if (run.hook != nullptr) {
    if (in_place) {
      input.x.data = x.memory.get();
      input.x.dtype = x.dtype;
      input.stream = ops_->stream();
    } else {
      NIBBLE_ASSIGN_OR_RETURN(values, ops_->Download(x, room));
      input.x.data = values.data();
    }
    const absl::Status status = run.hook->Observe(input);
    if (!status.ok()) return Annotate(status, input.modules.front());
  }
  for (size_t i = 0; i < outs.size(); ++i) {
    if (outs[i].empty()) continue;
    DeviceMatrix multiplied = x;
    const std::string& name = run.linear->names[first + i];
    if (run.hook != nullptr && run.hook->Changes(name)) {
      // In float32: what it becomes need not be of the type that linear layers read.
      NIBBLE_ASSIGN_OR_RETURN(multiplied, ops_->Allocate(x.rows, x.cols));
      std::span<float> own(static_cast<float*>(multiplied.memory.get()), x.rows * x.cols);
      if (in_place) {
        NIBBLE_RETURN_IF_ERROR(ops_->Copy(x, multiplied));
        NIBBLE_RETURN_IF_ERROR(ops_->Synchronize());
      } else {
        changed.assign(values.begin(), values.end());
        own = changed;
      }
      const absl::Status status = run.hook->Change(input, name, own);
      if (!status.ok()) return Annotate(status, name);
      if (!in_place) NIBBLE_RETURN_IF_ERROR(ops_->Upload(changed, multiplied));
    }
    NIBBLE_RETURN_IF_ERROR(ops_->Linear(multiplied, run.linear->weights[first + i],
                                        run.linear->biases[first + i], outs[i]));
  }
  return absl::OkStatus();
}

class LayerwiseDecoder::Head final : public LogitsHead {
 public:
  Head(LayerwiseDecoder& decoder, DeviceMatrix norm, LinearWeights linear)
      : decoder_(decoder), norm_(std::move(norm)), linear_(std::move(linear)) {}

  absl::StatusOr<std::span<const float>> Logits(const HiddenStates& hidden, int64_t first,
                                                int64_t count, LinearHook* hook) override {
    const DecoderConfig& config = decoder_.config_;
    LayerOps& ops = *decoder_.ops_;
    NIBBLE_RETURN_IF_ERROR(decoder_.CheckStates(hidden, /*after_last=*/true));
    if (first < 0 || count < 1 || count > hidden.tokens() || first > hidden.tokens() - count) {
      return absl::InvalidArgumentError(absl::StrCat("logits: expected some of ", hidden.tokens(),
                                                     " tokens, got ", count, " from ", first));
    }
    NIBBLE_ASSIGN_OR_RETURN(const DeviceMatrix x, ops.Allocate(count, config.hidden));
    NIBBLE_ASSIGN_OR_RETURN(logits_, ops.Allocate(count, config.vocabulary));
    NIBBLE_RETURN_IF_ERROR(ops.ReadStates(hidden, first, x));
    NIBBLE_ASSIGN_OR_RETURN(const DeviceMatrix normed,
                            ops.Allocate(count, config.hidden, Use::kLinearInput));
    NIBBLE_RETURN_IF_ERROR(ops.RmsNorm(x, norm_, config.rms_norm_eps, normed));
    const std::vector<int64_t> tokens = Counted(first, count);
    NIBBLE_RETURN_IF_ERROR(decoder_.Linear({config.layers, &linear_, hook}, 0, {tokens}, normed,
                                           std::span(&logits_, 1)));
    return ops.Download(logits_, room_);
  }

 private:
  LayerwiseDecoder& decoder_;
  const DeviceMatrix norm_;
  const LinearWeights linear_;
  UninitializedVector<float> room_;
  DeviceMatrix logits_;
};

absl::StatusOr<std::unique_ptr<LogitsHead>> LayerwiseDecoder::LoadHead() {
  NIBBLE_ASSIGN_OR_RETURN(DeviceMatrix norm, PlaceWeight("model.norm.weight", {config_.hidden}));
  const LinearModule head = HeadModule(config_);
  LinearWeights linear;
  NIBBLE_RETURN_IF_ERROR(
      AddLinear(head, config_.tied_embeddings ? EmbeddingName() : head.name + ".weight", linear));
  return std::make_unique<Head>(*this, std::move(norm), std::move(linear));
}

}  // namespace

absl::Status Decoder::Logits(const HiddenStates& hidden, const LogitsSink& sink, LinearHook* hook) {
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<LogitsHead> head, LoadHead());
  for (int64_t first = 0; first < hidden.tokens(); first += logit_rows_) {
    const int64_t count = std::min(logit_rows_, hidden.tokens() - first);
    NIBBLE_ASSIGN_OR_RETURN(const std::span<const float> logits,
                            head->Logits(hidden, first, count, hook));
    NIBBLE_RETURN_IF_ERROR(sink(first, logits));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Make(DecoderConfig config, WeightSource weights,
                                                       const DecoderOptions& options) {
  const auto expected = [](std::string_view what, std::string_view rule, int64_t got) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToAbsl(what), ": expected ", ToAbsl(rule), ", got ", got));
  };
  if (options.dtype != DType::kF32 && options.dtype != DType::kBf16) {
    return absl::InvalidArgumentError(
        absl::StrCat("dtype: expected F32 or BF16, got ", ToAbsl(DTypeName(options.dtype))));
  }
  if (options.threads < 0) return expected("threads", "0 or more", options.threads);
  if (options.batch_tokens < 1) return expected("batch_tokens", "1 or more", options.batch_tokens);
  if (options.logit_rows < 1) return expected("logit_rows", "1 or more", options.logit_rows);
  auto decoder = std::make_unique<LayerwiseDecoder>(std::move(config), std::move(weights), options);
  NIBBLE_RETURN_IF_ERROR(decoder->Prepare());
  return decoder;
}

}  // namespace nibble
