"""FLUX with reference tokens and a LoRA, in plain PyTorch: parameters have diffusers' names, the LoRA PEFT's formula.

B samples, T text tokens, S image tokens (target, then references), L = T + S, D width, H heads.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from layers import Linear, Named, adapt, embed, embedder, sinusoid

SINUSOID = 256
EPS = 1e-6


class HeadNorm(nn.Module):
    """RMS norm of the values of a head."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim), requires_grad=False)

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, EPS)


def norm(x, shift, scale):
    return F.layer_norm(x, (x.shape[-1],), eps=EPS) * (1 + scale[:, None]) + shift[:, None]


def heads(x, count):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def rotate(x, cos, sin):
    """Turn neighbouring values of a head by the angle of their token."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1)
    return turned.flatten(-2).to(x.dtype)


def attention(q, k, v, rotary):
    q, k = rotate(q, *rotary), rotate(k, *rotary)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class DoubleBlock(nn.Module):
    def __init__(self, width, dim):
        super().__init__()
        self.count = width // dim
        same = lambda: Linear(width, width)
        self.norm1 = Named(linear=Linear(width, 6 * width))
        self.norm1_context = Named(linear=Linear(width, 6 * width))
        self.attn = Named(
            to_q=same(), to_k=same(), to_v=same(), to_out=Named(_0=same()),
            add_q_proj=same(), add_k_proj=same(), add_v_proj=same(), to_add_out=same(),
            norm_q=HeadNorm(dim), norm_k=HeadNorm(dim), norm_added_q=HeadNorm(dim), norm_added_k=HeadNorm(dim),
        )
        mlp = lambda: Named(net=Named(_0=Named(proj=Linear(width, 4 * width)), _2=Linear(4 * width, width)))
        self.ff, self.ff_context = mlp(), mlp()

    def forward(self, text, image, vector, rotary, adapted):
        a, count = self.attn, self.count
        mod_i = self.norm1["linear"](vector).chunk(6, -1)
        mod_t = self.norm1_context["linear"](vector).chunk(6, -1)
        i, t = norm(image, *mod_i[:2]), norm(text, *mod_t[:2])
        def qkv(x, names, norms):
            q, k, v = (heads(a[name](x, adapted), count) for name in names)
            return a[norms[0]](q), a[norms[1]](k), v
        of_text = qkv(t, ("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k"))
        of_image = qkv(i, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
        q, k, v = (torch.cat(pair, 2) for pair in zip(of_text, of_image))
        t, i = attention(q, k, v, rotary).split([text.shape[1], image.shape[1]], 1)
        image = image + mod_i[2][:, None] * a["to_out"]["0"](i, adapted)
        text = text + mod_t[2][:, None] * a["to_add_out"](t, adapted)
        def mlp(x, ff, mod):
            hidden = F.gelu(ff["net"]["0"]["proj"](norm(x, *mod[3:5]), adapted), approximate="tanh")
            return x + mod[5][:, None] * ff["net"]["2"](hidden, adapted)
        return mlp(text, self.ff_context, mod_t), mlp(image, self.ff, mod_i)


class SingleBlock(nn.Module):
    def __init__(self, width, dim):
        super().__init__()
        self.count = width // dim
        self.norm = Named(linear=Linear(width, 3 * width))
        self.attn = Named(
            to_q=Linear(width, width), to_k=Linear(width, width), to_v=Linear(width, width),
            norm_q=HeadNorm(dim), norm_k=HeadNorm(dim),
        )
        self.proj_mlp, self.proj_out = Linear(width, 4 * width), Linear(5 * width, width)

    def forward(self, x, vector, rotary, adapted):
        shift, scale, gate = self.norm["linear"](vector).chunk(3, -1)
        n, a = norm(x, shift, scale), self.attn
        q, k, v = (heads(a[name](n, adapted), self.count) for name in ("to_q", "to_k", "to_v"))
        attended = attention(a["norm_q"](q), a["norm_k"](k), v, rotary)
        hidden = F.gelu(self.proj_mlp(n, adapted), approximate="tanh")
        return x + gate[:, None] * self.proj_out(torch.cat((attended, hidden), -1), adapted)


class Flux(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        dim = sizes["attention_head_dim"]
        width = sizes["num_attention_heads"] * dim
        self.axes = sizes["axes_dims_rope"]
        self.checkpointing = False
        self.x_embedder = Linear(sizes["in_channels"], width)
        self.context_embedder = Linear(sizes["joint_attention_dim"], width)
        embedders = dict(timestep_embedder=embedder(SINUSOID, width), text_embedder=embedder(sizes["pooled_projection_dim"], width))
        if sizes["guidance_embeds"]:
            embedders["guidance_embedder"] = embedder(SINUSOID, width)
        self.time_text_embed = Named(**embedders)
        self.transformer_blocks = nn.ModuleList(DoubleBlock(width, dim) for _ in range(sizes["num_layers"]))
        self.single_transformer_blocks = nn.ModuleList(SingleBlock(width, dim) for _ in range(sizes["num_single_layers"]))
        self.norm_out = Named(linear=Linear(width, 2 * width))
        self.proj_out = Linear(width, sizes["in_channels"])

    def adapt(self, rank):
        """A LoRA on every linear of the blocks but the modulations."""
        blocks = ("transformer_blocks.", "single_transformer_blocks.")
        return adapt(self, rank, lambda name: name.startswith(blocks) and ".norm" not in name)

    def rotary(self, text, grid, reference, device):
        """Cosines and sines `[L, dim / 2]`: text at zero, the target from the origin, the reference behind it in rows and columns."""
        def positions(side, offset):
            at = torch.arange(side, dtype=torch.float64, device=device) + offset
            rows, columns = torch.meshgrid(at, at, indexing="ij")
            return torch.stack((torch.zeros_like(rows), rows, columns), -1).flatten(0, 1)
        zeros = torch.zeros(text, 3, dtype=torch.float64, device=device)
        all_ = torch.cat((zeros, positions(grid, 0), positions(reference, grid)))
        def angles(axis, width):
            each = torch.arange(0, width, 2, dtype=torch.float64, device=device) / width
            return all_[:, axis, None] / 10000**each
        angle = torch.cat([angles(axis, width) for axis, width in enumerate(self.axes)], -1)
        return angle.cos().float(), angle.sin().float()

    def vector(self, t, guidance, pooled):
        of, dtype = self.time_text_embed, pooled.dtype
        of_value = lambda which, value: embed(of[which], sinusoid(value * 1000, SINUSOID).to(dtype))
        out = of_value("timestep_embedder", t) + embed(of["text_embedder"], pooled)
        if guidance is not None:
            out = out + of_value("guidance_embedder", torch.full_like(t, guidance))
        return F.silu(out)

    def forward(self, tokens, targets, text, pooled, t, guidance, rotary, adapted, probe=None):
        """The prediction `[B, targets, channels]`; `probe` sees the image tokens after each block."""
        vector = self.vector(t, guidance, pooled)
        image, text = self.x_embedder(tokens), self.context_embedder(text)
        again = self.checkpointing and adapted and torch.is_grad_enabled()
        def run(block, *inputs):
            if again:
                return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
            return block(*inputs)
        for block in self.transformer_blocks:
            text, image = run(block, text, image, vector, rotary, adapted)
            if probe:
                probe(image)
        x, length = torch.cat((text, image), 1), text.shape[1]
        for block in self.single_transformer_blocks:
            x = run(block, x, vector, rotary, adapted)
            if probe:
                probe(x[:, length:])
        scale, shift = self.norm_out["linear"](vector).chunk(2, -1)
        return self.proj_out(norm(x[:, length : length + targets], shift, scale))
