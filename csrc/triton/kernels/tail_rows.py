"""What follows a block's mixer in a decoding step of 2 to 64 sequences: `cq_block_tail` of
../../conquer.h in four launches of one kernel. It compiles for all architectures and was run on
sm_90.

The launches compute, in order: the output projection, gate and up, down, and the next block's input
projection. The two norms between them cost no launch. A row's root mean square is a factor of the
GEMM's result, so the kernel before the norm stores its result twice, as it is and multiplied by the
norm's weight, and beside it the sums of squares of each tile; the kernel after the norm multiplies
by the inverse of the root mean square at its end.
"""
import triton
import triton.language as tl

from .arguments import arguments
from .dense import round_to, wait


@triton.jit
def inverse_rms(squares, m, D, eps, BM: tl.constexpr, BN: tl.constexpr):
    """1 / root mean square of rows m, from the sums of squares [tiles,BM] of BN columns each."""
    tiles = tl.cdiv(D, BN)
    t = tl.arange(0, 32)
    total = tl.zeros((BM,), tl.float32)
    for at in range(0, tiles, 32):
        total += tl.sum(
            tl.load(squares + (at + t)[:, None] * BM + m[None, :], mask=(at + t < tiles)[:, None],
                    other=0.0, cache_modifier=".cg"), axis=0)
    return tl.rsqrt(total / D + eps)


@arguments("x w bias residual norm y scaled: *data; squares part: *fp32; arrived: *i32; "
           "M: i32; N D span: i32/16; splits has_bias has_norm: i32; eps: fp32")
@triton.jit
def tail_gemm(x, w, bias, residual, norm, y, scaled, squares, part, arrived, M, N, D, span, splits,
              has_bias, has_norm, eps, GATED: tl.constexpr, ADDS: tl.constexpr, BM: tl.constexpr,
              BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr):
    """A GEMM of x [M,D] and a weight for up to BM rows. `splits` programs share a tile of BN
    columns of y, `span` of the inner dimension each; the last one to arrive adds their sums in
    order. part [tiles,splits,BN,BM] holds the sums; arrived [tiles] counts the programs and is 0
    before and after.

    ADDS: y [M,N] = x · w [N,D]ᵀ + residual. If has_norm is not 0, also scaled = y·norm and squares
    [tiles,BM], the sums of the squares of y over each tile's columns.
    Otherwise x is the `scaled` of an earlier launch, squares its sums, and D its width. GATED: y
    [M,N] = silu(gate)·up, where the gate's rows are the first N of w [2N,D]; splits is 1. Else y
    [M,N] = the normalized x · w [N,D]ᵀ, plus bias [N] if has_bias is not 0."""
    tile = tl.program_id(0)
    split = tl.program_id(1)
    n = tile * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    k = tl.arange(0, BK)
    first = split * span
    last = tl.minimum(first + span, D)
    inside = (n < N)[:, None]
    rows = w + n[:, None].to(tl.int64) * D
    ups = rows + N.to(tl.int64) * D
    wait(PDL)
    acc = tl.zeros((BN, BM), tl.float32)
    up = tl.zeros((BN, BM), tl.float32)
    for at in range(first, last, BK):
        i = at + k
        v = tl.load(x + m[None, :] * D + i[:, None], mask=(m < M)[None, :] & (i < last)[:, None],
                    other=0.0)
        weight = tl.load(rows + i[None, :], mask=inside & (i < last)[None, :], other=0.0)
        acc = tl.dot(weight, v, acc, input_precision="ieee")
        if GATED:
            weight = tl.load(ups + i[None, :], mask=inside & (i < last)[None, :], other=0.0)
            up = tl.dot(weight, v, up, input_precision="ieee")
    finishes = True
    if not GATED:
        if splits > 1:
            element = tl.arange(0, BN)[:, None] * BM + m[None, :]
            sums = part + tile * splits * (BN * BM) + element
            tl.store(sums + split * (BN * BM), acc)
            tl.debug_barrier()
            finishes = tl.atomic_add(arrived + tile, 1, sem="acq_rel", scope="gpu") == splits - 1
            if finishes:
                tl.store(arrived + tile, 0)
                acc = tl.zeros((BN, BM), tl.float32)
                for s in range(0, splits):
                    acc += tl.load(sums + s * (BN * BM), cache_modifier=".cg")
    if finishes:
        to = m[None, :] * N + n[:, None]
        real = inside & (m < M)[None, :]
        if ADDS:
            z = round_to(acc, y) + tl.load(residual + to, mask=real, other=0.0).to(tl.float32)
            tl.store(y + to, z.to(y.dtype.element_ty), mask=real)
            if has_norm != 0:
                z = tl.where(real, round_to(z, y), 0.0)
                factor = tl.load(norm + n, mask=n < N, other=0.0).to(tl.float32)
                tl.store(scaled + to, (z * factor[:, None]).to(y.dtype.element_ty), mask=real)
                tl.store(squares + tile * BM + m, tl.sum(z * z, axis=0))
        else:
            r = inverse_rms(squares, m, D, eps, BM, BN)
            acc *= r[None, :]
            if GATED:
                g = round_to(acc, y)
                g = round_to(g / (1.0 + tl.exp(-g)), y)
                tl.store(y + to, (g * round_to(up * r[None, :], y)).to(y.dtype.element_ty),
                         mask=real)
            else:
                acc += tl.load(bias + n, mask=(n < N) & (has_bias != 0),
                               other=0.0).to(tl.float32)[:, None]
                tl.store(y + to, acc.to(y.dtype.element_ty), mask=real)
