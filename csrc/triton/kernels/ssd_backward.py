"""The gradient of Mamba-2's chunked scan (ssd_forward.py has the forward pass, its arrays and
letters).

With dH' the gradient of the state that leaves a block, L_tr = exp(s_t - s_r) below the diagonal and
u_r = dt_r·x_r:
    du_r = Σ_t L_tr·(C_t·B_r)·dy_t + leave_r·dH'·B_r
    dx = dt·du + D·dy
    dC_t = Σ_r dG_tr·B_r + enter_t·Hᵀ·dy_t
    dB_r = Σ_t dG_tr·C_t + leave_r·dH'ᵀ·u_r
    dG_tr = L_tr·(dy_t·u_r), summed over a group's heads
    dH = through·dH' + Σ_t enter_t·dy_t ⊗ C_t
The gradient of a token's log decay is the sum over all pairs of tokens that the decay lies between:
    suffix sums, within the block, of (row sums - column sums) of dG∘(C·Bᵀ) for one head and of
    enter_t·dy_t·(H·C_t), exclusive prefix sums of u_r·(its gradient through dH'), and
    through·<H,dH'>.
Rows and columns are sums of the same float32 numbers, so that terms that should cancel do.

    carry_state    (ssd_forward) backward over dy, C and enter: the gradient that each segment
                   passes back
    state_passing  the gradient that enters each segment from behind
    carry_state    forward again, writing the state that enters each block
    grad_x         from the last block to the first: dx, the gradients of the leaving states and
                   <H,dH'>
    grad_bc        dB and dC through the states, summed over a slice of a group's heads in registers
    grad_cb        dG summed the same way, and the row and column sums of each head
    grad_bc_sum    adds the slices and the terms through C·Bᵀ
    grad_dt        the sums above, back through exp, clamp, softplus and bias
States are stored in the inputs' dtype; every sum is float32. There are no atomics: results are
deterministic.
"""
import triton
import triton.language as tl

from .arguments import arguments
from .ssd_forward import fetch_ahead


@arguments("x dy b_ c_ cb states dx dstates: *data; "
           "step sums rest enter leave through entry d along passing skips: *fp32; seg: *i32; "
           "L H per_group blocks span: i32; "
           "P N stride_xb stride_xl stride_bb stride_bl stride_cb stride_cl: i32/16")
@triton.jit
def grad_x(x, dy, b_, c_, cb, step, sums, rest, enter, leave, through, entry, states, d, seg, dx,
           dstates, along, passing, skips, L, H, per_group, blocks, span, P, N, stride_xb,
           stride_xl, stride_bb, stride_bl, stride_cb, stride_cl, HAS_D: tl.constexpr,
           HAS_SEQ: tl.constexpr, HAS_ENTRY: tl.constexpr, REST: tl.constexpr, Q: tl.constexpr,
           BP: tl.constexpr, BN: tl.constexpr, MASK: tl.constexpr, PRECISION: tl.constexpr,
           FETCH: tl.constexpr):
    """dx [B,L,H,P]; dstates [B,H,blocks,P,N], the gradient of the state that leaves each block;
    along [B,H,blocks·Q] = <du,x>; passing [B,H,blocks] = through·<H,dH'>; skips [B,H,segments],
    each segment's part of dD."""
    row = tl.program_id(0)
    z = tl.program_id(1)
    segments = tl.num_programs(1)
    b = (row // H).to(tl.int64)
    h = row % H
    g = h // per_group
    i = tl.arange(0, Q)
    p = tl.arange(0, BP)
    n = tl.arange(0, BN)
    x += b * stride_xb + h * P
    dy += b * L * H * P + h * P
    dx += b * L * H * P + h * P
    b_ += b * stride_bb + g * N
    c_ += b * stride_cb + g * N
    cb += (b * (H // per_group) + g) * blocks * Q * Q + i[:, None] * Q + i[None, :]
    line = row.to(tl.int64) * blocks * Q
    at = p[:, None] * N + n[None, :]
    inside = (p[:, None] < P) & (n[None, :] < N)
    segment = row.to(tl.int64) * segments + z
    if HAS_ENTRY:
        dstate = tl.load(entry + segment * P * N + at, mask=inside, other=0.0)
    else:
        dstate = tl.zeros((BP, BN), tl.float32)
    skip = 0.0
    if HAS_D:
        skip = tl.load(d + h).to(tl.float32)
    dskip = tl.zeros((Q,), tl.float32)
    first = z * span
    count = tl.minimum(span, blocks - first)
    for j in range(0, count):
        k = first + count - 1 - j
        t = k * Q + i
        s = tl.load(sums + line + t)
        dt = tl.load(step + line + t)
        enters = tl.load(enter + line + t)
        leaves = tl.load(leave + line + t)
        across = tl.load(through + row * blocks + k)
        if FETCH:
            ahead = line + tl.maximum(k - 1, 0) * Q + i
            fetch_ahead(sums + ahead)
            fetch_ahead(step + ahead)
            fetch_ahead(enter + ahead)
            fetch_ahead(leave + ahead)
        xin = t[:, None] < L
        bin = t[:, None] < L
        if MASK:
            xin = xin & (p[None, :] < P)
            bin = bin & (n[None, :] < N)
        xt = tl.load(x + t[:, None].to(tl.int64) * stride_xl + p[None, :], mask=xin, other=0.0)
        gt = tl.load(dy + t[:, None].to(tl.int64) * (H * P) + p[None, :], mask=xin, other=0.0)
        bt = tl.load(b_ + t[:, None].to(tl.int64) * stride_bl + n[None, :], mask=bin, other=0.0)
        ct = tl.load(c_ + t[:, None].to(tl.int64) * stride_cl + n[None, :], mask=bin, other=0.0)
        m = tl.load(cb + k * (Q * Q)).to(tl.float32)
        exponent = s[:, None] - s[None, :]
        if REST:
            low = tl.load(rest + line + t)
            exponent += low[:, None] - low[None, :]
        m = m * tl.exp2(tl.minimum(exponent, 0.0))  # cb is zero above the diagonal
        if HAS_SEQ:
            own = tl.load(seg + b * L + t, mask=t < L, other=-1)
            m = tl.where(own[:, None] == own[None, :], m, 0.0)
        m = m.to(bt.dtype)
        rounded_dstate = dstate.to(bt.dtype)
        state = (row.to(tl.int64) * blocks + k) * P * N + at
        tl.store(dstates + state, rounded_dstate, mask=inside)
        met = tl.load(states + state, mask=inside, other=0.0).to(tl.float32)
        tl.store(passing + row * blocks + k, across * tl.sum(tl.sum(met * dstate, axis=1), axis=0))
        du = tl.dot(bt, tl.trans(rounded_dstate), input_precision=PRECISION) * leaves[:, None]
        du = tl.dot(tl.trans(m), gt, du, input_precision=PRECISION)
        xf = xt.to(tl.float32)
        gf = gt.to(tl.float32)
        tl.store(along + line + t, tl.sum(du * xf, axis=1))
        out = du * dt[:, None]
        if HAS_D:
            out += skip * gf
            dskip += tl.sum(gf * xf, axis=1)
        tl.store(dx + t[:, None].to(tl.int64) * (H * P) + p[None, :], out.to(dx.dtype.element_ty),
                 mask=xin)
        gw = (gf * enters[:, None]).to(bt.dtype)
        dstate = tl.dot(tl.trans(gw), ct, dstate * across, input_precision=PRECISION)
    if HAS_D:
        tl.store(skips + segment, tl.sum(dskip, axis=0))


@arguments("x states b_: *data; weight part dots: *fp32; L H G per_group blocks slices: i32; "
           "P N stride_xb stride_xl stride_bb stride_bl: i32/16")
@triton.jit
def grad_bc(x, weight, states, b_, part, dots, L, H, G, per_group, blocks, P, N, stride_xb,
            stride_xl, stride_bb, stride_bl, slices, Q: tl.constexpr, BP: tl.constexpr,
            BN: tl.constexpr, MASK: tl.constexpr, PRECISION: tl.constexpr):
    """part [slices,B,L,G,N] = Σ over the slice's heads of weight_t·states_kᵀ·x_t; dots
    [B,H,blocks·Q] = each head's term times b. With (x, weight, dstates, B) it is dB through the
    leaving state; with (dy, enter, states, C) it is dC through the entering one."""
    k = tl.program_id(0)
    g = tl.program_id(1) // slices
    z = tl.program_id(1) % slices
    b = tl.program_id(2).to(tl.int64)
    batch = tl.num_programs(2)
    i = tl.arange(0, Q)
    p = tl.arange(0, BP)
    n = tl.arange(0, BN)
    t = k * Q + i
    xin = t[:, None] < L
    bin = t[:, None] < L
    if MASK:
        xin = xin & (p[None, :] < P)
        bin = bin & (n[None, :] < N)
    at = p[:, None] * N + n[None, :]
    inside = (p[:, None] < P) & (n[None, :] < N)
    other = tl.load(b_ + b * stride_bb + t[:, None].to(tl.int64) * stride_bl + g * N + n[None, :],
                    mask=bin, other=0.0)
    other = other.to(tl.float32)
    acc = tl.zeros((Q, BN), tl.float32)
    for j in range(per_group * z // slices, per_group * (z + 1) // slices):
        h = g * per_group + j
        row = b * H + h
        xt = tl.load(x + b * stride_xb + t[:, None].to(tl.int64) * stride_xl + h * P + p[None, :],
                     mask=xin, other=0.0)
        st = tl.load(states + (row * blocks + k) * P * N + at, mask=inside, other=0.0)
        w = tl.load(weight + row * blocks * Q + t)
        term = tl.dot(xt, st, input_precision=PRECISION) * w[:, None]
        tl.store(dots + row * blocks * Q + t, tl.sum(term * other, axis=1))
        acc += term
    to = part + ((z * batch + b) * L + t[:, None].to(tl.int64)) * (G * N) + g * N + n[None, :]
    tl.store(to, acc, mask=bin)


@arguments("x dy cb: *data; step sums rest part margins: *fp32; seg: *i32; "
           "L H G per_group blocks slices: i32; P stride_xb stride_xl: i32/16")
@triton.jit
def grad_cb(x, dy, cb, step, sums, rest, seg, part, margins, L, H, G, per_group, blocks, P,
            stride_xb, stride_xl, slices, HAS_SEQ: tl.constexpr, REST: tl.constexpr,
            Q: tl.constexpr, BP: tl.constexpr, MASK: tl.constexpr, PRECISION: tl.constexpr):
    """part [slices,B,G,blocks,Q,Q] = dG summed over the slice's heads; margins [B,H,blocks·Q] = row
    sums minus column sums of each head's dG∘(C·Bᵀ)."""
    k = tl.program_id(0)
    g = tl.program_id(1) // slices
    z = tl.program_id(1) % slices
    b = tl.program_id(2).to(tl.int64)
    batch = tl.num_programs(2)
    i = tl.arange(0, Q)
    p = tl.arange(0, BP)
    t = k * Q + i
    xin = t[:, None] < L
    if MASK:
        xin = xin & (p[None, :] < P)
    seen = i[:, None] >= i[None, :]
    if HAS_SEQ:
        own = tl.load(seg + b * L + t, mask=t < L, other=-1)
        seen = seen & (own[:, None] == own[None, :])
    square = i[:, None] * Q + i[None, :]
    m = tl.load(cb + ((b * G + g) * blocks + k) * Q * Q + square).to(tl.float32)
    acc = tl.zeros((Q, Q), tl.float32)
    for j in range(per_group * z // slices, per_group * (z + 1) // slices):
        h = g * per_group + j
        line = (b * H + h) * blocks * Q
        xt = tl.load(x + b * stride_xb + t[:, None].to(tl.int64) * stride_xl + h * P + p[None, :],
                     mask=xin, other=0.0)
        gt = tl.load(dy + (b * L + t[:, None].to(tl.int64)) * (H * P) + h * P + p[None, :],
                     mask=xin, other=0.0)
        s = tl.load(sums + line + t)
        exponent = s[:, None] - s[None, :]
        if REST:
            low = tl.load(rest + line + t)
            exponent += low[:, None] - low[None, :]
        term = tl.dot(gt, tl.trans(xt), input_precision=PRECISION)
        term = tl.where(seen, term * tl.exp2(exponent) * tl.load(step + line + t)[None, :], 0.0)
        acc += term
        # A token's own term has no decay; its rounding error would exceed the other terms.
        term = tl.where(i[:, None] > i[None, :], term * m, 0.0)
        tl.store(margins + line + t, tl.sum(term, axis=1) - tl.sum(tl.trans(term), axis=1))
    tl.store(part + (((z * batch + b) * G + g) * blocks + k) * Q * Q + square, acc)


@arguments("b_ c_ db dc: *data; part_b part_c part_cb: *fp32; L G blocks slices slices_cb: i32; "
           "N stride_bb stride_bl stride_cb stride_cl: i32/16")
@triton.jit
def grad_bc_sum(b_, c_, part_b, part_c, part_cb, db, dc, L, G, blocks, N, slices, slices_cb,
                stride_bb, stride_bl, stride_cb, stride_cl, Q: tl.constexpr, BN: tl.constexpr,
                MASK: tl.constexpr, PRECISION: tl.constexpr):
    """db and dc [B,L,G,N]: the sum over the slices, plus the terms through C·Bᵀ."""
    k = tl.program_id(0)
    g = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    batch = tl.num_programs(2)
    i = tl.arange(0, Q)
    n = tl.arange(0, BN)
    t = k * Q + i
    inside = t[:, None] < L
    if MASK:
        inside = inside & (n[None, :] < N)
    rows = t[:, None].to(tl.int64)
    bt = tl.load(b_ + b * stride_bb + rows * stride_bl + g * N + n[None, :], mask=inside, other=0.0)
    ct = tl.load(c_ + b * stride_cb + rows * stride_cl + g * N + n[None, :], mask=inside, other=0.0)
    dcb = tl.zeros((Q, Q), tl.float32)
    for z in range(0, slices_cb):
        dcb += tl.load(part_cb + (((z * batch + b) * G + g) * blocks + k) * Q * Q + i[:, None] * Q +
                       i[None, :])
    gb = tl.zeros((Q, BN), tl.float32)
    gc = tl.zeros((Q, BN), tl.float32)
    for z in range(0, slices):
        at = ((z * batch + b) * L + rows) * (G * N) + g * N + n[None, :]
        gb += tl.load(part_b + at, mask=inside, other=0.0)
        gc += tl.load(part_c + at, mask=inside, other=0.0)
    low = dcb.to(bt.dtype)
    gc = tl.dot(low, bt, gc, input_precision=PRECISION)
    gb = tl.dot(tl.trans(low), ct, gb, input_precision=PRECISION)
    at = (b * L + rows) * (G * N) + g * N + n[None, :]
    tl.store(db + at, gb.to(db.dtype.element_ty), mask=inside)
    tl.store(dc + at, gc.to(dc.dtype.element_ty), mask=inside)


@arguments("dt ddt: *data; "
           "bias a step along enters leaves margins passing fixes part_a part_bias: *fp32; "
           "L H blocks segments span stride_b stride_l: i32; dt_min dt_max: fp32")
@triton.jit
def grad_dt(dt, bias, a, step, along, enters, leaves, margins, passing, fixes, ddt, part_a,
            part_bias, L, H, blocks, segments, span, stride_b, stride_l, dt_min, dt_max,
            HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_FIX: tl.constexpr, Q: tl.constexpr,
            HEADS: tl.constexpr):
    """ddt [B,L,H]; part_a and part_bias [B,blocks,H]. fixes [B,H,segments]: what the window
    strategy adds to `passing`."""
    k = tl.program_id(0)
    b = tl.program_id(2).to(tl.int64)
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    t = k * Q + tl.arange(0, Q)
    real = h < H
    row = b * H + h
    at = row[None, :] * (blocks * Q) + t[:, None]
    inside = (t[:, None] < L) & real[None, :]
    behind = tl.load(enters + at, mask=inside, other=0.0) + tl.load(margins + at, mask=inside,
                                                                    other=0.0)
    ahead = tl.load(leaves + at, mask=inside, other=0.0)
    total = tl.sum(behind, axis=0)
    decay = total[None, :] - tl.cumsum(behind, axis=0) + behind + tl.cumsum(ahead, axis=0) - ahead
    across = tl.load(passing + row * blocks + k, mask=real, other=0.0)
    if HAS_FIX:
        across += tl.load(fixes + row * segments + k // span, mask=real, other=0.0)
    decay += across[None, :]
    v = tl.load(step + at, mask=inside, other=0.0)
    rate = tl.load(a + h, mask=real, other=0.0).to(tl.float32)
    decay = tl.where(inside, decay, 0.0)
    tl.store(part_a + (b * blocks + k) * H + h, tl.sum(decay * v, axis=0), mask=real)
    grad = decay * rate[None, :] + tl.load(along + at, mask=inside, other=0.0)
    raw = tl.load(dt + b * stride_b + t[:, None].to(tl.int64) * stride_l + h[None, :], mask=inside,
                  other=0.0).to(tl.float32)
    if HAS_BIAS:
        raw += tl.load(bias + h, mask=real, other=0.0).to(tl.float32)[None, :]
    grad = tl.where((v > dt_min) & (v < dt_max), grad, 0.0)
    if SOFTPLUS:
        grad = grad / (1.0 + tl.exp(-raw))
    tl.store(ddt + (b * L + t[:, None].to(tl.int64)) * H + h[None, :],
             grad.to(ddt.dtype.element_ty), mask=inside)
    if HAS_BIAS:
        tl.store(part_bias + (b * blocks + k) * H + h, tl.sum(tl.where(inside, grad, 0.0), axis=0),
                 mask=real)
