"""Checks the kernels of dense.py, attend.py, tail_rows.py, blocks.py and
rows.py against float64 references.

    TRITON_INTERPRET=1 python check_dense.py [--quick] [seed]
        on the CPU, in float32 (run.sh makes the environment)
    python check_dense.py [seed]
        on a GPU, in float32, bfloat16 and float16
"""
import pathlib
import random
import sys

import autograd
import autograd.numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from check import device  # noqa: E402
from check.device import PDL, host, tensor, unwritten  # noqa: E402
from kernels import attend, blocks, dense, grouped, replay, rows, tail_rows  # noqa: E402

LIMITS = {"fp32": 2e-6, "bf16": 1e-2, "fp16": 2e-3}
bad = 0


class Draw:
    """Random choices, and random tensors of one dtype."""

    def __init__(self, seed, dtype):
        self.choice = random.Random(seed).choice
        self.random = np.random.default_rng(seed)
        self.dtype = dtype

    def normal(self, *shape, scale=1.0):
        return tensor(self.random.normal(size=shape) * scale, self.dtype)

    def flag(self):
        return self.choice([False, True])

    def unwritten(self, *shape):
        return unwritten(*shape, dtype=self.dtype)


def cdiv(a, b):
    return (a + b - 1) // b


def power(n, least=16):
    while least < n:
        least *= 2
    return least


def check(what, got, want, limit):
    """Counts a failure if got (a tensor or an array) differs from want by more than limit, as a
    share of want's norm."""
    global bad
    got = host(got) if hasattr(got, "data_ptr") else got
    size = np.linalg.norm(want)
    error = np.linalg.norm(got - want) / (size if size > 0 else 1)
    if not error <= limit:
        bad += 1
        print(f"FAIL {what}: {error:.2e}, at most {limit:.0e}")


def value_and_grads(f, inputs, dy):
    """f(*inputs) and the gradients of <f(*inputs), dy> by each input, all as arrays."""
    return f(*inputs), autograd.grad(lambda leaves: np.sum(f(*leaves) * dy))(list(inputs))


def silu(v):
    return v / (1.0 + np.exp(-v))


def normalized(v):
    return v / np.sqrt(np.mean(v * v, axis=-1, keepdims=True) + 1e-5)


def check_rms_norm(d, limit):
    n, D = d.choice([1, 3, 20]), d.choice([48, 576, 1024])
    x, w, dy = d.normal(n, D), d.normal(D), d.normal(n, D)
    y, dx, rstd = d.unwritten(n, D), d.unwritten(n, D), unwritten(n)
    dense.rms_norm[(n,)](x, w, y, rstd, D, 1e-5, 1, BLOCK=power(D, 1024), PDL=PDL)
    want, (want_dx, want_dw) = value_and_grads(lambda x, w: normalized(x) * w, (host(x), host(w)),
                                               host(dy))
    programs = min(n, 4)
    part = unwritten(programs, D)
    dense.rms_norm_grad[(programs, )](dy, x, w, rstd, dx, part, n, D, WEIGHT=True,
                                      BLOCK=power(D, 1024))
    check("rms_norm", y, want, limit)
    check("rms_norm dx", dx, want_dx, limit)
    check("rms_norm dweight", host(part).sum(0), want_dw, limit)


def rotate(x, cos, sin):
    """x [B,L,H,P] with the first 2·half dimensions of each head rotated: [B,H,L,P]."""
    half = cos.shape[-1]
    x, c, s = np.swapaxes(x, 1, 2), cos[:, None], sin[:, None]
    a, b, rest = x[..., :half], x[..., half:2 * half], x[..., 2 * half:]
    return np.concatenate([a * c - b * s, b * c + a * s, rest], -1)


def split_heads(qkv, H, KH, cos, sin):
    """Rotated q [B,H,L,P] and k [B,KH,L,P], and v [B,KH,L,P], of qkv [B,L,(H+2KH)·P]."""
    heads = np.reshape(qkv, (*qkv.shape[:2], H + 2 * KH, -1))
    return (rotate(heads[:, :, :H], cos, sin), rotate(heads[:, :, H:H + KH], cos, sin),
            np.swapaxes(heads[:, :, H + KH:], 1, 2))


def rotary_half(d, P):
    """Half the number of rotated dimensions of a head of P: all dimensions or half of them."""
    return d.choice([n for n in (P // 2, P // 4) if n % 16 == 0] or [16 if P > 16 else P // 2])


def check_rope(d, limit):
    B, L, KH, G = d.choice([1, 2]), d.choice([1, 5, 17]), d.choice([1, 2, 3]), d.choice([1, 2, 3])
    P = d.choice([32, 64, 80, 96])
    H, half = KH * G, rotary_half(d, P)
    per_row = d.flag() and B > 1
    angles = d.random.random((B if per_row else 1, L, half)) * 6
    cos, sin = tensor(np.cos(angles)), tensor(np.sin(angles))
    table_b = L * half if per_row else 0
    qkv = d.normal(B, L, (H + 2 * KH) * P)
    wants = split_heads(host(qkv), H, KH, host(cos), host(sin))
    heads, bh = d.choice([4, 8]), power(half)
    grid = (B * L, cdiv(H + 2 * KH, heads))
    for cached in (False, True):
        S = L + 9 if cached else L
        q, k, v = (d.unwritten(B, n, s, P) for n, s in ((H, L), (KH, S), (KH, S)))
        if d.flag():
            q = d.unwritten(B, L, H, P).swapaxes(1, 2)
        columns = tensor(np.arange(L)[None] + 3, "i64")
        dense.rope_qkv[grid](qkv, cos, sin, q, k, v, columns, H, KH, L, P, half, table_b,
                             int(cached), 0, *q.stride()[:3], KH * S * P, S * P, P, HEADS=heads,
                             BH=bh, PDL=PDL)
        at = slice(3, 3 + L) if cached else slice(0, L)
        for name, got, want in (("q", q, wants[0]), ("k", k[:, :,
                                                            at], wants[1]), ("v", v[:, :,
                                                                                    at], wants[2])):
            check(f"rope {name} {B, L, H, KH, P, half, cached}", got, want, limit)
        if cached:
            check("rope leaves other rows of the cache",
                  np.isnan(host(k[:, :, :3])) * 1.0, np.ones((B, KH, 3, P)), 0)
    grads = [
        d.normal(B, L, n, P).swapaxes(1, 2) if d.flag() else d.normal(B, n, L, P)
        for n in (H, KH, KH)
    ]

    def loss(qkv):
        return sum(
            np.sum(o * host(g))
            for o, g in zip(split_heads(qkv, H, KH, host(cos), host(sin)), grads))

    dqkv = d.unwritten(*qkv.shape)
    dense.rope_qkv_grad[grid](*grads, cos, sin, dqkv, H, KH, L, P, half, table_b,
                              *(s for g in grads for s in g.stride()[:3]), HEADS=heads, BH=bh)
    check("rope grad", dqkv, autograd.grad(loss)(host(qkv)), limit)


def check_swiglu(d, limit):
    n, F = d.choice([1, 7]), d.choice([48, 1536, 2048])
    x, dy = d.normal(n, 2 * F), d.normal(n, F)
    y, dx = d.unwritten(n, F), d.unwritten(n, 2 * F)
    grid = (n, cdiv(F, 1024))
    dense.swiglu[grid](x, y, F, BLOCK=1024, PDL=PDL)
    dense.swiglu_grad[grid](dy, x, dx, F, BLOCK=1024)
    want, (want_dx,) = value_and_grads(lambda x: silu(x[:, :F]) * x[:, F:], (host(x),), host(dy))
    check("swiglu", y, want, limit)
    check("swiglu grad", dx, want_dx, limit)


def check_cross_entropy(d, limit):
    n, V = d.choice([1, 9]), d.choice([100, 2048, 5003])
    logits, targets = d.normal(n, V, scale=3.0), d.random.integers(0, V, n)
    targets[0] = -100
    exact, counted = host(logits), targets >= 0
    log_p = exact - np.log(np.sum(np.exp(exact), axis=1, keepdims=True))
    onehot = (np.arange(V)[None] == targets[:, None]) * 1.0
    nll = unwritten(n)
    dense.cross_entropy[(n, )](logits, tensor(targets, "i64"), nll, V, 0.25, GRAD=True, BLOCK=2048,
                               MASK=V % 16 != 0)
    check("cross entropy", nll, -np.sum(log_p * onehot, axis=1), 1e-5)
    check("cross entropy grad", logits, (np.exp(log_p) - onehot) * counted[:, None] * 0.25, limit)


def check_decode_attention(d, limit):
    B, KH, G = d.choice([1, 3]), d.choice([1, 2]), d.choice([1, 1, 3, 8])
    P, S, splits = d.choice([16, 64, 80]), d.choice([5, 100, 300]), d.choice([1, 3, 8])
    H, half = KH * G, rotary_half(d, P)
    qkv, k, v = d.normal(B, 1, (H + 2 * KH) * P), d.normal(B, KH, S, P), d.normal(B, KH, S, P)
    angles = d.random.random((d.choice([1, B]), 1, half)) * 6
    cos, sin = tensor(np.cos(angles)), tensor(np.sin(angles))
    lengths = d.random.integers(1, S + 1, B)
    starts = (d.random.random(B) * lengths).astype(np.int64) if d.flag() else None
    q, new_k, new_v = split_heads(host(qkv), H, KH, host(cos), host(sin))
    keys, values, want = host(k), host(v), np.zeros((B, 1, H, P))
    for b in range(B):
        keys[b, :, lengths[b] - 1], values[b, :, lengths[b] - 1] = new_k[b, :, 0], new_v[b, :, 0]
        seen = slice(0 if starts is None else starts[b], lengths[b])
        for h in range(H):
            w = keys[b, h // G, seen] @ q[b, h, 0] * P ** -0.5
            w = np.exp(w - w.max())
            want[b, 0, h] = w @ values[b, h // G, seen] / w.sum()
    lengths = tensor(lengths, "i64")
    begin = lengths if starts is None else tensor(starts, "i64")
    for mha in (False, True)[:1 + (G == 1)]:
        queries = 1 if mha else 16
        cached_k, cached_v = tensor(host(k), d.dtype), tensor(host(v), d.dtype)
        part, top, mass = (unwritten(B * KH, splits, queries, n) for n in (P, 1, 1))
        arrived, y = tensor(np.zeros(B * KH), "i32"), d.unwritten(B, 1, H * P)
        first = qkv, cos, sin, cached_k, cached_v, lengths, begin, part, top, mass, arrived, y, H
        table_b = half if len(angles) > 1 else 0
        last = P, half, P ** -0.5, splits, int(starts is not None), table_b, *k.stride()[:3]
        if mha:
            attend.decode_attention_mha[(B * KH, splits)](*first, *last, BP=power(P),
                                                          BS=d.choice([16, 32]), PDL=PDL)
        else:
            attend.decode_attention[(B * KH,
                                     splits)](*first, KH, *last, G=16, BP=power(P), BS=32, PDL=PDL,
                                              PRECISION="ieee" if d.dtype == "fp32" else "tf32")
        check(f"decode_attention {B, KH, G, P, S, splits, mha}", y, want.reshape(B, 1, H * P),
              limit)
        check("decode_attention's keys", cached_k, keys, limit)
        check("decode_attention's values", cached_v, values, 0)
        check("decode_attention's counters", arrived, np.zeros(B * KH), 0)


def check_argmax(d, limit):
    n, V = d.choice([1, 3]), d.choice([5, 1000, 3001])
    logits = d.random.normal(size=(n, V))
    logits[:, d.choice(range(V))] = logits[:, V // 2] = 9
    broken = d.choice([False, False, True])
    if broken:
        logits[0, d.choice(range(V))] = np.nan
    ids = tensor(np.full(n, -7), "i64")
    logits = tensor(logits, d.dtype)
    span = 1024 * d.choice([1, 2, 3])
    splits = cdiv(V, span)
    arrived = tensor(np.zeros(n), "i32")
    place = tensor(np.full((n, splits), 7), "i32")
    dense.argmax[(n, splits)](logits, ids, unwritten(n, splits), place, arrived, V, span, splits,
                              BLOCK=1024, SPLITS=64, PDL=PDL)
    want = [-1 if broken and b == 0 else int(np.argmax(host(logits)[b])) for b in range(n)]
    check(f"argmax {n, V, span}", ids, np.array(want, dtype=float), 0)
    check("argmax leaves the counters", arrived, np.zeros(n), 0)


def check_gemv(d, limit):
    N, D, M = d.choice([5, 64, 200]), d.choice([48, 512, 1040]), d.choice([1, 2, 4])
    x, w, bias, res, scale = d.normal(M, D), d.normal(N, D), d.normal(N), d.normal(M,
                                                                                   N), d.normal(D)
    w2, b2 = d.normal(2 * N, D), d.normal(2 * N)
    has_bias, has_res = d.flag(), d.flag()
    bn, bk = d.choice([2, 4]), d.choice([256, 512])

    def linear(x, w, bias):
        return x @ w.T + (bias if has_bias else 0.0)

    def gated(x):
        g = linear(x, host(w2), host(b2))
        return silu(g[:, :N]) * g[:, N:]

    for normed in (False, True):
        source = normalized(host(x)) * host(scale) if normed else host(x)
        y = d.unwritten(M, N)
        dense.gemv[(cdiv(N, bn), )](x, scale, w, bias, res, y, N, D, 1e-5, int(has_bias),
                                    int(has_res), M=M, NORM=normed, BN=bn, BK=bk, PDL=PDL)
        want = linear(source, host(w), host(bias)) + (host(res) if has_res else 0.0)
        check(f"gemv {M, N, D, has_bias, has_res, normed}", y, want, limit)
        rows = min(M, 2)
        y = d.unwritten(rows, N)
        dense.gemv_swiglu[(cdiv(N, bn), )](x, scale, w2, b2, y, N, D, 1e-5, int(has_bias), M=rows,
                                           NORM=normed, BN=bn, BK=bk, PDL=PDL)
        check(f"gemv_swiglu {rows, N, D, has_bias, normed}", y, gated(source[:rows]), limit)
    M, shares = d.choice([1, 3, 8, 16]), d.choice([1, 3])
    x, res = d.normal(M, D), d.normal(M, N)
    span = cdiv(cdiv(D, shares), 64) * 64
    for weight, width in ((w, N), (w2, 2 * N)):
        part, y = unwritten(shares, M, width), d.unwritten(M, N)
        dense.split_k_gemm[(cdiv(width,
                                 64), shares)](x, weight, part, M, width, D, span, BM=16, BN=64,
                                               BK=64, PDL=PDL,
                                               PRECISION="ieee" if d.dtype == "fp32" else "tf32")
        if width == N:
            want = linear(host(x), host(w), host(bias)) + (host(res) if has_res else 0.0)
            dense.sum_splits[(M, cdiv(N, 128))](part, bias, res, y, M, N, shares, int(has_bias),
                                                int(has_res), BLOCK=128, PDL=PDL)
        else:
            want = gated(host(x))
            dense.sum_splits_swiglu[(M, cdiv(N, 128))](part, b2, y, M, N, shares, int(has_bias),
                                                       BLOCK=128, PDL=PDL)
        check(f"split_k_gemm {M, width, D, shares}", y, want, limit)


def check_tail_rows(d, limit):
    """A block tail and the next input projection in four launches, as csrc/cuda/dense.cpp makes
    them."""
    M, A, D = d.choice([2, 5, 16, 33, 64]), d.choice([64, 144]), d.choice([48, 128, 208])
    F, N = d.choice([80, 256]), d.choice([16, 112])
    splits, bk, has_bias = d.choice([1, 3]), d.choice([32, 64]), d.flag()
    x, mixed, bias = d.normal(M, D), d.normal(M, A), d.normal(N)
    output, gate_up = d.normal(D, A, scale=A ** -0.5), d.normal(2 * F, D, scale=D ** -0.5)
    down, ahead = d.normal(D, F, scale=F ** -0.5), d.normal(N, D, scale=D ** -0.5)
    norms = d.normal(D), d.normal(D)
    bn, bm = 64, power(M)
    z, h, y, out, scaled = (d.unwritten(M, w) for w in (D, F, D, N, D))
    squares, part = unwritten(cdiv(D, bn), bm), unwritten(cdiv(D + F + N, bn) * splits * bn * bm)
    arrived = tensor(np.zeros(64), "i32")

    def gemm(x, w, bias, residual, norm, y, **form):
        columns, depth = y.shape[1], w.shape[1]
        parts = 1 if form.get("GATED") else splits
        span = cdiv(cdiv(depth, parts), bk) * bk
        dense_form = dict(GATED=False, ADDS=False) | form
        tail_rows.tail_gemm[(cdiv(columns, bn), cdiv(depth, span))](
            x, w, bias, residual, norm, y, scaled, squares, part, arrived, M, columns, depth, span,
            cdiv(depth, span), int(has_bias and bias is not None), int(norm is not None), 1e-5,
            **dense_form, BM=bm, BN=bn, BK=bk, PDL=PDL)

    gemm(mixed, output, None, x, norms[0], z, ADDS=True)
    gemm(scaled, gate_up, None, None, None, h, GATED=True)
    gemm(h, down, None, z, norms[1], y, ADDS=True)
    gemm(scaled, ahead, bias, None, None, out)
    want = host(x) + host(mixed) @ host(output).T
    g = normalized(want) * host(norms[0]) @ host(gate_up).T
    want = want + silu(g[:, :F]) * g[:, F:] @ host(down).T
    case = M, A, D, F, N, splits
    check(f"tail_gemm y {case}", y, want, limit)
    want = normalized(want) * host(norms[1]) @ host(ahead).T + (host(bias) if has_bias else 0.0)
    check(f"tail_gemm next {case}", out, want, limit)
    check("tail_gemm leaves the counters", arrived, np.zeros(64), 0)


def quantized(d, N, D, bits):
    """A random weight [N,D] in blocks: its codes, its scales, and its numbers in float64."""
    group = 128 // bits
    q = d.random.integers(0, 1 << bits, (N, D // group, 32 // bits, 4))
    scale = (d.random.random((N, D // group)) * 0.2 / 2 ** bits).astype(np.float16)
    least = (d.random.random((N, D // group)) * 0.2).astype(np.float16)
    numbers = q.reshape(N, D // group, group) * scale.astype(float)[..., None] - least.astype(
        float)[..., None]
    shifts = np.arange(0, 32, bits)[None, None, :, None]
    words = np.sum(q << shifts, axis=2).astype(np.uint32).view(np.int32)
    pairs = scale.view(np.uint16) + (least.view(np.uint16).astype(np.uint32) << 16)
    return tensor(words, "i32"), tensor(pairs.view(np.int32), "i32"), numbers.reshape(N, D)


def check_blocks(d, limit):
    N, D, bits = d.choice([5, 40]), d.choice([64, 288, 1024]), d.choice([4, 8])
    mask, base = {4: (15 << 16, 0x43000000), 8: (255 << 15, 0x43800000)}[bits]
    x, res, bias = d.normal(1, D), d.normal(1, N), d.normal(2 * N)
    has_bias, has_res = d.flag(), d.flag()
    words, pairs, numbers = quantized(d, 2 * N, D, bits)
    bn, bg = d.choice([2, 4]), d.choice([4, 16])
    want = host(x) @ numbers.T + (host(bias) if has_bias else 0.0)
    y = d.unwritten(1, N)
    blocks.block_gemv[(cdiv(N, bn), )](x, words, pairs, bias, res, y, N, D, int(has_bias),
                                       int(has_res), mask, base, BITS=bits, BN=bn, BG=bg, PDL=PDL)
    check(f"block_gemv {N, D, bits}", y, want[:, :N] + (host(res) if has_res else 0.0), limit)
    y = d.unwritten(1, N)
    blocks.block_gemv_swiglu[(cdiv(N, bn), )](x, words, pairs, bias, y, N, D, int(has_bias), mask,
                                              base, BITS=bits, BN=bn, BG=bg, PDL=PDL)
    check(f"block_gemv_swiglu {N, D, bits}", y, silu(want[:, :N]) * want[:, N:], limit)
    M, order = d.choice([2, 5, 16]), host(x).reshape(1, -1, 32 // bits, 4)
    many = np.concatenate([order * (m + 1) for m in range(M)]).swapaxes(1, 2)
    span = d.choice([4, 16])
    splits = cdiv(D * bits // 128, span)
    part = unwritten(splits, M, 2 * N)
    blocks.block_gemm[(cdiv(2 * N, 8), splits)](tensor(many, d.dtype), words, pairs, part, M, 2 * N,
                                                D, span, mask, base, BITS=bits, BM=16, BN=8, BG=4,
                                                PDL=PDL)
    rows = np.arange(1, M + 1)[:, None] * (host(x) @ numbers.T)
    check(f"block_gemm {M, N, D, bits}", host(part).sum(0), rows, limit)
    w = d.unwritten(2 * N, D)
    blocks.block_unpack[(2 * N, cdiv(D * bits // 128, 8))](words, pairs, w, D, mask, base,
                                                           BITS=bits, BG=8)
    check(f"block_unpack {N, D, bits}", w, numbers, limit)


def check_grouped(d, limit):
    E, N, R, D = d.choice([1, 3]), d.choice([1, 7, 40]), d.choice([16, 48]), d.choice([16, 80])
    index = np.sort(d.random.integers(0, E, N))
    x, w, dy = d.normal(N, D), d.normal(E, R, D), d.normal(N, R)
    begins = tensor(np.searchsorted(index, np.arange(E + 1)), "i32")
    want = np.einsum("nrd,nd->nr", host(w)[index], host(x))
    want_x = np.einsum("nrd,nr->nd", host(w)[index], host(dy))
    want_w = np.einsum("ne,nr,nd->erd", np.eye(E)[index], host(dy), host(x))
    y, dx, dw = d.unwritten(N, R), d.unwritten(N, D), d.unwritten(E, R, D)
    grouped.grouped_gemv[(cdiv(R, 4), N)](x, w, tensor(index, "i64"), y, R, D, BN=4, BK=32, PDL=PDL)
    check(f"grouped_gemv {E, N, R, D}", y, want, limit)
    tiles = cdiv(N, 16) + E
    shape = dict(BM=16, BN=32, BK=16, BE=4)
    for across, source, to, inner, width, wanted in ((False, x, y, D, R, want),
                                                     (True, dy, dx, R, D, want_x)):
        columns = cdiv(width, 32)
        grouped.grouped_gemm[(tiles * columns, )](source, w, to, begins, E, tiles, columns, width,
                                                  inner, ACROSS=across, **shape)
        check(f"grouped_gemm {E, N, R, D, across}", to, wanted, limit)
    grouped.grouped_grad_weight[(cdiv(R, 16) * cdiv(D, 32), E)](x, dy, dw, begins, R, D, BM=16,
                                                                BN=32, BK=16)
    check(f"grouped_grad_weight {E, N, R, D}", dw, want_w, limit)


def check_embedding_grad(d, limit):
    V, D, n = 11, d.choice([48, 1040]), d.choice([1, 20])
    grad, dy, ids = d.normal(V, D), d.normal(n, D), d.random.integers(0, V, n)
    want = host(grad) + np.eye(V)[ids].T @ host(dy)
    order = np.argsort(ids, kind="stable")
    dense.add_rows[(n, cdiv(D, 1024))](dy, tensor(ids[order], "i64"), tensor(order, "i64"), grad, n,
                                       D, BLOCK=1024)
    check("add_rows", grad, want, limit)
    for factor in (1.0, -0.375):
        y = tensor(host(grad), d.dtype)
        dense.multiply[(cdiv(V * D, 256),)](y, tensor([factor]), V * D, BLOCK=256)
        check("multiply", y, host(grad) * factor, 0 if factor == 1 else limit)


def check_conv(d, limit):
    B, L, D, W = d.choice([1, 2]), d.choice([1, 2, 5, 70]), d.choice([48, 144]), 4
    x, w, bias, held, dy = d.normal(B, L,
                                    D), d.normal(D, W), d.normal(D), d.normal(B, W - 1,
                                                                              D), d.normal(B, L, D)
    past = np.concatenate([host(held), host(x)], 1)

    def reference(x, w, bias):
        past = np.concatenate([host(held), x], 1)
        return silu(sum(past[:, k:k + L] * w[:, k] for k in range(W)) + bias)

    want, grads = value_and_grads(reference, (host(x), host(w), host(bias)), host(dy))
    tiles = (cdiv(L, 32), cdiv(D, 128), B)
    y, dx = d.unwritten(B, L, D), d.unwritten(B, L, D)
    shape = dict(SILU=True, W=W, HAS_INITIAL=True, HAS_SEQ=False, T=32, BD=128, MASK=False)
    rows.conv[tiles](x, w, bias, held, None, y, L, D, L * D, D, **shape)
    check("conv", y, want, limit)
    dpre, part = unwritten(B, L, D), unwritten(B, tiles[0], W + 1, D)
    rows.conv_grad_pre[tiles](x, w, bias, held, None, dy, dpre, part, L, D, L * D, D, **shape)
    rows.conv_grad_x[tiles](dpre, w, None, dx, L, D, W=W, HAS_SEQ=False, T=32, BD=128, MASK=False)
    sums = host(part).sum((0, 1))
    check("conv dx", dx, grads[0], limit)
    check("conv dweight", sums[:W].T, grads[1], limit)
    check("conv dbias", sums[W], grads[2], limit)
    for t in range(L):
        fresh = d.unwritten(B, D)
        rows.conv_step[(cdiv(D, 32), B)](held, x[:, t], w, bias, fresh, D, x.stride(0), SILU=True,
                                         W=4, BD=32, PDL=PDL)
        check("conv_step", fresh, want[:, t], limit)
    check("conv_step state", held, past[:, -(W - 1):], 0)


def check_gated_norm(d, limit):
    n, D, groups = d.choice([1, 5]), 96, d.choice([1, 3])
    x, z, w, dy = d.normal(n, D), d.normal(n, D), d.normal(D), d.normal(n, D)

    def reference(x, z, w):
        return np.reshape(normalized(np.reshape(x * silu(z), (n, groups, -1))), (n, D)) * w

    want, grads = value_and_grads(reference, (host(x), host(z), host(w)), host(dy))
    y, dx, dz = (d.unwritten(n, D) for _ in range(3))
    shape = dict(HAS_Z=True, BLOCK=128, MASK=False)
    rows.gated_norm[(n, groups)](x, z, w, y, D, D // groups, 1e-5, **shape)
    part = unwritten(2, D)
    rows.gated_norm_grad[(2, groups)](x, z, w, dy, dx, dz, part, n, D, D // groups, 1e-5, **shape)
    check("gated norm", y, want, limit)
    for name, got, wanted in zip(("dx", "dz", "dweight"), (dx, dz, host(part).sum(0)), grads):
        check("gated norm " + name, got, wanted, limit)


def check_state_step(d, limit):
    B, H, G, P, N = d.choice([1, 2]), 4, d.choice([1, 2]), d.choice([16, 24]), d.choice([16, 40])
    x, dt, b, c, z = d.normal(B, H, P), d.normal(B, H), d.normal(B, G,
                                                                 N), d.normal(B, G,
                                                                              N), d.normal(B, H, P)
    skip, bias = d.normal(H), d.normal(H)
    state, y = tensor(d.random.normal(size=(B, H, P, N))), d.unwritten(B, H, P)
    has_z, softplus, log_a = d.flag(), d.flag(), d.flag()
    a, log = tensor(-d.random.random(H)), d.normal(H)
    v = host(dt) + host(bias)
    v = np.clip(np.logaddexp(v, 0.0) if softplus else v, 0.01, 0.5)
    rate = -np.exp(host(log)) if log_a else host(a)
    wide = [np.repeat(host(t), H // G, axis=1) for t in (b, c)]
    want_state = (host(state) * np.exp(v * rate)[..., None, None]
                  + (v[..., None] * host(x))[..., None] * wide[0][:, :, None])
    want = np.sum(want_state * wide[1][:, :, None], axis=-1) + host(skip)[:, None] * host(x)
    want = want * silu(host(z)) if has_z else want
    rows.state_step[(B * H, cdiv(P, 4))](state, x, dt, a, log, b, c, skip, z if has_z else None,
                                         bias, y, H, H // G, P, N, 0.01, 0.5, HAS_Z=has_z,
                                         SOFTPLUS=softplus, LOG=log_a, BP=4, BN=power(N),
                                         MASK=power(N) != N or P % 16 != 0, PDL=PDL)
    check(f"state_step {B, G, P, N, has_z, softplus, log_a}", y, want, limit)
    check("state_step state", state, want_state, 1e-5)


def check_replay_inputs(d, limit):
    """The weights of a ring's entries, for sequences whose rings hold different numbers of them."""
    B, H, G, P, N, T = 2, 8, d.choice([1, 2]), 32, 16, 16
    x, dt, b, c = d.normal(B, H, P), d.normal(B, H), d.normal(B, G, N), d.normal(B, G, N)
    log, skip, bias = d.normal(H), d.normal(H), d.normal(H)
    ring_x, ring_b = d.normal(B, H, T, P), d.normal(B, G, T, N)
    ring_dt = tensor(d.random.random((B, H, T)))
    held = np.array([d.random.integers(0, 3 * T), T - 1])
    v = np.clip(np.logaddexp(host(dt) + host(bias), 0.0), 0.01, 0.5)
    rate = -np.exp(host(log))
    want_x, want_b, want_dt = (np.array(host(t)) for t in (ring_x, ring_b, ring_dt))
    want = np.zeros((3, B, H, T))
    for i, k in enumerate(held % T):
        want_x[i, :, k], want_b[i, :, k], want_dt[i, :, k] = host(x)[i], host(b)[i], v[i]
        times = want_dt[i, :, :k + 1]
        after = times.sum(1, keepdims=True) - np.cumsum(times, 1)
        want[0, i, :, :k + 1] = times * np.exp(rate[:, None] * after)
        met = np.repeat(want_b[i, :, :k + 1] @ host(c)[i][:, :, None], H // G, axis=0)[..., 0]
        want[1, i, :, :k + 1] = want[0, i, :, :k + 1] * met
        want[1, i, :, k] += host(skip)
        want[2, i, :, 0] = np.exp(rate * times.sum(1))
    weight, scale, across = unwritten(B, H, T), unwritten(B, H, T), unwritten(B, H)
    replay.replay_inputs[(B, H // 4)](x, dt, log, b, c, skip, bias, ring_x, ring_b, ring_dt,
                                      tensor(held, "i32"), weight, scale, across, H, H // G, P, N,
                                      0.01, 0.5, T=T, HEADS=4, BP=16, BN=N, PDL=PDL)
    for name, got, wanted in (("x", ring_x, want_x), ("B", ring_b, want_b),
                              ("dt", ring_dt, want_dt), ("weight", weight, want[0]),
                              ("scale", scale, want[1]),
                              ("across", across, want[2, :, :, 0])):
        check(f"replay_inputs {name} {G, list(held)}", got, wanted, limit)


def check_adamw(d, limit):
    """Three steps against AdamW in float64; stochastic rounding against its mean over elements."""
    lengths, span, rate, beta1, beta2, decays = [16, 304, 80], 128, 0.05, 0.9, 0.95, [0.0, 0.1, 0.1]
    for has_master in (False, True) if d.dtype != "fp32" else (False,):
        weights = [d.normal(n) for n in lengths]
        exact = [host(w) for w in weights]
        m, v = [np.zeros(n) for n in lengths], [np.zeros(n) for n in lengths]
        means, squares = [device.zeros(n) for n in lengths], [device.zeros(n) for n in lengths]
        masters = [tensor(host(w)) for w in weights]
        for step in range(1, 4):
            grads = [d.normal(n) for n in lengths]
            for i, g in enumerate(host(g) / 2 for g in grads):
                m[i], v[i] = beta1 * m[i] + (1 - beta1) * g, beta2 * v[i] + (1 - beta2) * g * g
                update = m[i] / (1 - beta1 ** step) / (np.sqrt(v[i] / (1 - beta2 ** step)) + 1e-8)
                exact[i] = exact[i] * (1 - rate * decays[i]) - rate * update
            launch_adamw(dense.adamw, weights, grads, means, squares,
                         masters if has_master else None, None, decays, rate, beta1, beta2, step,
                         NARROW=False, SPAN=span, BLOCK=span)
        for w, master, e in zip(weights, masters, exact):
            got = master if has_master else w
            check("adamw", got, e, 1e-5 if has_master or d.dtype == "fp32" else limit * 3)
            if has_master:
                check("adamw weight", w, host(tensor(host(master), d.dtype)), 0)
    if d.dtype == "bf16":
        ones = np.ones(1 << 15)
        w, g = tensor(ones, d.dtype), tensor(ones, d.dtype)
        m, v = tensor(ones * 0, d.dtype), tensor(ones * 0, d.dtype)
        for step in range(1, 9):
            launch_adamw(dense.adamw, [w], [g], [m], [v], None, None, [0.0], 1e-4, 0.9, 0.95, step,
                         NARROW=True, SPAN=4096, BLOCK=1024)
        check("adamw stochastic mean", np.mean(host(w)) - 1, np.array(-8e-4), 0.05)


def unpacked(codes, exponents, which):
    """The values of an 8-bit moment, as conquer.h describes them."""
    codes, levels = host(codes).astype(np.int64), (127, 255)[which]
    exponent = np.repeat(host(exponents).astype(np.int64)[which], 256)[:len(codes)]
    code, base = codes & levels, 8 * exponent + 7 - levels
    value = np.where(code == 0, 0, code + base << 20).astype(np.int32).view(np.float32)
    return np.where(codes > levels, -value, value).astype(np.float64)


def check_adamw_8bit(d, limit):
    """Three steps: the moments stay near those of float64, without a bias, and the weight follows
    its own moments."""
    lengths, span, rate, beta1, beta2 = [16, 304, 2048], 1024, 0.05, 0.9, 0.95
    for has_master in (False, True) if d.dtype == "bf16" else (False,) * (d.dtype == "fp32"):
        weights = [d.normal(n) for n in lengths]
        masters = [tensor(host(w)) for w in weights]
        means, squares = [[device.zeros(n, dtype="u8") for n in lengths] for _ in range(2)]
        exponents = [device.zeros(2, cdiv(n, 256), dtype="u8") for n in lengths]
        for step in range(1, 4):
            grads = [d.normal(n) for n in lengths]
            before = [(host(w), unpacked(m, e, 0), unpacked(v, e, 1)) for w, m, v, e in zip(
                masters if has_master else weights, means, squares, exponents)]
            launch_adamw(dense.adamw_8bit, weights, grads, means, squares,
                         masters if has_master else None, exponents, [0.1] * 3, rate, beta1, beta2,
                         step, SPAN=span, ROWS=2)
            for i, g in enumerate(host(g) / 2 for g in grads):
                w, m, v = before[i]
                m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
                update = m / (1 - beta1 ** step) / (np.sqrt(v / (1 - beta2 ** step)) + 1e-8)
                check("adamw_8bit", masters[i] if has_master else weights[i],
                      w * (1 - rate * 0.1) - rate * update, 1e-5 if has_master else limit * 10)
                for which, (codes, want) in enumerate(((means[i], m), (squares[i], v))):
                    off = (unpacked(codes, exponents[i], which) - want) / (
                        np.maximum(np.abs(want), np.max(np.abs(want)) * 2.0 ** -11) / 8)
                    bound = 6 / len(off) ** 0.5
                    if not (np.max(np.abs(off)) <= 1.001 and abs(np.mean(off)) <= bound):
                        check(f"adamw_8bit moment {which}", off, off * 0, 0)


def launch_adamw(kernel, weights, grads, means, squares, masters, exponents, decays, rate, beta1,
                 beta2, step, **constants):
    table, chunks = [], []
    for i, (w, g, m, v) in enumerate(zip(weights, grads, means, squares)):
        decay = int(np.array(rate * decays[i], dtype=np.float32).view(np.int32))
        table += [
            w.data_ptr(),
            g.data_ptr(),
            m.data_ptr(),
            v.data_ptr(), masters[i].data_ptr() if masters else 0,
            exponents[i].data_ptr() if exponents else 0,
            len(w), decay, step * 40503 + i
        ]
        chunks += [n for start in range(0, len(w), constants["SPAN"]) for n in (i, start)]
    kernel[(len(chunks) // 2, )](tensor(table, "i64"), tensor(chunks, "i64"), weights[0], 0.5, rate,
                                 beta1, beta2, 1e-8, 1 - beta1 ** step, (1 - beta2 ** step) ** 0.5,
                                 MASTER=masters is not None, **constants)


CHECKS = (check_rms_norm, check_rope, check_swiglu, check_cross_entropy, check_decode_attention,
          check_argmax, check_gemv, check_tail_rows, check_blocks, check_grouped,
          check_embedding_grad, check_conv, check_gated_norm, check_state_step,
          check_replay_inputs, check_adamw, check_adamw_8bit)


def main(arguments, quick=False):
    seed = int(arguments[0]) if arguments else 1
    cases = 0
    for dtype in device.DTYPES:
        draw = Draw(seed, dtype)
        for one in CHECKS:
            before = bad
            for _ in range(1 if quick else 4):
                one(draw, LIMITS[dtype])
                cases += 1
            if bad > before:
                print(f"{one.__name__} failed in {dtype}")
    print(
        f"dense: {bad} failures in {cases} cases" if bad else f"dense: {cases} cases within limits")
    return bad != 0


if __name__ == "__main__":
    sys.exit(main([a for a in sys.argv[1:] if a != "--quick"], "--quick" in sys.argv))
