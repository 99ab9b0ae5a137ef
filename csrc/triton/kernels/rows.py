"""What surrounds the scan in a Mamba-2 layer: the state update of one token, the causal depthwise
convolution with SiLU, and the gated RMS norm. All are bound by memory traffic. Sums are float32,
and results are deterministic. MASK: rows may start anywhere, not only at multiples of 16 elements,
so that the compiler cannot use wide accesses. PDL as in dense.py.
"""
import triton
import triton.language as tl

from .arguments import arguments
from .dense import wait


@triton.jit
def softplus(v):
    x = tl.exp(tl.minimum(v, 20.0))
    return tl.where(v > 20.0, v, tl.where(x < 1e-3, x - x * x * 0.5, tl.log(1.0 + x)))


@arguments("state: *state; x dt a_log b_ c_ z y: *data; a: *fp32; d bias: *params; "
           "H per_group: i32; P N: i32/16; dt_min dt_max: fp32")
@triton.jit
def state_step(state, x, dt, a, a_log, b_, c_, d, z, bias, y, H, per_group, P, N, dt_min, dt_max,
               HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr, LOG: tl.constexpr, BP: tl.constexpr,
               BN: tl.constexpr, MASK: tl.constexpr, PDL: tl.constexpr):
    """y [B,H,P] of one token; the state [B,H,P,N] is updated in place. The state is read and
    written once, which is nearly all of the traffic. LOG: A is -exp(a_log), else a."""
    row = tl.program_id(0)
    h = row % H
    b = row // H
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    n = tl.arange(0, BN)
    at = row.to(tl.int64) * P * N + p[:, None] * N + n[None, :]
    inside = (p[:, None] < P) & (n[None, :] < N) if MASK else None
    rows_inside = p < P if MASK else None
    columns = n < N if MASK else None
    wait(PDL)  # comes first: the kernel before may have converted the parameters
    s = tl.load(state + at, mask=inside).to(tl.float32)
    v = tl.load(dt + row).to(tl.float32) + tl.load(bias + h).to(tl.float32)
    if LOG:
        rate = -tl.exp(tl.load(a_log + h).to(tl.float32))
    else:
        rate = tl.load(a + h)
    xt = tl.load(x + row * P + p, mask=rows_inside).to(tl.float32)
    group = (b * (H // per_group) + h // per_group) * N
    bt = tl.load(b_ + group + n, mask=columns).to(tl.float32)
    ct = tl.load(c_ + group + n, mask=columns).to(tl.float32)
    if SOFTPLUS:
        v = softplus(v)
    v = tl.minimum(tl.maximum(v, dt_min), dt_max)
    s = s * tl.exp(v * rate) + (v * xt)[:, None] * bt[None, :]
    if MASK:
        s = tl.where(inside, s, 0.0)
        ct = tl.where(columns, ct, 0.0)
    tl.store(state + at, s.to(state.dtype.element_ty), mask=inside)
    out = tl.sum(s * ct[None, :], axis=1) + tl.load(d + h).to(tl.float32) * xt
    if HAS_Z:
        zt = tl.load(z + row * P + p, mask=rows_inside).to(tl.float32)
        out = out * zt / (1.0 + tl.exp(-zt))
    tl.store(y + row * P + p, out.to(y.dtype.element_ty), mask=rows_inside)


@triton.jit
def tap(x, initial, seg, b, t, k, c, L, D, stride_b, stride_l, W: tl.constexpr,
        HAS_INITIAL: tl.constexpr, HAS_SEQ: tl.constexpr):
    """The inputs that weight k multiplies at the tokens t."""
    u = t - (W - 1) + k
    inside = (t < L) & (u >= 0)
    if HAS_SEQ:
        own = tl.load(seg + b * L + t, mask=t < L, other=-1)
        other = tl.load(seg + b * L + tl.maximum(u, 0), mask=t < L, other=-1)
        inside = inside & (own == other)
    v = tl.load(x + b * stride_b + u[:, None].to(tl.int64) * stride_l + c[None, :],
                mask=inside[:, None] & (c[None, :] < D), other=0.0).to(tl.float32)
    if HAS_INITIAL:
        before = (u < 0) & (t < L)
        if HAS_SEQ:
            before = before & (own == other)
        v += tl.load(initial + (b * (W - 1) + u[:, None] + W - 1) * D + c[None, :],
                     mask=before[:, None] & (c[None, :] < D), other=0.0).to(tl.float32)
    return v


@arguments("x weight bias initial y: *data; seg: *i32; L: i32; D stride_b stride_l: i32/16")
@triton.jit
def conv(x, weight, bias, initial, seg, y, L, D, stride_b, stride_l, SILU: tl.constexpr,
         W: tl.constexpr, HAS_INITIAL: tl.constexpr, HAS_SEQ: tl.constexpr, T: tl.constexpr,
         BD: tl.constexpr, MASK: tl.constexpr):
    """y [B,L,D] of x [B,L,D], weight [D,W], bias [D] and initial [B,W-1,D]. A tile's taps overlap
    in the L1 cache."""
    t = tl.program_id(0) * T + tl.arange(0, T)
    c = tl.program_id(1) * BD + tl.arange(0, BD)
    b = tl.program_id(2).to(tl.int64)
    start = tl.load(bias + c, mask=c < D, other=0.0).to(tl.float32)
    acc = tl.zeros((T, BD), tl.float32) + start[None, :]
    for k in tl.static_range(W):
        w = tl.load(weight + c * W + k, mask=c < D, other=0.0).to(tl.float32)
        acc += w[None, :] * tap(x, initial, seg, b, t, k, c, L, D, stride_b, stride_l, W,
                                HAS_INITIAL, HAS_SEQ)
    if SILU:
        acc = acc / (1.0 + tl.exp(-acc))
    tl.store(y + (b * L + t[:, None].to(tl.int64)) * D + c[None, :], acc.to(y.dtype.element_ty),
             mask=(t[:, None] < L) & (c[None, :] < D))


@arguments("state x weight bias y: *data; D stride_b: i32")
@triton.jit
def conv_step(state, x, weight, bias, y, D, stride_b, SILU: tl.constexpr, W: tl.constexpr,
              BD: tl.constexpr, PDL: tl.constexpr):
    """y [B,D] of one token x [B,D], whose rows are stride_b apart; shifts the state [B,W-1,D] by
    one token."""
    c = tl.program_id(0) * BD + tl.arange(0, BD)
    b = tl.program_id(1).to(tl.int64)
    inside = c < D
    wait(PDL)  # comes first: the kernel before may have made the bias
    acc = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    newest = tl.load(x + b * stride_b + c, mask=inside, other=0.0)
    wide = newest.to(tl.float32)
    acc += wide * tl.load(weight + c * W + W - 1, mask=inside, other=0.0).to(tl.float32)
    at = state + b * (W - 1) * D + c
    for k in tl.static_range(W - 1):
        held = tl.load(at + k * D, mask=inside, other=0.0)
        wide = held.to(tl.float32)
        acc += wide * tl.load(weight + c * W + k, mask=inside, other=0.0).to(tl.float32)
        if k > 0:
            tl.store(at + (k - 1) * D, held, mask=inside)
    tl.store(at + (W - 2) * D, newest, mask=inside)
    if SILU:
        acc = acc / (1.0 + tl.exp(-acc))
    tl.store(y + b * D + c, acc.to(y.dtype.element_ty), mask=inside)


@arguments("x weight bias initial dy: *data; seg: *i32; dpre part: *fp32; L: i32; "
           "D stride_b stride_l: i32/16")
@triton.jit
def conv_grad_pre(x, weight, bias, initial, seg, dy, dpre, part, L, D, stride_b, stride_l,
                  SILU: tl.constexpr, W: tl.constexpr, HAS_INITIAL: tl.constexpr,
                  HAS_SEQ: tl.constexpr, T: tl.constexpr, BD: tl.constexpr, MASK: tl.constexpr):
    """dpre [B,L,D] float32, the gradient before the SiLU; part [B,tiles,W+1,D], each tile's sums
    for the weights and the bias."""
    tile = tl.program_id(0)
    t = tile * T + tl.arange(0, T)
    c = tl.program_id(1) * BD + tl.arange(0, BD)
    b = tl.program_id(2).to(tl.int64)
    at = (b * L + t[:, None].to(tl.int64)) * D + c[None, :]
    inside = (t[:, None] < L) & (c[None, :] < D)
    g = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        start = tl.load(bias + c, mask=c < D, other=0.0).to(tl.float32)
        acc = tl.zeros((T, BD), tl.float32) + start[None, :]
        for k in tl.static_range(W):
            w = tl.load(weight + c * W + k, mask=c < D, other=0.0).to(tl.float32)
            acc += w[None, :] * tap(x, initial, seg, b, t, k, c, L, D, stride_b, stride_l, W,
                                    HAS_INITIAL, HAS_SEQ)
        s = 1.0 / (1.0 + tl.exp(-acc))
        g = g * s * (1.0 + acc * (1.0 - s))
    tl.store(dpre + at, g, mask=inside)
    to = part + (b * tl.num_programs(0) + tile) * (W + 1) * D + c
    for k in tl.static_range(W):
        v = tap(x, initial, seg, b, t, k, c, L, D, stride_b, stride_l, W, HAS_INITIAL, HAS_SEQ)
        tl.store(to + k * D, tl.sum(v * g, axis=0), mask=c < D)
    tl.store(to + W * D, tl.sum(g, axis=0), mask=c < D)


@arguments("dpre: *fp32; weight dx: *data; seg: *i32; L: i32; D: i32/16")
@triton.jit
def conv_grad_x(dpre, weight, seg, dx, L, D, W: tl.constexpr, HAS_SEQ: tl.constexpr,
                T: tl.constexpr, BD: tl.constexpr, MASK: tl.constexpr):
    """dx [B,L,D]: weight k multiplies each input at the token W-1-k later."""
    t = tl.program_id(0) * T + tl.arange(0, T)
    c = tl.program_id(1) * BD + tl.arange(0, BD)
    b = tl.program_id(2).to(tl.int64)
    acc = tl.zeros((T, BD), tl.float32)
    for k in tl.static_range(W):
        u = t + (W - 1) - k
        inside = u < L
        if HAS_SEQ:
            own = tl.load(seg + b * L + t, mask=t < L, other=-1)
            inside = inside & (own == tl.load(seg + b * L + u, mask=inside, other=-2))
        w = tl.load(weight + c * W + k, mask=c < D, other=0.0).to(tl.float32)
        acc += w[None, :] * tl.load(dpre + (b * L + u[:, None].to(tl.int64)) * D + c[None, :],
                                    mask=inside[:, None] & (c[None, :] < D), other=0.0)
    tl.store(dx + (b * L + t[:, None].to(tl.int64)) * D + c[None, :], acc.to(dx.dtype.element_ty),
             mask=(t[:, None] < L) & (c[None, :] < D))


@arguments("x z weight y: *data; D group: i32/16; eps: fp32")
@triton.jit
def gated_norm(x, z, weight, y, D, group, eps, HAS_Z: tl.constexpr, BLOCK: tl.constexpr,
               MASK: tl.constexpr):
    """y = norm(x·silu(z))·weight, one row and group per program."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    c = tl.program_id(1) * group + i
    at = row * D + c
    inside = i < group
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_Z:
        zt = tl.load(z + at, mask=inside, other=0.0).to(tl.float32)
        v = v * zt / (1.0 + tl.exp(-zt))
    r = tl.rsqrt(tl.sum(v * v, axis=0) / group + eps)
    to = y + at
    out = v * r
    out *= tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(to, out.to(y.dtype.element_ty), mask=inside)


@arguments("x z weight dy dx dz: *data; part: *fp32; rows: i32; D group: i32/16; eps: fp32")
@triton.jit
def gated_norm_grad(x, z, weight, dy, dx, dz, part, rows, D, group, eps, HAS_Z: tl.constexpr,
                    BLOCK: tl.constexpr, MASK: tl.constexpr):
    """dx, dz, and part [programs,D]: each program's sum of the weight's gradient over its rows.
    With v = x·silu(z) and e = dy·weight: dv = r·e - v·r³·mean(e·v)."""
    i = tl.arange(0, BLOCK)
    c = tl.program_id(1) * group + i
    inside = i < group
    w = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    acc = tl.zeros((BLOCK,), tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = row * D.to(tl.int64) + c
        u = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        v = u
        if HAS_Z:
            zt = tl.load(z + at, mask=inside, other=0.0).to(tl.float32)
            s = 1.0 / (1.0 + tl.exp(-zt))
            v = u * zt * s
        r = tl.rsqrt(tl.sum(v * v, axis=0) / group + eps)
        acc += g * v * r
        e = g * w
        dv = r * e - v * (r * r * r) * (tl.sum(e * v, axis=0) / group)
        if HAS_Z:
            tl.store(dz + at, (dv * u * s * (1.0 + zt * (1.0 - s))).to(dz.dtype.element_ty),
                     mask=inside)
            dv = dv * zt * s
        tl.store(dx + at, dv.to(dx.dtype.element_ty), mask=inside)
    tl.store(part + tl.program_id(0) * D + c, acc, mask=inside)
