"""Compiles the kernels of ../kernels ahead of time; needs triton 3.6.0, but no GPU and no torch.

    compile.py OUT [--archs 90,80,...] [--full] [--only NAMES] [--jobs N]
    compile.py --list [--full]

writes OUT/sm_XX/*.cubin and OUT/sm_XX/manifest. It also writes PTX of the oldest architecture,
which the driver compiles for any newer one, to OUT/ptx. A line of the manifest has a variant's key
(see variants.py), its file, the kernel's name, its shared memory in bytes, its warps, and whether
it may begin early (1 or 0). OUT/sm_XX/resources.tsv has each variant's registers per thread, stack
(spills) and shared memory in bytes, and warps. --list prints the keys and compiles nothing.
"""
import argparse
import os
import pathlib
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

# Line tables would hold the names of this machine's folders. Triton reads this when it is imported.
os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
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


def resources_of(path):
    """Registers per thread and stack bytes of a cubin, from the disassembler that triton brings."""
    from triton import knobs
    command = [knobs.nvidia.cuobjdump.path, "-res-usage", path]
    usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return tuple(int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))


def build(job):
    """Compiles one variant; returns (folder, file, line) for the manifests and resources.tsv."""
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
    metadata = compiled.metadata
    kinds = [(f"sm_{arch}", "cubin")] + ([("ptx", "ptx")] if ptx and not hopper else [])
    lines = []
    for folder, kind in kinds:
        file = f"{key}.{kind}"
        path = os.path.join(out, folder, file)
        with open(path, "wb" if kind == "cubin" else "w") as f:
            f.write(compiled.asm[kind])
        entry = f"{key} {file} {name} {metadata.shared} {metadata.num_warps} {early}"
        lines.append((folder, "manifest", entry))
        if kind == "cubin":
            registers, stack = resources_of(path)
            entry = f"{key}\t{registers}\t{stack}\t{metadata.shared}\t{metadata.num_warps}"
            lines.append((folder, "resources.tsv", entry))
    return lines


def write_lines(path, lines):
    """Writes a file that appears complete or not at all."""
    with open(path + ".new", "w") as f:
        f.write("\n".join(lines) + "\n")
    os.replace(path + ".new", path)


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
    written = {}
    with ProcessPoolExecutor(options.jobs) as pool:
        for lines in pool.map(build, jobs, chunksize=4):
            for folder, file, line in lines:
                written.setdefault(os.path.join(options.out, folder, file), []).append(line)
    for path, lines in written.items():
        header = ["key\tregisters\tstack\tshared\twarps"] if path.endswith(".tsv") else []
        write_lines(path, header + lines)
    print(f"{len(jobs)} kernels in {options.out}")


if __name__ == "__main__":
    main()
