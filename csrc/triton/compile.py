"""Compiles the kernels of this folder ahead of time; needs triton 3.6.0 and neither a GPU nor torch.

    compile.py OUT [--archs 90,80,...] [--full] [--jobs N]

writes OUT/sm_XX/*.cubin and OUT/sm_XX/manifest, and the same for PTX of the oldest architecture, which any newer driver
can finish, into OUT/ptx. A line of the manifest is a variant's key, its file, shared bytes and warps; the key is what
../cuda/ssd_triton.cpp asks for: the kernel's name, the dtype, and its constants in the order of its signature.

The plain set holds Mamba-2's and Bamba's layer (head dimension 64, state 128); --full adds every head dimension and state
(padded to powers of two, with masks) and the small blocks that a window strategy over chunks of 16 or 32 tokens needs.
"""
import argparse
import itertools
import os
from concurrent.futures import ProcessPoolExecutor

# Warps and pipeline depth, by measurement (docs/kernels.md).
TUNING = {
    "prepare": (4, 1), "products": (4, 1), "walk": (4, 3), "join": (4, 1), "scan": (4, 2),
    "grad_x": (4, 2), "grad_bc": (4, 3), "grad_cb": (4, 3), "finish_bc": (4, 1), "finish_dt": (4, 1),
    "state_step": (4, 1), "conv": (4, 1), "conv_grad_pre": (4, 1), "conv_grad_x": (4, 1), "norm": (8, 1), "norm_grad": (8, 1),
}
# Pointers to the inputs' dtype, to float32 (all others) and to int32; scalars that are float32.
DATA = {"x", "b_", "c_", "cb", "dy", "y", "dx", "states", "dstates", "db", "dc", "dt", "ddt", "z", "dz"}
SCALARS = {"L", "H", "G", "D", "P", "N", "per_group", "blocks", "segments", "skip", "span", "size", "window", "reset", "pieces", "ratio", "slices",
           "slices_cb", "group", "rows"}
FLOATS = {"dt_min", "dt_max", "eps"}


def modules():
    import rows
    import ssd_backward
    import ssd_forward
    return [ssd_forward, ssd_backward, rows]


def kernel_of(name):
    for module in modules():
        fn = getattr(module, name, None)
        if fn is not None:
            return fn
    raise KeyError(name)


def each(**options):
    for values in itertools.product(*options.values()):
        yield dict(zip(options, values))


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
            for e in each(HAS_BIAS=yes, HAS_SEQ=both, SOFTPLUS=both, REST=(exact,), Q=(q,), HEADS=(16,)):
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
        for state, z, soft in itertools.product(("fp32", dtype) if not exact else ("fp32",), both, both):
            for n in (16, 32, 64, 128, 256) if full else (128,):
                out.append(("state_step", f"{dtype}-{state}", dict(HAS_Z=z, SOFTPLUS=soft, BP=16, BN=n)))
        masks = both if full else (False,)
        for w, silu, initial, seq, mask in itertools.product((2, 3, 4) if full else (4,), both if full else (True,), both,
                                                             both, masks):
            c = dict(SILU=silu, W=w, HAS_INITIAL=initial, HAS_SEQ=seq, T=32, BD=128, MASK=mask)
            out += [("conv", dtype, c), ("conv_grad_pre", dtype, c)]
            if silu and not initial:
                out.append(("conv_grad_x", dtype, dict(W=w, HAS_SEQ=seq, T=32, BD=128, MASK=mask)))
        for z, block, mask in itertools.product(both, (256, 512, 1024, 2048, 4096, 8192, 16384) if full else (1024, 8192), masks):
            out += [("norm", dtype, dict(HAS_Z=z, BLOCK=block, MASK=mask)), ("norm_grad", dtype, dict(HAS_Z=z, BLOCK=block, MASK=mask))]
    out += [("join", "fp32", e) for e in each(REVERSE=both, HAS_INITIAL=both, LAST=yes, BLOCK=(1024,))]
    return out


def key_of(name, dtype, constants, order):
    return "_".join([name, dtype] + [str(int(constants[n])) if not isinstance(constants[n], str) else constants[n]
                                     for n in order if n in constants])


def signature_of(fn, name, dtype, constants):
    data, _, state = dtype.partition("-")
    aligned = constants.get("MASK") is False
    signature, attributes = {}, {}
    for i, n in enumerate(fn.arg_names):
        if n in constants:
            signature[n] = "constexpr"
        elif n in FLOATS:
            signature[n] = "fp32"
        elif n.startswith("stride_") or n in SCALARS:
            signature[n] = "i32"
            if aligned and (n.startswith("stride_") or n in ("P", "N", "D", "group")):
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            # `conv`'s y and the like are data; `state` has a dtype of its own; in `join` everything is float32.
            kind = "i32" if n == "seg" else (state or data) if n == "state" else data if n in DATA else "fp32"
            signature[n] = "*" + kind
            attributes[(i,)] = [["tt.divisibility", 16]]
    return signature, attributes


def build(job):
    arch, name, dtype, constants, out, ptx = job
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile
    fn = kernel_of(name)
    signature, attributes = signature_of(fn, name, dtype, constants)
    warps, stages = TUNING[name]
    size = constants.get("BP", 0) * constants.get("BN", 0)
    if size > 8192 and name in ("walk", "scan", "grad_x", "grad_bc"):
        warps, stages = 8, 1
    source = ASTSource(fn=fn, signature=signature, constexprs=constants, attrs=attributes)
    compiled = compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps, "num_stages": stages})
    key = key_of(name, dtype, constants, fn.arg_names)
    lines = []
    for folder, kind in [(f"sm_{arch}", "cubin")] + ([("ptx", "ptx")] if ptx else []):
        file = f"{key}.{kind}"
        mode = "wb" if kind == "cubin" else "w"
        with open(os.path.join(out, folder, file), mode) as f:
            f.write(compiled.asm[kind])
        lines.append((folder, f"{key} {file} {name} {compiled.metadata.shared} {warps}"))
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
