"""Times gpt-fast's Llama-2-7B on one GPU, for the table of docs/performance.md.

    gptfast.py FOLDER BATCH LENGTH NEW

FOLDER holds gpt-fast's model.py: https://github.com/meta-pytorch/gpt-fast at commit c9f683e (later
ones expect the caller to build a mask). The run has BATCH prompts of LENGTH tokens and NEW tokens
after each. Weights and tokens are random, weights bfloat16. The prompt runs uncompiled; a step is
compiled as gpt-fast's generate.py does. Milliseconds per token are of the steps alone, without the
compilation: the second best of four runs.
"""
import argparse
import sys
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    for name in ("batch", "length", "new"):
        parser.add_argument(name, type=int)
    o = parser.parse_args()
    import torch
    import torch._inductor.config
    sys.path.insert(0, o.folder)
    from model import ModelArgs, Transformer
    torch._inductor.config.coordinate_descent_tuning = True
    torch.set_default_dtype(torch.bfloat16)
    print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)

    config = ModelArgs.from_name("7B")
    config.block_size = max(config.block_size, o.length + 2 * o.new)  # the rotary embedding's table
    with torch.device("cuda"):
        model = Transformer(config)
        model.setup_caches(o.batch, o.length + o.new + 8)
    model = model.cuda().to(torch.bfloat16).eval()

    def seconds(f):
        torch.cuda.synchronize()
        began = time.time()
        f()
        torch.cuda.synchronize()
        return time.time() - began

    prompt = torch.randint(0, 32000, (o.batch, o.length), device="cuda", dtype=torch.int)
    positions = torch.arange(o.length, device="cuda")

    @torch.no_grad()
    def prefill():
        model(prompt, positions)

    step = torch.compile(lambda x, position: model(x, position)[:, -1:].argmax(-1).int(),
                         mode="reduce-overhead", fullgraph=True)

    @torch.no_grad()
    def decode(n):
        x, position = torch.ones(o.batch, 1, device="cuda",
                                 dtype=torch.int), torch.tensor([o.length], device="cuda")
        for _ in range(n):
            x, position = step(x, position).clone(), position + 1

    try:
        prefill()
        print(f"prefill {seconds(prefill) * 1e3:.2f} ms", flush=True)
    except torch.OutOfMemoryError:
        print("prefill: out of memory; the steps use an empty cache", flush=True)
    torch.cuda.empty_cache()
    print(f"compiled in {seconds(lambda: decode(5)):.0f} s", flush=True)
    times = sorted(seconds(lambda: decode(o.new - 1)) for _ in range(4))
    print(
        f"{o.batch} x {o.length} + {o.new}: {times[1] / (o.new - 1) * 1e3:.3f} ms per token,"
        f" {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    )


if __name__ == "__main__":
    sys.exit(main())
