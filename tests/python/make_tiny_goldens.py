#!/usr/bin/env python3
"""Writes tests/golden/tiny-models.safetensors: what transformers makes of examples/models, float32.

    python3 -m venv peers && peers/bin/pip install torch transformers
    peers/bin/python tests/python/make_tiny_goldens.py

tests/golden/README.md says what the tensors are.
"""

import hashlib
import pathlib

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS = ROOT / "examples/models"
NAMES = ["tiny-llama", "tiny-moe"]
POSITIONS = [0, 1, 2, 5, 11, 23, 35, 47]


def sequences(ids, bos, count, length):
    """count sequences at even distances over the text, each with the start of a text before it."""
    starts = torch.arange(count) * (len(ids) - length) // max(count - 1, 1)
    rows = [torch.cat([bos, ids[start:start + length - 1]]) for start in starts.tolist()]
    return torch.stack(rows)


@torch.no_grad()
def main():
    torch.use_deterministic_algorithms(True)
    tokenizer = AutoTokenizer.from_pretrained(MODELS / NAMES[0])
    ids = tokenizer((MODELS / "heldout.txt").read_text(), add_special_tokens=False,
                    return_tensors="pt").input_ids[0]
    bos = torch.tensor([tokenizer.bos_token_id])
    short, long = sequences(ids, bos, 2, 48), sequences(ids, bos, 16, 256)
    tensors = {
        "short.ids": short.int(),
        "short.positions": torch.tensor(POSITIONS, dtype=torch.int32),
        "long.ids": long.int(),
    }
    metadata = {}
    for name in NAMES:
        folder = MODELS / name
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                     attn_implementation="eager").eval()
        tensors[f"{name}.short.logits"] = model(short).logits[:, POSITIONS].contiguous()
        logits = model(long).logits[:, :-1].double()
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), long[:, 1:],
                                                 reduction="none")
        tensors[f"{name}.long.nll"] = loss.sum(1).float()
        metadata[f"{name}.sha256"] = hashlib.sha256(
            (folder / "model.safetensors").read_bytes()).hexdigest()
    save_file(tensors, ROOT / "tests/golden/tiny-models.safetensors", metadata)


if __name__ == "__main__":
    main()
