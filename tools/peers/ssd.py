"""Times the state-space layer beside its peers, with the same shapes: on a CPU transformers'
PyTorch path for Bamba, on a GPU mamba_ssm's Triton kernels.

usage: ssd.py CONQUER [--device cpu|cuda] [--mamba FOLDER] [--pass P ...] [--batch N] [--length N
...]
              [--heads N] [--dtype T] [--rounds N] [--repeats N] [--threads N] [--results FOLDER]

CONQUER is the program; FOLDER holds the package mamba_ssm. Each round measures both sides in turn.
The table has the medians of the rounds' medians and the ratio of peer to conquer. `forward` and
`backward` are the scan alone. `layer` (CPU) is a layer's forward pass without its two projections:
convolution, scan and gated norm; conquer times the three separately, and they are added. `step`
(GPU) is the scan over one token. On a GPU both sides replay forward and step from a CUDA graph,
over three sets of inputs in turn, so that neither finds them in the cache. --results writes the
peer's times to FOLDER/ssd_PEER.json, which `conquer bench report` draws beside those of `conquer
bench ssd --output_path FOLDER` with the same shapes.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

import torch

from results import save

P, N, G, CHUNK = 64, 128, 1, 256
SETS = 3


def conquer(args, length):
    with tempfile.TemporaryDirectory() as folder:
        command = [
            args.conquer, "bench", "ssd", "--json", "--output_path", folder, "--device",
            args.device, "--dtype", args.dtype, "--chunking", "default-optimized", "--length",
            str(length), "--heads",
            str(args.heads), "--head_dim",
            str(P), "--state",
            str(N), "--groups",
            str(G), "--repeats",
            str(args.repeats), "--batch_size",
            str(args.batch), "--pass", ",".join(p for p in args.passes if p != "layer")
        ]
        if args.threads:
            command += ["--threads", str(args.threads)]
        rows = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)["rows"]
    for row in rows:
        if row.get("failed"):
            sys.exit(f"conquer's {row['pass']} failed: {row['failed']}")
    result = {row["pass"]: row["median_ms"] for row in rows}
    if "layer" in args.passes:
        result["layer"] = result["forward"] + result["conv"] + result["norm"]
    return result


def median(args, f, prepare=lambda: None):
    """Median milliseconds of f after an untimed prepare; the first two calls do not count."""
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    times = []
    for _ in range(args.repeats + 2):
        given = prepare()
        wait()
        start = time.perf_counter()
        f(given)
        wait()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[2:])


def peer_scan(args, length, scan, timed):
    """Times forward and backward of `scan`, a function like mamba_chunk_scan_combined."""
    H, draw = args.heads, lambda *shape: torch.randn(*shape, device=args.device).to(
        getattr(torch, args.dtype))
    sets = [[draw(args.batch, length, *rest) for rest in ((H, P), (H, ), (G, N), (G, N))]
            for _ in range(SETS)]
    A, D = -torch.rand(H, device=args.device) * 15 - 1, torch.randn(H, device=args.device)
    bias = torch.rand(H, device=args.device) * 2 - 5

    def run(i=0):
        x, dt, B, C = sets[i]
        return scan(x, dt, A, B, C, CHUNK, D=D, dt_bias=bias, dt_softplus=True,
                    return_final_states=True)[0]

    result = {}
    if "forward" in args.passes:
        with torch.no_grad():
            run()
            result["forward"] = timed(run)
    if "backward" not in args.passes:
        return result
    leaves = [t.requires_grad_() for t in (*sets[0], A, D, bias)]

    def graph():
        for leaf in leaves:
            leaf.grad = None
        y = run()
        return y, torch.randn_like(y)

    result["backward"] = median(args, lambda given: given[0].backward(given[1]), graph)
    return result


def transformers_peer(args, length):
    from transformers import BambaConfig
    from transformers.models.bamba.modeling_bamba import BambaMixer, mamba2_chunk_scan
    result = peer_scan(args, length, mamba2_chunk_scan, lambda f: median(args, lambda _: f()))
    config = BambaConfig(hidden_size=args.heads * P // 2, mamba_expand=2, mamba_n_heads=args.heads,
                         mamba_d_head=P, mamba_d_state=N, mamba_n_groups=G, mamba_chunk_size=CHUNK,
                         num_hidden_layers=1, attn_layer_indices=[], num_attention_heads=8,
                         num_key_value_heads=8)
    mixer = BambaMixer(config, 0).to(getattr(torch, args.dtype)).eval()
    x = torch.randn(1, length, mixer.in_proj.out_features).to(getattr(torch, args.dtype))
    mixer.in_proj, mixer.out_proj = torch.nn.Identity(), torch.nn.Identity()
    with torch.no_grad():
        if "layer" in args.passes:
            result["layer"] = median(args, lambda _: mixer(x))
    return result


def mamba_peer(args, length):
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    from triton.testing import do_bench_cudagraph
    timed = lambda f: do_bench_cudagraph(lambda: [f(i) for i in range(SETS)], rep=200, return_mode=
                                         "median") / SETS
    result = peer_scan(args, length, mamba_chunk_scan_combined, timed)
    H, draw = args.heads, lambda *shape: torch.randn(*shape, device="cuda").to(
        getattr(torch, args.dtype))
    states = [torch.randn(args.batch, H, P, N, device="cuda") for _ in range(SETS)]
    x, dt, B, C = (draw(args.batch, *rest) for rest in ((H, P), (H,), (G, N), (G, N)))
    A, D, bias = -torch.rand(H, device="cuda") * 15 - 1, torch.randn(
        H, device="cuda"), torch.rand(H, device="cuda") * 2 - 5
    step = lambda i=0: selective_state_update(states[i], x, dt[:, :, None].expand(
        args.batch, H, P), A[:, None, None].expand(H, P, N), B, C, D=D[:, None].expand(H, P),
                                              dt_bias=bias[:, None].expand(H, P), dt_softplus=True)
    if "step" in args.passes:
        with torch.no_grad():
            step()
            result["step"] = timed(step)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conquer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        choices=["cpu", "cuda"])
    parser.add_argument("--mamba",
                        help="folder that holds the package mamba_ssm, for --device cuda")
    parser.add_argument("--pass", dest="passes", nargs="+",
                        help="forward, backward, and layer (CPU) or step (GPU)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, nargs="+")
    parser.add_argument("--heads", type=int)
    parser.add_argument("--dtype")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results")
    args = parser.parse_args()
    gpu = args.device == "cuda"
    if gpu and not args.mamba:
        parser.error("--device cuda needs --mamba, the folder that holds the package mamba_ssm")
    if gpu:
        sys.path.insert(0, args.mamba)
    args.heads = args.heads or (128 if gpu else 16)
    args.passes = args.passes or ["forward", "backward", "step" if gpu else "layer"]
    if "layer" in args.passes:
        args.passes += ["conv", "norm"]
    args.dtype = args.dtype or ("bfloat16" if gpu else "float32")
    if args.threads:
        torch.set_num_threads(args.threads)
    name, peer = ("mamba_ssm", mamba_peer) if gpu else ("transformers", transformers_peer)
    print(torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
          f"H {args.heads} P {P} N {N} G {G} {args.dtype}")
    written = []
    for length in args.length or ([1024, 4096, 16384] if gpu else [512, 2048]):
        rounds = [(conquer(args, length), peer(args, length)) for _ in range(args.rounds)]
        for key in (p for p in rounds[0][1] if p in args.passes):
            ours, theirs = (statistics.median(r[side][key] for r in rounds) for side in (0, 1))
            print(
                f"B {args.batch}  L {length:6}  {key:8}  conquer {ours:10.4f} ms"
                f"  {name} {theirs:10.4f} ms  ratio {theirs / ours:6.2f}",
                flush=True)
            if key == "layer":
                continue
            theirs = [r[1][key] for r in rounds]
            quarters = statistics.quantiles(theirs * (1 + (len(theirs) < 2)), method="inclusive")
            written.append(dict(device="cuda:0" if gpu else "cpu", batch=args.batch, length=length
                                if key != "step" else 1, heads=args.heads, head_dim=P, state=N,
                                groups=G, chunk_size=0, dtype=args.dtype, repeats=args.rounds,
                                median_ms=quarters[1], low_ms=quarters[0],
                                high_ms=quarters[2], **{"pass": key}))
    if args.results:
        version = __import__(name).__version__
        save(args.results, "ssd_" + name, "ssd", written, f"{name} {version}", args.device)


if __name__ == "__main__":
    main()
