"""What follows a block's mixer in a decoding step of one sequence, as one kernel for Hopper GPUs,
in Gluon: `cq_block_tail` of ../../conquer.h.

Four GEMVs follow each other, and each reads all of the previous one's output. As separate kernels,
each starts and ends with idle memory. Here one program stays on each SM, and two groups of warps
share it:
    load_weights  four warps copy the weights of all four GEMVs into a ring in shared memory, as
                  fast as slots become free. No weight depends on a computed value: while the
                  programs wait for each other, the next GEMV's weights arrive, and the first
                  GEMV's while the previous kernel, which computes `mixed`, still runs
    compute       eight warps copy a GEMV's input to shared memory, normalize it if there is a norm,
                  go through the ring, and wait for all programs (`grid_barrier`) before the next
                  GEMV
Programs spin while they wait, so that all must be resident at the same time: there are as many as
SMs, and each fits beside the kernel that came before.
"""
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .arguments import arguments

# A slot of the ring holds ROWS rows by COLUMNS columns of a weight: 32 KB.
ROWS = gl.constexpr(8)
COLUMNS = gl.constexpr(2048)
SLOTS = gl.constexpr(5)
WARPS = gl.constexpr(8)
LOAD_WARPS = gl.constexpr(4)


@gluon.jit
def first_block(offset):
    """The first block of rows of this program, after `offset` blocks of the GEMVs before. It
    balances the programs' shares over all GEMVs."""
    return (gl.program_id(0) + offset) % gl.num_programs(0)


@gluon.jit
def next_offset(offset, blocks):
    return offset + gl.num_programs(0) - blocks % gl.num_programs(0)


@gluon.jit
def load_weight(w, ring, ready, free, n, offset, rows, D, F, GATED: gl.constexpr):
    """Copies w [rows,D] into the ring; n counts the slots filled so far. GATED: a block alternates
    rows of the gate and of `up`, which lie F rows apart."""
    L: gl.constexpr = gl.BlockedLayout([1, 1, 8], [1, 32, 1], [1, LOAD_WARPS, 1], [2, 1, 0])
    r = gl.arange(0, ROWS, gl.SliceLayout(1, gl.SliceLayout(2, L)))[:, None, None]
    k = gl.arange(0, COLUMNS // 8, gl.SliceLayout(0, gl.SliceLayout(2, L)))[None, :, None] * 8
    k += gl.arange(0, 8, gl.SliceLayout(0, gl.SliceLayout(1, L)))[None, None, :]
    blocks = rows // ROWS
    for block in range(first_block(offset), blocks, gl.num_programs(0)):
        if GATED:
            row = (r & 1) * F + block * (ROWS // 2) + r // 2
        else:
            row = block * ROWS + r
        at = w + row.to(gl.int64) * D + k
        for c in range(0, D, COLUMNS):
            slot = n % SLOTS
            mbarrier.wait(free.index(slot), ((n // SLOTS) & 1) ^ 1)
            async_copy.async_copy_global_to_shared(ring.index(slot), at + c, mask=c + k < D,
                                                   eviction_policy="evict_first")
            async_copy.mbarrier_arrive(ready.index(slot), increment_count=False)
            n += 1
    return n, next_offset(offset, blocks)


@gluon.jit
def load_weights(output, gate_up, down, next, ring, ready, free, sizes):
    A, D, F, N = sizes
    n = 0
    offset = 0
    n, offset = load_weight(output, ring, ready, free, n, offset, D, A, 0, False)
    n, offset = load_weight(gate_up, ring, ready, free, n, offset, 2 * F, D, F, True)
    n, offset = load_weight(down, ring, ready, free, n, offset, D, F, 0, False)
    n, offset = load_weight(next, ring, ready, free, n, offset, N, D, 0, False)


@gluon.jit
def load_input(x, norm, xs, D, eps, normed, WIDTH: gl.constexpr):
    """Copies x [D], D at most WIDTH, into shared memory; if `normed` is not 0, normalized and
    rounded where the CPU rounds. Other SMs wrote x, so loads bypass the L1 cache."""
    L: gl.constexpr = gl.BlockedLayout([1, 8], [32, 1], [WARPS, 1], [1, 0])
    i = gl.arange(0, COLUMNS // 8, gl.SliceLayout(1, L))[:, None] * 8
    i += gl.arange(0, 8, gl.SliceLayout(0, L))[None, :]
    squares = gl.zeros([COLUMNS // 8, 8], gl.float32, L)
    gl.thread_barrier()
    for c in gl.static_range(WIDTH // COLUMNS):
        v = gl.load(x + c * COLUMNS + i, mask=c * COLUMNS + i < D, other=0.0, cache_modifier=".cg")
        xs.index(c).store(v)
        squares += v.to(gl.float32) * v.to(gl.float32)
    if normed != 0:
        rstd = gl.rsqrt(gl.sum(gl.sum(squares, axis=1), axis=0) / D + eps)
        for c in gl.static_range(WIDTH // COLUMNS):
            w = gl.load(norm + c * COLUMNS + i, mask=c * COLUMNS + i < D, other=0.0).to(gl.float32)
            v = xs.index(c).load(L)  # this thread stored it
            v = (v.to(gl.float32) * rstd).to(v.dtype)
            xs.index(c).store((v.to(gl.float32) * w).to(v.dtype))
    gl.thread_barrier()


@gluon.jit
def gemv(addend, has_addend, y, xs, ring, ready, free, n, offset, rows, D, F, GATED: gl.constexpr):
    """y [rows] = the weight in the ring times the input of load_input, plus addend [rows]. GATED: y
    [F] = silu(gate)·up."""
    L: gl.constexpr = gl.BlockedLayout([1, 1, 8], [1, 32, 1], [1, WARPS, 1], [2, 1, 0])
    PAIR: gl.constexpr = gl.BlockedLayout([1, 2], [32, 1], [WARPS, 1], [1, 0])
    ONE: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    T: gl.constexpr = y.dtype.element_ty
    blocks = rows // ROWS
    for block in range(first_block(offset), blocks, gl.num_programs(0)):
        i = block * ROWS + gl.arange(0, ROWS, ONE)
        addend_values = gl.load(addend + i, mask=(i < rows) & (has_addend != 0), other=0.0,
                                cache_modifier=".cg").to(gl.float32)
        acc = gl.zeros([ROWS, COLUMNS // 8], gl.float32, gl.SliceLayout(2, L))
        for c in range(0, D, COLUMNS):
            slot = n % SLOTS
            mbarrier.wait(ready.index(slot), (n // SLOTS) & 1)
            w = ring.index(slot).load(L).to(gl.float32)
            v = xs.index(c // COLUMNS).load(gl.SliceLayout(0, L)).to(gl.float32)
            acc += gl.sum(w * v[None, :, :], axis=2)
            gl.thread_barrier()
            mbarrier.arrive(free.index(slot))
            n += 1
        total = gl.sum(acc, axis=1)
        if GATED:
            g, u = gl.split(gl.convert_layout(gl.reshape(total, [ROWS // 2, 2]), PAIR))
            g = g.to(T).to(gl.float32)
            s = (g / (1.0 + gl.exp(-g))).to(T).to(gl.float32)
            j = block * (ROWS // 2) + gl.arange(0, ROWS // 2, gl.SliceLayout(1, PAIR))
            gl.store(y + j, (s * u.to(T).to(gl.float32)).to(T), mask=j < F)
        else:
            gl.store(y + i,
                     (gl.convert_layout(total, ONE).to(T).to(gl.float32) + addend_values).to(T),
                     mask=i < rows)
    return n, next_offset(offset, blocks)


@gluon.jit
def grid_barrier(bar):
    """Waits until all programs are here and makes their writes visible. The last program to arrive
    flips the counter's top bit and leaves the rest 0, ready for the next barrier."""
    gl.thread_barrier()
    programs = gl.num_programs(0)
    step = gl.where(gl.program_id(0) == 0, -2147483648 - (programs - 1), 1)
    before = gl.atomic_add(bar, step, sem="acq_rel", scope="gpu")
    while (gl.atomic_add(bar, 0, sem="acquire", scope="gpu") ^ before) >= 0:
        pass


@gluon.jit
def compute(x, mixed, norm, mlp_norm, next_norm, next_bias, z, h, y, first, bar, xs, ring, ready,
            free, sizes, eps, mlp_eps, next_eps, has_norm, has_bias, WIDTH: gl.constexpr,
            INNER: gl.constexpr, PDL: gl.constexpr):
    A, D, F, N = sizes
    if PDL:
        gdc_wait()
    n = 0
    offset = 0
    load_input(mixed, norm, xs, A, eps, has_norm, WIDTH)
    n, offset = gemv(x, 1, z, xs, ring, ready, free, n, offset, D, A, 0, False)
    grid_barrier(bar)
    load_input(z, mlp_norm, xs, D, mlp_eps, 1, WIDTH)
    n, offset = gemv(z, 0, h, xs, ring, ready, free, n, offset, 2 * F, D, F, True)
    grid_barrier(bar)
    load_input(h, mlp_norm, xs, F, 0.0, 0, INNER)
    n, offset = gemv(z, 1, y, xs, ring, ready, free, n, offset, D, F, 0, False)
    if N > 0:
        grid_barrier(bar)
        load_input(y, next_norm, xs, D, next_eps, 1, WIDTH)
        n, offset = gemv(next_bias, has_bias, first, xs, ring, ready, free, n, offset, N, D, 0,
                         False)


@arguments("x mixed norm output mlp_norm gate_up down next_norm next next_bias z h y first: *data; "
           "bar: *i32; A D F N: i32/16; eps mlp_eps next_eps: fp32; has_norm has_bias: i32")
@gluon.jit
def block_tail(x, mixed, norm, output, mlp_norm, gate_up, down, next_norm, next, next_bias, z, h, y,
               first, bar, A, D, F, N, eps, mlp_eps, next_eps, has_norm, has_bias,
               WIDTH: gl.constexpr, INNER: gl.constexpr, PDL: gl.constexpr):
    """y [D], and the next block's input projection `first` [N], of x [D] and mixed [A].

    gate_up is [2F,D]; z [D] and h [F] are scratch. N is 0 without a next block. bar: a counter that
    is 0 at first use and belongs to one stream. A and D are at most WIDTH, F at most INNER."""
    ring = gl.allocate_shared_memory(output.dtype.element_ty, [SLOTS, ROWS, COLUMNS // 8, 8],
                                     gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0]))
    xs = gl.allocate_shared_memory(output.dtype.element_ty, [INNER // COLUMNS, COLUMNS // 8, 8],
                                   gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    ready = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(SLOTS):
        mbarrier.init(ready.index(i), 32 * LOAD_WARPS)  # the cp.async copies of each thread
        mbarrier.init(free.index(i), 1)
    if PDL:
        gdc_launch_dependents()
    sizes = (A, D, F, N)
    gl.warp_specialize([
        (compute,
         (x, mixed, norm, mlp_norm, next_norm, next_bias, z, h, y, first, bar, xs, ring, ready,
          free, sizes, eps, mlp_eps, next_eps, has_norm, has_bias, WIDTH, INNER, PDL)),
        (load_weights, (output, gate_up, down, next, ring, ready, free, sizes)),
    ], [LOAD_WARPS], [64])
