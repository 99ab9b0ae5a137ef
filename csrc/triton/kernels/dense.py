"""The operators of a transformer's blocks: ../../conquer.h says what each computes,
../../cuda/dense.cpp launches them. Sums are float32, and values are rounded where the CPU's kernels
round them. All of them are bound by memory traffic.

PDL: the kernel may begin while the kernel before it still runs (programmatic dependent launch).
Before `wait` it may touch only weights, which no kernel of a decoding step writes; `wait` returns
when the kernel before it has finished.
"""
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .arguments import arguments


@triton.jit
def wait(PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


@arguments("x weight y: *data; rstd: *fp32; D: i32/16; eps: fp32; keep: i32")
@triton.jit
def rms_norm(x, weight, y, rstd, D, eps, keep, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """y = x·rstd·weight, one row per program. keep other than 0: writes rstd [rows] for the
    backward pass."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < D
    w = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    wait(PDL)
    v = tl.load(x + row * D + i, mask=inside, other=0.0).to(tl.float32)
    r = tl.rsqrt(tl.sum(v * v, axis=0) / D + eps)
    h = (v * r).to(y.dtype.element_ty).to(tl.float32)
    tl.store(y + row * D + i, (h * w).to(y.dtype.element_ty), mask=inside)
    tl.store(rstd + row, r, mask=keep != 0)


@arguments("dy x weight dx: *data; rstd part: *fp32; rows: i32; D: i32/16")
@triton.jit
def rms_norm_grad(dy, x, weight, rstd, dx, part, rows, D, WEIGHT: tl.constexpr,
                  BLOCK: tl.constexpr):
    """dx, and part [programs,D]: each program's sum of the weight's gradient over its rows. With h
    = x·rstd and g = dy·weight: dx = rstd·(g - h·mean(g·h))."""
    i = tl.arange(0, BLOCK)
    inside = i < D
    w = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    acc = tl.zeros((BLOCK,), tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = row * D.to(tl.int64) + i
        r = tl.load(rstd + row)
        h = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * r
        g = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        if WEIGHT:
            acc += g * h.to(dx.dtype.element_ty).to(tl.float32)
        g = g * w
        d = (g - h * (tl.sum(g * h, axis=0) / D)) * r
        tl.store(dx + at, d.to(dx.dtype.element_ty), mask=inside)
    if WEIGHT:
        tl.store(part + tl.program_id(0).to(tl.int64) * D + i, acc, mask=inside)


@arguments("qkv q k v: *data; cos sin: *fp32; columns: *i64; H KH L table_b cached columns_b: i32; "
           "P half stride_qb stride_qh stride_ql stride_kb stride_kh stride_ks: i32/16")
@triton.jit
def rope_qkv(qkv, cos, sin, q, k, v, columns, H, KH, L, P, half, table_b, cached, columns_b,
             stride_qb, stride_qh, stride_ql, stride_kb, stride_kh, stride_ks, HEADS: tl.constexpr,
             BH: tl.constexpr, PDL: tl.constexpr):
    """Rotates q and k of qkv [B,L,(H+2KH)·P] and copies v.

    q, k and v have strides for (batch, head, position); the position in k and v is l or, if cached
    is not 0, columns[b,l]. A program handles HEADS heads of one token."""
    token = tl.program_id(0).to(tl.int64)
    b = token // L
    l = token % L
    n = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    i = tl.arange(0, BH)
    wait(PDL)
    c = tl.load(cos + b * table_b + l * half + i, mask=i < half, other=1.0)[None, :]
    s = tl.load(sin + b * table_b + l * half + i, mask=i < half, other=0.0)[None, :]
    is_rotated = (n < H + KH)[:, None]
    c = tl.where(is_rotated, c, 1.0)
    s = tl.where(is_rotated, s, 0.0)
    row = qkv + (token * (H + 2 * KH) + n[:, None]) * P
    inside = (n < H + 2 * KH)[:, None] & (i < half)[None, :]
    a = tl.load(row + i[None, :], mask=inside, other=0.0).to(tl.float32)
    e = tl.load(row + half + i[None, :], mask=inside, other=0.0).to(tl.float32)
    to = tl.where(cached != 0, tl.load(columns + b * columns_b + l, mask=cached != 0, other=0), l)
    of_q = inside & (n < H)[:, None]
    of_k = inside & ((n >= H) & (n < H + KH))[:, None]
    of_v = inside & (n >= H + KH)[:, None]
    to_q = q + b * stride_qb + n[:, None].to(tl.int64) * stride_qh + l * stride_ql
    to_k = k + b * stride_kb + (n[:, None] - H).to(tl.int64) * stride_kh + to * stride_ks
    to_v = v + b * stride_kb + (n[:, None] - H - KH).to(tl.int64) * stride_kh + to * stride_ks
    first = (a * c - e * s).to(q.dtype.element_ty)
    second = (e * c + a * s).to(q.dtype.element_ty)
    tl.store(to_q + i[None, :], first, mask=of_q)
    tl.store(to_q + half + i[None, :], second, mask=of_q)
    tl.store(to_k + i[None, :], first, mask=of_k)
    tl.store(to_k + half + i[None, :], second, mask=of_k)
    tl.store(to_v + i[None, :], first, mask=of_v)
    tl.store(to_v + half + i[None, :], second, mask=of_v)
    for from_ in range(2 * half, P, BH):  # dimensions that are not rotated
        j = (from_ + i)[None, :]
        rest = (n < H + 2 * KH)[:, None] & (j < P)
        u = tl.load(row + j, mask=rest, other=0.0)
        tl.store(to_q + j, u, mask=rest & (n < H)[:, None])
        tl.store(to_k + j, u, mask=rest & ((n >= H) & (n < H + KH))[:, None])
        tl.store(to_v + j, u, mask=rest & (n >= H + KH)[:, None])


@arguments("dq dk dv dqkv: *data; cos sin: *fp32; H KH L table_b: i32; "
           "P half stride_qb stride_qh stride_ql stride_kb stride_kh stride_kl stride_vb stride_vh "
           "stride_vl: i32/16")
@triton.jit
def rope_qkv_grad(dq, dk, dv, cos, sin, dqkv, H, KH, L, P, half, table_b, stride_qb, stride_qh,
                  stride_ql, stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl,
                  HEADS: tl.constexpr, BH: tl.constexpr):
    """dqkv [B,L,(H+2KH)·P] of dq, dk and dv with strides for (batch, head, position): the inverse
    rotation."""
    token = tl.program_id(0).to(tl.int64)
    b = token // L
    l = token % L
    n = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    i = tl.arange(0, BH)
    c = tl.load(cos + b * table_b + l * half + i, mask=i < half, other=1.0)[None, :]
    s = tl.load(sin + b * table_b + l * half + i, mask=i < half, other=0.0)[None, :]
    is_rotated = (n < H + KH)[:, None]
    c = tl.where(is_rotated, c, 1.0)
    s = tl.where(is_rotated, s, 0.0)
    of_q = (n < H)[:, None]
    of_k = ((n >= H) & (n < H + KH))[:, None]
    of_v = ((n >= H + KH) & (n < H + 2 * KH))[:, None]
    at_q = dq + b * stride_qb + n[:, None].to(tl.int64) * stride_qh + l * stride_ql
    at_k = dk + b * stride_kb + (n[:, None] - H).to(tl.int64) * stride_kh + l * stride_kl
    at_v = dv + b * stride_vb + (n[:, None] - H - KH).to(tl.int64) * stride_vh + l * stride_vl
    row = dqkv + (token * (H + 2 * KH) + n[:, None]) * P
    inside = (n < H + 2 * KH)[:, None] & (i < half)[None, :]
    j = i[None, :]
    a = tl.load(at_q + j, mask=inside & of_q, other=0.0).to(tl.float32)
    a += tl.load(at_k + j, mask=inside & of_k, other=0.0).to(tl.float32)
    a += tl.load(at_v + j, mask=inside & of_v, other=0.0).to(tl.float32)
    j = half + i[None, :]
    e = tl.load(at_q + j, mask=inside & of_q, other=0.0).to(tl.float32)
    e += tl.load(at_k + j, mask=inside & of_k, other=0.0).to(tl.float32)
    e += tl.load(at_v + j, mask=inside & of_v, other=0.0).to(tl.float32)
    tl.store(row + i[None, :], (a * c + e * s).to(dqkv.dtype.element_ty), mask=inside)
    tl.store(row + j, (e * c - a * s).to(dqkv.dtype.element_ty), mask=inside)
    for from_ in range(2 * half, P, BH):
        j = (from_ + i)[None, :]
        rest = (n < H + 2 * KH)[:, None] & (j < P)
        u = tl.load(at_q + j, mask=rest & of_q, other=0.0) + tl.load(at_k + j, mask=rest & of_k,
                                                                     other=0.0)
        u += tl.load(at_v + j, mask=rest & of_v, other=0.0)
        tl.store(row + j, u, mask=rest)


@arguments("x y: *data; F: i32/16")
@triton.jit
def swiglu(x, y, F, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """y [rows,F] = silu(gate)·up of x [rows,2F], gate first."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < F
    wait(PDL)
    g = tl.load(x + row * 2 * F + i, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(x + row * 2 * F + F + i, mask=inside, other=0.0).to(tl.float32)
    s = (g / (1.0 + tl.exp(-g))).to(y.dtype.element_ty).to(tl.float32)
    tl.store(y + row * F + i, (s * u).to(y.dtype.element_ty), mask=inside)


@arguments("dy x dx: *data; F: i32/16")
@triton.jit
def swiglu_grad(dy, x, dx, F, BLOCK: tl.constexpr):
    """dx [rows,2F] of dy [rows,F]; silu(gate) is computed again."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < F
    g = tl.load(x + row * 2 * F + i, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(x + row * 2 * F + F + i, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(dy + row * F + i, mask=inside, other=0.0).to(tl.float32)
    s = 1.0 / (1.0 + tl.exp(-g))
    du = (d * u).to(dx.dtype.element_ty).to(tl.float32)
    silu = (g * s).to(dx.dtype.element_ty).to(tl.float32)
    tl.store(dx + row * 2 * F + i, (du * s * (1.0 + g * (1.0 - s))).to(dx.dtype.element_ty),
             mask=inside)
    tl.store(dx + row * 2 * F + F + i, (d * silu).to(dx.dtype.element_ty), mask=inside)


@arguments("logits: *data; targets: *i64; nll: *fp32; V: i32/16; scale: fp32")
@triton.jit
def cross_entropy(logits, targets, nll, V, scale, GRAD: tl.constexpr, BLOCK: tl.constexpr,
                  MASK: tl.constexpr):
    """nll [rows] of logits [rows,V], one row per program; 0 for a target below 0.

    GRAD: the logits become their gradient, (softmax - onehot)·scale, or 0 for a target below 0. The
    second pass over a row finds most of it in the L2 cache. MASK: V is not a multiple of 16."""
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * V
    target = tl.load(targets + row)
    i = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), -1e30, tl.float32)
    mass = tl.zeros((BLOCK,), tl.float32)
    for c in range(0, V, BLOCK):
        v = tl.load(base + c + i, mask=c + i < V, other=-1e30).to(tl.float32)
        new_top = tl.maximum(top, v)
        mass = mass * tl.exp(top - new_top) + tl.exp(v - new_top)
        top = new_top
    most = tl.max(top, axis=0)
    log_sum = most + tl.log(tl.sum(mass * tl.exp(top - most), axis=0))
    counted = target >= 0
    hit = tl.load(base + tl.maximum(target, 0)).to(tl.float32)
    tl.store(nll + row, tl.where(counted, log_sum - hit, 0.0))
    if GRAD:
        tl.debug_barrier()  # every thread has read the target's logit before it is overwritten
        factor = tl.where(counted, scale, 0.0)
        for c in range(0, V, BLOCK):
            v = tl.load(base + c + i, mask=c + i < V, other=-1e30).to(tl.float32)
            g = (tl.exp(v - log_sum) - tl.where(c + i == target, 1.0, 0.0)) * factor
            tl.store(base + c + i, g.to(logits.dtype.element_ty), mask=c + i < V)


@arguments("logits: *data; ids: *i64; top: *fp32; place arrived: *i32; V span splits: i32")
@triton.jit
def argmax(logits, ids, top, place, arrived, V, span, splits, BLOCK: tl.constexpr,
           SPLITS: tl.constexpr, PDL: tl.constexpr):
    """ids [rows]: the column of the largest of logits [rows,V], the first of equals, or -1 if a row
    holds a NaN.

    `splits` (at most SPLITS) programs read `span` columns of a row each. top and place
    [rows,splits] hold their maxima and columns, -1 for a NaN; arrived [rows] counts the programs
    and is 0 before and after. The last program of a row chooses."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    i = tl.arange(0, BLOCK)
    first = split * span
    last = tl.minimum(first + span, V)
    wait(PDL)
    best = tl.full((BLOCK,), -float("inf"), tl.float32)
    at = first + i
    broken = tl.zeros((BLOCK,), tl.int32)
    for c in range(first, last, BLOCK):
        v = tl.load(logits + row * V + c + i, mask=c + i < last,
                    other=-float("inf")).to(tl.float32)
        broken |= (v != v).to(tl.int32)
        at = tl.where(v > best, c + i, at)
        best = tl.where(v > best, v, best)
    peak = tl.max(best, axis=0)
    id = tl.min(tl.where(best == peak, at, V), axis=0)
    id = tl.where(tl.max(broken, axis=0) != 0, -1, id)
    if splits > 1:
        tl.store(top + row * splits + split, peak)
        tl.store(place + row * splits + split, id)
        tl.debug_barrier()
        if tl.atomic_add(arrived + row, 1, sem="acq_rel", scope="gpu") == splits - 1:
            tl.store(arrived + row, 0)
            s = tl.arange(0, SPLITS)
            tops = tl.load(top + row * splits + s, mask=s < splits, other=-float("inf"),
                           cache_modifier=".cg")
            places = tl.load(place + row * splits + s, mask=s < splits, other=V,
                             cache_modifier=".cg")
            id = tl.min(tl.where(tops == tl.max(tops, axis=0), places, V), axis=0)
            id = tl.where(tl.min(places, axis=0) < 0, -1, id)
            tl.store(ids + row, id.to(tl.int64))
    else:
        tl.store(ids + row, id.to(tl.int64))


@triton.jit
def round_to(v, y):
    """v rounded to the dtype of y, in float32."""
    return v.to(y.dtype.element_ty).to(tl.float32)


@triton.jit
def store_row(acc, n, m, bias, residual, y, N, has_bias, has_residual):
    """Stores row m of y [M,N]: acc, plus the bias and the residual if the kernel has them."""
    inside = n < N
    acc += tl.load(bias + n, mask=inside & (has_bias != 0), other=0.0).to(tl.float32)
    acc = round_to(acc, y) + tl.load(residual + m * N + n, mask=inside &
                                     (has_residual != 0), other=0.0).to(tl.float32)
    tl.store(y + m * N + n, acc.to(y.dtype.element_ty), mask=inside)


@triton.jit
def sum_neighbours(v, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """Sums WIDE neighbours of v [ROWS,COLUMNS], all held by one thread: an eighth of the registers,
    and no communication between threads."""
    return tl.sum(tl.reshape(v, (ROWS, COLUMNS // WIDE, WIDE)), axis=2)


@triton.jit
def load_input(x, norm, i, D, squares, NORM: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr):
    """Elements i [1,BK] of a row of x, and the running sum of their squares. NORM multiplies them
    by the norm's weight; the division by the root mean square follows the GEMV (finish_norm), since
    it needs all squares."""
    v = tl.load(x + i, mask=i < D, other=0.0).to(tl.float32)
    if NORM:
        squares += sum_neighbours(v * v, 1, BK, WIDE)
        v = v * tl.load(norm + i, mask=i < D, other=0.0).to(tl.float32)
    return v, squares


@triton.jit
def finish_norm(acc, squares, D, eps, NORM: tl.constexpr):
    """The sums of acc over its columns; NORM: divided by the root mean square of the input."""
    total = tl.sum(acc, axis=1)
    if NORM:
        total = total * tl.rsqrt(tl.sum(tl.sum(squares, axis=1), axis=0) / D + eps)
    return total


@arguments("x norm w bias residual y: *data; N has_bias has_residual: i32; D: i32/16; eps: fp32")
@triton.jit
def gemv(x, norm, w, bias, residual, y, N, D, eps, has_bias, has_residual, M: tl.constexpr,
         NORM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr):
    """y [M,N] = x [M,D] · w [N,D]ᵀ + bias + residual, M 1, 2 or 4.

    Each weight is read once. The next tile is loaded while the current one is used, and the first
    one before `wait`. NORM: x is replaced by rms_norm(x) with the weight norm [D]."""
    WIDE: tl.constexpr = 128 // w.dtype.element_ty.primitive_bitwidth
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)[None, :]
    rows = w + n[:, None].to(tl.int64) * D
    inside = (n < N)[:, None]
    tile = tl.load(rows + k, mask=inside & (k < D), other=0.0, eviction_policy="evict_first")
    wait(PDL)
    acc0 = tl.zeros((BN, BK // WIDE), tl.float32)
    acc1 = acc0
    acc2 = acc0
    acc3 = acc0
    s0 = tl.zeros((1, BK // WIDE), tl.float32)
    s1 = s0
    s2 = s0
    s3 = s0
    for at in range(0, D, BK):
        i = at + BK + k
        following = tl.load(rows + i, mask=inside & (i < D), other=0.0,
                            eviction_policy="evict_first")
        wide = tile.to(tl.float32)
        i = at + k
        v, s0 = load_input(x, norm, i, D, s0, NORM, BK, WIDE)
        acc0 += sum_neighbours(wide * v, BN, BK, WIDE)
        if M > 1:
            v, s1 = load_input(x + D, norm, i, D, s1, NORM, BK, WIDE)
            acc1 += sum_neighbours(wide * v, BN, BK, WIDE)
        if M > 2:
            v, s2 = load_input(x + 2 * D, norm, i, D, s2, NORM, BK, WIDE)
            acc2 += sum_neighbours(wide * v, BN, BK, WIDE)
            v, s3 = load_input(x + 3 * D, norm, i, D, s3, NORM, BK, WIDE)
            acc3 += sum_neighbours(wide * v, BN, BK, WIDE)
        tile = following
    store_row(finish_norm(acc0, s0, D, eps, NORM), n, 0, bias, residual, y, N, has_bias,
              has_residual)
    if M > 1:
        store_row(finish_norm(acc1, s1, D, eps, NORM), n, 1, bias, residual, y, N, has_bias,
                  has_residual)
    if M > 2:
        store_row(finish_norm(acc2, s2, D, eps, NORM), n, 2, bias, residual, y, N, has_bias,
                  has_residual)
        store_row(finish_norm(acc3, s3, D, eps, NORM), n, 3, bias, residual, y, N, has_bias,
                  has_residual)


@triton.jit
def store_gated(g, u, n, m, bias, y, F, has_bias):
    """Stores row m of y [M,F]: silu(g)·u, after the bias if the kernel has one."""
    inside = n < F
    g += tl.load(bias + n, mask=inside & (has_bias != 0), other=0.0).to(tl.float32)
    u += tl.load(bias + F + n, mask=inside & (has_bias != 0), other=0.0).to(tl.float32)
    g = round_to(g, y)
    tl.store(y + m * F + n,
             (round_to(g / (1.0 + tl.exp(-g)), y) * round_to(u, y)).to(y.dtype.element_ty),
             mask=inside)


@arguments("x norm w bias y: *data; F D: i32/16; eps: fp32; has_bias: i32")
@triton.jit
def gemv_swiglu(x, norm, w, bias, y, F, D, eps, has_bias, M: tl.constexpr, NORM: tl.constexpr,
                BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr):
    """y [M,F] = silu(gate)·up; gate and up are the GEMVs of x [M,D] with the first and the last F
    rows of w [2F,D]. M is 1 or 2. NORM as in gemv."""
    WIDE: tl.constexpr = 128 // w.dtype.element_ty.primitive_bitwidth
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)[None, :]
    gates = w + n[:, None].to(tl.int64) * D
    ups = gates + F.to(tl.int64) * D
    inside = (n < F)[:, None]
    gate = tl.load(gates + k, mask=inside & (k < D), other=0.0, eviction_policy="evict_first")
    up = tl.load(ups + k, mask=inside & (k < D), other=0.0, eviction_policy="evict_first")
    wait(PDL)
    g0 = tl.zeros((BN, BK // WIDE), tl.float32)
    u0 = g0
    g1 = g0
    u1 = g0
    s0 = tl.zeros((1, BK // WIDE), tl.float32)
    s1 = s0
    for at in range(0, D, BK):
        i = at + BK + k
        next_gate = tl.load(gates + i, mask=inside & (i < D), other=0.0,
                            eviction_policy="evict_first")
        next_up = tl.load(ups + i, mask=inside & (i < D), other=0.0, eviction_policy="evict_first")
        i = at + k
        v, s0 = load_input(x, norm, i, D, s0, NORM, BK, WIDE)
        g0 += sum_neighbours(gate.to(tl.float32) * v, BN, BK, WIDE)
        u0 += sum_neighbours(up.to(tl.float32) * v, BN, BK, WIDE)
        if M > 1:
            v, s1 = load_input(x + D, norm, i, D, s1, NORM, BK, WIDE)
            g1 += sum_neighbours(gate.to(tl.float32) * v, BN, BK, WIDE)
            u1 += sum_neighbours(up.to(tl.float32) * v, BN, BK, WIDE)
        gate = next_gate
        up = next_up
    store_gated(finish_norm(g0, s0, D, eps, NORM), finish_norm(u0, s0, D, eps, NORM), n, 0, bias, y,
                F, has_bias)
    if M > 1:
        store_gated(finish_norm(g1, s1, D, eps, NORM), finish_norm(u1, s1, D, eps, NORM), n, 1,
                    bias, y, F, has_bias)


@arguments("x w: *data; part: *fp32; M N: i32; D span: i32/16")
@triton.jit
def split_k_gemm(x, w, part, M, N, D, span, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
                 PRECISION: tl.constexpr, PDL: tl.constexpr):
    """One split of a GEMM of few rows: part [splits,M,N] = x [M,D] · w [N,D]ᵀ over `span` of the
    inner dimension, for up to BM rows."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    k = tl.arange(0, BK)
    first = tl.program_id(1) * span
    last = tl.minimum(first + span, D)
    rows = w + n[:, None].to(tl.int64) * D
    inside = (n < N)[:, None]
    wait(PDL)
    acc = tl.zeros((BN, BM), tl.float32)
    for at in range(first, last, BK):
        i = at + k
        tile = tl.load(rows + i[None, :], mask=inside & (i < last)[None, :], other=0.0)
        v = tl.load(x + m[None, :] * D + i[:, None], mask=(m < M)[None, :] & (i < last)[:, None],
                    other=0.0)
        acc += tl.dot(tile, v, input_precision=PRECISION)
    to = (tl.program_id(1) * M + m[None, :]) * N + n[:, None]
    tl.store(part + to, acc, mask=inside & (m < M)[None, :])


@arguments("part: *fp32; bias residual y: *data; M N splits has_bias has_residual: i32")
@triton.jit
def sum_splits(part, bias, residual, y, M, N, splits, has_bias, has_residual,
              BLOCK: tl.constexpr, PDL: tl.constexpr):
    """y [M,N]: the sum of split_k_gemm's splits, plus bias and residual."""
    m = tl.program_id(0)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wait(PDL)
    acc = tl.zeros((BLOCK,), tl.float32)
    for split in range(0, splits):
        acc += tl.load(part + (split * M + m) * N + n, mask=n < N, other=0.0)
    store_row(acc, n, m, bias, residual, y, N, has_bias, has_residual)


@arguments("part: *fp32; bias y: *data; M splits has_bias: i32; F: i32/16")
@triton.jit
def sum_splits_swiglu(part, bias, y, M, F, splits, has_bias, BLOCK: tl.constexpr,
                      PDL: tl.constexpr):
    """y [M,F] = silu(gate)·up of the sum of split_k_gemm's splits [splits,M,2F]."""
    m = tl.program_id(0)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wait(PDL)
    g = tl.zeros((BLOCK,), tl.float32)
    u = g
    for split in range(0, splits):
        at = part + (split * M + m) * 2 * F + n
        g += tl.load(at, mask=n < F, other=0.0)
        u += tl.load(at + F, mask=n < F, other=0.0)
    store_gated(g, u, n, m, bias, y, F, has_bias)


@arguments("dy grad: *data; ids order: *i64; count: i32; D: i32/16")
@triton.jit
def add_rows(dy, ids, order, grad, count, D, BLOCK: tl.constexpr):
    """grad[ids[i]] += the sum of dy's rows order[j] over all j with that id; ids [count] is sorted.
    The program of the first of equal ids adds all of them, so that the order of summation is fixed.
    """
    i = tl.program_id(0)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    id = tl.load(ids + i)
    before = tl.load(ids + tl.maximum(i - 1, 0))
    if (i == 0) | (before != id):
        acc = tl.zeros((BLOCK,), tl.float32)
        j = i
        here = id
        while here == id:
            row = tl.load(order + j)
            acc += tl.load(dy + row * D + c, mask=c < D, other=0.0).to(tl.float32)
            j += 1
            here = tl.load(ids + j, mask=j < count, other=-1)
        at = grad + id * D + c
        acc += tl.load(at, mask=c < D, other=0.0).to(tl.float32)
        tl.store(at, acc.to(grad.dtype.element_ty), mask=c < D)


@arguments("y: *data; factor: *fp32; count: i32")
@triton.jit
def multiply(y, factor, count, BLOCK: tl.constexpr):
    """y [count] *= factor [1], float32. If the factor is 1, which only the device knows, y is not
    read."""
    f = tl.load(factor)
    if f != 1.0:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        v = tl.load(y + i, mask=i < count, other=0.0).to(tl.float32)
        tl.store(y + i, (v * f).to(y.dtype.element_ty), mask=i < count)


@triton.jit
def round_stochastically(v, bits):
    """v as bfloat16, rounded up or down with the probabilities that preserve its mean: 16 random
    bits are added to the lower half, whose carry reaches the upper half."""
    raw = v.to(tl.uint32, bitcast=True) + (bits & 0xFFFF)
    return (raw & 0xFFFF0000).to(tl.float32, bitcast=True)


@triton.jit
def random_bits(i, key):
    """32 random bits for each element, which depend on its index and the key only (Wellons'
    lowbias32 hash), the same bits that the CPU's kernels draw."""
    x = (i.to(tl.int32) ^ key).to(tl.uint32, bitcast=True)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def tensor_of_step(table, chunks, T: tl.constexpr):
    """What a program of an AdamW kernel works on: its tensor's entry of the table, its first
    element, weight and gradient, the tensor's length, 1 - rate·decay, and the key of the
    stochastic rounding."""
    which = tl.load(chunks + tl.program_id(0) * 2)
    start = tl.multiple_of(tl.load(chunks + tl.program_id(0) * 2 + 1), 16)
    entry = table + which * 9
    weight = tl.multiple_of(tl.load(entry).to(tl.pointer_type(T)), 16)
    grad = tl.multiple_of(tl.load(entry + 1).to(tl.pointer_type(T)), 16)
    count = tl.multiple_of(tl.load(entry + 6), 16)
    keep = 1.0 - tl.load(entry + 7).to(tl.int32).to(tl.float32, bitcast=True)
    return entry, start, weight, grad, count, keep, tl.load(entry + 8).to(tl.int32)


@triton.jit
def adamw_step(g, m, v, w, keep, rate, beta1, beta2, eps, correct1, correct2):
    """The moments and the weight after a step with gradient g."""
    m = beta1 * m + (1.0 - beta1) * g
    v = beta2 * v + (1.0 - beta2) * g * g
    return m, v, w * keep - rate * (m / correct1) / (tl.sqrt(v) / correct2 + eps)


@arguments("table chunks: *i64; like: *data; scale rate beta1 beta2 eps correct1 correct2: fp32")
@triton.jit
def adamw(table, chunks, like, scale, rate, beta1, beta2, eps, correct1, correct2,
          MASTER: tl.constexpr, NARROW: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """One AdamW step for many tensors in one launch.

    chunks [programs,2]: the tensor that a program works on, and its first element. table
    [tensors,9]: the addresses of weight, gradient, mean, square, float32 master weight and
    exponents (see adamw_8bit), the length, rate·decay as the bits of a float32, and the key of the
    stochastic rounding. Gradients are multiplied by scale. Lengths are multiples of 16, addresses
    of 16 bytes. Weight and gradient have the dtype of `like`, which is not read. A bfloat16 weight
    without a master weight is rounded stochastically. The moments are float32, or if NARROW
    bfloat16 and rounded stochastically."""
    T: tl.constexpr = like.dtype.element_ty
    M: tl.constexpr = tl.bfloat16 if NARROW else tl.float32
    entry, start, weight, grad, count, keep, key = tensor_of_step(table, chunks, T)
    mean = tl.multiple_of(tl.load(entry + 2).to(tl.pointer_type(M)), 16)
    square = tl.multiple_of(tl.load(entry + 3).to(tl.pointer_type(M)), 16)
    master = tl.multiple_of(tl.load(entry + 4).to(tl.pointer_type(tl.float32)), 16)
    for at in range(0, SPAN, BLOCK):
        i = start + at + tl.arange(0, BLOCK).to(tl.int64)
        inside = i < count
        g = tl.load(grad + i, mask=inside, other=0.0).to(tl.float32) * scale
        m = tl.load(mean + i, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(square + i, mask=inside, other=0.0).to(tl.float32)
        if MASTER:
            w = tl.load(master + i, mask=inside, other=0.0)
        else:
            w = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
        m, v, w = adamw_step(g, m, v, w, keep, rate, beta1, beta2, eps, correct1, correct2)
        if NARROW:  # the key makes each tensor and step a stream of its own
            bits = random_bits(i, key)
            m = round_stochastically(m, bits)
            v = round_stochastically(v, bits >> 16)
        tl.store(mean + i, m.to(M), mask=inside)
        tl.store(square + i, v.to(M), mask=inside)
        if MASTER:
            tl.store(master + i, w, mask=inside)
        elif T == tl.bfloat16:
            w = round_stochastically(w, random_bits(i, ~key))
        tl.store(weight + i, w.to(T), mask=inside)


@triton.jit
def moment_base(exponent, LEVELS: tl.constexpr):
    """What the codes of a block count from: code k is the float32 whose upper 12 bits are k +
    base. The largest of LEVELS codes has the block's exponent."""
    return 8 * exponent + 7 - LEVELS


@triton.jit
def moment_exponent(values):
    """The exponents of blocks of values >= 0 [blocks,256]: that of the largest, rounded up, so that
    rounding exceeds no block."""
    largest = tl.max(values, axis=1).to(tl.int32, bitcast=True)
    return tl.minimum(tl.maximum((largest + 0xFFFFF) >> 23, 31), 253)


@triton.jit
def decode_moment(code, base):
    return tl.where(code != 0, (code + base) << 20, 0).to(tl.float32, bitcast=True)


@triton.jit
def encode_moment(a, base, random, SQUARE: tl.constexpr):
    """The codes of values a >= 0, rounded by 20 random bits. A value below the smallest number
    becomes that number or zero. A nonzero square never becomes zero, since the mean is divided by
    its root."""
    smallest = ((base + 1) << 20).to(tl.float32, bitcast=True)
    code = ((a.to(tl.int32, bitcast=True) + random) >> 20) - base
    bar = 0.0 if SQUARE else smallest * (random.to(tl.float32) * (1.0 / (1 << 20)))
    return tl.where(a < smallest, (a > bar).to(tl.int32), code)


@arguments("table chunks: *i64; like: *data; scale rate beta1 beta2 eps correct1 correct2: fp32")
@triton.jit
def adamw_8bit(table, chunks, like, scale, rate, beta1, beta2, eps, correct1, correct2,
               MASTER: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr):
    """adamw with moments of 8 bits, which are rounded stochastically.

    A block of 256 moments has an exponent. exponents [2,blocks]: those of mean and square, the
    largest values' rounded up. A code has the upper bits of a float32 less a base that depends on
    the exponent; code 0 is zero. The mean's code has the sign in its highest bit. SPAN is a
    multiple of 256·ROWS."""
    T: tl.constexpr = like.dtype.element_ty
    entry, start, weight, grad, count, keep, key = tensor_of_step(table, chunks, T)
    mean = tl.multiple_of(tl.load(entry + 2).to(tl.pointer_type(tl.uint8)), 16)
    square = tl.multiple_of(tl.load(entry + 3).to(tl.pointer_type(tl.uint8)), 16)
    master = tl.multiple_of(tl.load(entry + 4).to(tl.pointer_type(tl.float32)), 16)
    means = tl.load(entry + 5).to(tl.pointer_type(tl.uint8))
    blocks = (count + 255) // 256
    for at in range(0, SPAN, 256 * ROWS):
        block = (start + at) // 256 + tl.arange(0, ROWS).to(tl.int64)
        i = block[:, None] * 256 + tl.arange(0, 256)[None, :]
        inside = i < count
        here = block < blocks
        base = moment_base(tl.load(means + block, mask=here, other=31).to(tl.int32), 127)
        code = tl.load(mean + i, mask=inside, other=0).to(tl.int32)
        m = decode_moment(code & 127, base[:, None])
        m = (m.to(tl.int32, bitcast=True) | (code >> 7 << 31)).to(tl.float32, bitcast=True)
        base = moment_base(tl.load(means + blocks + block, mask=here, other=31).to(tl.int32), 255)
        v = decode_moment(tl.load(square + i, mask=inside, other=0).to(tl.int32), base[:, None])
        g = tl.load(grad + i, mask=inside, other=0.0).to(tl.float32) * scale
        if MASTER:
            w = tl.load(master + i, mask=inside, other=0.0)
        else:
            w = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
        m, v, w = adamw_step(g, m, v, w, keep, rate, beta1, beta2, eps, correct1, correct2)
        bits = random_bits(i, key).to(tl.int32, bitcast=True)
        exponent = moment_exponent(tl.abs(m))
        tl.store(means + block, exponent.to(tl.uint8), mask=here)
        code = encode_moment(tl.abs(m), moment_base(exponent, 127)[:, None], (bits & 0xFFFF) << 4,
                             False)
        code |= (m.to(tl.int32, bitcast=True) >> 31) & 128
        tl.store(mean + i, code.to(tl.uint8), mask=inside)
        exponent = moment_exponent(v)
        tl.store(means + blocks + block, exponent.to(tl.uint8), mask=here)
        code = encode_moment(v, moment_base(exponent, 255)[:, None], (bits >> 12) & 0xFFFF0,
                             True)
        tl.store(square + i, code.to(tl.uint8), mask=inside)
        if MASTER:
            tl.store(master + i, w, mask=inside)
        elif T == tl.bfloat16:
            w = round_stochastically(w, random_bits(i, ~key))
        tl.store(weight + i, w.to(T), mask=inside)
