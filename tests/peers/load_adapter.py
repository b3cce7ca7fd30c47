"""Does diffusers load an adapter that a run wrote? By hand: `load_adapter.py BACKBONE_FOLDER adapter.safetensors`.

Needs torch, diffusers and peft. Every tensor of the file must reach a parameter, unchanged.
"""
import sys

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file

backbone, path = sys.argv[1:]
model = FluxTransformer2DModel.from_pretrained(backbone, torch_dtype=torch.float32)
model.load_lora_adapter(load_file(path), prefix="transformer")
found = {n.replace(".default_0.", ".").replace(".default.", "."): p for n, p in model.named_parameters() if "lora_" in n}
wanted = {n.removeprefix("transformer."): t for n, t in load_file(path).items()}
assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())[:4]
assert all(torch.equal(found[n], t) for n, t in wanted.items())
print(f"{len(wanted)} tensors loaded into {type(model).__name__}, all equal")
