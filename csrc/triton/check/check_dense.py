"""Checks the kernels of dense.py and attend.py, and of rows.py but for the state update, against plain PyTorch.

    TRITON_INTERPRET=1 python check_dense.py [seed]      on the CPU, in float32
    python check_dense.py [seed]                         on a GPU, in float32, bfloat16 and float16
"""
import os
import pathlib
import random
import sys

import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from kernels import attend, dense, rows  # noqa: E402

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRET else "cuda"
PDL = False
bad = 0

if INTERPRET:  # newer versions of numpy do not take an array of one element for a number
    import triton.runtime.interpreter as interpreter

    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_with_index


def cdiv(a, b):
    return (a + b - 1) // b


def power(n, least=16):
    while least < n:
        least *= 2
    return least


def check(what, got, want, limit):
    global bad
    got, want = got.double().cpu(), want.double().cpu()
    error = ((got - want).norm() / max(want.norm().item(), 1e-30)).item() if want.norm() > 0 else got.norm().item()
    if not error <= limit:
        bad += 1
        print(f"FAIL {what}: {error:.2e}, at most {limit:.0e}")
    return error


def norm(rng, r, dtype, limit):
    rows, D = rng.choice([1, 3, 20]), rng.choice([48, 576, 1024])
    x, w, dy = r(rows, D), r(D), r(rows, D)
    y, dx, rstd = torch.full_like(x, float("nan")), torch.full_like(x, float("nan")), torch.empty(rows, device=DEVICE)
    dense.rms_norm[(rows,)](x, w, y, rstd, D, 1e-5, 1, BLOCK=power(D, 1024), PDL=PDL)
    leaf, wide = x.double().requires_grad_(), w.double().requires_grad_()
    want = leaf * torch.rsqrt(leaf.pow(2).mean(-1, keepdim=True) + 1e-5) * wide
    want.backward(dy.double())
    programs = min(rows, 4)
    part = torch.empty(programs, D, device=DEVICE)
    dense.rms_norm_grad[(programs,)](dy, x, w, rstd, dx, part, rows, D, WEIGHT=True, BLOCK=power(D, 1024))
    check("rms_norm", y, want.detach(), limit)
    check("rms_norm dx", dx, leaf.grad, limit)
    check("rms_norm dweight", part.sum(0), wide.grad, limit)


def rotate(x, cos, sin):
    half = cos.shape[-1]
    x, c, s = x.transpose(1, 2).double(), cos[:, None].double(), sin[:, None].double()
    a, b, rest = x[..., :half], x[..., half:2 * half], x[..., 2 * half:]
    return torch.cat([a * c - b * s, b * c + a * s, rest], -1)


def rope(rng, r, dtype, limit):
    B, L, K, G, P = rng.choice([1, 2]), rng.choice([1, 5, 17]), rng.choice([1, 2, 3]), rng.choice([1, 2, 3]), rng.choice([32, 64, 80, 96])
    H, half = K * G, rng.choice([n for n in (P // 2, P // 4) if n % 16 == 0] or [16])
    per_row = rng.choice([False, True]) and B > 1
    angles = torch.rand(B if per_row else 1, L, half, device=DEVICE) * 6
    cos, sin = angles.cos(), angles.sin()
    qkv = r(B, L, (H + 2 * K) * P)
    parts = qkv.view(B, L, H + 2 * K, P).split([H, K, K], 2)
    wants = rotate(parts[0], cos, sin), rotate(parts[1], cos, sin), parts[2].transpose(1, 2).double()
    heads, bh = rng.choice([4, 8]), power(half)
    for cached in (False, True):
        S = L + 9 if cached else L
        q, k, v = (torch.full((B, n, s, P), float("nan"), dtype=dtype, device=DEVICE) for n, s in ((H, L), (K, S), (K, S)))
        if rng.random() < 0.5:
            q = torch.full((B, L, H, P), float("nan"), dtype=dtype, device=DEVICE).transpose(1, 2)
        columns = torch.arange(L, device=DEVICE)[None] + 3
        dense.rope_qkv[(B * L, cdiv(H + 2 * K, heads))](
            qkv, cos, sin, q, k, v, columns, H, K, L, P, half, L * half if per_row else 0, int(cached), 0, *q.stride()[:3],
            K * S * P, S * P, P, HEADS=heads, BH=bh, PDL=PDL)
        at = slice(3, 3 + L) if cached else slice(0, L)
        for name, got, want in (("q", q, wants[0]), ("k", k[:, :, at], wants[1]), ("v", v[:, :, at], wants[2])):
            check(f"rope {name} {B, L, H, K, P, half, cached}", got, want, limit)
        if cached and not k[:, :, :3].isnan().all():
            check("rope wrote elsewhere", torch.ones(1), torch.zeros(1), 0)
    grads = [r(B, L, n, P).transpose(1, 2) if rng.random() < 0.5 else r(B, n, L, P) for n in (H, K, K)]
    leaf = qkv.double().requires_grad_()
    parts = leaf.view(B, L, H + 2 * K, P).split([H, K, K], 2)
    outs = rotate(parts[0], cos, sin), rotate(parts[1], cos, sin), parts[2].transpose(1, 2)
    sum((o * g.double()).sum() for o, g in zip(outs, grads)).backward()
    dqkv = torch.full_like(qkv, float("nan"))
    dense.rope_qkv_grad[(B * L, cdiv(H + 2 * K, heads))](
        *grads, cos, sin, dqkv, H, K, L, P, half, L * half if per_row else 0, *(s for g in grads for s in g.stride()[:3]),
        HEADS=heads, BH=bh)
    check("rope grad", dqkv, leaf.grad, limit)


def gated(rng, r, dtype, limit):
    rows, width = rng.choice([1, 7]), rng.choice([48, 1536, 2048])
    x, dy = r(rows, 2 * width), r(rows, width)
    y, dx = torch.full_like(dy, float("nan")), torch.full_like(x, float("nan"))
    grid = (rows, cdiv(width, 1024))
    dense.swiglu[grid](x, y, width, BLOCK=1024, PDL=PDL)
    dense.swiglu_grad[grid](dy, x, dx, width, BLOCK=1024)
    leaf = x.double().requires_grad_()
    want = F.silu(leaf[:, :width]) * leaf[:, width:]
    want.backward(dy.double())
    check("swiglu", y, want.detach(), limit)
    check("swiglu grad", dx, leaf.grad, limit)


def loss(rng, r, dtype, limit):
    rows, V = rng.choice([1, 9]), rng.choice([100, 2048, 5003])
    logits, targets = r(rows, V) * 3, torch.randint(0, V, (rows,), device=DEVICE)
    targets[0] = -100
    leaf = logits.double().requires_grad_()
    want = F.cross_entropy(leaf, targets, reduction="none", ignore_index=-100)
    (want.sum() * 0.25).backward()
    nll = torch.empty(rows, device=DEVICE)
    dense.cross_entropy[(rows,)](logits, targets, nll, V, 0.25, GRAD=True, BLOCK=2048, MASK=V % 16 != 0)
    check("cross entropy", nll, want.detach(), 1e-5)
    check("cross entropy grad", logits, leaf.grad, limit)


def attention(rng, r, dtype, limit):
    B, K, G, P, S = rng.choice([1, 3]), rng.choice([1, 2]), rng.choice([1, 1, 3, 8]), rng.choice([16, 64, 80]), rng.choice([5, 100, 300])
    H, splits = K * G, rng.choice([1, 3, 8])
    qkv, k, v, half = r(B, 1, (H + 2 * K) * P), r(B, K, S, P), r(B, K, S, P), rng.choice([n for n in (P // 2, P // 4) if n % 16 == 0] or [P // 2])
    angles = torch.rand(rng.choice([1, B]), 1, half, device=DEVICE) * 6
    cos, sin = angles.cos(), angles.sin()
    lengths = torch.randint(1, S + 1, (B,), device=DEVICE)
    starts = (torch.rand(B, device=DEVICE) * lengths).long() if rng.random() < 0.5 else None
    parts = qkv.view(B, 1, H + 2 * K, P).split([H, K, K], 2)
    q, keys, values = rotate(parts[0], cos, sin), k.double(), v.double()
    for b in range(B):
        keys[b, :, lengths[b] - 1], values[b, :, lengths[b] - 1] = rotate(parts[1], cos, sin)[b, :, 0], parts[2][b, 0].double()
    at = torch.arange(S, device=DEVICE)
    mask = at < lengths[:, None]
    if starts is not None:
        mask &= at >= starts[:, None]
    want = F.scaled_dot_product_attention(q, keys.repeat_interleave(G, 1), values.repeat_interleave(G, 1), mask[:, None, None])
    for alone in (False, True)[:1 + (G == 1)]:
        queries, cached_k, cached_v = 1 if alone else 16, k.clone(), v.clone()
        part, top, mass = (torch.empty(B * K, splits, queries, n, device=DEVICE) for n in (P, 1, 1))
        arrived = torch.zeros(B * K, dtype=torch.int32, device=DEVICE)
        y = torch.full((B, 1, H * P), float("nan"), dtype=dtype, device=DEVICE)
        first = qkv, cos, sin, cached_k, cached_v, lengths, lengths if starts is None else starts, part, top, mass, arrived, y, H
        last = P, half, P ** -0.5, splits, int(starts is not None), half if len(cos) > 1 else 0, *k.stride()[:3]
        if alone:
            attend.decode_attention_mha[(B * K, splits)](*first, *last, BP=power(P), BS=rng.choice([16, 32]), PDL=PDL)
        else:
            attend.decode_attention[(B * K, splits)](*first, K, *last, G=16, BP=power(P), BS=32, PRECISION="ieee" if dtype == torch.float32 else "tf32", PDL=PDL)
        check(f"attend {B, K, G, P, S, splits, alone}", y, want.transpose(1, 2).reshape(B, 1, H * P), limit)
        check("attend's keys", cached_k, keys, limit)
        check("attend's values", cached_v, values, 0)
        check("attend's counters", arrived, torch.zeros(B * K), 0)


def choice(rng, r, dtype, limit):
    rows, V = rng.choice([1, 3]), rng.choice([5, 1000, 3001])
    logits, ids = r(rows, V), torch.full((rows,), -7, device=DEVICE)
    logits[:, rng.randrange(V)] = logits[:, V // 2] = 9
    broken = rng.random() < 0.3
    if broken:
        logits[0, rng.randrange(V)] = float("nan")
    dense.argmax[(rows,)](logits, ids, V, BLOCK=1024, PDL=PDL)
    want = [-1 if broken and b == 0 else int((logits[b] == logits[b].max()).nonzero()[0]) for b in range(rows)]
    check(f"likeliest {rows, V}", ids, torch.tensor(want), 0)


def products(rng, r, dtype, limit):
    N, D = rng.choice([5, 64, 200]), rng.choice([48, 512, 1040])
    M = rng.choice([1, 2, 4])
    x, w, bias, res = r(M, D), r(N, D), r(N), r(M, N)
    has_bias, has_res = rng.choice([False, True]), rng.choice([False, True])
    y = torch.full_like(res, float("nan"))
    bn, bk = rng.choice([2, 4]), rng.choice([256, 512])
    scale = r(D)
    for normed in (False, True):
        source = x.double()
        if normed:
            source = source * torch.rsqrt(source.pow(2).mean(-1, keepdim=True) + 1e-5) * scale.double()
        want = source @ w.double().t() + (bias.double() if has_bias else 0) + (res.double() if has_res else 0)
        dense.gemv[(cdiv(N, bn),)](x, scale, w, bias, res, y, N, D, 1e-5, int(has_bias), int(has_res), M=M, NORM=normed, BN=bn,
                                     BK=bk, PDL=PDL)
        check(f"matvec {M, N, D, has_bias, has_res, normed}", y, want, limit)
    M = min(M, rng.choice([1, 2]))
    w2, b2 = r(2 * N, D), r(2 * N)
    for normed in (False, True):
        source = x[:M].double()
        if normed:
            source = source * torch.rsqrt(source.pow(2).mean(-1, keepdim=True) + 1e-5) * scale.double()
        g = source @ w2.double().t() + (b2.double() if has_bias else 0)
        y = torch.full((M, N), float("nan"), dtype=dtype, device=DEVICE)
        dense.gemv_swiglu[(cdiv(N, bn),)](x, scale, w2, b2, y, N, D, 1e-5, int(has_bias), M=M, NORM=normed, BN=bn, BK=bk, PDL=PDL)
        check(f"matvec_swiglu {normed}", y, F.silu(g[:, :N]) * g[:, N:], limit)
    M, shares = rng.choice([1, 3, 8, 16]), rng.choice([1, 3])
    x, res = r(M, D), r(M, N)
    span = cdiv(cdiv(D, shares), 64) * 64
    exact = "ieee" if dtype == torch.float32 else "tf32"
    for weight, width in ((w, N), (w2, 2 * N)):
        part = torch.full((shares, M, width), float("nan"), device=DEVICE)
        dense.split_k_gemm[(cdiv(width, 64), shares)](x, weight, part, M, width, D, span, BM=16, BN=64, BK=64, PRECISION=exact, PDL=PDL)
        y = torch.full_like(res, float("nan"))
        if width == N:
            want = x.double() @ w.double().t() + (bias.double() if has_bias else 0) + (res.double() if has_res else 0)
            dense.sum_splits[(M, cdiv(N, 128))](part, bias, res, y, M, N, shares, int(has_bias), int(has_res), BLOCK=128, PDL=PDL)
        else:
            g = x.double() @ w2.double().t() + (b2.double() if has_bias else 0)
            want = F.silu(g[:, :N]) * g[:, N:]
            dense.sum_splits_swiglu[(M, cdiv(N, 128))](part, b2, y, M, N, shares, int(has_bias), BLOCK=128, PDL=PDL)
        check(f"few_rows {M, width, D, shares}", y, want, limit)


def embedding(rng, r, dtype, limit):
    V, D, n = 11, rng.choice([48, 1040]), rng.choice([1, 20])
    grad, dy, ids = r(V, D), r(n, D), torch.randint(0, V, (n,), device=DEVICE)
    want = grad.double().index_add(0, ids, dy.double())
    sorted_ids, order = ids.sort(stable=True)
    dense.add_rows[(n, cdiv(D, 1024))](dy, sorted_ids, order, grad, n, D, BLOCK=1024)
    check("add_rows", grad, want, limit)
    for factor in (1.0, -0.375):
        y, by = grad.clone(), torch.full((1,), factor, device=DEVICE)
        dense.multiply[(cdiv(y.numel(), 256),)](y, by, y.numel(), BLOCK=256)
        check("multiply", y, grad.double() * factor, 0 if factor == 1 else limit)


def convolution(rng, r, dtype, limit):
    B, L, D, W = rng.choice([1, 2]), rng.choice([1, 2, 5, 70]), rng.choice([48, 144]), 4
    x, w, bias, held, dy = r(B, L, D), r(D, W), r(D), r(B, W - 1, D), r(B, L, D)
    leaves = [t.double().requires_grad_() for t in (x, w, bias)]
    past = torch.cat([held.double(), leaves[0]], 1)
    want = F.silu(sum(past[:, k:k + L] * leaves[1][:, k] for k in range(W)) + leaves[2])
    (want * dy.double()).sum().backward()
    tiles = (cdiv(L, 32), cdiv(D, 128), B)
    y, dx = torch.full_like(x, float("nan")), torch.full_like(x, float("nan"))
    shape = dict(SILU=True, W=W, HAS_INITIAL=True, HAS_SEQ=False, T=32, BD=128, MASK=False)
    rows.conv[tiles](x, w, bias, held, None, y, L, D, L * D, D, **shape)
    check("conv", y, want.detach(), limit)
    dpre, part = torch.empty(B, L, D, device=DEVICE), torch.empty(B, tiles[0], W + 1, D, device=DEVICE)
    rows.conv_grad_pre[tiles](x, w, bias, held, None, dy, dpre, part, L, D, L * D, D, **shape)
    rows.conv_grad_x[tiles](dpre, w, None, dx, L, D, W=W, HAS_SEQ=False, T=32, BD=128, MASK=False)
    check("conv dx", dx, leaves[0].grad, limit)
    check("conv dweight", part[:, :, :W].sum((0, 1)).t(), leaves[1].grad, limit)
    check("conv dbias", part[:, :, W].sum((0, 1)), leaves[2].grad, limit)
    for t in range(L):
        step_through(held, x, w, bias, y, t)
    check("conv_step", y, want.detach(), limit)
    check("conv_step state", held, past[:, -(W - 1):].detach(), 0 if dtype == torch.float32 else limit)


def step_through(held, x, w, bias, y, t):
    fresh = torch.empty(x.shape[0], x.shape[2], dtype=x.dtype, device=DEVICE)
    rows.conv_step[(cdiv(x.shape[2], 32), x.shape[0])](held, x[:, t], w, bias, fresh, x.shape[2], x.stride(0), SILU=True, W=4, BD=32, PDL=PDL)
    y[:, t] = fresh


def gated_norm(rng, r, dtype, limit):
    n, D, groups = rng.choice([1, 5]), 96, rng.choice([1, 3])
    x, z, w, dy = r(n, D), r(n, D), r(D), r(n, D)
    leaves = [t.double().requires_grad_() for t in (x, z, w)]
    v = (leaves[0] * F.silu(leaves[1])).view(n, groups, -1)
    want = (v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + 1e-5)).view(n, D) * leaves[2]
    (want * dy.double()).sum().backward()
    y, dx, dz = (torch.full_like(x, float("nan")) for _ in range(3))
    rows.gated_norm[(n, groups)](x, z, w, y, D, D // groups, 1e-5, HAS_Z=True, BLOCK=128, MASK=False)
    part = torch.empty(2, D, device=DEVICE)
    rows.gated_norm_grad[(2, groups)](x, z, w, dy, dx, dz, part, n, D, D // groups, 1e-5, HAS_Z=True, BLOCK=128, MASK=False)
    for name, got, wanted in (("", y, want.detach()), (" dx", dx, leaves[0].grad), (" dz", dz, leaves[1].grad), (" dweight", part.sum(0), leaves[2].grad)):
        check("gated norm" + name, got, wanted, limit)


def optimizer(rng, r, dtype, limit):
    """Against torch.optim.AdamW in float64, for three steps; stochastic rounding against the mean of many."""
    sizes, span = [16, 304, 80], 128
    for original in (False, True) if dtype != torch.float32 else (False,):
        weights = [r(n) for n in sizes]
        exact = [w.double().cpu().requires_grad_() for w in weights]
        adam = torch.optim.AdamW([{"params": exact[:1], "weight_decay": 0.0}, {"params": exact[1:], "weight_decay": 0.1}], lr=0.05,
                                 betas=(0.9, 0.95))
        means, squares = [[torch.zeros(n, device=DEVICE) for n in sizes] for _ in range(2)]
        originals = [w.float() for w in weights]
        for step in range(1, 4):
            grads = [r(n) for n in sizes]
            for e, g in zip(exact, grads):
                e.grad = g.double().cpu() / 2
            adam.step()
            adam_launch(weights, grads, means, squares, originals if original else None, [0.0, 0.1, 0.1], 0.05, 0.9, 0.95, step, span)
        for w, o, e in zip(weights, originals, exact):
            check("adamw original", o if original else w, e.detach(), 1e-5 if original or dtype == torch.float32 else limit * 3)
            if original:
                check("adamw weight", w, o.to(dtype), 0)
    if dtype == torch.bfloat16:
        n = 1 << 15
        w, g = torch.full((n,), 1.0, dtype=dtype, device=DEVICE), torch.ones(n, dtype=dtype, device=DEVICE)
        m, v = torch.zeros_like(w), torch.zeros_like(w)
        for step in range(1, 9):
            adam_launch([w], [g], [m], [v], None, [0.0], 1e-4, 0.9, 0.95, step, 4096, stochastic=True)
        check("adamw stochastic mean", w.float().mean() - 1, torch.tensor(-8e-4), 0.05)


def adam_launch(weights, grads, means, squares, originals, decays, rate, beta1, beta2, step, span, stochastic=False):
    table, pieces = [], []
    for t, (w, g, m, v, decay) in enumerate(zip(weights, grads, means, squares, decays)):
        bits = torch.tensor(rate * decay, dtype=torch.float32).view(torch.int32).item()
        table += [w.data_ptr(), g.data_ptr(), m.data_ptr(), v.data_ptr(), originals[t].data_ptr() if originals else 0, w.numel(), bits, step * 40503 + t]
        pieces += [n for start in range(0, w.numel(), span) for n in (t, start)]
    table, pieces = torch.tensor(table, device=DEVICE), torch.tensor(pieces, device=DEVICE)
    dense.adamw[(pieces.numel() // 2,)](table, pieces, weights[0], 0.5, rate, beta1, beta2, 1e-8, 1 - beta1 ** step, (1 - beta2 ** step) ** 0.5,
                                        MASTER=originals is not None, STOCHASTIC=stochastic, SPAN=span, BLOCK=min(span, 1024))


def main():
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    rng = random.Random(seed)
    torch.manual_seed(seed)
    cases = 0
    for dtype in (torch.float32,) if INTERPRET else (torch.float32, torch.bfloat16, torch.float16):
        limit = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
        r = lambda *s: torch.randn(*s, dtype=torch.float64).to(dtype).to(DEVICE)
        for test in (norm, rope, gated, loss, attention, choice, products, embedding, convolution, gated_norm, optimizer):
            for _ in range(2 if INTERPRET else 4):
                before = bad
                test(rng, r, dtype, limit)
                cases += 1
            if bad > before:
                print(test.__name__, dtype, "failed")
    print(f"dense: {bad} failures in {cases} cases" if bad else f"dense: {cases} cases within limits")
    return bad != 0


if __name__ == "__main__":
    sys.exit(main())
