"""Runs a text through transformers and llama.cpp in the ways of `conquer bench consistency`, and
compares each with the float64 reference that conquer wrote.

usage: consistency.py MODEL REFERENCE RESULTS [--dtype T ...] [--device cpu|cuda] [--gguf FILE]
                      [--mamba FOLDER] [--decode N] [--pieces N ...]

MODEL is a Hugging Face folder, REFERENCE the folder of --reference_path, RESULTS the folder of
`conquer bench report`. consistency_transformers.json and, with --gguf (the same model from
`conquer export --format gguf`), consistency_llama.cpp.json are written there. With --mamba, the
folder that holds the packages mamba_ssm and causal_conv1d, transformers uses their kernels on a
GPU. The dtype float64 (CPU) checks the reference itself.
"""
import argparse
import inspect
import math
import os
import sys

import torch

from results import save

ROWS = 128  # positions whose logits are compared at once


class Comparison:
    """The reference's logits, made from its hidden states by the head in float64."""

    def __init__(self, hidden, head, scale, device):
        self.hidden, self.head = hidden.to(device), head.detach().to(device, torch.float64)
        self.scale = scale

    def row(self, logits, **fields):
        """logits(first, last) returns a way's logits [rows, V] of these positions."""
        length = self.hidden.shape[0]
        kl, most, differing, first, margin = [], [], 0, -1, 0.0
        total = squares = count = 0.0
        for start in range(0, length, ROWS):
            end = min(start + ROWS, length)
            want = self.hidden[start:end] @ self.head.T * self.scale
            got = logits(start, end).to(want.device, torch.float64)
            p, q = want.log_softmax(-1), got.log_softmax(-1)
            kl += (p.exp() * (p - q)).sum(-1).clamp(min=0).tolist()
            most += (got - want).abs().amax(-1).tolist()
            total, squares = total + want.sum().item(), squares + want.pow(2).sum().item()
            count += want.numel()
            best = want.topk(2, -1)
            other = (got.argmax(-1) != best.indices[:, 0]).nonzero().flatten().tolist()
            if other and first < 0:
                first = start + other[0]
                margin = (best.values[other[0], 0] - best.values[other[0], 1]).item()
            differing += len(other)
        curve, start = [], 0
        while start < length:
            end = min(max(start + 1, int(start * math.sqrt(2) + 0.5)), length)
            curve.append(dict(position=end - 1, kl=sum(kl[start:end]) / (end - start),
                              logit=max(most[start:end])))
            start = end
        return dict(fields, length=length, kl_mean=sum(kl) / length, kl_max=max(kl),
                    kl_max_at=kl.index(max(kl)), logit_max=max(most),
                    logit_max_at=most.index(max(most)),
                    logit_scale=math.sqrt(max(squares / count - (total / count)**2, 0)),
                    first_differing=first, margin=margin, differing=differing, curve=curve)


def in_pieces(model, ids, sizes):
    """Logits [L, V] of ids [1, L], read in pieces with a cache. Positions are given: without them
    transformers 5.24 counts from 0 in each piece if the first layer has no attention."""
    given = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    cache, start, parts = None, 0, []
    for size in sizes:
        positions = torch.arange(start, start + size, device=ids.device)[None]
        out = model(ids[:, start:start + size], position_ids=positions, use_cache=True,
                    **{given: cache})
        cache = out.get(given, out.get("past_key_values"))
        parts.append(out.logits[0])
        start += size
    return torch.cat(parts)


def ways(model, ids, args):
    length = ids.shape[1]
    single = args.decode or length - 1
    yield "whole", 0, lambda: model(ids, use_cache=False).logits[0]
    for piece in args.pieces:
        sizes = [min(piece, length - s) for s in range(0, length, piece)]
        yield "pieces", piece, lambda sizes=sizes: in_pieces(model, ids, sizes)
    yield "decode", 0, lambda: in_pieces(model, ids, [length - single] + [1] * single)

    def padded():
        before = 37
        other = ids.flip(1).repeat(1, 2 + before // length)[:, :length + before]
        batch = torch.cat([torch.cat([ids[:, :1].repeat(1, before), ids], 1), other])
        mask = torch.ones_like(batch)
        mask[0, :before] = 0
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = model(batch, attention_mask=mask, position_ids=positions, use_cache=False)
        return out.logits[0, before:]

    yield "padded", 0, padded


def transformers_rows(args, ids, hidden):
    import transformers
    program = f"transformers {transformers.__version__}"
    if args.mamba:
        import mamba_ssm
        program += f" with mamba_ssm {mamba_ssm.__version__}"
    rows = []
    for dtype in args.dtype:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            args.model, dtype=getattr(torch, dtype)).to(args.device).eval()
        head = model.get_output_embeddings().weight
        compare = Comparison(hidden, head, 1.0, args.device)
        for way, piece, run in ways(model, ids.to(args.device), args):
            fields = dict(program=program, way=way, piece=piece, device=args.device, dtype=dtype)
            try:
                logits = run()
                row = compare.row(lambda first, last: logits[first:last], **fields)
            except Exception as error:  # a way that the library lacks is a result
                row = dict(fields, failed=(str(error) or repr(error)).splitlines()[0][:200],
                           length=len(ids[0]), curve=[], first_differing=-1)
            rows.append(row)
            show(row)
    return program, rows, model


def llama_cpp_rows(args, ids, hidden, head):
    import llama_cpp
    program = f"llama.cpp ({llama_cpp.__version__})"
    model = llama_cpp.Llama(args.gguf, n_ctx=ids.shape[1] + 8, n_batch=512, logits_all=True,
                            verbose=False)
    compare, rows, tokens = Comparison(hidden, head, 1.0, "cpu"), [], ids[0].tolist()
    single = args.decode or len(tokens) - 1
    for way, parts in (("cache", [tokens]),
                       ("decode", [tokens[:-single]] + [[t] for t in tokens[-single:]])):
        model.reset()
        for part in parts:
            model.eval(part)
        logits = torch.from_numpy(model.scores[:len(tokens)].copy())
        row = compare.row(lambda first, last: logits[first:last], program=program, way=way,
                          device="cpu", dtype="float32")
        rows.append(row)
        show(row)
    return program, rows


def show(row):
    if row.get("failed"):
        print(f"{row['program']} {row['dtype']} {row['way']} failed: {row['failed']}", flush=True)
        return
    print(f"{row['program']} {row['dtype']} {row['way']} {row.get('piece') or ''}  mean KL "
          f"{row['kl_mean']:.1e}  largest logit difference {row['logit_max']:.1e}  "
          f"{row['differing']} of {row['length']} greedy tokens differ", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("reference")
    parser.add_argument("results")
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--gguf")
    parser.add_argument("--mamba")
    parser.add_argument("--decode", type=int, default=0)
    parser.add_argument("--pieces", type=int, nargs="*", default=[100])
    args = parser.parse_args()
    if args.mamba:
        sys.path.insert(0, args.mamba)
    from safetensors.torch import load_file
    stored = load_file(os.path.join(args.reference, "model.safetensors"))
    ids, hidden = stored["ids"].view(1, -1), stored["hidden"]
    with torch.no_grad():
        program, rows, model = transformers_rows(args, ids, hidden)
        save(args.results, "consistency_transformers", "consistency", rows, program, args.device)
        if args.gguf:
            head = model.get_output_embeddings().weight.cpu()
            program, rows = llama_cpp_rows(args, ids, hidden, head)
            save(args.results, "consistency_llama.cpp", "consistency", rows, program)


if __name__ == "__main__":
    main()
