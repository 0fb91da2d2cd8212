#!/usr/bin/env python3
"""Perplexity of a model folder on a text, by transformers.

    python3 examples/models/perplexity.py FOLDER TEXT [--length 512] [--dtype float32|bfloat16]
        [--device cpu|cuda]

The whole text is tokenized without special tokens and cut into consecutive sequences; what is left
over is dropped. All tokens but a sequence's first are predicted. Two figures, both with a 95 %
interval over sequences:
  bos    <|begin_of_text|> and --length - 1 tokens of text in a sequence;
  plain  --length tokens of text in a sequence.
"""

import argparse
import math
import pathlib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def losses(model, sequences):
    """Mean negative log-likelihood of each sequence's tokens after the first."""
    result = []
    for ids in sequences.split(8):
        logits = model(ids).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:],
                                                 reduction="none")
        result.append(loss.double().mean(1))
    return torch.cat(result)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=getattr(torch, args.dtype))
    model.to(args.device).eval()
    ids = tokenizer(args.text.read_text(), add_special_tokens=False, return_tensors="pt").input_ids
    ids = ids[0].to(args.device)
    bos = ids.new_tensor([tokenizer.bos_token_id])
    for kind in ("bos", "plain"):
        cut = args.length - (kind == "bos")
        sequences = ids[:len(ids) // cut * cut].view(-1, cut)
        if kind == "bos":
            sequences = torch.cat([bos.expand(len(sequences), 1), sequences], 1)
        loss = losses(model, sequences)
        error = 1.96 * loss.std().item() / math.sqrt(len(loss))
        mean = loss.mean().item()
        low, high = math.exp(mean - error), math.exp(mean + error)
        print(f"{args.folder.name} {args.text.name} {args.dtype} {kind}: loss {mean:.5f}, "
              f"perplexity {math.exp(mean):.4f} ({low:.3f} to {high:.3f}), "
              f"{len(loss)} sequences of {args.length}")


if __name__ == "__main__":
    main()
