"""Times the scan's kernels on a GPU with CUDA graphs, beside mamba_ssm's if that package imports
(check.py --time). --sweep tries warps, pipeline stages, block sizes and segment counts instead.
"""
import itertools
import sys

import torch
from triton.testing import do_bench_cudagraph

from check import host

DEVICE = "cuda"


def median(f, rep=60):
    f()
    return do_bench_cudagraph(f, rep=rep, return_mode="median")


def inputs(B, L, H=128, P=64, N=128, G=1, dtype=torch.bfloat16):
    r = lambda *s: torch.randn(*s, dtype=dtype, device=DEVICE)
    return dict(x=r(B, L, H, P), dt=r(B, L, H), a=-torch.rand(H, device=DEVICE) * 15 - 1,
                b=r(B, L, G, N), c=r(B, L, G, N), d=torch.ones(H, device=DEVICE),
                bias=torch.rand(H, device=DEVICE) - 4)


def by_kernel(f):
    """Microseconds of each kernel of one call."""
    from torch.profiler import ProfilerActivity, profile
    f()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as p:
        for _ in range(5):
            f()
        torch.cuda.synchronize()
    return {
        e.key[:24]: round(e.self_device_time_total / 5, 1)
        for e in p.key_averages() if e.self_device_time_total > 5
    }


def mamba():  # PYTHONPATH names the folder that holds mamba_ssm
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
        return mamba_chunk_scan_combined
    except Exception as e:
        print("mamba_ssm does not import:", repr(e)[:200])


def sweep():
    for B, L in [(1, 4096), (1, 16384)]:
        v = inputs(B, L)
        results = []
        for (w, s), Q, programs in itertools.product([(4, 1), (4, 2), (4, 3), (8, 1), (8, 2),
                                                      (8, 3)], (64, 128), (264, 528, 1056)):
            if programs != 528 and (w, s) not in [(4, 2), (8, 2)]:
                continue
            host.OPTIONS["scan"] = dict(num_warps=w, num_stages=s)
            try:
                one = host.Scan(**v, block=Q, programs=programs)
                results.append((median(one.forward, 30), f"scan w{w} s{s} Q{Q} programs{programs}"))
            except Exception as e:
                print("scan", w, s, Q, programs, repr(e)[:100])
        for t, name in sorted(results)[:12]:
            print(f"L{L} {name} {t:.4f}", flush=True)
        best = sorted(results)[0][1].split()
        host.OPTIONS["scan"] = dict(num_warps=int(best[1][1:]), num_stages=int(best[2][1:]))
        Q, programs = int(best[3][1:]), int(best[4][8:])
        for w, s in itertools.product((4, 8), (1, 2, 3, 4)):
            host.OPTIONS["carry_state"] = dict(num_warps=w, num_stages=s)
            one = host.Scan(**v, block=Q, programs=programs)
            print("carry_state", w, s, f"{median(one.forward, 30):.4f}",
                  by_kernel(one.forward) if s == 3 else "", flush=True)


def main():
    if "--sweep" in sys.argv:
        return sweep()
    theirs = mamba()
    for B, L in [(1, 256), (1, 1024), (1, 4096), (1, 16384), (1, 65536), (8, 2048)]:
        v = inputs(B, L)
        one = host.Scan(**v, alone=True)
        ours = median(lambda: one.forward(False))
        line = f"B{B} L{L} forward {ours:.4f} ms"
        if theirs:
            call = lambda v: theirs(v["x"], v["dt"], v["a"], v["b"], v["c"], 256, D=v["d"], dt_bias=
                                    v["bias"], dt_softplus=True, return_final_states=True)
            with torch.no_grad():
                peer = median(lambda: call(v))
                y, final = one.forward(False)
                ry, rf = call(v)
                difference = ((y - ry).norm() / ry.norm()).item()
                line += f" mamba_ssm {peer:.4f} ratio {peer / ours:.2f} differ {difference:.1e}"
        print(line, by_kernel(lambda: one.forward(False)) if L in (1024, 16384) else "", flush=True)
        if L > 16384:
            continue
        dy = torch.randn_like(v["x"])
        one = host.Scan(**v)
        one.forward()
        ours = median(lambda: one.backward(dy))
        line = f"B{B} L{L} backward {ours:.4f} ms"
        if theirs and L >= 1024 and "--backward" in sys.argv:  # its kernels tune for minutes
            g = {k: t.detach().clone().requires_grad_() for k, t in v.items()}
            out, _ = call(g)
            from triton.testing import do_bench
            back = lambda: torch.autograd.grad(out, list(g.values()), dy, retain_graph=True)
            peer = do_bench(back, warmup=30, rep=100, return_mode="median")
            theirs_grads = dict(zip(g, back()))
            mine = one.backward(dy)
            worst = max((k, ((mine[k].float() - theirs_grads[k].float()).norm() /
                             theirs_grads[k].float().norm()).item()) for k in g)
            line += f" mamba_ssm {peer:.4f} ratio {peer / ours:.2f} differ {worst}"
            del out, g
        print(line, by_kernel(lambda: one.backward(dy)) if L in (1024, 16384) else "", flush=True)
        del one
    step()


def step(H=128, P=64, N=128):
    """The state update of one token; the peer gets its arguments as its own model passes them."""
    import triton

    from kernels import rows
    try:
        from mamba_ssm.ops.triton.selective_state_update import selective_state_update
    except Exception:
        selective_state_update = None
    for B in (1, 8, 64):
        r = lambda *s: torch.randn(*s, dtype=torch.bfloat16, device=DEVICE)
        state, x, dt, b, c = r(B, H, P, N), r(B, H, P), r(B, H), r(B, 1, N), r(B, 1, N)
        a, d = -torch.rand(H, device=DEVICE), torch.ones(H, device=DEVICE)
        bias = torch.rand(H, device=DEVICE)
        y = torch.empty_like(x)
        results = []
        for rows_a_program, warps in ((4, 1), (8, 1), (8, 2), (16, 2), (16, 4), (32, 4), (64, 4)):
            launch = rows.state_step[(B * H, P // rows_a_program)]
            f = lambda: launch(state, x, dt, a, None, b, c, d, None, bias, y, H, H, P, N, 0.0,
                               float("inf"), HAS_Z=False, SOFTPLUS=True, LOG=False,
                               BP=rows_a_program, BN=N, MASK=False, PDL=False, num_warps=warps)
            results.append((median(f, 30) * 1e3, f"BP{rows_a_program} warps{warps}"))
        line = f"step B{B} us " + ", ".join(f"{n} {t:.2f}" for t, n in sorted(results)[:3])
        if selective_state_update:
            wide_dt, wide_a = dt[:, :, None].expand(B, H, P), a[:, None, None].expand(H, P, N)
            wide_d, wide_bias = d[:, None].expand(H, P), bias[:, None].expand(H, P)
            f = lambda: selective_state_update(state, x, wide_dt, wide_a, b, c, D=wide_d,
                                               dt_bias=wide_bias, dt_softplus=True)
            peer = median(f, 30) * 1e3
            line += f" mamba_ssm {peer:.2f} ratio {peer / min(results)[0]:.2f}"
        print(line, flush=True)
