"""Products with quantized weights, in the form that ../../cuda/blocks.cpp gives them on a GPU: a
number of a weight is scale·q - least, with one scale and one `least` for each group of a row (both
float16, in one 32-bit word, the scale in its low half).

BITS 4: a group is 32 numbers. BITS 8: it is 16. Either way a group's codes q are four 32-bit words,
and number s·4 + i of the group is the s-th code of word i, counted from the low bits.
"""
import triton
import triton.language as tl

from .arguments import arguments
from .dense import store_gated, store_row, wait


@triton.jit
def code_base(S: tl.constexpr, BITS: tl.constexpr):
    """What `code` adds to the S-th code of a word."""
    LOW: tl.constexpr = BITS == 4 and S % 3 == 0
    return (2048.0 if LOW else 128.0) if BITS == 4 else 256.0


@triton.jit
def code(words, S: tl.constexpr, mask, base, BITS: tl.constexpr):
    """The S-th code of each word plus code_base, in float32. No conversion is needed: the code
    becomes the lowest whole bits of the mantissa of code_base, a power of two. Of four bits, codes
    0, 3 and 6 are added to a larger power, so that two codes need one shift.

    mask and base are the bits of the code and of the power 128 or 256. As arguments of the kernel
    they make one instruction of two."""
    TO: tl.constexpr = (12 if S % 3 == 0 else 16) if BITS == 4 else 15
    FROM: tl.constexpr = S * BITS
    if FROM < TO:
        words = words << (TO - FROM)
    elif FROM > TO:
        words = words >> (FROM - TO)
    if BITS == 4 and S % 3 == 0:
        mask = mask >> 4
        base = base + 0x02000000  # 2048
    return ((words & mask) | base).to(tl.float32, bitcast=True)


@triton.jit
def scales_of(words):
    """The scale and the least of each word, in float32."""
    scale = (words & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    least = (words >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return scale, least


@triton.jit
def group_products(words, pairs, x, j, D, mask, base, BITS: tl.constexpr):
    """The products of the groups of words j [4·BG] of a row of x with those of the rows of a
    weight: words [BN,4·BG] and pairs [BN,BG] give [BN,BG].

    For 16-bit x, what `code` adds is subtracted once at the end, which costs some bits of float32.
    """
    BN: tl.constexpr = words.shape[0]
    BG: tl.constexpr = words.shape[1] // 4
    EXACT: tl.constexpr = x.dtype.element_ty == tl.float32
    k = ((j // 4) * (128 // BITS) + j % 4)[None, :]
    inside = k < D
    total = tl.zeros(words.shape, tl.float32)
    sums = tl.zeros((1, BG * 4), tl.float32)
    bases = tl.zeros((1, BG * 4), tl.float32)
    for s in tl.static_range(32 // BITS):
        v = tl.load(x + k + s * 4, mask=inside, other=0.0).to(tl.float32)
        sums += v
        if EXACT:
            total += (code(words, s, mask, base, BITS) - code_base(s, BITS)) * v
        else:
            total += code(words, s, mask, base, BITS) * v
            bases += code_base(s, BITS) * v
    scale, least = scales_of(pairs)
    total = tl.sum(tl.reshape(total - bases, (BN, BG, 4)), axis=2)
    sums = tl.sum(tl.reshape(sums, (1, BG, 4)), axis=2)
    return scale * total - least * sums


@triton.jit
def load_groups(codes, scales, row, groups, at, real, BG: tl.constexpr):
    """The words [BN,4·BG] and pairs [BN,BG] of the groups from `at` on of rows row [BN,1]."""
    j = tl.arange(0, BG * 4)[None, :]
    g = tl.arange(0, BG)[None, :]
    words = tl.load(codes + row * groups * 4 + at * 4 + j, mask=real & (at * 4 + j < groups * 4),
                    other=0, eviction_policy="evict_first")
    pairs = tl.load(scales + row * groups + at + g, mask=real & (at + g < groups), other=0,
                    eviction_policy="evict_first")
    return words, pairs


@arguments("x bias residual y: *data; codes scales: *i32; N has_bias has_residual mask base: i32; "
           "D: i32/16")
@triton.jit
def block_gemv(x, codes, scales, bias, residual, y, N, D, has_bias, has_residual, mask, base,
               BITS: tl.constexpr, BN: tl.constexpr, BG: tl.constexpr, PDL: tl.constexpr):
    """y [N] = x [D] · wᵀ + bias + residual. codes [N,D/group,4] and scales [N,D/group] are the
    weight; its first words are loaded before `wait`. mask and base: see `code`."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    j = tl.arange(0, BG * 4)
    groups = D // (128 // BITS)
    row = n.to(tl.int64)[:, None]
    real = (n < N)[:, None]
    words, pairs = load_groups(codes, scales, row, groups, 0, real, BG)
    wait(PDL)
    acc = tl.zeros((BN, BG), tl.float32)
    for at in range(0, groups, BG):
        next_words, next_pairs = load_groups(codes, scales, row, groups, at + BG, real, BG)
        acc += group_products(words, pairs, x, at * 4 + j, D, mask, base, BITS)
        words = next_words
        pairs = next_pairs
    store_row(tl.sum(acc, axis=1), n, 0, bias, residual, y, N, has_bias, has_residual)


@arguments("x bias y: *data; codes scales: *i32; F has_bias mask base: i32; D: i32/16")
@triton.jit
def block_gemv_swiglu(x, codes, scales, bias, y, F, D, has_bias, mask, base, BITS: tl.constexpr,
                      BN: tl.constexpr, BG: tl.constexpr, PDL: tl.constexpr):
    """y [F] = silu(gate)·up; gate and up are the GEMVs of x [D] with the first and the last F rows
    of a weight of 2F rows. The rest is as in block_gemv."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    j = tl.arange(0, BG * 4)
    groups = D // (128 // BITS)
    row = n.to(tl.int64)[:, None]
    real = (n < F)[:, None]
    words, pairs = load_groups(codes, scales, row, groups, 0, real, BG)
    up_words, up_pairs = load_groups(codes, scales, row + F, groups, 0, real, BG)
    wait(PDL)
    gate = tl.zeros((BN, BG), tl.float32)
    up = tl.zeros((BN, BG), tl.float32)
    for at in range(0, groups, BG):
        next_words, next_pairs = load_groups(codes, scales, row, groups, at + BG, real, BG)
        next_up, next_up_pairs = load_groups(codes, scales, row + F, groups, at + BG, real, BG)
        gate += group_products(words, pairs, x, at * 4 + j, D, mask, base, BITS)
        up += group_products(up_words, up_pairs, x, at * 4 + j, D, mask, base, BITS)
        words = next_words
        pairs = next_pairs
        up_words = next_up
        up_pairs = next_up_pairs
    store_gated(tl.sum(gate, axis=1), tl.sum(up, axis=1), n, 0, bias, y, F, has_bias)


@arguments("codes scales: *i32; w: *data; mask base: i32; D: i32/16")
@triton.jit
def block_unpack(codes, scales, w, D, mask, base, BITS: tl.constexpr, BG: tl.constexpr):
    """w [rows,D]: the numbers of a weight in blocks. A program writes BG groups of one row."""
    GROUP: tl.constexpr = 128 // BITS
    row = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1) * BG + tl.arange(0, BG)
    groups = D // GROUP
    four = tl.arange(0, 4)[None, :]
    inside = g < groups
    words = tl.load(codes + (row * groups + g)[:, None] * 4 + four, mask=inside[:, None], other=0)
    scale, least = scales_of(tl.load(scales + row * groups + g, mask=inside, other=0))
    for s in tl.static_range(32 // BITS):
        v = code(words, s, mask, base, BITS) - code_base(s, BITS)
        v = v * scale[:, None] - least[:, None]
        tl.store(w + row * D + g[:, None] * GROUP + s * 4 + four, v.to(w.dtype.element_ty),
                 mask=inside[:, None])


@arguments("x: *data; codes scales: *i32; part: *fp32; M N span: i32; D: i32/16; mask base: i32")
@triton.jit
def block_gemm(x, codes, scales, part, M, N, D, span, mask, base, BITS: tl.constexpr,
               BM: tl.constexpr, BN: tl.constexpr, BG: tl.constexpr, PDL: tl.constexpr):
    """part [splits,M,N] = the sums over `span` groups each of x · wᵀ, for up to BM rows. x [M,D] is
    ordered as [M, code of a word, word of a row]. The numbers of the weight are rounded to the
    dtype of x."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    split = tl.program_id(1)
    m = tl.arange(0, BM)
    j = tl.arange(0, BG * 4)
    groups = D // (128 // BITS)
    first = split * span
    last = tl.minimum(first + span, groups)
    row = n.to(tl.int64)[None, :]
    real = (n < N)[None, :]
    wait(PDL)
    acc = tl.zeros((BM, BN), tl.float32)
    for at in range(first, last, BG):
        inside = (at * 4 + j < last * 4)[:, None]
        words = tl.load(codes + (row * groups + at) * 4 + j[:, None], mask=real & inside, other=0)
        pairs = tl.load(scales + row * groups + at + j[:, None] // 4, mask=real & inside, other=0)
        scale, least = scales_of(pairs)
        for s in tl.static_range(32 // BITS):
            v = tl.load(x + m[:, None] * D + s * (groups * 4) + at * 4 + j[None, :],
                        mask=(m < M)[:, None] & (at * 4 + j < last * 4)[None, :], other=0.0)
            w = (code(words, s, mask, base, BITS) - code_base(s, BITS)) * scale - least
            acc = tl.dot(v, w.to(x.dtype.element_ty), acc)
    tl.store(part + (split * M + m[:, None]) * N + n[None, :], acc, mask=real & (m < M)[:, None])
