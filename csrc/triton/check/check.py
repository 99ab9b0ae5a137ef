"""Checks the scan's kernels against a token-by-token recurrence in float64, forward and all
gradients.

    TRITON_INTERPRET=1 python check.py [--quick] [seed] [cases]
        on the CPU, in float32 (run.sh makes the environment)
    python check.py [seed] [cases]
        on a GPU, in float32, bfloat16 and float16
    python check.py --time [--backward]
        on a GPU: times, beside mamba_ssm's kernels if they import (--backward: with their gradient,
        which tunes itself for minutes)
"""
import pathlib
import random
import sys

import autograd
import autograd.numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from check import device, host  # noqa: E402

LIMITS = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 2e-3}


def recurrence(v, seg, chunk, window, softplus, dt_min, dt_max):
    """y [B,L,H,P] and the final state [B,H,P,N] of v: arrays x, dt, a, b and c, and d, bias and
    initial if the layer has them. Each chunk's part of the state is kept separately, so that a
    window can leave old parts out."""
    x, dt, b, c = v["x"], v["dt"], v["b"], v["c"]
    B, L, H, P = x.shape
    if "bias" in v:
        dt = dt + v["bias"]
    if softplus:
        dt = np.logaddexp(dt, 0.0)
    dt = np.clip(dt, dt_min, dt_max)
    repeat = H // b.shape[2]
    b, c = np.repeat(b, repeat, axis=2), np.repeat(c, repeat, axis=2)
    zero = np.zeros((B, H, P, b.shape[3]))
    parts = {-1: v.get("initial", zero)}

    def seen(k):
        return sum((parts[j] for j in parts if window < 0 or j >= k - window), zero)

    ys = []
    for t in range(L):
        decay = np.exp(dt[:, t] * v["a"])[..., None, None]
        if seg is not None and t > 0:
            decay = decay * (seg[:, t] == seg[:, t - 1])[:, None, None, None]
        k = t // chunk
        parts = {j: s * decay for j, s in parts.items() if window < 0 or j >= k - window}
        parts[k] = parts.get(k, zero) + (x[:, t] * dt[:, t, :, None])[..., None] * b[:, t, :, None]
        y = np.sum(seen(k) * c[:, t, :, None], axis=-1)
        ys.append(y + v["d"][:, None] * x[:, t] if "d" in v else y)
    return np.stack(ys, 1), seen((L - 1) // chunk)


def case(rng, r, dtype, worst, quick):
    """Checks one random shape; returns the number of wrong results."""
    pick = rng.choice
    G = pick([1, 1, 2, 3])
    H, B, L = G * pick([1, 2, 4]), pick([1, 1, 2]), pick([1, 2, 17, 64, 65, 100, 130, 200, 300])
    P, N = pick([64, 64, 64, 16, 48, 128]), pick([128, 128, 64, 16, 100])
    if device.INTERPRET:
        P, N = pick([16, 24, 32]), pick([16, 40, 64])
    if quick:
        G, H, L = pick([1, 2]), 2, pick([1, 17, 65, 100])
    chunk, window = pick([16, 32, 64, 128, 256]), pick([-1, -1, -1, 0, 1, 2, 3])
    if not device.INTERPRET and (P, N) != (64, 128):
        chunk = max(chunk, 32)
    softplus, clamp = pick([True, True, False]), pick([False, False, True])
    has = {n: pick([True, False]) for n in ("d", "bias", "initial", "dfinal")}
    has["seg"] = pick([False, False, True])
    drawn = dict(x=(r.normal(size=(B, L, H, P)), dtype), b=(r.normal(size=(B, L, G, N)), dtype),
                 c=(r.normal(size=(B, L, G, N)), dtype), a=(-r.random(H) * 15 - 0.05, "fp32"),
                 dt=(r.normal(size=(B, L, H)) if softplus else r.random((B, L, H)) * 0.2, dtype))
    if has["d"]:
        drawn["d"] = r.normal(size=H), "fp32"
    if has["bias"]:
        drawn["bias"] = r.random(H) - 4, "fp32"
    if has["initial"]:
        drawn["initial"] = r.normal(size=(B, H, P, N)), "fp32"
    values = {name: device.tensor(*d) for name, d in drawn.items()}
    exact = {name: device.host(t) for name, t in values.items()}
    seg = np.cumsum(r.random((B, L)) < 0.1, axis=1) if has["seg"] else None
    limits = (0.01, 0.1) if clamp else (0.0, float("inf"))
    options = seg, chunk, window if window < (L + chunk - 1) // chunk else -1, softplus, *limits
    gy, gf = device.tensor(r.normal(size=(B, L, H, P)),
                           dtype), device.tensor(r.normal(size=(B, H, P, N)))

    def loss(v):
        y, final = recurrence(v, *options)
        total = np.sum(y * device.host(gy))
        return total + np.sum(final * device.host(gf)) if has["dfinal"] else total

    y, final = recurrence(exact, *options)
    wanted = autograd.grad(loss)(exact)
    inputs = [values.get(n) for n in ("x", "dt", "a", "b", "c", "d", "bias", "initial")]
    inputs.append(None if seg is None else device.tensor(seg, "i32"))
    scan = host.Scan(*inputs, *options[1:], programs=pick([1, H * B * 2, 64]))
    got_y, got_final = scan.forward()
    alone_y, alone_final = host.Scan(*inputs, *options[1:], alone=True).forward(False)
    results = [("y", got_y, y), ("final", got_final, final), ("y alone", alone_y, y),
               ("final alone", alone_final, final)]
    grads = scan.backward(gy, gf if has["dfinal"] else None)
    results += [("d" + name, grads[name], wanted[name]) for name in exact]
    bad = 0
    for name, got, want in results:
        size = np.linalg.norm(want)
        error = np.linalg.norm(device.host(got) - want) / (size if size > 0 else 1)
        largest = max(worst.get((dtype, name), 0), error)
        worst[dtype, name] = largest if error == error else float("nan")
        if not error < LIMITS[dtype]:
            bad += 1
            print(f"FAIL B{B} L{L} H{H} P{P} N{N} G{G} chunk{chunk} window{window} "
                  f"softplus{softplus} clamp{clamp} {has} spans{scan.span} {dtype}: "
                  f"{name} differs by {error:.1e}")
    return bad


def main(arguments, quick=False):
    seed = int(arguments[0]) if arguments else 1
    count = int(arguments[1]) if len(arguments) > 1 else 20
    rng, r = random.Random(seed), np.random.default_rng(seed)
    worst, bad = {}, 0
    for i in range(count):
        bad += case(rng, r, device.DTYPES[i % len(device.DTYPES)], worst, quick)
    for (dtype, name), error in sorted(worst.items()):
        print(f"{dtype} {name:12s} {error:.2e}")
    print(f"scan: {bad} failures" if bad else f"scan: {count} cases within limits")
    return bad != 0


if __name__ == "__main__":
    if "--time" in sys.argv:
        from tune import timing
        timing.main()
    else:
        quick = "--quick" in sys.argv
        sys.exit(main([a for a in sys.argv[1:] if a != "--quick"], quick))
