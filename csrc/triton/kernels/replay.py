"""The state update of one token for a batch, without writing the state at each token: "replay" of
the last inputs.

A state S of many tokens ago stays in memory, with a ring of the inputs since: x_j, B_j and the time
steps dt_j of up to T tokens. With s_j = A·Σ_{i>j} dt_i and w_j = dt_j·e^{s_j}, the output of the
newest token is
    y = e^{A·Σ dt}·(S·C) + Σ_j w_j·(B_j·C)·x_j + D·x
The token that fills the ring folds it into the state: S becomes e^{A·Σ dt}·S + Σ_j w_j·x_j⊗B_j, and
the ring is empty. So the state is read at each token and written at every T-th.

    replay_inputs  appends the token to the ring and computes the weights of its entries
    replay_state   y, and the fold
Sequences of a batch may hold different numbers of inputs. Sums are float32; the fold's products are
those of three bfloat16 GEMMs, whose operands add up to the float32 weights.
"""
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .arguments import arguments
from .rows import softplus


@arguments("x dt a_log b_ c_ ring_x ring_b: *data; d bias: *params; "
           "ring_dt ring_weight ring_scale across: *fp32; held: *i32; H per_group: i32; "
           "P N: i32/16; dt_min dt_max: fp32")
@triton.jit
def replay_inputs(x, dt, a_log, b_, c_, d, bias, ring_x, ring_b, ring_dt, held, ring_weight,
                  ring_scale, across, H, per_group, P, N, dt_min, dt_max, T: tl.constexpr,
                  HEADS: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, PDL: tl.constexpr):
    """Appends x [B,H,P], B [B,G,N] and dt [B,H] to ring_x [B,H,T,P], ring_b [B,G,T,N] and ring_dt
    [B,H,T] at each sequence's entry held [B] mod T. ring_weight [B,H,T] = w_j, ring_scale [B,H,T] =
    w_j·(B_j·C), with D added for the newest token, across [B,H] = e^{A·Σ dt}. BP: rows of P that
    are copied at a time."""
    b = tl.program_id(0)
    first = tl.program_id(1) * HEADS
    h = first + tl.arange(0, HEADS)
    j = tl.arange(0, T)
    n = tl.arange(0, BN)
    p = tl.arange(0, BP)
    if PDL:
        # replay_state reads the state before it waits for this kernel, so it may begin only when
        # the kernels before this one have ended.
        gdc_wait()
        gdc_launch_dependents()
    k = tl.load(held + b) & (T - 1)
    g = b * (H // per_group) + first // per_group
    row = b * H + h
    newest = j == k
    b_new = tl.load(b_ + g * N + n)
    c = tl.load(c_ + g * N + n).to(tl.float32)
    bs = tl.load(ring_b + (g * T + j)[:, None] * N + n[None, :], mask=(j < k)[:, None], other=0.0)
    old = tl.load(ring_dt + row[:, None] * T + j[None, :], mask=(j < k)[None, :], other=0.0)
    v = tl.load(dt + row).to(tl.float32) + tl.load(bias + h).to(tl.float32)
    rate = -tl.exp(tl.load(a_log + h).to(tl.float32))
    skip = tl.load(d + h).to(tl.float32)
    for i in tl.static_range(HEADS):
        one = (b * H + first + i).to(tl.int64)
        for start in range(0, P, BP):
            tl.store(ring_x + (one * T + k) * P + start + p, tl.load(x + one * P + start + p))
    if first % per_group == 0:
        tl.store(ring_b + (g * T + k) * N + n, b_new)
    v = tl.minimum(tl.maximum(softplus(v), dt_min), dt_max)
    tl.store(ring_dt + row * T + k, v)
    bs = tl.where(newest[:, None], b_new[None, :], bs).to(tl.float32)
    met = tl.sum(bs * c[None, :], axis=1)
    times = tl.where(newest[None, :], v[:, None], old)
    total = tl.sum(times, axis=1)
    w = times * tl.exp(rate[:, None] * (total[:, None] - tl.cumsum(times, axis=1)))
    at = row[:, None] * T + j[None, :]
    tl.store(ring_weight + at, w)
    tl.store(ring_scale + at, w * met[None, :] + tl.where(newest[None, :], skip[:, None], 0.0))
    tl.store(across + row, tl.exp(rate * total))


@arguments("state: *state; c_ z ring_x ring_b y: *data; ring_weight ring_scale across: *fp32; "
           "held: *i32; H per_group: i32; P N: i32/16")
@gluon.jit
def replay_state(state, c_, z, ring_x, ring_b, held, ring_weight, ring_scale, across, y, H,
                 per_group, P, N, HAS_Z: gl.constexpr, T: gl.constexpr, BP: gl.constexpr,
                 BN: gl.constexpr, PDL: gl.constexpr):
    """y [B,H,P] of the newest token; the state [B,H,P,N] is updated if the ring is full. Every warp
    works alone on its own rows of P."""
    WARPS: gl.constexpr = gl.num_warps()
    LOAD: gl.constexpr = 128 // state.dtype.element_ty.primitive_bitwidth
    ROWS: gl.constexpr = gl.BlockedLayout([4, LOAD], [4, 8], [WARPS, 1], [1, 0])
    BY_P: gl.constexpr = gl.SliceLayout(1, ROWS)
    RING: gl.constexpr = gl.BlockedLayout([2, 4], [8, 4], [1, WARPS], [1, 0])
    SUM: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, 1], [16, 8])
    WIDE: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [WARPS, 1], [1, 0])
    row = gl.program_id(0).to(gl.int64)
    h = gl.program_id(0) % H
    g = gl.program_id(0) // H * (H // per_group) + h // per_group
    start = gl.program_id(1) * BP
    p = start + gl.arange(0, BP, BY_P)
    n = gl.arange(0, BN, gl.SliceLayout(0, ROWS))
    s = gl.load(state + (row * P + p[:, None]) * N + n[None, :])
    if PDL:
        gdc_wait()
    k = gl.load(held + gl.program_id(0) // H) & (T - 1)
    decay = gl.load(across + row)
    j = gl.arange(0, T, gl.SliceLayout(1, RING))
    scale = gl.load(ring_scale + row * T + j)
    inside = (j <= k)[:, None]
    ring_p = start + gl.arange(0, BP, gl.SliceLayout(0, RING))
    xs = gl.load(ring_x + (row * T + j[:, None]) * P + ring_p[None, :], mask=inside, other=0.0)
    c = gl.load(c_ + g * N + n).to(gl.float32)
    out = gl.sum(s.to(gl.float32) * c[None, :], axis=1) * decay
    recent = gl.sum(xs.to(gl.float32) * scale[:, None], axis=0)
    out += gl.convert_layout(recent, BY_P)
    if HAS_Z:
        zt = gl.load(z + row * P + p).to(gl.float32)
        out = out * zt / (1.0 + gl.exp(-zt))
    gl.store(y + row * P + p, out.to(y.dtype.element_ty))
    if k == T - 1:
        weight = gl.load(ring_weight + row * T + j)
        weighted = gl.permute(xs.to(gl.float32) * weight[:, None], (1, 0))
        left = gl.convert_layout(weighted, gl.DotOperandLayout(0, SUM, 2))
        ring_n = gl.arange(0, BN, gl.SliceLayout(0, WIDE))
        entry = g * T + gl.arange(0, T, gl.SliceLayout(1, WIDE))
        bs = gl.load(ring_b + entry[:, None] * N + ring_n[None, :])
        right = gl.convert_layout(bs, gl.DotOperandLayout(1, SUM, 2))
        total = gl.convert_layout(s.to(gl.float32) * decay, SUM)
        for _ in gl.static_range(3):
            part = left.to(right.dtype)
            total = mma_v2(part, right, total)
            left -= part.to(gl.float32)
        folded = gl.convert_layout(total.to(state.dtype.element_ty), ROWS)
        gl.store(state + (row * P + p[:, None]) * N + n[None, :], folded)
