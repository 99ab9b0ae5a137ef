"""Checks the Triton kernels against a token-by-token recurrence in float64, forward and every gradient.

    TRITON_INTERPRET=1 python check.py [seed] [cases]      on the CPU, in float32
    python check.py [seed] [cases]                         on a GPU, in float32, bfloat16 and float16
    python check.py --time [--backward]                    on a GPU: times, beside mamba_ssm's kernels where they import
                                                           (--backward: of its gradient too, minutes of tuning)
"""
import os
import pathlib
import random
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from check import host  # noqa: E402

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRET else "cuda"


def recurrence(x, dt, a, b, c, d, bias, initial, seg, chunk, window, softplus, dt_min, dt_max):
    B, L, H, P = x.shape
    if bias is not None:
        dt = dt + bias
    if softplus:
        dt = torch.nn.functional.softplus(dt)
    dt = dt.clamp(dt_min, dt_max)
    repeat = H // b.shape[2]
    b, c = b.repeat_interleave(repeat, 2), c.repeat_interleave(repeat, 2)
    zero = x.new_zeros(B, H, P, b.shape[3])
    parts = {-1: zero if initial is None else initial}

    def seen(k):
        return sum((parts[j] for j in parts if window < 0 or j >= k - window), zero)

    ys = []
    for t in range(L):
        decay = torch.exp(dt[:, t] * a)[..., None, None]
        if seg is not None and t > 0:
            decay = decay * (seg[:, t] == seg[:, t - 1])[:, None, None, None]
        k = t // chunk
        parts = {j: s * decay for j, s in parts.items() if window < 0 or j >= k - window}
        parts[k] = parts.get(k, zero) + (x[:, t] * dt[:, t, :, None])[..., None] * b[:, t, :, None]
        y = (seen(k) * c[:, t, :, None]).sum(-1)
        ys.append(y if d is None else y + d[:, None] * x[:, t])
    return torch.stack(ys, 1), seen((L - 1) // chunk)


def case(rng, dtype, worst):
    pick = rng.choice
    G = pick([1, 1, 2, 3])
    H, B, L = G * pick([1, 2, 4]), pick([1, 1, 2]), pick([1, 2, 17, 64, 65, 100, 130, 200, 300])
    P, N = pick([64, 64, 64, 16, 48, 128]), pick([128, 128, 64, 16, 100])
    if INTERPRET:
        P, N = pick([16, 24, 32]), pick([16, 40, 64])
    chunk, window = pick([16, 32, 64, 128, 256]), pick([-1, -1, -1, 0, 1, 2, 3])
    if not INTERPRET and (P, N) != (64, 128):
        chunk = max(chunk, 32)
    softplus, clamp = pick([True, True, False]), pick([False, False, True])
    has = {n: pick([True, False]) for n in ("d", "bias", "initial", "dfinal")}
    has["seg"] = pick([False, False, True])
    double = dict(dtype=torch.float64)
    r = lambda *s: torch.randn(*s, **double)
    values = dict(x=r(B, L, H, P), dt=r(B, L, H) if softplus else torch.rand(B, L, H, **double) * 0.2, b=r(B, L, G, N),
                  c=r(B, L, G, N))
    values = {k: v.to(dtype) for k, v in values.items()}
    values["a"] = (-torch.rand(H, **double) * 15 - 0.05).float()
    if has["d"]:
        values["d"] = r(H).float()
    if has["bias"]:
        values["bias"] = (torch.rand(H, **double) - 4).float()
    if has["initial"]:
        values["initial"] = r(B, H, P, N).float()
    seg = (torch.rand(B, L) < 0.1).int().cumsum(1).int() if has["seg"] else None
    names = ("x", "dt", "a", "b", "c", "d", "bias", "initial")
    limits = (0.01, 0.1) if clamp else (0.0, float("inf"))
    chunks = (L + chunk - 1) // chunk
    effective = -1 if window >= chunks else window
    exact = {k: v.double().requires_grad_() for k, v in values.items()}
    ref, ref_final = recurrence(*(exact.get(k) for k in names), seg, chunk, window, softplus, *limits)
    here = [values[k].to(DEVICE) if k in values else None for k in names]
    s = host.Scan(*here, None if seg is None else seg.to(DEVICE), chunk, effective, softplus, *limits,
                  programs=pick([1, H * B * 2, 64]))
    y, final = s.forward()
    alone = host.Scan(*here, None if seg is None else seg.to(DEVICE), chunk, effective, softplus, *limits, alone=True).forward(False)
    gy, gf = torch.randn(ref.shape).to(dtype), torch.randn(ref_final.shape)
    loss = (ref * gy.double()).sum() + ((ref_final * gf.double()).sum() if has["dfinal"] else 0)
    loss.backward()
    grads = s.backward(gy.to(DEVICE), gf.to(DEVICE) if has["dfinal"] else None)
    title = f"B{B} L{L} H{H} P{P} N{N} G{G} chunk{chunk} window{window} softplus{softplus} clamp{clamp} {has} spans{s.span} {dtype}"
    limit = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    bad = 0
    for name, got, want in [("y", y, ref), ("final", final, ref_final), ("y alone", alone[0], ref), ("final alone", alone[1], ref_final)] + [("d" + k, grads[k], v.grad) for k, v in exact.items()]:
        want = torch.zeros_like(got, dtype=torch.float64) if want is None else want.detach()
        error = ((got.cpu().double() - want.cpu()).norm() / max(want.norm().item(), 1e-30)).item()
        if want.norm() == 0:
            error = got.norm().item()
        key = (str(dtype), name)
        worst[key] = max(worst.get(key, 0), error) if error == error else float("nan")
        if not error < limit:
            bad += 1
            print("FAIL", title, name, error)
    return bad


def main():
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    rng = random.Random(seed)
    torch.manual_seed(seed)
    worst, bad = {}, 0
    for i in range(count):
        dtype = torch.float32 if INTERPRET else [torch.float32, torch.bfloat16, torch.float16][i % 3]
        bad += case(rng, dtype, worst)
    for (dtype, name), error in sorted(worst.items()):
        print(f"{dtype:16s} {name:10s} {error:.2e}")
    print(f"{bad} failures" if bad else "all within limits")
    return bad != 0


if __name__ == "__main__":
    if "--time" in sys.argv:
        from tune import timing
        timing.main()
    else:
        sys.exit(main())
