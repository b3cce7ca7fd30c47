#!/usr/bin/env python3
"""Repeats in PyTorch the steps that `step SHAPE --write FOLDER` wrote down, and compares losses and norms of the gradient.

    torch_agree.py FOLDER [--device cpu|cuda] [--within 1e-3]

Both sides have the same weights, adapter, batch and noise, in f32. The exit status is 1 where they differ by more.
"""

import argparse
import json
import struct
import sys
from pathlib import Path

import torch

from focusdpo import Step
from torch_step import SHAPES, guidance_of, make

DTYPES = {"F32": torch.float32, "U8": torch.uint8}


def read(path, device):
    """The tensors of a safetensors file."""
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(bytes(data[8 : 8 + length]))
    found = {}
    for name, about in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + at for at in about["data_offsets"])
            values = torch.frombuffer(bytearray(data[begin:end]), dtype=DTYPES[about["dtype"]])
            found[name] = values.view(about["shape"]).to(device)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--within", type=float, default=1e-3)
    args = parser.parse_args()

    record = json.loads((args.folder / "record.json").read_text())
    shape = json.loads(SHAPES.read_text())[record["about"]["shape"]]
    torch.backends.cuda.matmul.allow_tf32 = False
    model = make(shape)
    model.load_state_dict(read(args.folder / "weights.safetensors", "cpu"))
    model.to(args.device)
    model.checkpointing = record["about"]["checkpointing"] == "blocks"
    parameters = model.adapt(shape["rank"])
    steps = read(args.folder / "steps.safetensors", args.device)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(steps[f"lora.{name}"])
    steps["prior"] = steps["prior"].squeeze(1)
    step = Step(model, parameters.values(), steps, guidance_of(shape), torch.float32, record["about"]["lr"])
    worst = 0.0
    for i, (loss, norm) in enumerate(zip(record["losses"], record["grad_norms"])):
        found = step(steps[f"x_t.{i}"], steps[f"target.{i}"], steps[f"t.{i}"])
        of_gradient = step.gradient_norm()
        off = max(abs(found / loss - 1), abs(of_gradient / norm - 1))
        worst = max(worst, off)
        print(f"step {i}: loss {loss:.7f}, PyTorch {found:.7f}; norm of the gradient {norm:.7g}, PyTorch {of_gradient:.7g}")
    agree = worst <= args.within
    print(f"complete: {'they agree' if agree else 'THEY DIFFER'}, by {worst:.1e} at most; allowed are {args.within:.0e}")
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main()
