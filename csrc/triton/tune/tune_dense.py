"""Times the GEMVs of a decoding step on a GPU for several tiles: each alone, beside libtorch's, and
as a layer launches them in sequence, where the end of one kernel overlaps the start of the next.

    python tune_dense.py

prints median microseconds, from CUDA graphs over weights that no cache holds.
"""
import pathlib
import sys
import typing
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from kernels import dense, tuning  # noqa: E402

BF16 = torch.bfloat16


class Gemv(typing.NamedTuple):
    """A GEMV of a layer: rows and columns of the weight; if gated, two weight rows per row."""
    name: str
    rows: int
    columns: int
    normed: bool  # the input is normalized
    gated: bool
    adds: bool  # a residual is added


# The GEMVs of a layer, in order.
LAYERS = {
    "Llama-2-7B": [
        Gemv("qkv", 12288, 4096, True, False, False),
        Gemv("o", 4096, 4096, False, False, True),
        Gemv("gate_up", 11008, 4096, True, True, False),
        Gemv("down", 4096, 11008, False, False, True)
    ],
    "Bamba-9B": [
        Gemv("in", 16768, 4096, True, False, False),
        Gemv("out", 4096, 8192, True, False, True),
        Gemv("gate_up", 14336, 4096, True, True, False),
        Gemv("down", 4096, 14336, False, False, True)
    ],
}
# (rows of a tile, columns, warps)
TILES = [(1, 2048, 4), (1, 4096, 4), (2, 1024, 4), (2, 2048, 4), (4, 512, 2), (4, 1024, 4),
         (4, 2048, 8), (8, 512, 4), (8, 1024, 8)]
GATED = [(1, 1024, 4), (1, 2048, 4), (2, 1024, 4), (2, 2048, 4), (2, 2048, 8), (4, 512, 4),
         (4, 1024, 4), (4, 1024, 8)]
FEW = [(64, 128, 5, 132), (64, 128, 3, 264), (64, 64, 5, 264), (128, 64, 4, 132)]


def cdiv(a, b):
    return (a + b - 1) // b


def launch_gemv(x, norm, w, residual, y, kind, tile):
    _, N, D, normed, gated, adds = kind
    bn, bk, warps = tile
    if gated:
        dense.gemv_swiglu[(cdiv(N,
                                bn), )](x, norm, w, x, y, N, D, 1e-5, 0, M=x.shape[0], NORM=normed,
                                        BN=bn, BK=bk, PDL=True, num_warps=warps, launch_pdl=True)
    else:
        dense.gemv[(cdiv(N, bn), )](x, norm, w, x, residual, y, N, D, 1e-5, 0, int(adds),
                                    M=x.shape[0], NORM=normed, BN=bn, BK=bk, PDL=True,
                                    num_warps=warps, launch_pdl=True)


def few(x, w, y, choice):
    bn, bk, stages, target = choice
    (M, D), N = x.shape, w.shape[0]
    blocks = cdiv(N, bn)
    span = cdiv(cdiv(D, max(1, target // blocks)), bk) * bk
    shares = cdiv(D, span)
    part = torch.empty(shares, M, N, device="cuda")
    dense.split_k_gemm[(blocks, shares)](x, w, part, M, N, D, span, BM=16, BN=bn, BK=bk,
                                         PRECISION="tf32", PDL=True, num_warps=4, num_stages=stages,
                                         launch_pdl=True)
    dense.sum_splits[(M, cdiv(N, 512))](part, x, x, y, M, N, shares, 0, 0, BLOCK=512, PDL=True,
                                        launch_pdl=True)


def median(f, inner):
    """Median microseconds of one f(i), from replays of a graph of f(0) to f(inner-1)."""
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
    w = random(2 * N if gated else N, D) * D ** -0.5
    y = torch.empty(M, N, dtype=BF16, device="cuda")
    return random(M, D), random(D), w, random(M, N), y


def warm(job):
    """Compiles one choice into the cache on disk, for the process that measures."""
    kind, tile = job
    small = kind._replace(rows=64, columns=4096)
    try:
        launch_gemv(*tensors(small), small, tile)
        torch.cuda.synchronize()
    except Exception as e:
        return f"{kind} {tile}: {e!r}"[:200]


def layer(name, kinds, copies=6):
    """Tries the tiles of each GEMV in turn, with the best so far for the others."""
    sets = [[tensors(kind) for kind in kinds] for _ in range(copies)]
    chosen = {}
    for kind in kinds:
        row = tuning.values("gemv_swiglu" if kind.gated else "gemv", "bf16", M=1)
        chosen[kind.name] = row["BN"], row["BK"], row["warps"]

    def run(i):
        for kind, t in zip(kinds, sets[i]):
            launch_gemv(*t, kind, chosen[kind.name])

    for kind in kinds:
        x, norm, w, residual, y = sets[0][kinds.index(kind)]
        v = x.float()
        if kind.normed:
            v = v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + 1e-5) * norm.float()
        want = v @ w.float().t()
        if kind.gated:
            want = F.silu(want[:, :kind.rows]) * want[:, kind.rows:]
        elif kind.adds:
            want = want + residual.float()
        results = []
        for tile in GATED if kind.gated else TILES:
            chosen[kind.name] = tile
            results.append((median(run, copies), tile))
            error = ((y.float() - want).norm() / want.norm()).item()
            if not error < 2e-2:
                print("WRONG", kind, tile, error)
        results.sort()
        chosen[kind.name] = results[0][1]
        alone = median(
            lambda i: launch_gemv(*sets[i % copies][kinds.index(kind)], kind, chosen[kind.name]),
            3 * copies)
        theirs = median(lambda i: F.linear(x, sets[i % copies][kinds.index(kind)][2]), 3 * copies)
        print(
            f"{name} {kind.name} {w.shape[0]}x{w.shape[1]}: alone {alone:.1f},",
            f"libtorch {theirs:.1f},",
            f"{w.nbytes / 3.35e6:.1f} at 3.35 TB/s; a layer with",
            ", ".join(f"{tile} {us:.1f}" for us, tile in results), flush=True)
    floor = sum(t[2].nbytes for t in sets[0]) / 3.35e6
    print(f"{name} a layer: {results[0][0]:.1f} us, {floor:.1f} at 3.35 TB/s", flush=True)


def main():
    shapes = {kind[3:]: kind for kinds in LAYERS.values() for kind in kinds}
    jobs = [(kind, tile) for kind in shapes.values() for tile in (GATED if kind.gated else TILES)]
    with ProcessPoolExecutor(12, mp_context=get_context("spawn")) as pool:
        for failed in filter(None, pool.map(warm, jobs)):
            print("not compiled:", failed)
    a = torch.randn(1 << 30, dtype=BF16, device="cuda")
    b = torch.empty_like(a)
    print(
        f"copy GB/s {2 * a.nbytes / median(lambda i: b.copy_(a), 3) / 1e3:.0f},"
        f" read GB/s {a.nbytes / median(lambda i: a.view(torch.int32).sum(), 3) / 1e3:.0f}",
        flush=True)
    del a, b
    for name, kinds in LAYERS.items():
        layer(name, kinds)
        torch.cuda.empty_cache()
    for kind in LAYERS["Llama-2-7B"]:
        ws = [tensors(kind, 8) for _ in range(6)]
        x = ws[0][0]
        y = torch.empty(8, ws[0][2].shape[0], dtype=BF16, device="cuda")
        theirs = median(lambda i: F.linear(x, ws[i % 6][2]), 18)
        print(f"8 rows {kind.name}: libtorch {theirs:.1f};",
              ", ".join(f"{c} {median(lambda i: few(x, ws[i % 6][2], y, c), 18):.1f}" for c in FEW),
              flush=True)


if __name__ == "__main__":
    sys.exit(main())
