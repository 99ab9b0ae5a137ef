"""Products of rows with weights of their groups, such as the tokens of a mixture's experts: rows of
x [N,D] are in the order of their groups, offsets [E+1] (int32) says where each group begins, and
group e has the weight w[e] [R,D].

The programs find their group on the device, so that the host does not wait for its size. Tiles of
rows do not cross groups. It compiles for all architectures and was run on sm_90.
"""
import triton
import triton.language as tl

from .arguments import arguments
from .dense import wait


@arguments("x w y: *data; index: *i64; R: i32; D: i32/16")
@triton.jit
def grouped_gemv(x, w, index, y, R, D, BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr):
    """y [N,R] for few rows, whose groups are index [N]: a program computes BN elements of a row."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(1)
    k = tl.arange(0, BK)
    wait(PDL)
    at = (tl.load(index + row) * R + n)[:, None] * D
    real = (n < R)[:, None]
    acc = tl.zeros((BN, BK), tl.float32)
    for start in range(0, D, BK):
        inside = start + k < D
        v = tl.load(x + row * D + start + k, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(w + at + (start + k)[None, :], mask=real & inside[None, :], other=0.0,
                         eviction_policy="evict_first")
        acc += weight.to(tl.float32) * v[None, :]
    tl.store(y + row * R + n, tl.sum(acc, axis=1).to(y.dtype.element_ty), mask=n < R)


@triton.jit
def group_of(offsets, tile, groups, BM: tl.constexpr, BE: tl.constexpr):
    """The group of a tile of up to BM rows, its first row and the end of its group. If there are
    fewer tiles, the group is `groups`."""
    e = tl.arange(0, BE)
    begins = tl.load(offsets + e, mask=e < groups, other=0)
    ends = tl.load(offsets + 1 + e, mask=e < groups, other=0)
    tiles = (ends - begins + BM - 1) // BM
    last = tl.cumsum(tiles, axis=0)
    group = tl.sum(((last <= tile) & (e < groups)).to(tl.int32), axis=0)
    mine = e == group
    first = tl.sum(tl.where(mine, begins + (tile - (last - tiles)) * BM, 0), axis=0)
    return group, first, tl.sum(tl.where(mine, ends, 0), axis=0)


@arguments("x w y: *data; offsets: *i32; groups tiles columns: i32; R D: i32/16")
@triton.jit
def grouped_gemm(x, w, y, offsets, groups, tiles, columns, R, D, ACROSS: tl.constexpr,
                 BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BE: tl.constexpr):
    """y [N,R] = x [N,D] · w[group]ᵀ. ACROSS: w[group] is [D,R] in memory, and y = x · w[group], the
    gradient of the other product's x. There are tiles x columns programs; those of 8 tiles and all
    columns follow each other, so that what they read stays in the L2 cache."""
    pid = tl.program_id(0)
    before = pid // (8 * columns) * 8
    beside = tl.minimum(tiles - before, 8)
    tile = before + pid % (8 * columns) % beside
    column = pid % (8 * columns) // beside
    group, first, end = group_of(offsets, tile, groups, BM, BE)
    if group < groups:
        m = first + tl.arange(0, BM)
        n = column * BN + tl.arange(0, BN)
        k = tl.arange(0, BK)
        weight = w + group.to(tl.int64) * R * D
        rows = x + m[:, None].to(tl.int64) * D
        acc = tl.zeros((BM, BN), tl.float32)
        for start in range(0, D, BK):
            inside = start + k < D
            a = tl.load(rows + (start + k)[None, :], mask=(m < end)[:, None] & inside[None, :],
                        other=0.0)
            real = inside[:, None] & (n < R)[None, :]
            if ACROSS:
                b = tl.load(weight + (start + k)[:, None].to(tl.int64) * R + n[None, :], mask=real,
                            other=0.0)
            else:
                b = tl.load(weight + n[None, :].to(tl.int64) * D + (start + k)[:, None], mask=real,
                            other=0.0)
            acc = tl.dot(a, b, acc)
        tl.store(y + m[:, None].to(tl.int64) * R + n[None, :], acc.to(y.dtype.element_ty),
                 mask=(m < end)[:, None] & (n < R)[None, :])


@arguments("x dy dw: *data; offsets: *i32; R D: i32/16")
@triton.jit
def grouped_grad_weight(x, dy, dw, offsets, R, D, BM: tl.constexpr, BN: tl.constexpr,
                        BK: tl.constexpr):
    """dw [E,R,D]: for each group dyᵀ · x over its rows, zero for a group without rows."""
    columns = tl.cdiv(D, BN)
    r = tl.program_id(0) // columns * BM + tl.arange(0, BM)
    n = tl.program_id(0) % columns * BN + tl.arange(0, BN)
    group = tl.program_id(1)
    first = tl.load(offsets + group)
    end = tl.load(offsets + group + 1)
    k = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(first, end, BK):
        m = (start + k).to(tl.int64)
        inside = m < end
        a = tl.load(dy + m[None, :] * R + r[:, None], mask=inside[None, :] & (r < R)[:, None],
                    other=0.0)
        b = tl.load(x + m[:, None] * D + n[None, :], mask=inside[:, None] & (n < D)[None, :],
                    other=0.0)
        acc = tl.dot(a, b, acc)
    at = group.to(tl.int64) * R * D + r[:, None].to(tl.int64) * D + n[None, :]
    tl.store(dw + at, acc.to(dw.dtype.element_ty), mask=(r < R)[:, None] & (n < D)[None, :])
