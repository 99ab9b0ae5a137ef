"""Compiles the kernels of ../kernels ahead of time; needs triton 3.6.0, but no GPU and no torch.

    compile.py OUT [--archs 90,80,...] [--full] [--only NAMES] [--jobs N]
    compile.py --list [--full]

writes OUT/sm_XX/*.cubin and OUT/sm_XX/manifest. It also writes PTX of the oldest architecture,
which the driver compiles for any newer one, to OUT/ptx. A line of the manifest has a variant's key
(see variants.py), its file, the kernel's name, its shared memory in bytes, its warps, and whether
it may begin early (1 or 0). --list prints the keys and compiles nothing.
"""
import argparse
import os
import pathlib
import sys
from concurrent.futures import ProcessPoolExecutor

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from build.variants import kernel_of, key_of, variants  # noqa: E402
from kernels import tuning  # noqa: E402
from kernels.arguments import signature_of  # noqa: E402


def source_of(name, dtype, constants, arch):
    """The source that Triton compiles for a variant, and its options."""
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource
    kernel = kernel_of(name)
    options = tuning.options(name, dtype, **constants)
    if "PDL" in kernel.arg_names:  # programmatic dependent launch, for every variant from sm_90 on
        constants = constants | {"PDL": arch >= 90}
    signature, attributes = signature_of(kernel, dtype, constants)
    source = GluonASTSource if kernel.is_gluon() else ASTSource
    return source(fn=kernel, signature=signature, constexprs=constants, attrs=attributes), options


def build(job):
    """Compiles one variant and returns its manifest lines as (folder, line)."""
    arch, name, dtype, constants, out, ptx = job
    from triton.backends.compiler import GPUTarget
    from triton.compiler import compile
    kernel = kernel_of(name)
    hopper = kernel.fn.__module__.endswith("_hopper")  # no other architecture runs these
    if hopper and arch != 90:
        return []
    key = key_of(kernel, dtype, constants)
    source, options = source_of(name, dtype, constants, arch)
    compiled = compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    early = int("PDL" in kernel.arg_names and arch >= 90)
    lines = []
    for folder, kind in [(f"sm_{arch}", "cubin")
                         ] + ([("ptx", "ptx")] if ptx and not hopper else []):
        file = f"{key}.{kind}"
        with open(os.path.join(out, folder, file), "wb" if kind == "cubin" else "w") as f:
            f.write(compiled.asm[kind])
        metadata = compiled.metadata
        lines.append(
            (folder, f"{key} {file} {name} {metadata.shared} {metadata.num_warps} {early}"))
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?")
    parser.add_argument("--archs", default="90")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--only", default="",
                        help="kernels to compile, separated by commas (all by default)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    chosen = [
        v for v in variants(options.full) if not options.only or v[0] in options.only.split(",")
    ]
    if options.list:
        for name, dtype, constants in chosen:
            print(key_of(kernel_of(name), dtype, constants))
        return
    if not options.out:
        parser.error("OUT is missing")
    archs = sorted(int(a) for a in options.archs.split(","))
    for folder in [f"sm_{a}" for a in archs] + ["ptx"]:
        os.makedirs(os.path.join(options.out, folder), exist_ok=True)
    jobs = [(arch, *variant, options.out, arch == archs[0]) for arch in archs for variant in chosen]
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
