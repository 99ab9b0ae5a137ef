"""Times the products of a decoding step on a GPU, for choices of their tiles: alone beside libtorch's own, and as a layer
launches them, one behind the other, where a kernel's end meets the next one's beginning.

    python tune_dense.py            medians of microseconds, from CUDA graphs over weights that no cache holds
"""
import pathlib
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from kernels import dense, tuning  # noqa: E402

BF16 = torch.bfloat16
# A layer's products in their order: rows and columns of the weight, whether the input is normalized, whether the product is
# gated (rows then counts the outputs, each of two rows) and whether a residual is added.
LAYERS = {
    "Llama-2-7B": [("qkv", 12288, 4096, True, False, False), ("o", 4096, 4096, False, False, True),
                   ("gate_up", 11008, 4096, True, True, False), ("down", 4096, 11008, False, False, True)],
    "Bamba-9B": [("in", 16768, 4096, True, False, False), ("out", 4096, 8192, True, False, True),
                 ("gate_up", 14336, 4096, True, True, False), ("down", 4096, 14336, False, False, True)],
}
# Rows and columns of a tile, warps.
TILES = [(1, 2048, 4), (1, 4096, 4), (2, 1024, 4), (2, 2048, 4), (4, 512, 2), (4, 1024, 4), (4, 2048, 8), (8, 512, 4), (8, 1024, 8)]
GATED = [(1, 1024, 4), (1, 2048, 4), (2, 1024, 4), (2, 2048, 4), (2, 2048, 8), (4, 512, 4), (4, 1024, 4), (4, 1024, 8)]
FEW = [(64, 128, 5, 132), (64, 128, 3, 264), (64, 64, 5, 264), (128, 64, 4, 132)]


def cdiv(a, b):
    return (a + b - 1) // b


def product(x, norm, w, residual, y, kind, tile):
    _, N, D, normed, gated, adds = kind
    bn, bk, warps = tile
    if gated:
        dense.gemv_swiglu[(cdiv(N, bn),)](x, norm, w, x, y, N, D, 1e-5, 0, M=x.shape[0], NORM=normed, BN=bn, BK=bk, PDL=True,
                                            num_warps=warps, launch_pdl=True)
    else:
        dense.gemv[(cdiv(N, bn),)](x, norm, w, x, residual, y, N, D, 1e-5, 0, int(adds), M=x.shape[0], NORM=normed, BN=bn, BK=bk,
                                     PDL=True, num_warps=warps, launch_pdl=True)


def few(x, w, y, choice):
    bn, bk, stages, target = choice
    (M, D), N = x.shape, w.shape[0]
    blocks = cdiv(N, bn)
    span = cdiv(cdiv(D, max(1, target // blocks)), bk) * bk
    shares = cdiv(D, span)
    part = torch.empty(shares, M, N, device="cuda")
    dense.split_k_gemm[(blocks, shares)](x, w, part, M, N, D, span, BM=16, BN=bn, BK=bk, PRECISION="tf32", PDL=True, num_warps=4,
                                     num_stages=stages, launch_pdl=True)
    dense.sum_splits[(M, cdiv(N, 512))](part, x, x, y, M, N, shares, 0, 0, BLOCK=512, PDL=True, launch_pdl=True)


def median(f, inner):
    """Microseconds of one f(i), from replays of a graph of f(0) to f(inner-1)."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        f(0)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(inner):
                f(i)
        times = []
        for _ in range(12):
            a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            a.record()
            graph.replay()
            b.record()
            b.synchronize()
            times.append(a.elapsed_time(b) * 1e3 / inner)
    return sorted(times)[len(times) // 2]


def tensors(kind, M=1):
    _, N, D, _, gated, _ = kind
    random = lambda *s: torch.randn(*s, dtype=BF16, device="cuda")
    return random(M, D), random(D), random(2 * N if gated else N, D) * D ** -0.5, random(M, N), torch.empty(M, N, dtype=BF16, device="cuda")


def warm(job):
    """Compiles one choice; the cache on disk hands it to the process that measures."""
    kind, tile = job
    small = (kind[0], 64, 4096, *kind[3:])
    try:
        product(*tensors(small), small, tile)
        torch.cuda.synchronize()
    except Exception as e:
        return f"{kind} {tile}: {e!r}"[:200]


def layer(name, kinds, copies=6):
    """Each product's tiles in turn, the others at the best so far."""
    sets = [[tensors(kind) for kind in kinds] for _ in range(copies)]
    chosen = {}
    for kind in kinds:
        row = tuning.values("gemv_swiglu" if kind[4] else "gemv", "bf16", M=1)
        chosen[kind[0]] = row["BN"], row["BK"], row["warps"]

    def run(i):
        for kind, t in zip(kinds, sets[i]):
            product(*t, kind, chosen[kind[0]])

    for kind in kinds:
        x, norm, w, residual, y = sets[0][kinds.index(kind)]
        v = x.float()
        if kind[3]:
            v = v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + 1e-5) * norm.float()
        want = v @ w.float().t()
        want = F.silu(want[:, :kind[1]]) * want[:, kind[1]:] if kind[4] else want + residual.float() if kind[5] else want
        results = []
        for tile in GATED if kind[4] else TILES:
            chosen[kind[0]] = tile
            results.append((median(run, copies), tile))
            error = ((y.float() - want).norm() / want.norm()).item()
            if not error < 2e-2:
                print("WRONG", kind, tile, error)
        results.sort()
        chosen[kind[0]] = results[0][1]
        alone = median(lambda i: product(*sets[i % copies][kinds.index(kind)], kind, chosen[kind[0]]), 3 * copies)
        theirs = median(lambda i: F.linear(x, sets[i % copies][kinds.index(kind)][2]), 3 * copies)
        print(f"{name} {kind[0]} {w.shape[0]}x{w.shape[1]}: alone {alone:.1f}, libtorch {theirs:.1f}, {w.nbytes / 3.35e6:.1f} at 3.35 TB/s; a layer with",
              ", ".join(f"{tile} {us:.1f}" for us, tile in results), flush=True)
    floor = sum(t[2].nbytes for t in sets[0]) / 3.35e6
    print(f"{name} a layer: {results[0][0]:.1f} us, {floor:.1f} at 3.35 TB/s", flush=True)


def main():
    shapes = {kind[3:]: kind for kinds in LAYERS.values() for kind in kinds}
    jobs = [(kind, tile) for kind in shapes.values() for tile in (GATED if kind[4] else TILES)]
    with ProcessPoolExecutor(12, mp_context=get_context("spawn")) as pool:
        for failed in filter(None, pool.map(warm, jobs)):
            print("not compiled:", failed)
    a = torch.randn(1 << 30, dtype=BF16, device="cuda")
    b = torch.empty_like(a)
    print(f"copy GB/s {2 * a.nbytes / median(lambda i: b.copy_(a), 3) / 1e3:.0f}, read GB/s {a.nbytes / median(lambda i: a.view(torch.int32).sum(), 3) / 1e3:.0f}", flush=True)
    del a, b
    for name, kinds in LAYERS.items():
        layer(name, kinds)
        torch.cuda.empty_cache()
    for kind in LAYERS["Llama-2-7B"]:
        ws = [tensors(kind, 8) for _ in range(6)]
        x = ws[0][0]
        y = torch.empty(8, ws[0][2].shape[0], dtype=BF16, device="cuda")
        theirs = median(lambda i: F.linear(x, ws[i % 6][2]), 18)
        print(f"8 rows {kind[0]}: libtorch {theirs:.1f};", ", ".join(f"{c} {median(lambda i: few(x, ws[i % 6][2], y, c), 18):.1f}" for c in FEW), flush=True)


if __name__ == "__main__":
    sys.exit(main())
