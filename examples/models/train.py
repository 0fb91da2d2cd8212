#!/usr/bin/env python3
"""Trains tiny-llama or tiny-moe on what prepare.py wrote, and writes a Hugging Face model folder.

    python3 examples/models/train.py tiny-llama WORK OUT      (a GPU, or --device cpu and patience)

The model is written out here, with dropout; perplexity.py then runs the folder in transformers' own
implementation. On a GPU products are in bf16 and one step is a CUDA graph. Validation text chooses
among epochs; held-out text is not read. Seeds are fixed, but a GPU's sums are not ordered: a second
run need not give the same bytes.
"""

import argparse
import json
import math
import pathlib
import re
import shutil
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

COMMON = {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1534, "eos_token_id": 1535,
    "head_dim": 32, "hidden_act": "silu", "initializer_range": 0.02,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_scaling": None,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "use_cache": True, "vocab_size": 1536,
}

CONFIGS = {
    "tiny-llama": COMMON | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
        "intermediate_size": 576, "mlp_bias": False, "num_attention_heads": 8,
        "num_hidden_layers": 6, "num_key_value_heads": 4, "pretraining_tp": 1,
    },
    "tiny-moe": COMMON | {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
        "decoder_sparse_step": 1, "hidden_size": 128, "intermediate_size": 384,
        "max_window_layers": 4, "mlp_only_layers": [], "moe_intermediate_size": 96,
        "norm_topk_prob": True, "num_attention_heads": 4, "num_experts": 8,
        "num_experts_per_tok": 2, "num_hidden_layers": 4, "num_key_value_heads": 2,
        "output_router_logits": False, "router_aux_loss_coef": 0.01, "sliding_window": None,
        "use_sliding_window": False,
    },
}

TRAINING = {
    "tiny-llama": {"epochs": 48, "rate": 3e-3, "dropout": 0.25},
    "tiny-moe": {"epochs": 44, "rate": 4e-3, "dropout": 0.15},
}


class RmsNorm(nn.Module):

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps)


def rotated(x, cos, sin):
    """The two halves of a head are the two coordinates, as in the Hugging Face layout."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):

    def __init__(self, config):
        super().__init__()
        hidden, size = config["hidden_size"], config["head_dim"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.size, self.dropout = size, config["dropout"]
        self.q_proj = nn.Linear(hidden, self.heads * size, bias=False)
        self.k_proj = nn.Linear(hidden, self.kv_heads * size, bias=False)
        self.v_proj = nn.Linear(hidden, self.kv_heads * size, bias=False)
        self.o_proj = nn.Linear(self.heads * size, hidden, bias=False)
        if config["model_type"] == "qwen3_moe":
            self.q_norm = RmsNorm(size, config["rms_norm_eps"])
            self.k_norm = RmsNorm(size, config["rms_norm_eps"])

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.heads, self.size)
        k = self.k_proj(x).view(b, t, self.kv_heads, self.size)
        v = self.v_proj(x).view(b, t, self.kv_heads, self.size).transpose(1, 2)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q = rotated(q.transpose(1, 2), cos, sin).to(v.dtype)
        k = rotated(k.transpose(1, 2), cos, sin).to(v.dtype)
        share = self.heads // self.kv_heads
        out = F.scaled_dot_product_attention(
            q, k.repeat_interleave(share, 1), v.repeat_interleave(share, 1), is_causal=True,
            dropout_p=self.dropout if self.training else 0.0)
        return self.o_proj(out.transpose(1, 2).reshape(b, t, -1))


class Mlp(nn.Module):

    def __init__(self, config):
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)), 0.0


class Experts(nn.Module):
    """All experts see all tokens and the router's weights are zeros for the rest: the experts
    are one wide MLP, which is faster at this size than routing."""

    def __init__(self, config):
        super().__init__()
        hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
        self.count, self.inner = config["num_experts"], inner
        self.top = config["num_experts_per_tok"]
        self.gate = nn.Linear(hidden, self.count, bias=False)
        self.gate_proj = nn.Linear(hidden, self.count * inner, bias=False)
        self.up_proj = nn.Linear(hidden, self.count * inner, bias=False)
        self.down_proj = nn.Linear(self.count * inner, hidden, bias=False)

    def forward(self, x):
        probability = self.gate(x).float().softmax(-1)
        best, chosen = probability.topk(self.top, dim=-1)
        weights = torch.zeros_like(probability).scatter(-1, chosen, best / best.sum(-1, True))
        inner = F.silu(self.gate_proj(x)) * self.up_proj(x)
        inner = inner.unflatten(-1, (self.count, self.inner)) * weights[..., None].to(inner.dtype)
        used = torch.zeros_like(probability).scatter(-1, chosen, 1.0 / self.top)
        balance = self.count * (used.mean((0, 1)) * probability.mean((0, 1))).sum()
        return self.down_proj(inner.flatten(-2)), balance


class Layer(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RmsNorm(config["hidden_size"], config["rms_norm_eps"])
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RmsNorm(config["hidden_size"], config["rms_norm_eps"])
        self.mlp = (Experts if "num_experts" in config else Mlp)(config)
        self.drop = nn.Dropout(config["dropout"])

    def forward(self, x, cos, sin):
        x = x + self.drop(self.self_attn(self.input_layernorm(x), cos, sin))
        out, balance = self.mlp(self.post_attention_layernorm(x))
        return x + self.drop(out), balance


class Decoder(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.config = config
        hidden, size = config["hidden_size"], config["head_dim"]
        self.embed_tokens = nn.Embedding(config["vocab_size"], hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = RmsNorm(hidden, config["rms_norm_eps"])
        self.lm_head = nn.Linear(hidden, config["vocab_size"], bias=False)
        self.drop = nn.Dropout(config["dropout"])
        frequency = config["rope_theta"] ** (-torch.arange(0, size, 2) / size)
        angle = torch.arange(config["max_position_embeddings"])[:, None] * frequency
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                out = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * len(self.layers)) ** (0.5 * out))

    def forward(self, ids):
        """Mean negative log-likelihood of ids[:, 1:], and the routers' mean imbalance."""
        t = ids.shape[1] - 1
        x = self.drop(self.embed_tokens(ids[:, :-1]))
        imbalance = 0.0
        for layer in self.layers:
            x, balance = layer(x, self.cos[:t], self.sin[:t])
            imbalance = imbalance + balance / len(self.layers)
        logits = self.lm_head(self.norm(x)).float()
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten().long()), imbalance

    def hub_tensors(self):
        """bf16, under the names of the hub: one tensor for each projection of each expert."""
        result = {}
        for name, value in self.state_dict().items():
            value = value.to("cpu", torch.bfloat16)
            if re.search(r"\.mlp\.\w+_proj\.", name) and "num_experts" in self.config:
                prefix, projection = name.split(".mlp.")
                axis = 1 if projection.startswith("down") else 0
                for e, part in enumerate(value.chunk(self.config["num_experts"], axis)):
                    result[f"model.{prefix}.mlp.experts.{e}.{projection}"] = part.contiguous()
            else:
                result[name if name.startswith("lm_head") else f"model.{name}"] = value
        return result


def read_tokens(file, device):
    ids = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint16)
    return ids.to(device, torch.int32)


def epochs(tokens, length, batch, generator):
    """Batches [batch, length] of each epoch: windows from a random offset, in random order. The
    first token of every other window becomes the start of a text."""
    while True:
        offset = torch.randint(length, (), generator=generator).item()
        count = (len(tokens) - offset) // length
        windows = tokens[offset:offset + count * length].view(count, length)
        order = torch.randperm(count, generator=generator)
        marked = torch.rand(count, generator=generator) < 0.5
        windows = windows[order.to(tokens.device)]
        windows[marked.to(tokens.device), 0] = COMMON["bos_token_id"]
        yield windows[:count // batch * batch].view(-1, batch, length)


class Trainer:

    def __init__(self, model, args):
        self.model, self.args, self.device = model, args, torch.device(args.device)
        matrices = [p for p in model.parameters() if p.dim() == 2]
        others = [p for p in model.parameters() if p.dim() != 2]
        cuda = self.device.type == "cuda"
        self.rate = torch.tensor(0.0, device=self.device)
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": args.weight_decay},
             {"params": others, "weight_decay": 0.0}],
            lr=self.rate if cuda else 0.0, betas=(0.9, 0.95), eps=1e-8, fused=cuda or None,
            capturable=cuda)
        self.ids = torch.zeros(args.batch, args.length, dtype=torch.int32, device=self.device)
        self.loss = torch.zeros((), device=self.device)
        self.graph = None
        if cuda:
            self.capture()

    def capture(self):
        """At learning rate 0 the first steps leave the weights as they are."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.compute()
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.compute()
        self.graph = graph

    def autocast(self):
        cuda = self.device.type == "cuda"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=cuda, cache_enabled=False)

    def compute(self):
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss, imbalance = self.model(self.ids)
        (loss + 0.01 * imbalance).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.loss.copy_(loss.detach())

    def step(self, ids, rate):
        self.ids.copy_(ids)
        self.rate.fill_(rate)
        if self.graph:
            self.graph.replay()
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.compute()

    @torch.no_grad()
    def evaluate(self, tokens):
        length, total, batches = self.args.length, 0.0, 0
        windows = tokens[:len(tokens) // length * length].view(-1, length).clone()
        windows[:, 0] = COMMON["bos_token_id"]
        self.model.eval()
        with self.autocast():
            for part in windows.split(self.args.batch):
                total += self.model(part)[0].item() * len(part)
                batches += len(part)
        self.model.train()
        return total / batches


def write_folder(out, name, tensors, work):
    out.mkdir(parents=True, exist_ok=True)
    save_file(dict(sorted(tensors.items())), out / "model.safetensors", {"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    config = dict(sorted(CONFIGS[name].items()))
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {key: COMMON[key] for key in ("bos_token_id", "eos_token_id")}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(work / "tokenizer" / file, out / file)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CONFIGS)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-steps", type=int, help="of an epoch, to try the script out")
    parser.set_defaults(**TRAINING[parser.parse_args().name])
    args = parser.parse_args()

    start = time.monotonic()
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    train = read_tokens(args.work / "train.bin", args.device)
    validation = read_tokens(args.work / "validation.bin", args.device)
    model = Decoder(CONFIGS[args.name] | {"dropout": args.dropout}).to(args.device)
    options = ", ".join(f"{key} {getattr(args, key)}" for key in (
        "epochs", "batch", "length", "rate", "dropout", "weight_decay", "seed"))
    print(f"{args.name}: {sum(p.numel() for p in model.parameters())} parameters, "
          f"{len(train)} training tokens; {options}; PyTorch {torch.__version__}", flush=True)

    trainer = Trainer(model, args)
    steps_of_epoch = args.max_steps or len(train) // args.length // args.batch
    steps, warmup, step = args.epochs * steps_of_epoch, 100, 0
    best, best_tensors = math.inf, None
    stream = epochs(train, args.length, args.batch, generator)
    for epoch in range(1, args.epochs + 1):
        total = torch.zeros((), device=args.device)
        batches = next(stream)[:steps_of_epoch]
        for ids in batches:
            step += 1
            fall = 0.02 + 0.49 * (1 + math.cos(math.pi * step / steps))
            trainer.step(ids, args.rate * min(1.0, step / warmup) * fall)
            total += trainer.loss
        loss = trainer.evaluate(validation)
        print(f"epoch {epoch}: training loss {total.item() / len(batches):.4f}, "
              f"validation loss {loss:.4f}, {time.monotonic() - start:.1f} s", flush=True)
        if loss < best:
            best, best_tensors = loss, model.hub_tensors()
    windows = train[:len(train) // args.length * args.length].view(-1, args.length)
    loss = trainer.evaluate(windows[::20].flatten())
    print(f"best validation loss {best:.4f}; last weights on every 20th training window, "
          f"no dropout: {loss:.4f}")
    write_folder(args.out, args.name, best_tensors, args.work)


if __name__ == "__main__":
    main()
