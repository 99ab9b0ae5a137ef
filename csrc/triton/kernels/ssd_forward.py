"""Mamba-2's chunked scan (Dao and Gu, arXiv 2405.21060), forward pass.

For one head with scalar decay, u_t = dt_t·x_t, and a block of Q tokens that the state H [P,N]
enters:
    s_t = A·(dt_1 + … + dt_t)
    y_t = Σ_{r≤t} exp(s_t - s_r)·(C_t·B_r)·u_r + exp(s_t)·H·C_t + D·x_t
    H'  = exp(s_Q)·H + Σ_r exp(s_Q - s_r)·u_r ⊗ B_r
The sequence is cut into segments of whole blocks, so that few heads still fill the GPU:
    prepare        everything that depends on dt alone: a few floats per token and head
    cb_gemm        C·Bᵀ of each block, once per group instead of once per head
    carry_state    each segment's own contribution to the state (all but the last segment)
    state_passing  the state that enters each segment, from those contributions
    scan           y of each segment from its entering state, and the final state
x is read twice (the second time for all segments but the last) and y is written once; each block
and head moves only Q·Q + 4·Q numbers more. The Q-sized vectors are prefetched one block ahead
(FETCH) and loaded at the start of a block, since a memory access in the middle of a block takes as
long as its GEMMs. The state stays in registers along a segment and is written at its end only.

What resets the state (a new sequence, or a chunk of the `independent` strategy) is a zero in
`enter` or `through`, written by `prepare`. With the window strategy a segment is one chunk, and
`state_passing` drops what lies outside the window. The other kernels do not depend on the strategy.

Arrays over tokens and heads are [B,H,blocks·Q] float32. Decays are powers of two. For float32
inputs the sums s_t have a second float that holds their rounding error, so that differences inside
a block are exact to float32.
"""
import triton
import triton.language as tl

from .arguments import arguments


@triton.jit
def softplus(v):
    """log(1 + exp(v)) with a relative error of float32, also where exp(v) is small."""
    x = tl.exp(tl.minimum(v, 20.0))
    s = x / (2.0 + x)
    q = s * s
    small = 2.0 * s * (1.0 + q * (1.0 / 3 + q * (1.0 / 5 + q * (1.0 / 7 + q * (1.0 / 9)))))
    return tl.where(v > 20.0, v, tl.where(x < 0.5, small, tl.log(1.0 + x)))


@triton.jit
def log2_fast(v):
    return tl.inline_asm_elementwise("lg2.approx.f32 $0, $1;", "=f,f", [v], dtype=tl.float32,
                                     is_pure=True, pack=1)


@triton.jit
def softplus_fast(v):
    """softplus with a relative error of 5e-5, for 16-bit inputs."""
    x = tl.exp(tl.minimum(v, 20.0))
    is_large = v > 20.0
    is_small = x < 0.01
    small = x - x * x * (0.5 - x * (1.0 / 3))
    return tl.where(is_large, v, tl.where(is_small, small, log2_fast(1.0 + x) * 0.6931471805599453))


@triton.jit
def fetch_ahead(pointers):
    """Prefetches what the next block reads into the L2 cache. Loading it early would hold registers
    for a whole block."""
    tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l",
                              [pointers.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1)


@arguments("dt: *data; "
           "bias a step sums columns rest rest_columns enter leave weight through: *fp32; "
           "seg: *i32; L H blocks stride_b stride_l reset: i32; dt_min dt_max: fp32")
@triton.jit
def prepare(dt, bias, a, seg, step, sums, columns, rest, rest_columns, enter, leave, weight,
            through, L, H, blocks, stride_b, stride_l, reset, dt_min, dt_max,
            HAS_BIAS: tl.constexpr, HAS_SEQ: tl.constexpr, SOFTPLUS: tl.constexpr,
            REST: tl.constexpr, KEEP: tl.constexpr, Q: tl.constexpr, HEADS: tl.constexpr):
    """What the other kernels need of dt [B,L,H].

    step: dt after bias, softplus and clamp. sums: s_t / ln 2. columns: log2(step) - sums, so that
    exp2(sums_t + columns_r) is exp(s_t - s_r)·dt_r. rest and rest_columns: the low parts of both
    (REST, for float32). enter: decay from the state that enters the block to the token. leave:
    decay from the token to the state that leaves; weight = step·leave. through [B,H,blocks]: decay
    across the block. reset: the state starts from zero every `reset` blocks (0: never). KEEP:
    writes step and leave, for the backward pass."""
    k = tl.program_id(0)
    b = tl.program_id(2).to(tl.int64)
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    t = k * Q + tl.arange(0, Q)
    inside = (t[:, None] < L) & (h[None, :] < H)
    v = tl.load(dt + b * stride_b + t[:, None].to(tl.int64) * stride_l + h[None, :], mask=inside,
                other=0.0).to(tl.float32)
    if HAS_BIAS:
        v += tl.load(bias + h, mask=h < H, other=0.0).to(tl.float32)[None, :]
    if SOFTPLUS:
        v = softplus(v) if REST else softplus_fast(v)
    v = tl.where(inside, tl.minimum(tl.maximum(v, dt_min), dt_max), 0.0)
    rate = tl.load(a + h, mask=h < H, other=0.0)
    if REST:
        rate = rate.to(tl.float64)
    logs = v.to(rate.dtype) * (rate * 1.4426950408889634)[None, :]
    s = tl.cumsum(logs, axis=0)
    total = tl.sum(logs, axis=0)
    high = s.to(tl.float32)
    enters = tl.exp2(high)
    out = tl.exp2((total[None, :] - s).to(tl.float32))
    across = tl.exp2(total.to(tl.float32))
    if HAS_SEQ:
        # Past the end the last token is repeated: `enter` of a block's last token is `through`.
        own = tl.load(seg + b * L + tl.minimum(t, L - 1))
        before = tl.load(seg + b * L + tl.maximum(k * Q - 1, 0))
        after = tl.load(seg + b * L + tl.minimum(k * Q + Q, L) - 1)
        enters = tl.where(own[:, None] == before, enters, 0.0)
        out = tl.where(own[:, None] == after, out, 0.0)
        across = tl.where(before == after, across, 0.0)
    if reset > 0:
        if k % reset == 0:
            enters = tl.zeros_like(enters)
            across = tl.zeros_like(across)
    row = b * H + h
    at = row[None, :] * (blocks * Q) + t[:, None]
    real = tl.broadcast_to(h[None, :] < H, (Q, HEADS))
    column = (tl.log2(v) if REST else log2_fast(v)).to(s.dtype) - s
    column_high = column.to(tl.float32)
    tl.store(columns + at, column_high, mask=real)
    tl.store(sums + at, high, mask=real)
    if REST:
        tl.store(rest + at, (s - high.to(tl.float64)).to(tl.float32), mask=real)
        tl.store(rest_columns + at,
                 tl.where(v > 0.0, column - column_high.to(tl.float64), 0.0).to(tl.float32),
                 mask=real)
    tl.store(enter + at, enters, mask=real)
    if KEEP:
        tl.store(step + at, v, mask=real)
        tl.store(leave + at, out, mask=real)
    tl.store(weight + at, v * out, mask=real)
    tl.store(through + row * blocks + k, across, mask=h < H)


@arguments("b_ c_ cb: *data; L G blocks: i32; N stride_bb stride_bl stride_cb stride_cl: i32/16")
@triton.jit
def cb_gemm(b_, c_, cb, L, G, blocks, N, stride_bb, stride_bl, stride_cb, stride_cl,
            Q: tl.constexpr, BN: tl.constexpr, MASK: tl.constexpr, PRECISION: tl.constexpr):
    """cb [B,G,blocks,Q,Q] = C·Bᵀ of each block, in B's dtype, with zeros above the diagonal, so
    that the heads of a group need no mask."""
    k = tl.program_id(0)
    g = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    i = tl.arange(0, Q)
    n = tl.arange(0, BN)
    t = k * Q + i
    inside = t[:, None] < L
    if MASK:
        inside = inside & (n[None, :] < N)
    column = g * N + n[None, :]
    bt = tl.load(b_ + b * stride_bb + t[:, None].to(tl.int64) * stride_bl + column, mask=inside,
                 other=0.0)
    ct = tl.load(c_ + b * stride_cb + t[:, None].to(tl.int64) * stride_cl + column, mask=inside,
                 other=0.0)
    p = tl.dot(ct, tl.trans(bt), input_precision=PRECISION)
    p = tl.where(i[:, None] >= i[None, :], p, 0.0)
    tl.store(cb + ((b * G + g) * blocks + k) * Q * Q + i[:, None] * Q + i[None, :],
             p.to(cb.dtype.element_ty))


@arguments("x b_ states: *data; weight through entry ends decays: *fp32; "
           "L H per_group blocks segments skip span: i32; "
           "P N stride_xb stride_xl stride_bb stride_bl: i32/16")
@triton.jit
def carry_state(x, b_, weight, through, entry, states, ends, decays, L, H, per_group, blocks,
                segments, skip, span, P, N, stride_xb, stride_xl, stride_bb, stride_bl,
                REVERSE: tl.constexpr, HAS_ENTRY: tl.constexpr, STORE: tl.constexpr,
                END: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
                MASK: tl.constexpr, PRECISION: tl.constexpr, FETCH: tl.constexpr):
    """Carries a state through each segment's blocks: S ← through·S + Σ_t weight_t·x_t ⊗ B_t, from
    `entry` [B,H,segments,P,N] or zero.

    STORE: writes the state that enters each block to `states` [B,H,blocks,P,N]. END: writes the
    state after the segment to `ends` [B,H,segments,P,N] and the segment's decay to `decays`
    [B,H,segments]. REVERSE goes from the last block to the first; with dy for x, C for B and
    `enter` for weight it carries the gradient of the state. The first `skip` segments are left out.
    """
    row = tl.program_id(0)
    z = tl.program_id(1) + skip
    b = (row // H).to(tl.int64)
    h = row % H
    i = tl.arange(0, Q)
    p = tl.arange(0, BP)
    n = tl.arange(0, BN)
    x += b * stride_xb + h * P
    b_ += b * stride_bb + (h // per_group) * N
    weight += row.to(tl.int64) * blocks * Q
    through += row * blocks
    at = p[:, None] * N + n[None, :]
    inside = (p[:, None] < P) & (n[None, :] < N)
    segment = row.to(tl.int64) * segments + z
    if HAS_ENTRY:
        state = tl.load(entry + segment * P * N + at, mask=inside, other=0.0)
    else:
        state = tl.zeros((BP, BN), tl.float32)
    decay = 1.0
    first = z * span
    count = tl.minimum(span, blocks - first)
    for j in range(0, count):
        k = first + j
        ahead = tl.minimum(k + 1, blocks - 1)
        if REVERSE:
            k = first + count - 1 - j
            ahead = tl.maximum(k - 1, 0)
        t = k * Q + i
        w = tl.load(weight + t)
        g = tl.load(through + k)
        if FETCH:
            fetch_ahead(weight + ahead * Q + i)
        xin = t[:, None] < L
        bin = t[:, None] < L
        if MASK:
            xin = xin & (p[None, :] < P)
            bin = bin & (n[None, :] < N)
        xt = tl.load(x + t[:, None].to(tl.int64) * stride_xl + p[None, :], mask=xin, other=0.0)
        bt = tl.load(b_ + t[:, None].to(tl.int64) * stride_bl + n[None, :], mask=bin, other=0.0)
        if STORE:
            tl.store(states + (row.to(tl.int64) * blocks + k) * P * N + at,
                     state.to(states.dtype.element_ty), mask=inside)
        xw = (xt.to(tl.float32) * w[:, None]).to(bt.dtype)
        state = tl.dot(tl.trans(xw), bt, state * g, input_precision=PRECISION)
        decay *= g
    if END:
        tl.store(ends + segment * P * N + at, state, mask=inside)
        tl.store(decays + segment, decay)


@arguments("ends decays initial entry last: *fp32; segments size window: i32")
@triton.jit
def state_passing(ends, decays, initial, entry, last, segments, size, window, REVERSE: tl.constexpr,
                  HAS_INITIAL: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr):
    """entry [B,H,segments,size]: the state that enters each segment (in REVERSE: from behind), of
    the segments' `ends` and `decays`.

    entry_z = Σ_j (decay_{j+1}·…·decay_{z-1})·ends_j over the window's segments j < z (all if window
    < 0); the initial state is segment -1. LAST: writes what would enter one segment further to
    `last` (in REVERSE the gradient of the initial state)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    ends += row * segments * size
    entry += row * segments * size
    decays += row * segments
    start = tl.zeros((BLOCK,), tl.float32)
    if HAS_INITIAL:
        start = tl.load(initial + row * size + at, mask=inside, other=0.0).to(tl.float32)
    if window < 0:
        state = start
        z = 0
        if REVERSE:
            z = segments - 1
        e_next = tl.load(ends + z * size + at, mask=inside, other=0.0)
        decay_next = tl.load(decays + z)
        for j in range(0, segments):
            z = j
            ahead = tl.minimum(j + 1, segments - 1)
            if REVERSE:
                z = segments - 1 - j
                ahead = tl.maximum(z - 1, 0)
            e = e_next
            decay = decay_next
            # Loaded before the store, since loads cannot be moved above it.
            e_next = tl.load(ends + ahead * size + at, mask=inside, other=0.0)
            decay_next = tl.load(decays + ahead)
            tl.store(entry + z * size + at, state, mask=inside)
            state = state * decay + e
        if LAST:
            tl.store(last + row * size + at, state, mask=inside)
    else:
        for j in range(0, segments + 1):
            state = tl.zeros((BLOCK,), tl.float32)
            decay = 1.0
            for i in range(1, tl.minimum(window, j) + 1):
                z = j - i
                if REVERSE:
                    z = segments - 1 - z
                state += decay * tl.load(ends + z * size + at, mask=inside, other=0.0)
                decay *= tl.load(decays + z)
            if window > j:
                state += decay * start
            if j < segments:
                z = j
                if REVERSE:
                    z = segments - 1 - j
                tl.store(entry + z * size + at, state, mask=inside)
            elif LAST:
                tl.store(last + row * size + at, state, mask=inside)


@arguments("x b_ c_ cb y: *data; "
           "sums columns rest rest_columns enter weight through entry d final: *fp32; seg: *i32; "
           "L H per_group blocks span pieces ratio: i32; "
           "P N stride_xb stride_xl stride_bb stride_bl stride_cb stride_cl: i32/16")
@triton.jit
def scan(x, b_, c_, cb, sums, columns, rest, rest_columns, enter, weight, through, entry, d, seg, y,
         final, L, H, per_group, blocks, span, pieces, ratio, P, N, stride_xb, stride_xl, stride_bb,
         stride_bl, stride_cb, stride_cl, HAS_D: tl.constexpr, HAS_SEQ: tl.constexpr,
         HAS_ENTRY: tl.constexpr, REST: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr,
         BN: tl.constexpr, MASK: tl.constexpr, PRECISION: tl.constexpr, FETCH: tl.constexpr):
    """y [B,L,H,P] and final [B,H,P,N]: each segment from its entering state, block by block. A
    segment is `ratio` of the `pieces` that entry [B,H,pieces,P,N] was computed for."""
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
    y += b * L * H * P + h * P
    b_ += b * stride_bb + g * N
    c_ += b * stride_cb + g * N
    cb += (b * (H // per_group) + g) * blocks * Q * Q + i[:, None] * Q + i[None, :]
    line = row.to(tl.int64) * blocks * Q
    at = p[:, None] * N + n[None, :]
    inside = (p[:, None] < P) & (n[None, :] < N)
    segment = row.to(tl.int64) * pieces + z * ratio
    if HAS_ENTRY:
        state = tl.load(entry + segment * P * N + at, mask=inside, other=0.0)
    else:
        state = tl.zeros((BP, BN), tl.float32)
    skip = 0.0
    if HAS_D:
        skip = tl.load(d + h).to(tl.float32)
    first = z * span
    for k in range(first, tl.minimum(first + span, blocks)):
        t = k * Q + i
        s = tl.load(sums + line + t)
        column = tl.load(columns + line + t)
        enters = tl.load(enter + line + t)
        w = tl.load(weight + line + t)
        across = tl.load(through + row * blocks + k)
        if FETCH:
            ahead = line + tl.minimum(k + 1, blocks - 1) * Q + i
            fetch_ahead(sums + ahead)
            fetch_ahead(columns + ahead)
            fetch_ahead(enter + ahead)
            fetch_ahead(weight + ahead)
        xin = t[:, None] < L
        bin = t[:, None] < L
        if MASK:
            xin = xin & (p[None, :] < P)
            bin = bin & (n[None, :] < N)
        xt = tl.load(x + t[:, None].to(tl.int64) * stride_xl + p[None, :], mask=xin, other=0.0)
        bt = tl.load(b_ + t[:, None].to(tl.int64) * stride_bl + n[None, :], mask=bin, other=0.0)
        ct = tl.load(c_ + t[:, None].to(tl.int64) * stride_cl + n[None, :], mask=bin, other=0.0)
        m = tl.load(cb + k * (Q * Q)).to(tl.float32)
        exponent = s[:, None] + column[None, :]
        if REST:
            exponent += tl.load(rest + line + t)[:,
                                                 None] + tl.load(rest_columns + line + t)[None, :]
        m = m * tl.exp2(tl.minimum(exponent, 126.0))  # keeps it finite where cb is zero
        if HAS_SEQ:
            own = tl.load(seg + b * L + t, mask=t < L, other=-1)
            m = tl.where(own[:, None] == own[None, :], m, 0.0)
        if HAS_D:
            m = tl.where(i[:, None] == i[None, :], m + skip, m)  # D·x_t, added on the diagonal
        out = tl.dot(ct, tl.trans(state.to(bt.dtype)), input_precision=PRECISION) * enters[:, None]
        out = tl.dot(m.to(bt.dtype), xt, out, input_precision=PRECISION)
        tl.store(y + t[:, None].to(tl.int64) * (H * P) + p[None, :], out.to(y.dtype.element_ty),
                 mask=xin)
        xw = (xt.to(tl.float32) * w[:, None]).to(bt.dtype)
        state = tl.dot(tl.trans(xw), bt, state * across, input_precision=PRECISION)
    if z == segments - 1:
        tl.store(final + row.to(tl.int64) * P * N + at, state, mask=inside)
