"""Compiles the kernels of ../kernels ahead of time; needs triton 3.6.0 and neither a GPU nor torch.

    compile.py OUT [--archs 90,80,...] [--full] [--jobs N]

writes OUT/sm_XX/*.cubin and OUT/sm_XX/manifest, and the same for PTX of the oldest architecture, which any newer driver
can finish, into OUT/ptx. A line of the manifest is a variant's key, its file, name, shared bytes, warps, and whether it may begin early (1 or 0); the key is what
../../cuda/ssd_triton.cpp asks for: the kernel's name, the dtype, and its constants in the order of its signature.

The plain set holds Mamba-2's and Bamba's layer (head dimension 64, state 128); --full adds every head dimension and state
(padded to powers of two, with masks) and the small blocks that a window strategy over chunks of 16 or 32 tokens needs.
"""
import argparse
import itertools
import os
import pathlib
import sys
from concurrent.futures import ProcessPoolExecutor

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

# Warps and pipeline depth, by measurement (docs/kernels.md).
TUNING = {
    "prepare": (4, 1), "products": (4, 1), "walk": (4, 3), "join": (4, 1), "scan": (4, 2), "scan_hopper": (4, 1),
    "grad_x": (4, 2), "grad_bc": (4, 3), "grad_cb": (4, 3), "finish_bc": (4, 1), "finish_dt": (4, 1),
    "state_step": (4, 1), "conv": (4, 1), "conv_step": (4, 1), "conv_grad_pre": (4, 1), "conv_grad_x": (4, 1), "norm": (8, 1), "norm_grad": (8, 1),
    "rms_norm": (4, 1), "rms_norm_grad": (8, 1), "rope_qkv": (4, 1), "rope_qkv_grad": (4, 1), "swiglu": (4, 1), "swiglu_grad": (4, 1),
    "cross_entropy": (8, 1), "attend": (4, 3), "attend_one": (16, 1), "likeliest": (16, 1), "matvec": (4, 1), "matvec_swiglu": (4, 1), "few_rows": (4, 5),
    "block_tail": (8, 1), "join_rows": (4, 1), "join_swiglu": (4, 1), "add_rows": (4, 1), "multiply": (4, 1), "adamw": (4, 1),
}
# The tile of a weight (rows, columns) that a program of `matvec` holds, for 1, 2 and 4 rows of x; `matvec_swiglu` holds two.
# A warp takes 256 columns at a time, so that a thread reads 16 bytes (half as many columns in float32).
TILES = {1: (4, 2048), 2: (4, 1024), 4: (4, 1024)}
GATED_TILES = {1: (1, 2048), 2: (2, 1024)}
# Pointers to the inputs' dtype, to float32 (all others) and to int32; scalars that are float32.
DATA = {"x", "b_", "c_", "cb", "dy", "y", "dx", "states", "dstates", "db", "dc", "dt", "ddt", "z", "dz"}
SCALARS = {"L", "H", "G", "D", "P", "N", "per_group", "blocks", "segments", "skip", "span", "size", "window", "reset", "pieces", "ratio", "slices",
           "slices_cb", "group", "rows",
           "KH", "half", "table_b", "cached", "columns_b", "F", "V", "M", "splits", "shares", "count", "keep", "has_bias", "has_residual",
           "has_starts", "has_norm", "A", "N"}
FLOATS = {"dt_min", "dt_max", "eps", "mlp_eps", "next_eps", "scale", "rate", "beta1", "beta2", "correct1", "correct2"}


def modules():
    from kernels import attend, dense, rows, ssd_backward, ssd_forward, ssd_hopper, tail_hopper
    return [ssd_forward, ssd_backward, ssd_hopper, rows, dense, attend, tail_hopper]


def kernel_of(name):
    for module in modules():
        fn = getattr(module, name, None)
        if fn is not None:
            return fn
    raise KeyError(name)


def each(**options):
    for values in itertools.product(*options.values()):
        yield dict(zip(options, values))


def dense_variants():
    out = []
    for dtype in ("bf16", "fp16", "fp32"):
        trains, exact = dtype != "fp16", dtype == "fp32"
        add = lambda name, **constants: out.append((name, dtype, constants))
        for block in (1024, 2048, 4096, 8192):
            add("rms_norm", BLOCK=block)
            for weight in (False, True) if trains else ():
                add("rms_norm_grad", WEIGHT=weight, BLOCK=block)
        for half in (32, 64, 128):
            add("rope_qkv", HEADS=8, BH=half)
            if trains:
                add("rope_qkv_grad", HEADS=8, BH=half)
        add("swiglu", BLOCK=1024)
        for grad, wide in itertools.product((False, True) if trains else (False,), (False, True)):
            add("cross_entropy", GRAD=grad, BLOCK=2048, WIDE=wide)
        if trains:
            add("swiglu_grad", BLOCK=1024)
            add("add_rows", BLOCK=1024)
            add("multiply", BLOCK=4096)
            add("adamw", ORIGINAL=not exact, STOCHASTIC=False, SPAN=1 << 15, BLOCK=1024)
        if dtype == "bf16":
            add("adamw", ORIGINAL=False, STOCHASTIC=True, SPAN=1 << 15, BLOCK=1024)
        for p in (64, 128):
            add("attend", G=16, BP=p, BS=64 if not exact else 32, PRECISION="ieee" if exact else "tf32")
            add("attend_one", BP=p, BS=64)
        for m, (rows, columns) in TILES.items():
            for norm in (False, True):
                add("matvec", M=m, NORM=norm, BN=rows, BK=columns // 2 if exact else columns)
        for m, (rows, columns) in GATED_TILES.items():
            for norm in (False, True):
                add("matvec_swiglu", M=m, NORM=norm, BN=rows, BK=columns // 2 if exact else columns)
        for width in (4096, 8192) if not exact else ():
            add("block_tail", WIDTH=width, INNER=16384)
        add("few_rows", BM=16, BN=64, BK=64 if exact else 128, PRECISION="ieee" if exact else "tf32")
        add("likeliest", BLOCK=4096)
        add("join_rows", BLOCK=512)
        add("join_swiglu", BLOCK=512)
    return out


def variants(full):
    """(kernel, dtype, constants) of every variant."""
    yes, both = (True,), (False, True)
    out = []
    for dtype in ("bf16", "fp16", "fp32"):
        exact = dtype == "fp32"
        usual = 32 if exact else 64
        blocks = sorted({usual, 32, 16}) if full else [usual]
        shapes = list(itertools.product((16, 32, 64, 128), (16, 32, 64, 128, 256))) if full else [(64, 128)]
        for q in blocks:
            for e in each(HAS_BIAS=yes, HAS_SEQ=both, SOFTPLUS=both, REST=(exact,), KEEP=both, Q=(q,), HEADS=(16,)):
                out.append(("prepare", dtype, e))
            for e in each(HAS_BIAS=yes, SOFTPLUS=both, HAS_FIX=both, Q=(q,), HEADS=(16,)):
                out.append(("finish_dt", dtype, e))
            for (p, n), mask in itertools.product(shapes, both if full else (False,)):
                precision = "tf32x3" if exact else "tf32"
                narrow = dict(Q=(q,), BP=(p,), MASK=(mask,), PRECISION=(precision,))
                short = dict(Q=(q,), BN=(n,), MASK=(mask,), PRECISION=(precision,))
                wide = dict(Q=(q,), BP=(p,), BN=(n,), MASK=(mask,), PRECISION=(precision,))
                long = dict(**wide, FETCH=yes)
                if p == shapes[0][0]:
                    out += [("products", dtype, e) for e in each(**short)]
                    out += [("finish_bc", dtype, e) for e in each(**short)]
                for reverse, entry, store in ((False, False, False), (True, False, False), (False, False, True),
                                              (False, True, True)):
                    out += [("walk", dtype, e) for e in each(REVERSE=(reverse,), HAS_ENTRY=(entry,), STORE=(store,),
                                                             END=(not store,), **long)]
                for name in ("scan", "grad_x"):
                    out += [(name, dtype, e) for e in each(HAS_D=yes, HAS_SEQ=both, HAS_ENTRY=both, REST=(exact,), **long)]
                out += [("grad_bc", dtype, e) for e in each(**wide)]
                if n == shapes[0][1]:
                    out += [("grad_cb", dtype, e) for e in each(HAS_SEQ=both, REST=(exact,), **narrow)]
        if not exact:
            for e in each(HAS_D=yes, HAS_SEQ=both, HAS_ENTRY=both, Q=(64,), P=(64,), N=(128,), STAGES=(4,)):
                out.append(("scan_hopper", dtype, e))
        masks = both if full else (False,)
        either = ("fp32", dtype) if not exact else ("fp32",)
        for state, params, z, soft, log, mask, p in itertools.product(either, either, both, both, both, masks, (4, 64)):
            for n in (16, 32, 64, 128, 256) if full else (128,):
                c = dict(HAS_Z=z, SOFTPLUS=soft, LOG=log, BP=p, BN=n, MASK=mask)
                out.append(("state_step", f"{dtype}-{state}-{params}", c))
        for w, silu, initial, seq, mask in itertools.product((2, 3, 4) if full else (4,), both if full else (True,), both,
                                                             both, masks):
            c = dict(SILU=silu, W=w, HAS_INITIAL=initial, HAS_SEQ=seq, T=32, BD=128, MASK=mask)
            out += [("conv", dtype, c), ("conv_grad_pre", dtype, c)]
            if silu and not initial:
                out.append(("conv_grad_x", dtype, dict(W=w, HAS_SEQ=seq, T=32, BD=128, MASK=mask)))
        for w in (2, 3, 4) if full else (4,):
            out.append(("conv_step", dtype, dict(SILU=True, W=w, BD=256)))
            if full:
                out.append(("conv_step", dtype, dict(SILU=False, W=w, BD=256)))
        for z, block, mask in itertools.product(both, (256, 512, 1024, 2048, 4096, 8192, 16384) if full else (1024, 8192), masks):
            out += [("norm", dtype, dict(HAS_Z=z, BLOCK=block, MASK=mask)), ("norm_grad", dtype, dict(HAS_Z=z, BLOCK=block, MASK=mask))]
    out += dense_variants()
    out += [("join", "fp32", e) for e in each(REVERSE=both, HAS_INITIAL=both, LAST=yes, BLOCK=(1024,))]
    return out


def key_of(name, dtype, constants, order):
    return "_".join([name, dtype] + [str(int(constants[n])) if not isinstance(constants[n], str) else constants[n]
                                     for n in order if n in constants])


def signature_of(fn, name, dtype, constants):
    data, state, params = (dtype.split("-") + 2 * [dtype])[:3]
    module = sys.modules[fn.fn.__module__]
    numbers = getattr(module, "ALIGNED", {"P", "N", "D", "group"} if constants.get("MASK") is False else set())
    strides = numbers != set()
    if constants.get("WIDE"):
        numbers = {"V"}
    signature, attributes = {}, {}
    for i, n in enumerate(fn.arg_names):
        if n in constants:
            signature[n] = "constexpr"
        elif n in FLOATS:
            signature[n] = "fp32"
        elif n.startswith("stride_") or n in SCALARS:
            signature[n] = "i32"
            if strides and n.startswith("stride_") or n in numbers:
                attributes[(i,)] = [["tt.divisibility", 16]]
        elif name == "scan_hopper" and n in BOXES:
            signature[n] = box_type(dtype, constants["Q"], constants[BOXES[n]])
        else:
            # `conv`'s y and the like are data; `state` has a dtype of its own; in `join` everything is float32.
            long = n in getattr(module, "LONGS", ())
            kind = "i64" if long else "i32" if n == "seg" or n in getattr(module, "INTS", ()) else state if n == "state" else params if n in ("d", "bias") and name == "state_step" else data if n in getattr(module, "DATA", DATA) else "fp32"
            signature[n] = "*" + kind
            if not long:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return signature, attributes


# What `scan_hopper` reads and writes in boxes, and how wide those are.
BOXES = {"x": "P", "y": "P", "b_": "N", "c_": "N", "cb": "Q"}


def box_type(dtype, rows, columns):
    from triton.experimental.gluon.language import NVMMASharedLayout
    return f"tensordesc<{dtype}[1, {rows}, {columns}],{NVMMASharedLayout(128, 16, rank=3)!r}>"


def build(job):
    arch, name, dtype, constants, out, ptx = job
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile
    from triton.experimental.gluon._runtime import GluonASTSource
    fn = kernel_of(name)
    hopper = fn.fn.__module__.endswith("_hopper")  # no other architecture's driver takes its PTX
    if hopper and arch != 90:
        return []
    key = key_of(name, dtype, constants, fn.arg_names)
    if "PDL" in fn.arg_names:  # programmatic dependent launch: not a variant but what the architecture offers
        constants = constants | {"PDL": arch >= 90}
    signature, attributes = signature_of(fn, name, dtype, constants)
    warps, stages = TUNING[name]
    if name == "matvec" and constants["M"] == 1 or name == "attend" and dtype == "fp32":
        warps = 8
    size = constants.get("BP", 0) * constants.get("BN", 0)
    if size > 8192 and name in ("walk", "scan", "grad_x", "grad_bc"):
        warps, stages = 8, 1
    if name == "state_step" and constants["BP"] == 4:
        warps = 1
    source = (GluonASTSource if fn.is_gluon() else ASTSource)(fn=fn, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": warps, "num_stages": stages}
    if name == "block_tail":  # leaves room for the kernels in front, beside which it begins
        options["maxnreg"] = 96
    compiled = compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    lines = []
    for folder, kind in [(f"sm_{arch}", "cubin")] + ([("ptx", "ptx")] if ptx and not hopper else []):
        file = f"{key}.{kind}"
        mode = "wb" if kind == "cubin" else "w"
        with open(os.path.join(out, folder, file), mode) as f:
            f.write(compiled.asm[kind])
        lines.append((folder, f"{key} {file} {name} {compiled.metadata.shared} {compiled.metadata.num_warps} {int(constants.get('PDL', False))}"))
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--archs", default="90")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", default="", help="kernels to compile, separated by commas (all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    archs = sorted(int(a) for a in options.archs.split(","))
    for folder in [f"sm_{a}" for a in archs] + ["ptx"]:
        os.makedirs(os.path.join(options.out, folder), exist_ok=True)
    jobs = [(arch, *v, options.out, arch == archs[0]) for arch in archs for v in variants(options.full)
            if not options.only or v[0] in options.only.split(",")]
    manifests = {}
    with ProcessPoolExecutor(options.jobs) as pool:
        for lines in pool.map(build, jobs, chunksize=4):
            for folder, line in lines:
                manifests.setdefault(folder, []).append(line)
    for folder, lines in manifests.items():
        path = os.path.join(options.out, folder, "manifest")
        with open(path + ".new", "w") as f:
            f.write("\n".join(lines) + "\n")
        os.replace(path + ".new", path)
    print(f"{len(jobs)} kernels in {options.out}")


if __name__ == "__main__":
    main()
