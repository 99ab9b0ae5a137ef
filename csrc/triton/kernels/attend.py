"""Attention of one new position per sequence to the key and value caches: `cq_decode_attention` of
../../conquer.h, launched by ../../cuda/dense.cpp. Several programs read parts of a cache row, and
the last one to finish merges their results.
"""
import triton
import triton.language as tl

from .arguments import arguments
from .dense import wait


@triton.jit
def rotated(head, inside, p, cos, sin, half, P):
    """Elements p of the heads that begin at `head`, after the rotary embedding of rope_qkv."""
    pair = tl.where(p < half, p + half, p - half)
    angle = tl.where(p < half, p, p - half)
    c = tl.load(cos + angle, mask=p < 2 * half, other=1.0)
    s = tl.load(sin + angle, mask=p < 2 * half, other=0.0)
    a = tl.load(head + p, mask=inside & (p < P), other=0.0).to(tl.float32)
    e = tl.load(head + pair, mask=inside & (p < 2 * half), other=0.0).to(tl.float32)
    return a * c + tl.where(p < half, -e, e) * s


@triton.jit
def split_range(lengths, starts, b, split, splits, has_starts):
    """The index of sequence b's new position, and the range [first, last) of earlier positions that
    a split reads."""
    end = tl.load(lengths + b).to(tl.int32) - 1
    begin = tl.load(starts + b, mask=has_starts != 0, other=0).to(tl.int32)
    share = (end - begin + splits * 16 - 1) // (splits * 16) * 16
    first = begin + split * share
    return end, first, tl.minimum(first + share, end)


@triton.jit
def append_position(token, k, v, to, h, H, KH, cos, sin, half, p, P, is_first):
    """Stores the new position's rotated key and its value in the caches at `to` and returns both,
    [1,BP]. Programs without `is_first` store nothing and get zeros."""
    one = tl.arange(0, 1)[:, None]
    inside_head = (p < P)[None, :] & is_first
    key = rotated(token + (H + h + one) * P, (one == 0) & is_first, p[None, :], cos, sin, half,
                  P).to(k.dtype.element_ty)
    value = tl.load(token + (H + KH + h + one) * P + p[None, :], mask=inside_head, other=0.0)
    tl.store(k + to + one + p[None, :], key, mask=inside_head)
    tl.store(v + to + one + p[None, :], value, mask=inside_head)
    return key, value


@triton.jit
def merge_splits(acc, row_max, total, part, top, mass, arrived, y, row, split, splits, queries, P,
                 G: tl.constexpr, BP: tl.constexpr):
    """Stores a split's result for its `queries` (at most G): acc [G,BP], the sums of values
    weighted by exp(score - row_max), and total [G], the sums of the weights. The last program of a
    cache row to arrive merges all splits into y [queries,P], four queries and sixteen splits at a
    time."""
    g = tl.arange(0, G)
    p = tl.arange(0, BP)
    to = (row * splits + split) * G + g
    tl.store(part + to[:, None].to(tl.int64) * P + p[None, :], acc,
             mask=(g < queries)[:, None] & (p < P)[None, :])
    tl.store(top + to, row_max, mask=g < queries)
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
                rows = tl.load(part + at[:, :, None].to(tl.int64) * P + p[None, None, :],
                               mask=here[:, :, None] & (p < P)[None, None, :], other=0.0,
                               cache_modifier=".cg")
                new_max = tl.maximum(peak, tl.max(peaks, axis=1))
                rescale = tl.exp(peak - new_max)
                grow = tl.exp(peaks - new_max[:, None])
                weight = weight * rescale + tl.sum(weights * grow, axis=1)
                sums = sums * rescale[:, None] + tl.sum(rows * grow[:, :, None], axis=1)
                peak = new_max
            out = sums / tl.where(weight > 0.0, weight, 1.0)[:, None]
            tl.store(y + (of + q)[:, None] * P + p[None, :], out.to(y.dtype.element_ty),
                     mask=real & (p < P)[None, :])


@arguments("qkv k v y: *data; cos sin part top mass: *fp32; lengths starts: *i64; arrived: *i32; "
           "H KH splits has_starts table_b: i32; P half stride_kb stride_kh stride_ks: i32/16; "
           "scale: fp32")
@triton.jit
def decode_attention(qkv, cos, sin, k, v, lengths, starts, part, top, mass, arrived, y, H, KH, P,
                     half, scale, splits, has_starts, table_b, stride_kb, stride_kh, stride_ks,
                     G: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr, PRECISION: tl.constexpr,
                     PDL: tl.constexpr):
    """y [B,H·P] of qkv [B,(H+2KH)·P], one new position per sequence.

    The kernel rotates queries and keys, stores keys and values in the caches at lengths[b] - 1, and
    attends to the positions from starts[b] on. `splits` programs read each of the B·KH cache rows
    for the H/KH (at most G) queries that share it. part [B·KH,splits,G,P], top and mass
    [B·KH,splits,G] hold their results; arrived [B·KH] counts them and is 0 before and after.
    lengths and starts are read before `wait`: no kernel that may still run writes them."""
    row = tl.program_id(0)
    split = tl.program_id(1)
    b = row // KH
    h = row % KH
    queries = H // KH
    g = tl.arange(0, G)
    p = tl.arange(0, BP)
    s = tl.arange(0, BS)
    end, first, last = split_range(lengths, starts, b, split, splits, has_starts)
    keys = k + b.to(tl.int64) * stride_kb + h.to(tl.int64) * stride_kh
    values = v + b.to(tl.int64) * stride_kb + h.to(tl.int64) * stride_kh
    token = qkv + b.to(tl.int64) * (H + 2 * KH) * P
    cos += b * table_b
    sin += b * table_b
    wait(PDL)
    qt = rotated(token + (h * queries + g[:, None]) * P, (g < queries)[:, None], p[None, :], cos,
                 sin, half, P).to(y.dtype.element_ty)
    # The first program handles the new position, which is not in the caches yet.
    is_first = split == 0
    key, value = append_position(token, keys, values,
                                 end.to(tl.int64) * stride_ks, h, H, KH, cos, sin, half, p, P,
                                 is_first)
    row_max = tl.where(is_first,
                       tl.sum(qt.to(tl.float32) * key.to(tl.float32), axis=1) * scale, -1e30)
    total = tl.where(is_first, 1.0, tl.zeros((G,), tl.float32))
    acc = tl.zeros((G, BP), tl.float32) + value.to(tl.float32)
    for at in range(first, last, BS):
        t = (at + s).to(tl.int64)
        valid = (t < last)[:, None] & (p < P)[None, :]
        kt = tl.load(keys + t[:, None] * stride_ks + p[None, :], mask=valid, other=0.0)
        w = tl.dot(qt, tl.trans(kt), input_precision=PRECISION) * scale
        w = tl.where((t < last)[None, :], w, -1e30)
        new_max = tl.maximum(row_max, tl.max(w, axis=1))
        rescale = tl.exp(row_max - new_max)
        w = tl.exp(w - new_max[:, None])
        vt = tl.load(values + t[:, None] * stride_ks + p[None, :], mask=valid, other=0.0)
        total = total * rescale + tl.sum(w, axis=1)
        acc = acc * rescale[:, None] + tl.dot(w.to(vt.dtype), vt, input_precision=PRECISION)
        row_max = new_max
    merge_splits(acc, row_max, total, part, top, mass, arrived, y + (b * H + h * queries) * P, row,
                 split, splits, queries, P, G, BP)


@arguments("qkv k v y: *data; cos sin part top mass: *fp32; lengths starts: *i64; arrived: *i32; "
           "H splits has_starts table_b: i32; P half stride_kb stride_kh stride_ks: i32/16; "
           "scale: fp32")
@triton.jit
def decode_attention_mha(qkv, cos, sin, k, v, lengths, starts, part, top, mass, arrived, y, H, P,
                         half, scale, splits, has_starts, table_b, stride_kb, stride_kh, stride_ks,
                         BP: tl.constexpr, BS: tl.constexpr, PDL: tl.constexpr):
    """`decode_attention` for models in which each query has its own cache row (KH = H).

    It runs no GEMM: each of the BS rows of a tile keeps its own softmax over the positions BS
    apart, so that threads do not synchronize inside the loop. The next tile is loaded while the
    current one is used, and the first one before `wait`: earlier steps wrote the positions before
    the new one."""
    row = tl.program_id(0)
    split = tl.program_id(1)
    b = row // H
    h = row % H
    p = tl.arange(0, BP)
    s = tl.arange(0, BS)
    inside_head = (p < P)[None, :]
    end, first, last = split_range(lengths, starts, b, split, splits, has_starts)
    keys = k + b.to(tl.int64) * stride_kb + h.to(tl.int64) * stride_kh
    values = v + b.to(tl.int64) * stride_kb + h.to(tl.int64) * stride_kh
    token = qkv + b.to(tl.int64) * 3 * H * P
    cos += b * table_b
    sin += b * table_b
    t = (first + s).to(tl.int64)[:, None]
    kt = tl.load(keys + t * stride_ks + p[None, :], mask=(t < last) & inside_head, other=0.0)
    vt = tl.load(values + t * stride_ks + p[None, :], mask=(t < last) & inside_head, other=0.0)
    wait(PDL)
    one = tl.arange(0, 1)[:, None]
    qt = rotated(token + (h + one) * P, one == 0, p[None, :], cos, sin, half,
                 P).to(y.dtype.element_ty).to(tl.float32)
    is_first = split == 0
    key, value = append_position(token, keys, values,
                                 end.to(tl.int64) * stride_ks, h, H, H, cos, sin, half, p, P,
                                 is_first)
    slot = (s == 0) & is_first
    row_max = tl.where(slot, tl.sum(tl.sum(qt * key.to(tl.float32), axis=1), axis=0) * scale, -1e30)
    total = tl.where(slot, 1.0, 0.0)
    acc = tl.where(slot[:, None], value.to(tl.float32), 0.0)
    for at in range(first, last, BS):
        t = (at + BS + s).to(tl.int64)[:, None]
        next_k = tl.load(keys + t * stride_ks + p[None, :], mask=(t < last) & inside_head,
                         other=0.0)
        next_v = tl.load(values + t * stride_ks + p[None, :], mask=(t < last) & inside_head,
                         other=0.0)
        w = tl.where(at + s < last, tl.sum(kt.to(tl.float32) * qt, axis=1) * scale, -1e30)
        new_max = tl.maximum(row_max, w)
        rescale = tl.exp(row_max - new_max)
        w = tl.where(at + s < last, tl.exp(w - new_max), 0.0)
        total = total * rescale + w
        acc = acc * rescale[:, None] + w[:, None] * vt.to(tl.float32)
        row_max = new_max
        kt = next_k
        vt = next_v
    peak = tl.max(row_max, axis=0)
    rescale = tl.exp(row_max - peak)
    nothing = tl.zeros((1,), tl.float32)
    acc = tl.sum(acc * rescale[:, None], axis=0)[None, :]
    row_max = nothing + peak
    total = nothing + tl.sum(total * rescale, axis=0)
    merge_splits(acc, row_max, total, part, top, mass, arrived, y + row * P, row, split, splits, 1,
                 P, 1, BP)
