"""Does diffusers load the adapters that a run wrote, in every format? By hand:

    load_adapter.py BACKBONE_FOLDER adapter.safetensors [another.safetensors ...]

Needs torch, diffusers and peft. The first file is one that was written here in diffusers' names, where the strength is in
the factors. Each other file, in names that diffusers knows or a folder that PEFT saved, goes through diffusers' or PEFT's
own loader into the model; what it adds to every weight, scale * B A, must be what the factors of the first file say.
"""
import inspect
import json
import os
import sys

import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders import FluxLoraLoaderMixin, lora_conversion_utils, lora_pipeline
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

backbone, first, *others = sys.argv[1:]


def metadata(path):
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))


def for_any_width(width):
    """diffusers' conversion from kohya's names has the published width written into it: put the model's there."""
    convert = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers
    text = inspect.getsource(convert)
    published = "dims=[3072, 3072, 3072, 12288]"
    assert published in text
    scope = vars(lora_conversion_utils)
    exec(text.replace(published, f"dims=[{width}, {width}, {width}, {4 * width}]"), scope)
    lora_pipeline._convert_kohya_flux_lora_to_diffusers = scope["_convert_kohya_flux_lora_to_diffusers"]


def added(path):
    """What the file adds to each weight, once diffusers or PEFT has loaded it."""
    target = FluxTransformer2DModel.from_pretrained(backbone, torch_dtype=torch.float32)
    if os.path.isdir(path):
        target = PeftModel.from_pretrained(target, path).base_model.model
    else:
        state, alphas = FluxLoraLoaderMixin.lora_state_dict(load_file(path), return_alphas=True)
        transformer = {k: v for k, v in state.items() if k.startswith("transformer.")}
        FluxLoraLoaderMixin.load_lora_into_transformer(
            transformer, alphas, target, metadata=metadata(path) or None
        )
    found = {}
    for name, module in target.named_modules():
        for adapter in getattr(module, "lora_A", {}):
            product = module.lora_B[adapter].weight.double() @ module.lora_A[adapter].weight.double()
            found[name] = product * module.scaling[adapter]
    return found


def stated(path):
    """The same from the factors of the file alone, as a program computes it that knows nothing of headers."""
    state = load_file(path)
    names = {n.removeprefix("transformer.").rsplit(".lora_", 1)[0] for n in state}
    factor = lambda name, side: state[f"transformer.{name}.lora_{side}.weight"].double()
    return {n: factor(n, "B") @ factor(n, "A") for n in names}


config = FluxTransformer2DModel.load_config(backbone)
for_any_width(config["num_attention_heads"] * config["attention_head_dim"])
wanted = stated(first)
for path in [first, *others]:
    found = added(path)
    for name in found.keys() - wanted.keys():
        # A part of a fused linear that the adapter does not adapt.
        assert not found.pop(name).any(), name
    assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())[:4]
    worst = max(((found[n] - w).abs().max() / w.abs().max().clamp_min(1e-30)).item() for n, w in wanted.items())
    assert worst < 1e-6, worst
    print(f"{path}: {len(found)} linears of FluxTransformer2DModel, worst relative difference {worst:.1e}")
