"""The state-space layer beside its peers, same shapes, in one run: on a CPU transformers' own Bamba path in PyTorch, on a GPU
mamba_ssm's Triton kernels.

usage: ssd.py CONQUER [--device cpu|cuda] [--mamba FOLDER] [--length N ...] [--heads N] [--dtype T] [--rounds N] [--threads N]

CONQUER is the program; FOLDER holds the package mamba_ssm. Each round measures both sides one after the other; the table has
the medians of the rounds' medians and the ratio of peer to conquer: how many times as fast conquer is. On the CPU both sides do a
layer but its two projections: the convolution, the scan, the gated norm (the peer's module runs with the projections taken
out; `conquer bench ssd` times the three by themselves, and they are added up). On a GPU it is the scan alone, forward and backward,
and the step over one token. There mamba_ssm's forward and step are replayed from a CUDA graph, as conquer's are.
"""
import argparse, json, statistics, subprocess, sys, tempfile, time

import torch

P, N, G, CHUNK = 64, 128, 1, 256


def conquer(args, passes, length):
    with tempfile.TemporaryDirectory() as folder:
        command = [args.conquer, "bench", "ssd", "--json", "--output_path", folder, "--device", args.device, "--dtype", args.dtype,
                   "--pass", ",".join(passes), "--chunking", "default-optimized", "--length", str(length), "--heads", str(args.heads),
                   "--head_dim", str(P), "--state", str(N), "--groups", str(G), "--repeats", str(args.repeats)]
        if args.threads:
            command += ["--threads", str(args.threads)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = json.loads(out)["rows"]
    for row in rows:
        if row.get("failed"):
            sys.exit(f"conquer's {row['pass']} failed: {row['failed']}")
    return {row["pass"]: row["median_ms"] for row in rows}


def median(f, repeats, wait=lambda: None, prepare=lambda: None):
    """Milliseconds that f takes after an untimed prepare; the first two calls do not count."""
    times = []
    for _ in range(repeats + 2):
        given = prepare()
        wait()
        start = time.perf_counter()
        f(given)
        wait()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[2:])


def transformers_layer(args, length):
    """Forward and backward of transformers' BambaMixer without its projections."""
    from transformers import BambaConfig
    from transformers.models.bamba.modeling_bamba import BambaMixer
    hidden = args.heads * P // 2
    config = BambaConfig(hidden_size=hidden, mamba_expand=2, mamba_n_heads=args.heads, mamba_d_head=P, mamba_d_state=N, mamba_n_groups=G,
                         mamba_chunk_size=CHUNK, num_hidden_layers=1, attn_layer_indices=[], num_attention_heads=8, num_key_value_heads=8)
    mixer = BambaMixer(config, 0).to(getattr(torch, args.dtype)).eval()
    projected = mixer.in_proj.out_features
    mixer.in_proj, mixer.out_proj = torch.nn.Identity(), torch.nn.Identity()
    x = torch.randn(1, length, projected).to(getattr(torch, args.dtype))
    with torch.no_grad():
        ahead = median(lambda _: mixer(x), args.repeats)

    def graph():
        out = mixer(x.detach().requires_grad_())
        return out, torch.randn_like(out)

    return {"layer forward": ahead, "scan's backward": median(lambda given: given[0].backward(given[1]), args.repeats, prepare=graph)}


def mamba_ssm(args, length):
    """Forward and backward of mamba_ssm's chunk scan, and its state update."""
    sys.path.insert(0, args.mamba)
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    from triton.testing import do_bench_cudagraph
    H, dtype = args.heads, getattr(torch, args.dtype)
    draw = lambda *shape: torch.randn(*shape, device="cuda", dtype=dtype)
    x, dt, B, C = draw(1, length, H, P), draw(1, length, H), draw(1, length, G, N), draw(1, length, G, N)
    A, D, bias = -torch.rand(H, device="cuda") * 15 - 1, torch.ones(H, device="cuda"), torch.rand(H, device="cuda") * 2 - 5
    scan = lambda: mamba_chunk_scan_combined(x, dt, A, B, C, CHUNK, D=D, dt_bias=bias, dt_softplus=True, return_final_states=True)[0]
    with torch.no_grad():
        scan()
        result = {"forward": do_bench_cudagraph(scan, rep=200, return_mode="median")}
        state, one = torch.randn(1, H, P, N, device="cuda"), draw(1, H, P)
        wide = dict(D=D[:, None].expand(H, P), dt_bias=bias[:, None].expand(H, P), dt_softplus=True)
        step_dt = draw(1, H)[:, :, None].expand(1, H, P)
        step = lambda: selective_state_update(state, one, step_dt, A[:, None, None].expand(H, P, N), B[:, 0], C[:, 0], **wide)
        step()
        result["step"] = do_bench_cudagraph(step, rep=100, return_mode="median")
    leaves = [t.requires_grad_() for t in (x, dt, B, C, A, D, bias)]

    def graph():
        for leaf in leaves:
            leaf.grad = None
        out = scan()
        return out, torch.randn_like(out)

    result["backward"] = median(lambda given: given[0].backward(given[1]), args.repeats, torch.cuda.synchronize, graph)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conquer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--mamba", help="folder that holds the package mamba_ssm, for --device cuda")
    parser.add_argument("--length", type=int, nargs="+")
    parser.add_argument("--heads", type=int)
    parser.add_argument("--dtype")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    gpu = args.device == "cuda"
    if gpu and not args.mamba:
        parser.error("--device cuda needs --mamba, the folder that holds the package mamba_ssm")
    args.heads = args.heads or (128 if gpu else 16)
    args.dtype = args.dtype or ("bfloat16" if gpu else "float32")
    if args.threads:
        torch.set_num_threads(args.threads)
    name = "mamba_ssm" if gpu else "transformers"
    print(torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads", f"H {args.heads} P {P} N {N} G {G} {args.dtype}")
    for length in args.length or ([1024, 4096, 16384] if gpu else [512, 2048]):
        ours, theirs = {}, {}
        for _ in range(args.rounds):
            if gpu:
                mine, peer = conquer(args, ["forward", "backward", "step"], length), mamba_ssm(args, length)
            else:
                rows = conquer(args, ["forward", "backward", "conv", "norm"], length)
                # The peer's backward cannot be taken apart: conquer's scan is set beside the whole of it, and the table says so.
                mine = {"layer forward": rows["forward"] + rows["conv"] + rows["norm"], "scan's backward": rows["backward"]}
                peer = transformers_layer(args, length)
            for key in mine:
                ours.setdefault(key, []).append(mine[key])
                theirs.setdefault(key, []).append(peer[key])
        for key in ours:
            a, b = statistics.median(ours[key]), statistics.median(theirs[key])
            note = "  (the peer's layer, convolution and norm included)" if key == "scan's backward" else ""
            print(f"L {length:6} {key:16} conquer {a:10.4f} ms  {name} {b:10.4f} ms  ratio {b / a:6.2f}{note}", flush=True)


main()
