"""Lists the variants of the kernels that are compiled, and their keys.

A variant is (kernel, dtype, constants). Its key is the kernel's name, the dtype and the constants
in the order of the kernel's signature, joined by underscores; ../../cuda/keys.h forms the same
keys. The plain set has the layers of Mamba-2 and Bamba (head dimension 64, state 128). The full set
adds every head dimension and state, padded to powers of two with masks, and the short blocks that a
window strategy over chunks of 16 or 32 tokens needs.
"""
import itertools

from kernels import (attend, blocks, dense, grouped, replay, rows, ssd_backward, ssd_forward,
                     ssd_hopper, tail_hopper, tail_rows, tuning)

MODULES = (ssd_forward, ssd_backward, ssd_hopper, rows, replay, dense, attend, blocks, grouped,
           tail_hopper, tail_rows)
DTYPES = ("bf16", "fp16", "fp32")
BOTH = (False, True)


def kernel_of(name):
    for module in MODULES:
        kernel = getattr(module, name, None)
        if hasattr(kernel, "kinds"):
            return kernel
    raise KeyError(name)


def each(**options):
    """Every combination of the options, as dicts."""
    for values in itertools.product(*options.values()):
        yield dict(zip(options, values))


def sizes(kernel, *names, dtype="", **constants):
    """The tuning table's sizes of these names."""
    row = tuning.values(kernel, dtype, **constants)
    return {name: row[name] for name in names}


def precision(dtype, exact):
    return exact if dtype == "fp32" else "tf32"


def transformer(dtype):
    """The operators of a transformer's blocks. float16 has no backward pass."""
    fp32, trains = dtype == "fp32", dtype != "fp16"
    grads = BOTH if trains else (False,)
    for block in tuning.values("rms_norm")["BLOCK"]:
        yield "rms_norm", dict(BLOCK=block)
    for half in tuning.values("rope_qkv")["BH"]:
        yield "rope_qkv", dict(**sizes("rope_qkv", "HEADS"), BH=half)
    yield "swiglu", sizes("swiglu", "BLOCK")
    for grad, mask in itertools.product(grads, BOTH):
        yield "cross_entropy", dict(GRAD=grad, **sizes("cross_entropy", "BLOCK"), MASK=mask)
    if trains:
        for block, weight in itertools.product(tuning.values("rms_norm_grad")["BLOCK"], BOTH):
            yield "rms_norm_grad", dict(WEIGHT=weight, BLOCK=block)
        for half in tuning.values("rope_qkv_grad")["BH"]:
            yield "rope_qkv_grad", dict(**sizes("rope_qkv_grad", "HEADS"), BH=half)
        for name in ("swiglu_grad", "add_rows", "multiply"):
            yield name, sizes(name, "BLOCK")
        # A bfloat16 weight has a float32 master weight, or small moments, or both.
        yield "adamw", dict(MASTER=not fp32, NARROW=False, **sizes("adamw", "SPAN", "BLOCK"))
        for master in (False,) if fp32 else BOTH:
            yield "adamw", dict(MASTER=master, NARROW=True, **sizes("adamw", "SPAN", "BLOCK"))
            yield "adamw_8bit", dict(MASTER=master, **sizes("adamw_8bit", "SPAN", "ROWS"))
    for p in tuning.values("decode_attention")["BP"]:
        for positions in tuning.values("decode_attention")["BS"][:1 if fp32 else None]:
            yield "decode_attention", dict(**sizes("decode_attention", "G"), BP=p, BS=positions,
                                           PRECISION=precision(dtype, "ieee"))
        yield "decode_attention_mha", dict(BP=p, **sizes("decode_attention_mha", "BS"))
    for name in ("gemv", "gemv_swiglu"):
        for m, norm in itertools.product(tuning.values(name)["M"], BOTH):
            yield name, dict(M=m, NORM=norm, **sizes(name, "BN", "BK", dtype=dtype, M=m))
    if not fp32:
        for width in tuning.values("block_tail")["WIDTH"]:
            yield "block_tail", dict(WIDTH=width, **sizes("block_tail", "INNER"))
    if dtype == "bf16":
        for m, (gated, adds) in itertools.product(
                tuning.values("tail_gemm")["BM"], ((False, True), (True, False), (False, False))):
            yield "tail_gemm", dict(GATED=gated, ADDS=adds, BM=m, **sizes("tail_gemm", "BN", "BK"))
    yield "split_k_gemm", dict(**sizes("split_k_gemm", "BM", "BN", "BK", dtype=dtype),
                               PRECISION=precision(dtype, "ieee"))
    for bits in (4, 8):
        for rows in tuning.values("block_gemv")["BN"]:
            yield "block_gemv", dict(BITS=bits, BN=rows, **sizes("block_gemv", "BG"))
        yield "block_gemv_swiglu", dict(BITS=bits, **sizes("block_gemv_swiglu", "BN", "BG"))
        for m in tuning.values("block_gemm")["BM"] if not fp32 else ():
            yield "block_gemm", dict(BITS=bits, BM=m, **sizes("block_gemm", "BN", "BG"))
        yield "block_unpack", dict(BITS=bits, **sizes("block_unpack", "BG"))
    if not fp32:
        yield "grouped_gemv", sizes("grouped_gemv", "BN", "BK")
        for across, m in itertools.product(grads, tuning.values("grouped_gemm")["BM"]):
            yield "grouped_gemm", dict(ACROSS=across, BM=m,
                                       **sizes("grouped_gemm", "BN", "BK", "BE", BM=m))
    if dtype == "bf16":
        yield "grouped_grad_weight", sizes("grouped_grad_weight", "BM", "BN", "BK")
    yield "argmax", sizes("argmax", "BLOCK", "SPLITS")
    for name in ("sum_splits", "sum_splits_swiglu"):
        yield name, sizes(name, "BLOCK")


def scan(dtype, full):
    """The chunked scan, forward and backward."""
    fp32 = dtype == "fp32"
    usual = tuning.values("ssd", dtype)["Q"]
    shapes = list(itertools.product((16, 32, 64, 128),
                                    (16, 32, 64, 128, 256))) if full else [(64, 128)]
    masks = BOTH if full else (False,)
    for q in sorted({usual, 32, 16}) if full else [usual]:
        for e in each(HAS_SEQ=BOTH, SOFTPLUS=BOTH, KEEP=BOTH):
            yield "prepare", dict(HAS_BIAS=True, **e, REST=fp32, Q=q, **sizes("prepare", "HEADS"))
        for e in each(SOFTPLUS=BOTH, HAS_FIX=BOTH):
            yield "grad_dt", dict(HAS_BIAS=True, **e, Q=q, **sizes("grad_dt", "HEADS"))
        for (p, n), mask in itertools.product(shapes, masks):
            block = dict(Q=q, MASK=mask, PRECISION=precision(dtype, "tf32x3"))
            tile = dict(**block, BP=p, BN=n)
            if p == shapes[0][0]:
                yield "cb_gemm", dict(**block, BN=n)
                yield "grad_bc_sum", dict(**block, BN=n)
            if n == shapes[0][1]:
                for e in each(HAS_SEQ=BOTH):
                    yield "grad_cb", dict(**e, REST=fp32, **block, BP=p)
            for reverse, entry, store in ((False, False, False), (True, False, False),
                                          (False, False, True), (False, True, True)):
                yield "carry_state", dict(REVERSE=reverse, HAS_ENTRY=entry, STORE=store,
                                          END=not store, **tile, FETCH=True)
            for name, e in itertools.product(("scan", "grad_x"), each(HAS_SEQ=BOTH,
                                                                      HAS_ENTRY=BOTH)):
                yield name, dict(HAS_D=True, **e, REST=fp32, **tile, FETCH=True)
            yield "grad_bc", tile
    if not fp32:
        for e in each(HAS_SEQ=BOTH, HAS_ENTRY=BOTH):
            yield "scan_hopper", dict(HAS_D=True, **e,
                                      **sizes("scan_hopper", "Q", "P", "N", "STAGES"))


def around_scan(dtype, full):
    """The other operators of a Mamba-2 layer, except the state update."""
    masks = BOTH if full else (False,)
    widths, activations = ((2, 3, 4), BOTH) if full else ((4,), (True,))
    tile = sizes("conv", "T", "BD")
    for w, silu, mask in itertools.product(widths, activations, masks):
        for e in each(HAS_INITIAL=BOTH, HAS_SEQ=BOTH):
            yield "conv", dict(SILU=silu, W=w, **e, **tile, MASK=mask)
            yield "conv_grad_pre", dict(SILU=silu, W=w, **e, **tile, MASK=mask)
    for w, seq, mask in itertools.product(widths, BOTH, masks):
        yield "conv_grad_x", dict(W=w, HAS_SEQ=seq, **tile, MASK=mask)
    for w, silu in itertools.product(widths, activations):
        yield "conv_step", dict(SILU=silu, W=w, **sizes("conv_step", "BD"))
    usual = tuning.values("gated_norm")["BLOCK"]  # these serve most widths
    norms = [(block, False) for block in usual]
    if full:
        norms += [(16384, False)] + [(block, True)
                                     for block in (256, 512, 1024, 2048, 4096, 8192, 16384)]
    for z, (block, mask) in itertools.product(BOTH, norms):
        yield "gated_norm", dict(HAS_Z=z, BLOCK=block, MASK=mask)
        yield "gated_norm_grad", dict(HAS_Z=z, BLOCK=block, MASK=mask)


def state_step(dtype, full):
    """(dtypes, constants) of the state update; dtypes are those of the data, the state and the
    parameters."""
    either = ("fp32", dtype) if dtype != "fp32" else ("fp32",)
    states = (16, 32, 64, 128, 256) if full else (128,)
    for state, params in itertools.product(either, either):
        for e in each(HAS_Z=BOTH, SOFTPLUS=BOTH, LOG=BOTH, BP=tuning.values("state_step")["BP"],
                      BN=states, MASK=BOTH if full else (False, )):
            yield f"{dtype}-{state}-{params}", e


def replay_step(full):
    """(kernel, dtypes, constants) of the state update that replays the last inputs, for bfloat16
    data: dtypes of the data, the state and the parameters."""
    for n in (64, 128) if full else (128,):
        for params in ("bf16", "fp32"):
            yield "replay_inputs", f"bf16-fp32-{params}", dict(
                **sizes("replay_inputs", "T", "HEADS", "BP"), BN=n)
        for state, z in itertools.product(("fp32", "bf16"), BOTH):
            yield "replay_state", f"bf16-{state}-bf16", dict(HAS_Z=z,
                                                           **sizes("replay_state", "T", "BP"), BN=n)


def variants(full):
    """(kernel, dtype, constants) of every variant."""
    result = []
    for dtype in DTYPES:
        for part in (scan(dtype, full), around_scan(dtype, full), transformer(dtype)):
            result += [(name, dtype, constants) for name, constants in part]
        result += [("state_step", dtypes, constants)
                   for dtypes, constants in state_step(dtype, full)]
    result += replay_step(full)
    for e in each(REVERSE=BOTH, HAS_INITIAL=BOTH):
        result.append(
            ("state_passing", "fp32", dict(**e, LAST=True, **sizes("state_passing", "BLOCK"))))
    return result


def key_of(kernel, dtype, constants):
    """The variant's key, for a kernel of triton.jit or gluon.jit."""
    values = [constants[name] for name in kernel.arg_names if name in constants]
    return "_".join([kernel.fn.__name__, dtype] +
                    [v if isinstance(v, str) else str(int(v)) for v in values])
