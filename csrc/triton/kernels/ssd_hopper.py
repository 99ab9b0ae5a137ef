"""The kernel `scan` of ssd_forward.py for Hopper GPUs, in Gluon: the same arguments and result, for
head dimension 64, state 128 and blocks of 64 tokens in bfloat16 or float16.

One program runs on each SM and goes through a segment of one head block by block, then through
another's. Three warp groups share it:
    load_blocks      one warp loads what a block reads, up to STAGES blocks ahead
    scale_blocks     four warps do what depends on no state: C·Bᵀ becomes
                     M[t,r] = exp(s_t - s_r)·dt_r·(C_t·B_r) in place, and x times `weight` is
                     written beside it, up to two blocks ahead
    multiply_blocks  four warps hold the state H [P,N] in registers and run the GEMMs:
                     yᵀ = (H·Cᵀ)·enter + xᵀ·Mᵀ and H' = through·H + (weight·x)ᵀ·B
With y transposed, the state is a left operand, which wgmma accepts from registers: it never leaves
them. scale_blocks and multiply_blocks read no global memory inside their loops, since a load takes
longer than a block.
"""
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (async_copy, fence_async_shared,
                                                              mbarrier, tma, warpgroup_mma,
                                                              warpgroup_mma_wait)

from .arguments import arguments


@gluon.jit
def ring_slot(n, OF: gl.constexpr):
    """The slot of n in a ring of OF slots (a power of two), and the parity of earlier rounds."""
    return n & (OF - 1), (n & OF) // OF


@gluon.jit
def work_item(item, L, H, per_group, blocks, rows, span):
    """What a work item is: its row of [B,H], batch, head, group, segment, first block and number of
    blocks."""
    row = item % rows
    z = item // rows
    h = row % H
    return row, row // H, h, h // per_group, z, z * span, gl.minimum(span, blocks - z * span)


@gluon.jit
def load_blocks(x, b_, c_, cb, sums, columns, enter, weight, xs, bs, cs, ms, vs, ready, free, sizes,
                groups, P: gl.constexpr, N: gl.constexpr, Q: gl.constexpr, STAGES: gl.constexpr):
    L, H, per_group, blocks, rows, items, span = sizes
    BYTES: gl.constexpr = (x.block_type.nbytes + b_.block_type.nbytes + c_.block_type.nbytes +
                           cb.block_type.nbytes)
    i = gl.arange(0, Q, gl.BlockedLayout([2], [32], [1], [0]))
    n = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        row, b, h, g, z, first, count = work_item(item, L, H, per_group, blocks, rows, span)
        line = row.to(gl.int64) * blocks * Q
        for j in range(count):
            st, round = ring_slot(n, STAGES)
            t = (first + j) * Q
            mbarrier.wait(free.index(st), round ^ 1)
            full = ready.index(st)
            mbarrier.expect(full, BYTES)
            tma.async_copy_global_to_shared(cb, [b * groups + g, t, 0], full, ms.index(st))
            tma.async_copy_global_to_shared(x, [b, t, h * P], full, xs.index(st))
            tma.async_copy_global_to_shared(c_, [b, t, g * N], full, cs.index(st))
            tma.async_copy_global_to_shared(b_, [b, t, g * N], full, bs.index(st))
            at = line + t + i
            async_copy.async_copy_global_to_shared(vs.index(st * 4), sums + at)
            async_copy.async_copy_global_to_shared(vs.index(st * 4 + 1), columns + at)
            async_copy.async_copy_global_to_shared(vs.index(st * 4 + 2), enter + at)
            async_copy.async_copy_global_to_shared(vs.index(st * 4 + 3), weight + at)
            async_copy.mbarrier_arrive(full, increment_count=False)
            n += 1


@gluon.jit
def scale_blocks(d, seg, xs, ms, vs, ws, ready, free, scaled, consumed, sizes, HAS_D: gl.constexpr,
                 HAS_SEQ: gl.constexpr, P: gl.constexpr, Q: gl.constexpr, STAGES: gl.constexpr):
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    ROW: gl.constexpr = gl.SliceLayout(1, LAYOUT)
    COLUMN: gl.constexpr = gl.SliceLayout(0, LAYOUT)
    L, H, per_group, blocks, rows, items, span = sizes
    i = gl.arange(0, Q, ROW)
    r = gl.arange(0, Q, COLUMN)
    n = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        row, b, h, g, z, first, count = work_item(item, L, H, per_group, blocks, rows, span)
        skip = 0.0
        if HAS_D:
            skip = gl.load(d + h)
        for j in range(count):
            st, round = ring_slot(n, STAGES)
            buffer, buffer_round = ring_slot(n, 2)
            mbarrier.wait(ready.index(st), round)
            m = ms.index(st).reshape([Q, Q]).load(LAYOUT).to(gl.float32)
            sums_t = vs.index(st * 4).load(ROW)[:, None]
            columns_r = vs.index(st * 4 + 1).load(COLUMN)[None, :]
            m *= gl.exp2(gl.minimum(sums_t + columns_r, 126.0))
            if HAS_SEQ:
                t = (first + j) * Q
                own = gl.load(seg + b.to(gl.int64) * L + t + i, mask=t + i < L, other=-1)
                other = gl.load(seg + b.to(gl.int64) * L + t + r, mask=t + r < L, other=-1)
                m = gl.where(own[:, None] == other[None, :], m, 0.0)
            if HAS_D:
                m = gl.where(i[:, None] == r[None, :], m + skip, m)  # D·x_t, added on the diagonal
            ms.index(st).reshape([Q, Q]).store(m.to(ms.dtype))
            xt = xs.index(st).reshape([Q, P]).load(LAYOUT).to(gl.float32)
            xw = xt * vs.index(st * 4 + 3).load(ROW)[:, None]
            mbarrier.wait(consumed.index(buffer), buffer_round ^ 1)
            ws.index(buffer).store(xw.to(ws.dtype))
            fence_async_shared()
            gl.thread_barrier()
            mbarrier.arrive(scaled.index(buffer))
            mbarrier.arrive(free.index(st))
            n += 1


@gluon.jit
def multiply_blocks(y, entry, final, xs, bs, cs, ms, vs, ws, ys, ready, free, scaled, consumed,
                    sizes, segments, pieces, ratio, HAS_ENTRY: gl.constexpr, P: gl.constexpr,
                    N: gl.constexpr, Q: gl.constexpr, STAGES: gl.constexpr):
    SHORT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, Q, 16])
    TALL: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    L, H, per_group, blocks, rows, items, span = sizes
    p = gl.arange(0, P, gl.SliceLayout(1, TALL))[:, None]
    at = p * N + gl.arange(0, N, gl.SliceLayout(0, TALL))[None, :]
    n = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        row, b, h, g, z, first, count = work_item(item, L, H, per_group, blocks, rows, span)
        if HAS_ENTRY:
            state = gl.load(entry + (row.to(gl.int64) * pieces + z * ratio) * (P * N) + at)
        else:
            state = gl.zeros([P, N], gl.float32, TALL)
        for j in range(count):
            st, round = ring_slot(n, STAGES)
            buffer, buffer_round = ring_slot(n, 2)
            # All waits come before all GEMMs: ptxas would wait for a wgmma that is in flight across
            # a branch, or across arithmetic on a wgmma's result.
            mbarrier.wait(ready.index(st), round)
            mbarrier.wait(scaled.index(buffer), buffer_round)
            into = vs.index(st * 4 + 2)
            # The decay across a block is `enter` of its last token.
            across = into.slice(Q - 1, 1).load(gl.SliceLayout(0, TALL))
            left = gl.convert_layout(state.to(bs.dtype), gl.DotOperandLayout(0, SHORT, 2))
            state = state * across[None, :]
            ct = cs.index(st).reshape([Q, N]).permute((1, 0))
            nothing = gl.zeros([P, Q], gl.float32, SHORT)
            out = warpgroup_mma(left, ct, nothing, use_acc=False, is_async=True)
            xw = ws.index(buffer).permute((1, 0))
            state = warpgroup_mma(xw, bs.index(st).reshape([Q, N]), state, is_async=True)
            out = warpgroup_mma_wait(1, deps=(out, ))
            out = out * into.load(gl.SliceLayout(0, SHORT))[None, :]
            xt = xs.index(st).reshape([Q, P]).permute((1, 0))
            mt = ms.index(st).reshape([Q, Q]).permute((1, 0))
            out = warpgroup_mma(xt, mt, out, is_async=True)
            out, state = warpgroup_mma_wait(0, deps=(out, state))
            gl.thread_barrier()
            mbarrier.arrive(consumed.index(buffer))
            mbarrier.arrive(free.index(st))
            tma.store_wait(0)
            ys.reshape([Q, P]).permute((1, 0)).store(out.to(ys.dtype))
            fence_async_shared()
            tma.async_copy_shared_to_global(y, [b, (first + j) * Q, h * P], ys)
            n += 1
        if z == segments - 1:
            gl.store(final + row.to(gl.int64) * (P * N) + at, state)
    tma.store_wait(0)


@arguments("x y: box[Q,P]; b_ c_: box[Q,N]; cb: box[Q,Q]; "
           "sums columns enter weight entry d final: *fp32; seg: *i32; "
           "L H per_group blocks rows span segments pieces ratio: i32")
@gluon.jit
def scan_hopper(x, b_, c_, y, cb, sums, columns, enter, weight, entry, d, seg, final, L, H,
                per_group, blocks, rows, span, segments, pieces, ratio, HAS_D: gl.constexpr,
                HAS_SEQ: gl.constexpr, HAS_ENTRY: gl.constexpr, Q: gl.constexpr, P: gl.constexpr,
                N: gl.constexpr, STAGES: gl.constexpr):
    """As `scan`; x, b_, c_, y and cb are TMA descriptors of [B,L,H·P], [B,L,G·N] and
    [B·G,blocks·Q,Q] in boxes of Q rows. rows: B·H."""
    xs = gl.allocate_shared_memory(x.dtype, [STAGES, 1, Q, P], x.layout)
    bs = gl.allocate_shared_memory(x.dtype, [STAGES, 1, Q, N], b_.layout)
    cs = gl.allocate_shared_memory(x.dtype, [STAGES, 1, Q, N], c_.layout)
    ms = gl.allocate_shared_memory(x.dtype, [STAGES, 1, Q, Q], cb.layout)
    vs = gl.allocate_shared_memory(gl.float32, [STAGES * 4, Q],
                                   gl.SwizzledSharedLayout(1, 1, 1, [0]))  # four per stage
    ws = gl.allocate_shared_memory(x.dtype, [2, Q, P], gl.NVMMASharedLayout(128, 16, rank=2))
    ys = gl.allocate_shared_memory(x.dtype, [1, Q, P], y.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    scaled = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    consumed = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), 1 + 32)  # the TMA unit, and the cp.async copies of each lane
        mbarrier.init(free.index(i), 2)
    for i in gl.static_range(2):
        mbarrier.init(scaled.index(i), 1)
        mbarrier.init(consumed.index(i), 1)
    fence_async_shared()
    sizes = (L, H, per_group, blocks, rows, rows * segments, span)
    gl.warp_specialize([
        (multiply_blocks, (y, entry, final, xs, bs, cs, ms, vs, ws, ys, ready, free, scaled,
                           consumed, sizes, segments, pieces, ratio, HAS_ENTRY, P, N, Q, STAGES)),
        (scale_blocks, (d, seg, xs, ms, vs, ws, ready, free, scaled, consumed, sizes, HAS_D,
                        HAS_SEQ, P, Q, STAGES)),
        (load_blocks, (x, b_, c_, cb, sums, columns, enter, weight, xs, bs, cs, ms, vs, ready, free,
                       sizes, H // per_group, P, N, Q, STAGES)),
    ], [4, 1], [152, 40])
