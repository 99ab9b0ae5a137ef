"""Times the kernels of dense.py that read weights and caches, on a GPU, for choices of their tiles, beside libtorch's own.

    python tune_dense.py            medians of microseconds, weights rotated so that none stays in the cache
"""
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
import torch.nn.functional as F

import dense

BF16 = torch.bfloat16
SHAPES = {"qkv": (12288, 4096), "o": (4096, 4096), "down": (4096, 11008), "head": (32000, 4096)}
GATED = (11008, 4096)
TILES = [(bn, bk, warps) for bn in (2, 4, 8) for bk in (512, 1024, 2048) for warps in (4, 8) if bn * bk // (warps * 32) in (16, 32, 64)]
FEW = [(bn, bk, stages, target) for bn in (64, 128) for bk in (64, 128) for stages in (3, 5) for target in (132, 264, 528)]


def cdiv(a, b):
    return (a + b - 1) // b


def matvec(x, w, y, tile):
    bn, bk, warps = tile
    N, D = w.shape
    dense.matvec[(cdiv(N, bn),)](x, x, w, x, x, y, N, D, 1e-5, 0, 0, M=x.shape[0], NORM=False, BN=bn, BK=bk, PDL=True, num_warps=warps, launch_pdl=True)


def gated(x, w, y, tile):
    bn, bk, warps = tile
    N, D = w.shape
    dense.matvec_swiglu[(cdiv(N // 2, bn),)](x, x, w, x, y, N // 2, D, 1e-5, 0, M=x.shape[0], NORM=True, BN=bn, BK=bk, PDL=True, num_warps=warps, launch_pdl=True)


def few(x, w, y, choice):
    bn, bk, stages, target = choice
    (M, D), N = x.shape, w.shape[0]
    blocks = cdiv(N, bn)
    span = cdiv(cdiv(D, max(1, target // blocks)), bk) * bk
    shares = cdiv(D, span)
    part = torch.empty(shares, M, N, device="cuda")
    dense.few_rows[(blocks, shares)](x, w, part, M, N, D, span, BM=16, BN=bn, BK=bk, PRECISION="tf32", PDL=True, num_warps=4,
                                     num_stages=stages, launch_pdl=True)
    dense.join_rows[(M, cdiv(N, 512))](part, x, x, y, M, N, shares, 0, 0, BLOCK=512, PDL=True, launch_pdl=True)


def median(f, copies, inner=20):
    """Microseconds of one f(i), i counting through the copies, from replays of a graph of `inner` of them."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(min(copies, 3)):
            f(i)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(inner):
                f(i % copies)
        times = []
        for _ in range(12):
            a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            a.record()
            graph.replay()
            b.record()
            b.synchronize()
            times.append(a.elapsed_time(b) * 1e3 / inner)
    return sorted(times)[len(times) // 2]


def warm(job):
    """Compiles one choice; the cache on disk hands it to the process that measures."""
    kind, choice = job
    torch.manual_seed(0)
    x, w = torch.randn(8 if kind == "few" else 1, 4096, dtype=BF16, device="cuda"), torch.randn(4096, 4096, dtype=BF16, device="cuda")
    y = torch.empty(x.shape[0], 4096, dtype=BF16, device="cuda")
    try:
        {"matvec": matvec, "gated": gated, "few": few}[kind](x, w, y, choice)
        torch.cuda.synchronize()
    except Exception as e:
        return f"{kind} {choice}: {e!r}"[:200]


def main():
    jobs = [("matvec", t) for t in TILES] + [("gated", t) for t in TILES] + [("few", c) for c in FEW if c[3] == 264]
    with ProcessPoolExecutor(12, mp_context=get_context("spawn")) as pool:
        for failed in filter(None, pool.map(warm, jobs)):
            print("not compiled:", failed)
    print("copy GB/s", end=" ")
    a = torch.randn(1 << 30, dtype=BF16, device="cuda")
    b = torch.empty_like(a)
    us = median(lambda i: b.copy_(a), 1, 3)
    print(f"{2 * a.nbytes / us / 1e3:.0f}", flush=True)
    del a, b
    for name, (N, D) in [*SHAPES.items(), ("gate_up", (2 * GATED[0], GATED[1]))]:
        copies = max(3, int(4e8 // (N * D * 2)))
        ws = [torch.randn(N, D, dtype=BF16, device="cuda") * D ** -0.5 for _ in range(copies)]
        for M in (1, 8):
            x = torch.randn(M, D, dtype=BF16, device="cuda")
            y = torch.empty(M, N // 2 if name == "gate_up" else N, dtype=BF16, device="cuda")
            kind, choices = (gated, TILES) if name == "gate_up" and M == 1 else (matvec, TILES) if M == 1 else (few, FEW)
            if name == "gate_up" and M > 1:
                continue
            want = F.linear(x, ws[0])
            if kind is gated:
                normal = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5) * x.float()
                want = F.linear(normal.to(BF16), ws[0])
                want = F.silu(want[:, :N // 2]) * want[:, N // 2:]
            results = []
            for c in choices:
                try:
                    kind(x, ws[0], y, c)
                    error = ((y - want).float().norm() / want.float().norm()).item()
                    results.append((median(lambda i: kind(x, ws[i], y, c), copies), c, error))
                except Exception as e:
                    print("failed", name, M, c, repr(e)[:120])
            theirs = median(lambda i: F.linear(x, ws[i]), copies)
            floor = N * D * 2 / 3.35e6
            best = ", ".join(f"{c} {us:.1f}" for us, c, _ in sorted(results)[:5])
            worst = max((e for *_, e in results), default=0)
            print(f"{name} {N}x{D} M{M}: libtorch {theirs:.1f}, {floor:.1f} at 3.35 TB/s; {best}; slowest {max(results)[0]:.1f}, error {worst:.1e}", flush=True)
        del ws


if __name__ == "__main__":
    sys.exit(main())
