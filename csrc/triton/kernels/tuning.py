"""The tuning table: warps, pipeline stages, registers and block sizes of every kernel, found by
measurement (docs/notes).

The compiler (../build) and the checks read the table. ../build/header.py writes its block sizes to
tuning.h for the C++ that launches the kernels, so that each number is written once. A tuple lists
the sizes that are compiled.
"""

ALWAYS = {}
FP32 = {"dtype": "fp32"}
LARGE = {"large": True}  # state tiles of more than 8,192 elements: BP·BN

# (kernel, variants that the row holds for, values). A later row overrides an earlier one.
TABLE = [
    # The chunked scan. Q: tokens per block. SHORTEST: blocks per segment, below which state_passing
    # costs more than more programs gain. RATIO: the scan works on segments of RATIO pieces, all
    # other kernels on the pieces.
    ("ssd", ALWAYS, dict(Q=64, SHORTEST=32, RATIO=2)),
    ("ssd", FP32, dict(Q=32)),
    ("prepare", ALWAYS, dict(warps=4, stages=1, HEADS=16)),
    ("cb_gemm", ALWAYS, dict(warps=4, stages=1)),
    ("carry_state", ALWAYS, dict(warps=4, stages=3)),
    ("carry_state", LARGE, dict(warps=8, stages=1)),
    ("state_passing", ALWAYS, dict(warps=4, stages=1, BLOCK=1024)),
    ("scan", ALWAYS, dict(warps=4, stages=2)),
    ("scan", LARGE, dict(warps=8, stages=1)),
    ("scan_hopper", ALWAYS, dict(warps=4, stages=1, Q=64, P=64, N=128, STAGES=4)),
    ("grad_x", ALWAYS, dict(warps=4, stages=2)),
    ("grad_x", LARGE, dict(warps=8, stages=1)),
    ("grad_bc", ALWAYS, dict(warps=4, stages=3)),
    ("grad_bc", LARGE, dict(warps=8, stages=1)),
    ("grad_cb", ALWAYS, dict(warps=4, stages=3)),
    ("grad_bc_sum", ALWAYS, dict(warps=4, stages=1)),
    ("grad_dt", ALWAYS, dict(warps=4, stages=1, HEADS=16)),
    # The other operators of a Mamba-2 layer.
    ("state_step", ALWAYS, dict(warps=4, stages=1, BP=(4, 64))),
    ("state_step", {
        "BP": 4
    }, dict(warps=1)),
    # T: inputs in the ring, HEADS: heads per program, BP: rows of P per program. The register limit
    # leaves room for four programs on an SM.
    ("replay_inputs", ALWAYS, dict(warps=1, stages=1, T=16, HEADS=4, BP=64)),
    ("replay_state", ALWAYS, dict(warps=4, stages=1, registers=128, T=16, BP=64)),
    ("conv", ALWAYS, dict(warps=4, stages=1, T=32, BD=128)),
    ("conv_grad_pre", ALWAYS, dict(warps=4, stages=1, T=32, BD=128)),
    ("conv_grad_x", ALWAYS, dict(warps=4, stages=1, T=32, BD=128)),
    ("conv_step", ALWAYS, dict(warps=4, stages=1, BD=256)),
    ("gated_norm", ALWAYS, dict(warps=8, stages=1, BLOCK=(1024, 8192))),
    ("gated_norm_grad", ALWAYS, dict(warps=8, stages=1, BLOCK=(1024, 8192))),
    # A transformer's operators.
    ("rms_norm", ALWAYS, dict(warps=4, stages=1, BLOCK=(1024, 2048, 4096, 8192))),
    ("rms_norm_grad", ALWAYS, dict(warps=8, stages=1, BLOCK=(1024, 2048, 4096, 8192))),
    ("rope_qkv", ALWAYS, dict(warps=4, stages=1, HEADS=8, BH=(32, 64, 128))),
    ("rope_qkv_grad", ALWAYS, dict(warps=4, stages=1, HEADS=8, BH=(32, 64, 128))),
    ("swiglu", ALWAYS, dict(warps=4, stages=1, BLOCK=1024)),
    ("swiglu_grad", ALWAYS, dict(warps=4, stages=1, BLOCK=1024)),
    ("cross_entropy", ALWAYS, dict(warps=8, stages=1, BLOCK=2048)),
    ("argmax", ALWAYS, dict(warps=8, stages=1, BLOCK=2048, SPLITS=64)),
    ("add_rows", ALWAYS, dict(warps=4, stages=1, BLOCK=1024)),
    ("multiply", ALWAYS, dict(warps=4, stages=1, BLOCK=4096)),
    ("adamw", ALWAYS, dict(warps=4, stages=1, SPAN=1 << 15, BLOCK=1024)),
    ("adamw_8bit", ALWAYS, dict(warps=4, stages=1, SPAN=1 << 15, ROWS=4)),
    # BS: positions per tile, few for many cache rows and more for few (float32 has the first only).
    ("decode_attention", ALWAYS, dict(warps=2, stages=2, G=16, BP=(64, 128), BS=(32, 64))),
    ("decode_attention", {
        "BS": 64
    }, dict(warps=4, stages=3)),
    ("decode_attention", FP32, dict(warps=8, stages=3)),
    ("decode_attention_mha", ALWAYS, dict(warps=16, stages=1, BP=(64, 128), BS=64)),
    # A program's tile of the weight, for M rows of x: BN rows by BK columns (gemv_swiglu has two
    # tiles). A warp reads 256 columns at a time, 16 bytes per thread; half as many in float32.
    ("gemv", ALWAYS, dict(warps=4, stages=1, M=(1, 2, 4), BN=4, BK=1024)),
    ("gemv", FP32, dict(BK=512)),
    ("gemv", {
        "M": 1
    }, dict(warps=8, BK=2048)),
    ("gemv", {
        "M": 1,
        **FP32
    }, dict(BK=1024)),
    ("gemv_swiglu", ALWAYS, dict(warps=4, stages=1, M=(1, 2), BN=2, BK=1024)),
    ("gemv_swiglu", FP32, dict(BK=512)),
    ("gemv_swiglu", {
        "M": 1
    }, dict(BN=1, BK=2048)),
    ("gemv_swiglu", {
        "M": 1,
        **FP32
    }, dict(BK=1024)),
    ("split_k_gemm", ALWAYS, dict(warps=4, stages=5, BM=16, BN=64, BK=128)),
    ("split_k_gemm", FP32, dict(BK=64)),
    ("sum_splits", ALWAYS, dict(warps=4, stages=1, BLOCK=512)),
    ("sum_splits_swiglu", ALWAYS, dict(warps=4, stages=1, BLOCK=512)),
    # BN: rows of the weight per program, fewer for weights of few rows. BG: groups per step.
    ("block_gemv", ALWAYS, dict(warps=2, stages=1, BN=(4, 8), BG=64)),
    ("block_gemv_swiglu", ALWAYS, dict(warps=1, stages=1, BN=4, BG=32)),
    # RESIDENT: programs that an SM is given at once.
    ("block_gemm", ALWAYS, dict(warps=4, stages=2, BM=(16, 64), BN=64, BG=16, RESIDENT=4)),
    ("block_unpack", ALWAYS, dict(warps=4, stages=1, BG=128)),
    # BM: rows per program, for few and for many rows of a group. BE: the most groups.
    ("grouped_gemv", ALWAYS, dict(warps=2, stages=1, BN=4, BK=512)),
    ("grouped_gemm", ALWAYS, dict(warps=8, stages=4, BM=(16, 128), BN=256, BK=64, BE=512)),
    ("grouped_gemm", {
        "BM": 16
    }, dict(warps=4, BN=64, BK=128)),
    ("grouped_grad_weight", ALWAYS, dict(warps=8, stages=3, BM=128, BN=256, BK=64)),
    ("tail_gemm", ALWAYS, dict(warps=4, stages=4, BM=(16, 32, 64), BN=64, BK=128)),
    # The register limit leaves room for the previous kernel, beside which this one begins.
    ("block_tail", ALWAYS, dict(warps=8, stages=1, registers=96, WIDTH=(4096, 8192), INNER=16384)),
]


def values(kernel, dtype="", **constants):
    """{name: value} of a kernel's variant, by its dtype and constants."""
    variant = dict(constants, dtype=dtype, large=constants.get("BP", 0) * constants.get("BN", 0)
                   > 8192)
    result = {}
    for name, where, row in TABLE:
        if name == kernel and all(variant.get(k) == v for k, v in where.items()):
            result.update(row)
    return result


def options(kernel, dtype="", **constants):
    """A variant's launch options for Triton: num_warps, num_stages and, if limited, maxnreg."""
    row = values(kernel, dtype, **constants)
    result = dict(num_warps=row["warps"], num_stages=row["stages"])
    if "registers" in row:
        result["maxnreg"] = row["registers"]
    return result
