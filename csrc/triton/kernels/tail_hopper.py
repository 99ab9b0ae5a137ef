"""What follows a block's mixer in a decoding step, over one row, as one kernel for Hopper GPUs, in Gluon: `cq_block_tail` of
../../conquer.h. Four products follow each other, each of all that the one before made, and none does more than read its weight. As
kernels of their own, each begins while memory stands still and ends so. Here all programs stay, one a processor, and two parties
share each:
    fetch   four warps bring the weights of all four products into a ring in shared memory, as fast as places become free. No weight
            depends on what is computed: while the programs wait for each other, the next product's weights arrive, and so do the
            first one's while the kernel in front, which makes `mixed`, still runs
    use     eight warps multiply: they take a product's input into shared memory, normalized where that is asked for, go through
            the ring, and wait for all programs (`meet`) before the next product
A program spins while it waits, so that all must be there at the same time: as many as there are processors, and each fits beside
whatever kernel came before.
"""
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .arguments import arguments

# A place in the ring holds so many columns of so many rows, 32 KB.
ROWS = gl.constexpr(8)
COLUMNS = gl.constexpr(2048)
PLACES = gl.constexpr(5)
WARPS = gl.constexpr(8)
FETCHING = gl.constexpr(4)


@gluon.jit
def first_block(turn):
    """Where this program begins among a product's blocks of rows, after `turn` of them: so that nobody has more than his share."""
    return (gl.program_id(0) + turn) % gl.num_programs(0)


@gluon.jit
def next_turn(turn, blocks):
    return turn + gl.num_programs(0) - blocks % gl.num_programs(0)


@gluon.jit
def fetch_product(w, ring, ready, free, n, turn, rows, D, F, GATED: gl.constexpr):
    """w [rows,D]; n counts the places filled so far. GATED: a block holds rows of the gate and of `up`, F rows on, in turns."""
    L: gl.constexpr = gl.BlockedLayout([1, 1, 8], [1, 32, 1], [1, FETCHING, 1], [2, 1, 0])
    r = gl.arange(0, ROWS, gl.SliceLayout(1, gl.SliceLayout(2, L)))[:, None, None]
    k = gl.arange(0, COLUMNS // 8, gl.SliceLayout(0, gl.SliceLayout(2, L)))[None, :, None] * 8
    k += gl.arange(0, 8, gl.SliceLayout(0, gl.SliceLayout(1, L)))[None, None, :]
    blocks = rows // ROWS
    for block in range(first_block(turn), blocks, gl.num_programs(0)):
        if GATED:
            row = (r & 1) * F + block * (ROWS // 2) + r // 2
        else:
            row = block * ROWS + r
        at = w + row.to(gl.int64) * D + k
        for c in range(0, D, COLUMNS):
            place = n % PLACES
            mbarrier.wait(free.index(place), ((n // PLACES) & 1) ^ 1)
            async_copy.async_copy_global_to_shared(ring.index(place), at + c, mask=c + k < D, eviction_policy="evict_first")
            async_copy.mbarrier_arrive(ready.index(place), increment_count=False)
            n += 1
    return n, next_turn(turn, blocks)


@gluon.jit
def fetch(output, gate_up, down, next, ring, ready, free, sizes):
    A, D, F, N = sizes
    n = 0
    turn = 0
    n, turn = fetch_product(output, ring, ready, free, n, turn, D, A, 0, False)
    n, turn = fetch_product(gate_up, ring, ready, free, n, turn, 2 * F, D, F, True)
    n, turn = fetch_product(down, ring, ready, free, n, turn, D, F, 0, False)
    n, turn = fetch_product(next, ring, ready, free, n, turn, N, D, 0, False)


@gluon.jit
def take(x, norm, xs, D, eps, normed, WIDTH: gl.constexpr):
    """x [D], D at most WIDTH, into shared memory, normalized where `normed` is not 0, and rounded where the CPU rounds it. Other
    processors wrote it: the first-level cache is passed by."""
    L: gl.constexpr = gl.BlockedLayout([1, 8], [32, 1], [WARPS, 1], [1, 0])
    i = gl.arange(0, COLUMNS // 8, gl.SliceLayout(1, L))[:, None] * 8 + gl.arange(0, 8, gl.SliceLayout(0, L))[None, :]
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
            v = xs.index(c).load(L)  # what this thread stored
            xs.index(c).store(((v.to(gl.float32) * rstd).to(v.dtype).to(gl.float32) * w).to(v.dtype))
    gl.thread_barrier()


@gluon.jit
def product(plus, has_plus, y, xs, ring, ready, free, n, turn, rows, D, F, GATED: gl.constexpr):
    """y [rows] = the weight in the ring times what `take` took, plus [rows]; or, GATED, y [F] = silu(gate)·up."""
    L: gl.constexpr = gl.BlockedLayout([1, 1, 8], [1, 32, 1], [1, WARPS, 1], [2, 1, 0])
    PAIR: gl.constexpr = gl.BlockedLayout([1, 2], [32, 1], [WARPS, 1], [1, 0])
    ONE: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    T: gl.constexpr = y.dtype.element_ty
    blocks = rows // ROWS
    for block in range(first_block(turn), blocks, gl.num_programs(0)):
        i = block * ROWS + gl.arange(0, ROWS, ONE)
        added = gl.load(plus + i, mask=(i < rows) & (has_plus != 0), other=0.0, cache_modifier=".cg").to(gl.float32)
        acc = gl.zeros([ROWS, COLUMNS // 8], gl.float32, gl.SliceLayout(2, L))
        for c in range(0, D, COLUMNS):
            place = n % PLACES
            mbarrier.wait(ready.index(place), (n // PLACES) & 1)
            w = ring.index(place).load(L).to(gl.float32)
            v = xs.index(c // COLUMNS).load(gl.SliceLayout(0, L)).to(gl.float32)
            acc += gl.sum(w * v[None, :, :], axis=2)
            gl.thread_barrier()
            mbarrier.arrive(free.index(place))
            n += 1
        total = gl.sum(acc, axis=1)
        if GATED:
            g, u = gl.split(gl.convert_layout(gl.reshape(total, [ROWS // 2, 2]), PAIR))
            g = g.to(T).to(gl.float32)
            s = (g / (1.0 + gl.exp(-g))).to(T).to(gl.float32)
            j = block * (ROWS // 2) + gl.arange(0, ROWS // 2, gl.SliceLayout(1, PAIR))
            gl.store(y + j, (s * u.to(T).to(gl.float32)).to(T), mask=j < F)
        else:
            gl.store(y + i, (gl.convert_layout(total, ONE).to(T).to(gl.float32) + added).to(T), mask=i < rows)
    return n, next_turn(turn, blocks)


@gluon.jit
def meet(bar):
    """Waits until all programs are here, and makes what they wrote visible. The counter's top bit turns when the last one has
    come, which leaves it ready for the next time."""
    gl.thread_barrier()
    programs = gl.num_programs(0)
    step = gl.where(gl.program_id(0) == 0, -2147483648 - (programs - 1), 1)
    before = gl.atomic_add(bar, step, sem="acq_rel", scope="gpu")
    while (gl.atomic_add(bar, 0, sem="acquire", scope="gpu") ^ before) >= 0:
        pass


@gluon.jit
def use(x, mixed, norm, mlp_norm, next_norm, next_bias, z, h, y, first, bar, xs, ring, ready, free, sizes, eps, mlp_eps, next_eps, has_norm,
        has_bias, WIDTH: gl.constexpr, INNER: gl.constexpr, PDL: gl.constexpr):
    A, D, F, N = sizes
    if PDL:
        gdc_wait()
    n = 0
    turn = 0
    take(mixed, norm, xs, A, eps, has_norm, WIDTH)
    n, turn = product(x, 1, z, xs, ring, ready, free, n, turn, D, A, 0, False)
    meet(bar)
    take(z, mlp_norm, xs, D, mlp_eps, 1, WIDTH)
    n, turn = product(z, 0, h, xs, ring, ready, free, n, turn, 2 * F, D, F, True)
    meet(bar)
    take(h, mlp_norm, xs, F, 0.0, 0, INNER)
    n, turn = product(z, 1, y, xs, ring, ready, free, n, turn, D, F, 0, False)
    if N > 0:
        meet(bar)
        take(y, next_norm, xs, D, next_eps, 1, WIDTH)
        n, turn = product(next_bias, has_bias, first, xs, ring, ready, free, n, turn, N, D, 0, False)


@arguments("x mixed norm output mlp_norm gate_up down next_norm next next_bias z h y first: *data; "
           "bar: *i32; A D F N: i32/16; eps mlp_eps next_eps: fp32; has_norm has_bias: i32")
@gluon.jit
def block_tail(x, mixed, norm, output, mlp_norm, gate_up, down, next_norm, next, next_bias, z, h, y, first, bar, A, D, F, N, eps, mlp_eps,
               next_eps, has_norm, has_bias, WIDTH: gl.constexpr, INNER: gl.constexpr, PDL: gl.constexpr):
    """x [D], mixed [A], gate_up [2F,D] and so on; z [D] and h [F] are for the kernel's own use. N is 0 where there is no next product.
    bar: a counter that is 0 when it is first given, and belongs to one stream. A and D at most WIDTH, F at most INNER."""
    ring = gl.allocate_shared_memory(output.dtype.element_ty, [PLACES, ROWS, COLUMNS // 8, 8], gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0]))
    xs = gl.allocate_shared_memory(output.dtype.element_ty, [INNER // COLUMNS, COLUMNS // 8, 8], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    ready = gl.allocate_shared_memory(gl.int64, [PLACES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [PLACES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(PLACES):
        mbarrier.init(ready.index(i), 32 * FETCHING)  # each thread's own copies
        mbarrier.init(free.index(i), 1)
    if PDL:
        gdc_launch_dependents()
    sizes = (A, D, F, N)
    gl.warp_specialize([
        (use, (x, mixed, norm, mlp_norm, next_norm, next_bias, z, h, y, first, bar, xs, ring, ready, free, sizes, eps, mlp_eps, next_eps, has_norm,
               has_bias, WIDTH, INNER, PDL)),
        (fetch, (output, gate_up, down, next, ring, ready, free, sizes)),
    ], [FETCHING], [64])
