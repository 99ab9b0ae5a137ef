"""Times AdamW's kernels on a GPU, for several tiles, beside a copy of as many bytes.

    python tune_adamw.py [elements]
"""
import itertools
import pathlib
import sys

import torch
from triton.testing import do_bench

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from kernels import dense  # noqa: E402

SPAN = 1 << 15


def table_of(weight, gradient, mean, square, master, exponents):
    address = lambda t: 0 if t is None else t.data_ptr()
    entry = [address(t) for t in (weight, gradient, mean, square, master, exponents)]
    return torch.tensor(entry + [weight.numel(), 0, 7], device="cuda")


def main():
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 1 << 30
    weight = torch.randn(n, device="cuda").bfloat16()
    gradient = torch.randn_like(weight)
    chunks = torch.zeros(n // SPAN, 2, dtype=torch.int64, device="cuda")
    chunks[:, 1] = torch.arange(n // SPAN, device="cuda") * SPAN
    numbers = (1.0, 1e-5, 0.9, 0.999, 1e-8, 0.1, 0.03)
    other = torch.empty_like(weight)
    copy = do_bench(lambda: other.copy_(gradient), return_mode="median")
    print(f"copy {4 * n / copy / 1e9:.2f} TB/s")
    del other
    for name, has_master in itertools.product(("bf16", "8 bits"), (False, True)):
        master = weight.float() if has_master else None
        eight, exponents = name == "8 bits", None
        mean = torch.zeros(n, dtype=torch.uint8 if eight else torch.bfloat16, device="cuda")
        square = torch.zeros_like(mean)
        if eight:
            exponents = torch.full((2, n // 256), 100, dtype=torch.uint8, device="cuda")
        table = table_of(weight, gradient, mean, square, master, exponents)
        size = 6 + 8 * has_master + (4 + 4 / 256 if eight else 8)
        for tile, warps in itertools.product((512, 1024, 2048, 4096), (2, 4, 8)):
            kernel = dense.adamw_8bit if eight else dense.adamw
            constants = dict(ROWS=tile // 256) if eight else dict(NARROW=True, BLOCK=tile)
            f = lambda: kernel[(n // SPAN, )](table, chunks, weight, *numbers, MASTER=has_master,
                                              SPAN=SPAN, num_warps=warps, num_stages=1, **constants)
            time = do_bench(f, warmup=20, rep=100, return_mode="median")
            print(f"moments {name}, master weights {has_master}: {tile} elements, {warps} warps "
                  f"{time:.3f} ms, {size * n / time / 1e9:.2f} TB/s", flush=True)


if __name__ == "__main__":
    main()
