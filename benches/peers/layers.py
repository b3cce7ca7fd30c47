"""What both peers are made of: frozen linears with a LoRA, modules under any names, sinusoids."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Linear(nn.Module):
    """A frozen linear; an adapted one adds `scale (x A^T) B^T`, as PEFT does.

    A and B are f32, and are cast to the type of the activations, as under autocast: products in f32 would cost PyTorch several times as much.
    """

    def __init__(self, inputs, outputs, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(outputs), requires_grad=False) if bias else None
        self.lora_A = self.lora_B = None
        self.scale = 1.0

    def adapt(self, rank, alpha):
        outputs, inputs = self.weight.shape
        device = self.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, inputs, device=device, dtype=torch.float32))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank, device=device, dtype=torch.float32))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scale = alpha / rank

    def forward(self, x, adapted=False):
        y = F.linear(x, self.weight, self.bias)
        if adapted and self.lora_A is not None:
            y = y + F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype)) * self.scale
        return y


class Named(nn.Module):
    """Modules under names that no attribute can have, such as `net.0.proj`."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name.strip("_"), module)

    def __getitem__(self, name):
        return self._modules[name]


def adapt(model, rank, chosen):
    """A LoRA of this rank, alpha the same, on every linear that is chosen by its name; returns its parameters by name."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear) and chosen(name):
            module.adapt(rank, rank)
            found[f"{name}.lora_A.weight"], found[f"{name}.lora_B.weight"] = module.lora_A, module.lora_B
    return found


def embedder(inputs, width):
    return Named(linear_1=Linear(inputs, width), linear_2=Linear(width, width))


def embed(module, x):
    return module["linear_2"](F.silu(module["linear_1"](x)))


def sinusoid(values, width):
    """Cosines, then sines."""
    half = width // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=values.device) / half
    angle = values.float()[..., None] * exponent.exp()
    return torch.cat((angle.cos(), angle.sin()), -1)
