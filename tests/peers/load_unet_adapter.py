"""Do adapters of SDXL's U-Net do in diffusers what they do here? By hand:

    cargo run -p prefgraph-nn --example unet_adapters -- CASE OUT
    load_unet_adapter.py CASE OUT

Needs torch, diffusers and peft. CASE is the folder of a golden U-Net (tests/fixtures/sdxl_ipa), OUT what the example wrote: adapters in
diffusers' and kohya's names, an IP-Adapter, and the predictions with each. Every file goes through diffusers' own loader into the U-Net,
and the U-Net's prediction must be ours.
"""
import json
import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from safetensors import safe_open
from safetensors.torch import load_file

case, out = map(Path, sys.argv[1:])
values = load_file(case / "forward.safetensors")
expected = load_file(out / "expected.safetensors")
BARS = 2e-5


def network(ip_adapter=case / "ip-adapter-plus_sdxl.safetensors"):
    """The U-Net with an IP-Adapter, as a pipeline's `load_ip_adapter` makes it."""
    unet = UNet2DConditionModel.from_pretrained(case / "unet", torch_dtype=torch.float32)
    parts = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in load_file(ip_adapter).items():
        part, rest = name.split(".", 1)
        parts[part][rest] = tensor
    unet._load_ip_adapter_weights([parts])
    return unet.eval()


def prediction(unet):
    with torch.no_grad():
        return unet(
            values["x_t"],
            values["timestep"],
            values["prompt_embeds"],
            added_cond_kwargs=dict(
                text_embeds=values["pooled"], time_ids=values["time_ids"], image_embeds=[values["image_embeds"]]
            ),
        ).sample


def with_lora(path):
    unet = network()
    with safe_open(path, "pt") as file:
        metadata = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "null"))
    state, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(load_file(path), unet_config=unet.config)
    StableDiffusionXLLoraLoaderMixin.load_lora_into_unet(state, alphas, unet, metadata=metadata)
    modules = sum(1 for _, module in unet.named_modules() if getattr(module, "lora_A", None))
    return unet, f"{modules} modules"


def compare(path, name, unet, what):
    wanted = expected[name]
    off = ((prediction(unet) - wanted).abs().max() / wanted.abs().max()).item()
    moved = ((wanted - expected["frozen"]).abs().max() / wanted.abs().max()).item()
    print(f"{path.name}: {what}, prediction off by {off:.1e} of the largest value, which the adapter moves by {moved:.1e}")
    assert off < BARS, off
    assert name == "frozen" or moved > 1e-3, moved


compare(case, "frozen", network(), "no adapter")
for path in sorted(out.glob("*.safetensors")):
    name, *kind = path.name.removesuffix(".safetensors").split(".")
    if name == "expected":
        continue
    if kind == ["ip_adapter"]:
        compare(path, name, network(path), "as the IP-Adapter")
    else:
        compare(path, name, *with_lora(path))
