#!/usr/bin/env python3
"""PyTorch on the same GPU and the same shapes as a record of `gpu-check bench` and `gpu-check full`.

    python3 benches/torch_baseline.py benches/record/<date>-<gpu>.json [--full]

Needs torch with CUDA; --full also diffusers and transformers. Weights are random bf16, as PyTorch users have them on a GPU
with room enough. Writes <date>-<gpu>-torch.json beside the record and prints a table: their time, ours, and the ratio.

Kernels: before every repetition something large is read (cold caches, and the launch is enqueued ahead of its turn), timed
by CUDA events, median of 30: cuBLAS through linear, scaled_dot_product_attention, cuDNN through conv2d (channels last, its
fastest algorithm), layer_norm and group_norm with what follows them.
Full: diffusers' transformer (eager, and its repeated blocks compiled), T5, CLIP and the VAE's decoder.
What has been measured is written after every row; what fails is a row without a time.
--device cpu --tiny tries the script itself, on any machine; its times mean nothing.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

FLUSH_BYTES = 512 << 20
REPETITIONS = 30
WARM_UP_SECONDS = 0.3


class Timer:
    def __init__(self, device, tiny):
        self.cuda = device.type == "cuda"
        self.flush = torch.zeros((1 << 10 if tiny else FLUSH_BYTES) // 4, device=device)

    def ms(self, call):
        self.flush.sum()
        if not self.cuda:
            begin = time.perf_counter()
            call()
            return (time.perf_counter() - begin) * 1e3
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def median(self, call, repetitions=REPETITIONS):
        begin = time.perf_counter()
        while True:
            call()
            if self.cuda:
                torch.cuda.synchronize()
            if time.perf_counter() - begin > (WARM_UP_SECONDS if self.cuda else 0):
                break
        return statistics.median(self.ms(call) for _ in range(repetitions))


class Table:
    """Rows, written to the file as they come."""

    def __init__(self, path, head):
        self.path, self.head, self.rows = path, head, []
        print(f"{'':36} {'torch':>10} {'ours':>10} {'ratio':>7}")

    def add(self, what, ours, measure):
        row = {"what": what, "ours_ms": ours}
        try:
            row["torch_ms"] = measure()
            print(f"{what:36} {row['torch_ms']:>10.4f} {ours:>10.4f} {row['torch_ms'] / ours:>6.2f}x", flush=True)
        except Exception as error:  # the rows before it are worth keeping
            row["error"] = f"{type(error).__name__}: {error}"
            print(f"{what:36} {row['error'][:80]}", flush=True)
        self.rows.append(row)
        self.path.write_text(json.dumps({**self.head, "rows": self.rows}, indent=1) + "\n")


def kernel(name, device):
    """A function that makes one set of buffers and returns the call on them."""
    rand = lambda *shape: torch.randn(*shape, device=device, dtype=torch.bfloat16)
    kind, shape, *rest = name.split()
    sizes = [int(n) for n in shape.split("x")]

    def gemm():
        m, n, k = sizes
        x, w, bias = rand(m, k), rand(n, k), rand(n)
        return lambda: F.linear(x, w, bias)

    def gemv():
        m, n, k = sizes
        x, w, bias = rand(m, k), rand(n, k), rand(n)
        return lambda: F.linear(F.silu(x), w, bias)

    def attention():
        heads, tokens, head_dim = sizes
        q, k, v = (rand(1, heads, tokens, head_dim) for _ in range(3))
        return lambda: F.scaled_dot_product_attention(q, k, v)

    def conv2d():
        side, _, channels = sizes
        x = rand(1, channels, side, side).to(memory_format=torch.channels_last)
        w = rand(channels, channels, 3, 3).to(memory_format=torch.channels_last)
        bias = rand(channels)
        if rest == ["upsample"]:
            return lambda: F.conv2d(F.interpolate(x, scale_factor=2.0), w, bias, padding=1)
        return lambda: F.conv2d(x, w, bias, padding=1)

    def layer_norm_mod():
        rows, width = sizes
        x, scale, shift = rand(rows, width), rand(width), rand(width)
        return lambda: F.layer_norm(x, (width,)) * (1 + scale) + shift

    def group_norm_silu():
        side, _, channels = sizes
        x, weight, bias = rand(1, channels, side, side), rand(channels), rand(channels)
        return lambda: F.silu(F.group_norm(x, 32, weight, bias))

    makers = {"nf4_gemm": gemm, "bf16_gemm": gemm, "nf4_gemv": gemv, "attention": attention, "conv2d": conv2d,
              "layer_norm_mod": layer_norm_mod, "group_norm_silu": group_norm_silu}
    return makers[kind]


def kernels(record, device, timer, table):
    for ours in record["times"]["kernels"]:
        name = ours["kernel"]
        table.add(name, statistics.median(ours["ms"]), lambda: timer.median(kernel(name, device)()))


def models(tiny):
    """(transformer, t5, clip, vae) with random weights, on the CPU unless a device is the default."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    blocks = dict(num_layers=1, num_single_layers=1, num_attention_heads=2) if tiny else {}
    transformer = FluxTransformer2DModel(guidance_embeds=False, joint_attention_dim=64 if tiny else 4096,
                                         pooled_projection_dim=64 if tiny else 768, **blocks)
    t5 = T5EncoderModel(T5Config(vocab_size=32128, d_model=64 if tiny else 4096, d_ff=64 if tiny else 10240,
                                 d_kv=64, num_heads=1 if tiny else 64, num_layers=1 if tiny else 24,
                                 feed_forward_proj="gated-gelu"))
    clip = CLIPTextModel(CLIPTextConfig(hidden_size=64 if tiny else 768, intermediate_size=64 if tiny else 3072,
                                        num_hidden_layers=1 if tiny else 12, num_attention_heads=1 if tiny else 12))
    channels = (32, 32, 32, 32) if tiny else (128, 256, 512, 512)
    vae = AutoencoderKL(block_out_channels=channels, latent_channels=16, layers_per_block=2,
                        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                        use_quant_conv=False, use_post_quant_conv=False)
    return transformer, t5, clip, vae


def full(record, device, timer, table, tiny):
    torch.set_default_dtype(torch.bfloat16)
    with device:
        transformer, t5, clip, vae = (model.eval().requires_grad_(False) for model in models(tiny))
    for ours in record["full"]:
        side = ours["side"]
        tokens = (side // 16) ** 2
        rand = lambda *shape: torch.randn(*shape, device=device)
        ids = torch.zeros(tokens, 3, device=device)
        ids[:, 1] = torch.arange(tokens, device=device) // (side // 16)
        ids[:, 2] = torch.arange(tokens, device=device) % (side // 16)
        width = transformer.config.joint_attention_dim
        inputs = dict(hidden_states=rand(1, tokens, 64), encoder_hidden_states=rand(1, 256, width),
                      pooled_projections=rand(1, transformer.config.pooled_projection_dim),
                      timestep=torch.ones(1, device=device), img_ids=ids, txt_ids=torch.zeros(256, 3, device=device))
        prompt = torch.ones(1, 256, dtype=torch.long, device=device)
        latents = rand(1, 16, side // 8, side // 8)
        stages = {
            "clip": (lambda: clip(prompt[:, :77]), "clip"),
            "t5": (lambda: t5(prompt), "t5"),
            "step, eager": (lambda: transformer(**inputs), "step"),
            "vae": (lambda: vae.decode(latents), "vae"),
            # Last: it replaces the blocks' forward.
            "step, compiled": (lambda: transformer(**inputs), "step"),
        }
        if timer.cuda:
            torch.cuda.reset_peak_memory_stats()
        for name, (call, stage) in stages.items():
            def measure():
                if "compiled" in name:
                    # Sizes would be taken for variables otherwise.
                    torch._dynamo.reset()
                    transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
                return timer.median(call, 10)

            if tiny and "compiled" in name:
                continue
            times = [ms for picture in ours["pictures"][1:] for name_, ms in picture if name_.startswith(stage)]
            table.add(f"{side}x{side} {name}", statistics.median(times), measure)
        for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
            block._compiled_call_impl = None
        if timer.cuda:
            peak = torch.cuda.max_memory_allocated() / 2**20
            table.add(f"{side}x{side} peak MiB", ours["taken_bytes"] / 2**20, lambda: peak)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    record = json.loads(arguments.record.read_text())
    device = torch.device(arguments.device)
    timer = Timer(device, arguments.tiny)
    torch.backends.cudnn.benchmark = True
    gpu = torch.cuda.get_device_name() if timer.cuda else "no GPU: these times mean nothing"
    print(f"torch {torch.__version__} on {gpu}; ours: commit {record['commit']}")
    head = {"gpu": gpu, "torch": torch.__version__, "cuda": torch.version.cuda, "commit": record["commit"]}
    table = Table(arguments.record.with_name(arguments.record.stem + "-torch.json"), head)
    with torch.inference_mode():
        if record.get("times"):
            kernels(record, device, timer, table)
        if arguments.full:
            full(record, device, timer, table, arguments.tiny)
    print(f"wrote {table.path}")


main()
