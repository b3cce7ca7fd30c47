#!/usr/bin/env python3
"""One FocusDPO step in PyTorch, timed: the peer of `cargo bench --bench step`, in its words.

    torch_step.py SHAPE.. [--device cuda|cpu] [--compute bf16] [--checkpointing none,blocks] [--pixels 512] [--modes eager,compiled] ...

SHAPE is one of shapes.json. Weights are random, and made on the device. Each case is one line of JSON; one that does not fit into memory is a line
with an error. `compiled` compiles each kind of block once (`torch.compile`), which is what diffusers recommends: the whole network would take minutes.
"""

import argparse
import gc
import json
import resource
import subprocess
import threading
import time
from pathlib import Path

import torch

import flux
import focusdpo
import unet

SHAPES = Path(__file__).with_name("shapes.json")
GUIDANCE = 1.0
CELL = 8


def make(shape, device="cpu"):
    """The model of a shape, its values not set."""
    with torch.device(device):
        return flux.Flux(shape["flux"]) if "flux" in shape else unet.UNet(shape["unet"])


def random_model(shape, device, dtype):
    model = make(shape, "meta").to(dtype)
    model.to_empty(device=device)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if values.dim() >= 2:
                values.uniform_(-1, 1).mul_((3 / values[0].numel()) ** 0.5)
            elif "norm" in name and name.endswith("weight"):
                values.fill_(1)
            else:
                values.uniform_(-0.02, 0.02)
    # Convolutions are faster so; what has other axes stays as it is.
    return model.to(memory_format=torch.channels_last) if "unet" in shape else model


def guidance_of(shape):
    return GUIDANCE if shape.get("flux", {}).get("guidance_embeds") else None


def random_batch(shape, pixels, device):
    grid, pairs = pixels // CELL, shape["pairs"]
    normal = lambda *dims: torch.randn(*dims, device=device)
    if "flux" in shape:
        sizes, reference = shape["flux"], shape["reference"] // CELL
        channels, focus, width, pooled = 16, grid // 2, sizes["joint_attention_dim"], sizes["pooled_projection_dim"]
        own = {"t": torch.rand(pairs, device=device), "reference": normal(pairs, channels, reference, reference)}
    else:
        sizes = shape["unet"]
        channels, focus, width = sizes["in_channels"], grid, sizes["cross_attention_dim"]
        pooled = sizes["projection_class_embeddings_input_dim"] - 6 * sizes["addition_time_embed_dim"]
        own = {"t": torch.randint(0, 1000, (pairs,), device=device).float(), "image_prompt": normal(pairs, shape["image_tokens"], width)}
    prior = torch.zeros(pairs, focus**2, device=device)
    prior[:, : prior.shape[1] // 3] = 1
    winner = normal(pairs, channels, grid, grid)
    return own | {
        "x0": torch.cat((winner, winner + 0.1 * normal(pairs, channels, grid, grid))),
        "t": own["t"].repeat(2),
        "text": normal(pairs, shape["text"], width),
        "pooled": normal(pairs, pooled),
        "winner": torch.randint(0, 256, (pairs, pixels, pixels, 3), dtype=torch.uint8, device=device),
        "prior": prior.view(pairs, focus, focus),
    }


def noised(shape, x0, eps, t):
    """`x_t` and target: of rectified flow, or of DDPM on SDXL's schedule, which predicts eps."""
    if "flux" in shape:
        t = t.view(-1, 1, 1, 1)
        return (1 - t) * x0 + t * eps, eps - x0
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64, device=t.device) ** 2
    kept = torch.cumprod(1 - betas, 0)[t.long()].float().view(-1, 1, 1, 1)
    return kept.sqrt() * x0 + (1 - kept).sqrt() * eps, eps


class Idle:
    """The share of the time in which no kernel ran, as the driver counts it: as `benches/step/gpu_use.rs` asks."""

    def __init__(self, device):
        self.samples, self.began = [], time.perf_counter()
        self.process = None
        if device.type != "cuda":
            return
        command = ["nvidia-smi", f"--id={device.index or 0}", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=100"]
        try:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            return
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self):
        for line in self.process.stdout:
            if time.perf_counter() - self.began >= 1 and line.strip().isdigit():
                self.samples.append(int(line))

    def share(self):
        if self.process is None:
            return None
        self.process.kill()
        self.process.wait()
        self.thread.join()
        return 1 - sum(self.samples) / len(self.samples) / 100 if len(self.samples) >= 10 else None


def timed(shape, step, batch, args, device):
    def once():
        begin = time.perf_counter()
        x0 = batch["x0"]
        eps = torch.randn_like(x0[: len(x0) // 2]).repeat(2, 1, 1, 1)
        loss = step(*noised(shape, x0, eps, batch["t"]), batch["t"])
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin, loss

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(args.warmup):
        once()
    idle, begin, seconds = Idle(device), time.perf_counter(), []
    try:
        while len(seconds) < args.steps or time.perf_counter() - begin < args.seconds:
            took, loss = once()
            seconds.append(took)
    finally:
        share = idle.share()
    seconds.sort()
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else own
    return dict(
        median_s=seconds[len(seconds) // 2], min_s=seconds[0], max_s=seconds[-1], steps=len(seconds), loss=loss, peak_bytes=peak, idle=share
    )


def outcome(shape, step, batch, args, device):
    """What was measured, or the error that came instead: the other cases are run all the same."""
    try:
        return timed(shape, step, batch, args, device)
    except torch.cuda.OutOfMemoryError:
        return dict(error="out of memory")
    except Exception as error:  # torch.compile fails in many ways, without a C compiler for one
        return dict(error=f"{type(error).__name__}: {error}".splitlines()[0])


KINDS = (flux.DoubleBlock, flux.SingleBlock, unet.Resnet, unet.Block)
PLAIN = {kind: kind.forward for kind in KINDS}, focusdpo.cosines


def compile_blocks(compiled):
    as_asked = (lambda function: torch.compile(function, dynamic=False)) if compiled else lambda function: function
    for kind, forward in PLAIN[0].items():
        kind.forward = as_asked(forward)
    focusdpo.cosines = as_asked(PLAIN[1])


def free(device):
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words = lambda text: text.split(",")

    def checkpointings(text):
        """PyTorch keeps all that a backward reads, or the inputs of blocks: there is no `selective` here."""
        if unknown := set(words(text)) - {"none", "blocks"}:
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: none and blocks are there")
        return words(text)

    parser.add_argument("shapes", nargs="+", metavar="SHAPE")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compute", choices=["f32", "bf16"], default="bf16")
    parser.add_argument("--checkpointing", type=checkpointings, default=["none"])
    parser.add_argument("--pixels", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--modes", type=words, default=["eager"])
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    # Products in f32 are f32.
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device(args.device)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.compute]
    shapes = json.loads(SHAPES.read_text())
    # One graph for each kind of block, pass and size.
    for limit in ("recompile_limit", "cache_size_limit", "accumulated_recompile_limit", "accumulated_cache_size_limit"):
        if hasattr(torch._dynamo.config, limit):
            setattr(torch._dynamo.config, limit, 512)
    for name in args.shapes:
        shape = shapes[name]
        model = random_model(shape, device, dtype)
        parameters = list(model.adapt(shape["rank"]).values())
        for mode in args.modes:
            compile_blocks(mode == "compiled")
            for pixels in args.pixels or shape["pixels"]:
                batch = random_batch(shape, pixels, device)
                for checkpointing in args.checkpointing:
                    model.checkpointing = checkpointing == "blocks"
                    about = dict(who=mode, shape=name, pixels=pixels, device=args.device, compute=args.compute, checkpointing=checkpointing)
                    step = focusdpo.Step(model, parameters, batch, guidance_of(shape), dtype, 1e-5)
                    print(json.dumps(about | outcome(shape, step, batch, args, device)), flush=True)
                    # The next case begins with what the weights take.
                    step.optimizer.zero_grad()
                    del step
                    free(device)
        del model, parameters
        free(device)


if __name__ == "__main__":
    main()
