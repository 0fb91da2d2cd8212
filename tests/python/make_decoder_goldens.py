"""Makes tests/golden/decoders: tiny random models of every architecture that the forward runner
knows, with what Transformers computes for them.

    pip install torch transformers safetensors
    python3 tests/python/make_decoder_goldens.py [OUT]

A case is a model folder with one file more, golden.safetensors:
  ids, lengths      the sequences' tokens, one after another
  logits            of every token, computed in float32
  logits_bf16       the same of the model loaded in bfloat16
  input.<module>    what a linear layer reads, tokens x channels, in float32
  tokens.<module>   of an expert: which tokens its input's rows are
"""

import json
import pathlib
import shutil
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file

LENGTHS = [24, 3]
VOCABULARY = 32
# Routing that rounding could turn over would compare nothing.
LEAST_ROUTER_GAP = 0.08
EXPERT = 1  # whose inputs are recorded

BASE = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, hidden_act="silu", rms_norm_eps=1e-5,
    max_position_embeddings=64, tie_word_embeddings=False,
)
MIXTRAL = dict(num_local_experts=3, num_experts_per_tok=2)
QWEN3_MOE = dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=16)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0,
              high_freq_factor=4.0, original_max_position_embeddings=16)

# Name: architecture, model_type, dtype of the file, keys beside BASE. Keys of older files
# (rope_theta and rope_scaling of the configuration itself) and of newer ones (rope_parameters).
CASES = {
    "llama": ("LlamaForCausalLM", "llama", "bfloat16", dict(rope_theta=5000.0)),
    "llama_llama3_biases": ("LlamaForCausalLM", "llama", "float16", dict(
        rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    "llama_linear_wide_heads": ("LlamaForCausalLM", "llama", "float32", dict(
        rope_scaling={"type": "linear", "factor": 3.0}, rope_theta=10000.0, head_dim=12, num_hidden_layers=1,
        num_key_value_heads=1)),
    "mistral_window": ("MistralForCausalLM", "mistral", "bfloat16", dict(
        sliding_window=6, head_dim=16, rope_theta=1000.0)),
    "qwen2_yarn": ("Qwen2ForCausalLM", "qwen2", "bfloat16", dict(
        rope_theta=10000.0, tie_word_embeddings=True, use_sliding_window=False, sliding_window=4,
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16})),
    "qwen2_window": ("Qwen2ForCausalLM", "qwen2", "bfloat16", dict(
        use_sliding_window=True, sliding_window=5, max_window_layers=1, num_key_value_heads=4)),
    "qwen3_yarn": ("Qwen3ForCausalLM", "qwen3", "bfloat16", dict(
        head_dim=16, attention_bias=True,
        rope_parameters={"rope_type": "yarn", "rope_theta": 100000.0, "factor": 2.5,
                         "original_max_position_embeddings": 24, "beta_fast": 16,
                         "beta_slow": 2, "truncate": False, "attention_factor": 1.25})),
    "qwen3_layer_types": ("Qwen3ForCausalLM", "qwen3", "bfloat16", dict(
        head_dim=8, use_sliding_window=True, sliding_window=7,
        layer_types=["sliding_attention", "full_attention"], tie_word_embeddings=True)),
    "mixtral": ("MixtralForCausalLM", "mixtral", "bfloat16", dict(
        MIXTRAL, sliding_window=None, rope_theta=1e6)),
    "mixtral_window": ("MixtralForCausalLM", "mixtral", "bfloat16", dict(
        MIXTRAL, sliding_window=8, num_experts_per_tok=1)),
    "qwen3_moe_sparse_step": ("Qwen3MoeForCausalLM", "qwen3_moe", "bfloat16", dict(
        QWEN3_MOE, head_dim=16, norm_topk_prob=True, decoder_sparse_step=2)),
    "qwen3_moe_unnormalized": ("Qwen3MoeForCausalLM", "qwen3_moe", "bfloat16", dict(
        QWEN3_MOE, head_dim=8, norm_topk_prob=False, num_experts_per_tok=3,
        mlp_only_layers=[0], tie_word_embeddings=True)),
}


def randomize(model, generator):
    """Weights under which every part has a say: logits of a few units, norms away from 1."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if name.endswith("norm.weight"):
            p.data = 1 + 0.25 * noise
        elif name.endswith("bias"):
            p.data = 0.3 * noise
        elif "embed_tokens" in name:
            p.data = noise
        elif name.endswith(".gate.weight"):
            p.data = noise
        else:
            p.data = noise * 1.3 / p.shape[-1] ** 0.5


class Recorder:
    """Inputs of the last layer's linear layers, and how clearly routers decide."""

    def __init__(self, model):
        self.tensors, self.gap = {}, float("inf")
        last = len(model.model.layers) - 1
        for name, module in model.named_modules():
            wanted = name.startswith(f"model.layers.{last}.")
            if wanted and isinstance(module, torch.nn.Linear):
                if name.rsplit(".", 1)[-1] in ("q_proj", "down_proj"):
                    module.register_forward_pre_hook(self.linear(name))
            if name.endswith(".experts") and wanted:
                module.register_forward_pre_hook(self.experts(name))
            if name.endswith(".gate") and hasattr(module, "top_k"):
                module.register_forward_hook(self.router())

    def add(self, name, x):
        self.tensors.setdefault(name, []).append(x.detach().clone())

    def linear(self, name):
        return lambda module, args: self.add("input." + name, args[0].reshape(-1, args[0].shape[-1]))

    def experts(self, name):
        def hook(module, args):
            x, chosen, _ = args
            mixtral = "Mixtral" in type(module).__name__
            names = ("w1", "w2") if mixtral else ("gate_proj", "down_proj")
            prefix = name.replace(".mlp.", ".block_sparse_moe.") if mixtral else name
            tokens = (chosen == EXPERT).any(-1).nonzero()[:, 0]
            gate, up = torch.nn.functional.linear(x[tokens], module.gate_up_proj[EXPERT]).chunk(2, -1)
            self.add(f"tokens.{prefix}.{EXPERT}.{names[0]}", tokens)
            self.add(f"input.{prefix}.{EXPERT}.{names[0]}", x[tokens])
            self.add(f"input.{prefix}.{EXPERT}.{names[1]}", module.act_fn(gate) * up)
        return hook

    def router(self):
        def hook(module, args, outputs):
            ordered = outputs[0].float().sort(-1, descending=True).values
            if module.top_k < ordered.shape[1]:
                gap = ordered[:, module.top_k - 1] - ordered[:, module.top_k]
                self.gap = min(self.gap, gap.min().item())
        return hook


@torch.no_grad()
def run(folder, dtype, sequences):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager").eval()
    recorder = Recorder(model)
    logits, first = [], 0
    for sequence in sequences:
        before = {name: len(parts) for name, parts in recorder.tensors.items()}
        logits.append(model(input_ids=sequence[None]).logits[0])
        for name, parts in recorder.tensors.items():
            if name.startswith("tokens."):
                for part in parts[before.get(name, 0):]:
                    part += first
        first += len(sequence)
    tensors = {name: torch.cat(parts) for name, parts in recorder.tensors.items()}
    return torch.cat(logits), tensors, recorder.gap


def make(case, seed, out):
    architecture, model_type, file_dtype, keys = CASES[case]
    config = dict(BASE, architectures=[architecture], model_type=model_type, dtype=file_dtype, **keys)
    generator = torch.Generator().manual_seed(seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.from_pretrained(folder))
        randomize(model, generator)
        model.to(getattr(torch, file_dtype)).save_pretrained(folder)
        # save_pretrained has its own idea of the configuration; the file is to be as it was made up.
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        ids = torch.randint(VOCABULARY, (sum(LENGTHS),), generator=generator)
        sequences = ids.split(LENGTHS)
        logits, tensors, gap = run(folder, torch.float32, sequences)
        if gap < LEAST_ROUTER_GAP:
            return None
        logits_bf16, _, _ = run(folder, torch.bfloat16, sequences)
        out.mkdir(parents=True)
        shutil.copy(folder / "config.json", out)
        weights = load_file(folder / "model.safetensors")
        save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
        tensors.update(ids=ids.to(torch.int32), lengths=torch.tensor(LENGTHS), logits=logits,
                       logits_bf16=logits_bf16.to(torch.bfloat16))
        tensors = {name: t.contiguous() for name, t in tensors.items()}
        save_file(tensors, out / "golden.safetensors", metadata={
            "transformers": transformers.__version__, "torch": torch.__version__.split("+")[0],
            "seed": str(seed)})
        cosine = torch.nn.functional.cosine_similarity(logits.flatten(), logits_bf16.float().flatten(), 0)
        return f"{case}: seed {seed}, largest logit {logits.abs().max():.2f}, " \
               f"bf16's cosine {cosine:.6f}, router gap {gap:.3f}"


def main():
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/decoders")
    for case in CASES:
        shutil.rmtree(out / case, ignore_errors=True)
        for seed in range(1, 10000):
            line = make(case, seed, out / case)
            if line is not None:
                print(line, flush=True)
                break


if __name__ == "__main__":
    main()
