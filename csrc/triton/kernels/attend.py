"""Attention of one new position of each sequence to a cache: `cq_decode_attention` of ../../conquer.h, launched by ../../cuda/dense.cpp."""
import triton
import triton.language as tl

from .arguments import arguments
from .dense import wait


@triton.jit
def turned(head, inside, p, cos, sin, half, P):
    """The heads that begin at `head`, where inside, turned as rope_qkv turns them: elements p."""
    pair = tl.where(p < half, p + half, p - half)
    angle = tl.where(p < half, p, p - half)
    c = tl.load(cos + angle, mask=p < 2 * half, other=1.0)
    s = tl.load(sin + angle, mask=p < 2 * half, other=0.0)
    a = tl.load(head + p, mask=inside & (p < P), other=0.0).to(tl.float32)
    e = tl.load(head + pair, mask=inside & (p < 2 * half), other=0.0).to(tl.float32)
    return a * c + tl.where(p < half, -e, e) * s


@triton.jit
def share_of(lengths, starts, b, split, splits, has_starts):
    """The new position of sequence b, and from where to where of those before it a share reaches."""
    end = tl.load(lengths + b).to(tl.int32) - 1
    begin = tl.load(starts + b, mask=has_starts != 0, other=0).to(tl.int32)
    share = (end - begin + splits * 16 - 1) // (splits * 16) * 16
    first = begin + split * share
    return end, first, tl.minimum(first + share, end)


@triton.jit
def fresh(token, k, v, to, h, H, KH, cos, sin, half, p, P, mine):
    """The new position's key, turned, and value, both [1,BP] and 0 unless `mine`: then they go into the caches, at `to`."""
    one = tl.arange(0, 1)[:, None]
    whole = (p < P)[None, :] & mine
    key = turned(token + (H + h + one) * P, (one == 0) & mine, p[None, :], cos, sin, half, P).to(k.dtype.element_ty)
    value = tl.load(token + (H + KH + h + one) * P + p[None, :], mask=whole, other=0.0)
    tl.store(k + to + one + p[None, :], key, mask=whole)
    tl.store(v + to + one + p[None, :], value, mask=whole)
    return key, value


@triton.jit
def together(acc, most, total, part, top, mass, arrived, y, row, split, splits, queries, P, G: tl.constexpr, BP: tl.constexpr):
    """Leaves a program's share of a row of the caches, for its `queries` (at most G): sums [G,BP] of values that are weighted by
    exp(. - most), and the sums of these weights. The last of the row's programs to come puts all into y [queries,P], four queries
    and sixteen shares at a time."""
    g = tl.arange(0, G)
    p = tl.arange(0, BP)
    to = (row * splits + split) * G + g
    tl.store(part + to[:, None].to(tl.int64) * P + p[None, :], acc, mask=(g < queries)[:, None] & (p < P)[None, :])
    tl.store(top + to, most, mask=g < queries)
    tl.store(mass + to, total, mask=g < queries)
    tl.debug_barrier()
    if tl.atomic_add(arrived + row, 1, sem="acq_rel", scope="gpu") == splits - 1:
        tl.store(arrived + row, 0)
        FOUR: tl.constexpr = 4 if G > 4 else G
        q = tl.arange(0, FOUR)
        i = tl.arange(0, 16)
        for of in range(0, queries, FOUR):
            real = (of + q < queries)[:, None]
            peak = tl.full((FOUR,), -1e30, tl.float32)
            weight = tl.zeros((FOUR,), tl.float32)
            sums = tl.zeros((FOUR, BP), tl.float32)
            for first in range(0, splits, 16):
                here = real & (first + i < splits)[None, :]
                at = (row * splits + first + i)[None, :] * G + (of + q)[:, None]
                peaks = tl.load(top + at, mask=here, other=-1e30, cache_modifier=".cg")
                weights = tl.load(mass + at, mask=here, other=0.0, cache_modifier=".cg")
                rows = tl.load(part + at[:, :, None].to(tl.int64) * P + p[None, None, :], mask=here[:, :, None] & (p < P)[None, None, :],
                               other=0.0, cache_modifier=".cg")
                next_ = tl.maximum(peak, tl.max(peaks, axis=1))
                fade = tl.exp(peak - next_)
                grow = tl.exp(peaks - next_[:, None])
                weight = weight * fade + tl.sum(weights * grow, axis=1)
                sums = sums * fade[:, None] + tl.sum(rows * grow[:, :, None], axis=1)
                peak = next_
            out = sums / tl.where(weight > 0.0, weight, 1.0)[:, None]
            tl.store(y + (of + q)[:, None] * P + p[None, :], out.to(y.dtype.element_ty), mask=real & (p < P)[None, :])


@arguments("qkv k v y: *data; cos sin part top mass: *fp32; lengths starts: *i64; arrived: *i32; "
           "H KH splits has_starts table_b: i32; P half stride_kb stride_kh stride_ks: i32/16; "
           "scale: fp32")
@triton.jit
def decode_attention(qkv, cos, sin, k, v, lengths, starts, part, top, mass, arrived, y, H, KH, P, half, scale, splits, has_starts, table_b,
           stride_kb, stride_kh, stride_ks, G: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr, PRECISION: tl.constexpr,
           PDL: tl.constexpr):
    """One new position of each sequence: qkv [B,(H+2KH)·P] is turned, its keys and values go into the caches at lengths[b] - 1, and
    its queries attend to the positions from starts[b] on: y [B,H·P]. Each of the B·KH rows of the caches, for the H/KH (at most G)
    queries that share it, is read by `splits` programs: part [B·KH, splits, G, P], top and mass [B·KH, splits, G] are theirs, and
    arrived [B·KH] is 0 before and after. Kernels that may begin early write neither lengths nor starts."""
    row = tl.program_id(0)
    split = tl.program_id(1)
    b = row // KH
    h = row % KH
    queries = H // KH
    g = tl.arange(0, G)
    p = tl.arange(0, BP)
    s = tl.arange(0, BS)
    end, first, last = share_of(lengths, starts, b, split, splits, has_starts)
    keys = k + b.to(tl.int64) * stride_kb + h.to(tl.int64) * stride_kh
    values = v + b.to(tl.int64) * stride_kb + h.to(tl.int64) * stride_kh
    token = qkv + b.to(tl.int64) * (H + 2 * KH) * P
    cos += b * table_b
    sin += b * table_b
    wait(PDL)
    qt = turned(token + (h * queries + g[:, None]) * P, (g < queries)[:, None], p[None, :], cos, sin, half, P).to(y.dtype.element_ty)
    # The first program begins with the new position, which nobody finds in the caches yet.
    mine = split == 0
    key, value = fresh(token, keys, values, end.to(tl.int64) * stride_ks, h, H, KH, cos, sin, half, p, P, mine)
    most = tl.where(mine, tl.sum(qt.to(tl.float32) * key.to(tl.float32), axis=1) * scale, -1e30)
    total = tl.where(mine, 1.0, tl.zeros((G,), tl.float32))
    acc = tl.zeros((G, BP), tl.float32) + value.to(tl.float32)
    for at in range(first, last, BS):
        t = (at + s).to(tl.int64)
        valid = (t < last)[:, None] & (p < P)[None, :]
        kt = tl.load(keys + t[:, None] * stride_ks + p[None, :], mask=valid, other=0.0)
        w = tl.dot(qt, tl.trans(kt), input_precision=PRECISION) * scale
        w = tl.where((t < last)[None, :], w, -1e30)
        next_ = tl.maximum(most, tl.max(w, axis=1))
        fade = tl.exp(most - next_)
        w = tl.exp(w - next_[:, None])
        vt = tl.load(values + t[:, None] * stride_ks + p[None, :], mask=valid, other=0.0)
        total = total * fade + tl.sum(w, axis=1)
        acc = acc * fade[:, None] + tl.dot(w.to(vt.dtype), vt, input_precision=PRECISION)
        most = next_
    together(acc, most, total, part, top, mass, arrived, y + (b * H + h * queries) * P, row, split, splits, queries, P, G, BP)


@arguments("qkv k v y: *data; cos sin part top mass: *fp32; lengths starts: *i64; arrived: *i32; "
           "H splits has_starts table_b: i32; P half stride_kb stride_kh stride_ks: i32/16; scale: fp32")
@triton.jit
def decode_attention_mha(qkv, cos, sin, k, v, lengths, starts, part, top, mass, arrived, y, H, P, half, scale, splits, has_starts, table_b,
               stride_kb, stride_kh, stride_ks, BP: tl.constexpr, BS: tl.constexpr, PDL: tl.constexpr):
    """`attend` where each query has a row of the caches to itself (KH = H): no product of matrices, but a softmax for each position
    of a tile, with those that follow it a tile further on. A tile is on its way while the one before is used, the first one while the
    kernel in front ends, and between the first and the last no thread waits for another. Positions before the new one are of earlier
    steps, and lengths are written between two steps: no kernel that may still run writes them."""
    row = tl.program_id(0)
    split = tl.program_id(1)
    b = row // H
    h = row % H
    p = tl.arange(0, BP)
    s = tl.arange(0, BS)
    whole = (p < P)[None, :]
    end, first, last = share_of(lengths, starts, b, split, splits, has_starts)
    keys = k + b.to(tl.int64) * stride_kb + h.to(tl.int64) * stride_kh
    values = v + b.to(tl.int64) * stride_kb + h.to(tl.int64) * stride_kh
    token = qkv + b.to(tl.int64) * 3 * H * P
    cos += b * table_b
    sin += b * table_b
    t = (first + s).to(tl.int64)[:, None]
    kt = tl.load(keys + t * stride_ks + p[None, :], mask=(t < last) & whole, other=0.0)
    vt = tl.load(values + t * stride_ks + p[None, :], mask=(t < last) & whole, other=0.0)
    wait(PDL)
    one = tl.arange(0, 1)[:, None]
    qt = turned(token + (h + one) * P, one == 0, p[None, :], cos, sin, half, P).to(y.dtype.element_ty).to(tl.float32)
    mine = split == 0
    key, value = fresh(token, keys, values, end.to(tl.int64) * stride_ks, h, H, H, cos, sin, half, p, P, mine)
    slot = (s == 0) & mine
    most = tl.where(slot, tl.sum(tl.sum(qt * key.to(tl.float32), axis=1), axis=0) * scale, -1e30)
    total = tl.where(slot, 1.0, 0.0)
    acc = tl.where(slot[:, None], value.to(tl.float32), 0.0)
    for at in range(first, last, BS):
        t = (at + BS + s).to(tl.int64)[:, None]
        next_k = tl.load(keys + t * stride_ks + p[None, :], mask=(t < last) & whole, other=0.0)
        next_v = tl.load(values + t * stride_ks + p[None, :], mask=(t < last) & whole, other=0.0)
        w = tl.where(at + s < last, tl.sum(kt.to(tl.float32) * qt, axis=1) * scale, -1e30)
        next_ = tl.maximum(most, w)
        fade = tl.exp(most - next_)
        w = tl.where(at + s < last, tl.exp(w - next_), 0.0)
        total = total * fade + w
        acc = acc * fade[:, None] + w[:, None] * vt.to(tl.float32)
        most = next_
        kt = next_k
        vt = next_v
    peak = tl.max(most, axis=0)
    fade = tl.exp(most - peak)
    nothing = tl.zeros((1,), tl.float32)
    together(tl.sum(acc * fade[:, None], axis=0)[None, :], nothing + peak, nothing + tl.sum(total * fade, axis=0), part, top, mass, arrived,
             y + row * P, row, split, splits, 1, P, 1, BP)
