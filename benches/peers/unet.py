"""SDXL's U-Net with an IP-Adapter and a LoRA, in plain PyTorch: parameters have diffusers' names, the LoRA PEFT's formula.

B samples, C channels, H W latent grid, P pixels of an attention, L text tokens, K image tokens, E their width.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from layers import Linear, Named, adapt, embed, embedder, sinusoid


def conv(inputs, outputs, side=3, stride=1):
    return nn.Conv2d(inputs, outputs, side, stride=stride, padding=side // 2)


class Resnet(nn.Module):
    def __init__(self, inputs, outputs, time, sizes):
        super().__init__()
        group = lambda channels: nn.GroupNorm(sizes["norm_num_groups"], channels, eps=1e-5)
        self.norm1, self.conv1, self.time_emb_proj = group(inputs), conv(inputs, outputs), Linear(time, outputs)
        self.norm2, self.conv2 = group(outputs), conv(outputs, outputs)
        self.conv_shortcut = conv(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x, vector):
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(vector)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


def heads(x, count):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attend(q, k, v, count):
    return F.scaled_dot_product_attention(*(heads(x, count) for x in (q, k, v))).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    def __init__(self, width, of, count, image=False):
        super().__init__()
        self.count = count
        self.to_q, self.to_k, self.to_v = Linear(width, width, False), Linear(of, width, False), Linear(of, width, False)
        self.to_out = Named(_0=Linear(width, width))
        self.to_k_ip = Linear(of, width, False) if image else None
        self.to_v_ip = Linear(of, width, False) if image else None

    def forward(self, x, tokens, adapted, image=None):
        """The result; with image tokens also the queries and the keys of these."""
        q = self.to_q(x, adapted)
        y = attend(q, self.to_k(tokens, adapted), self.to_v(tokens, adapted), self.count)
        k_ip = None
        if image is not None:
            k_ip = self.to_k_ip(image, adapted)
            y = y + attend(q, k_ip, self.to_v_ip(image, adapted), self.count)
        return self.to_out["0"](y, adapted), q, k_ip


class Block(nn.Module):
    def __init__(self, width, of, count):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1, self.attn2 = Attention(width, width, count), Attention(width, of, count, image=True)
        self.ff = Named(net=Named(_0=Named(proj=Linear(width, 8 * width)), _2=Linear(4 * width, width)))

    def forward(self, x, text, image, adapted):
        n = self.norm1(x)
        x = x + self.attn1(n, n, adapted)[0]
        y, q, k_ip = self.attn2(self.norm2(x), text, adapted, image)
        x = x + y
        value, gate = self.ff["net"]["0"]["proj"](self.norm3(x), adapted).chunk(2, -1)
        return x + self.ff["net"]["2"](value * F.gelu(gate), adapted), q, k_ip


class Transformer(nn.Module):
    def __init__(self, width, count, depth, sizes):
        super().__init__()
        self.norm = nn.GroupNorm(sizes["norm_num_groups"], width, eps=1e-6)
        self.proj_in, self.proj_out = Linear(width, width), Linear(width, width)
        blocks = (Block(width, sizes["cross_attention_dim"], count) for _ in range(depth))
        self.transformer_blocks = nn.ModuleList(blocks)

    def forward(self, x, text, image, adapted, run, probe):
        rows, columns = x.shape[2:]
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2), adapted)
        for block in self.transformer_blocks:
            h, q, k_ip = run(block, h, text, image, adapted)
            if probe:
                probe(q, k_ip, rows, columns)
        return x + self.proj_out(h, adapted).transpose(1, 2).unflatten(2, (rows, columns))


class Level(nn.Module):
    """The parts of a block of the U-Net, which its `forward` runs."""

    def __init__(self, resnets, attentions, down=None, up=None):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.downsamplers = nn.ModuleList([Named(conv=conv(down, down, stride=2))] if down else [])
        self.upsamplers = nn.ModuleList([Named(conv=conv(up, up))] if up else [])


class UNet(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.sizes, self.checkpointing = sizes, False
        channels, layers = sizes["block_out_channels"], sizes["layers_per_block"]
        depths, counts = sizes["transformer_layers_per_block"], sizes["attention_head_dim"]
        time = 4 * channels[0]
        self.conv_in = conv(sizes["in_channels"], channels[0])
        self.time_embedding = embedder(channels[0], time)
        self.add_embedding = embedder(sizes["projection_class_embeddings_input_dim"], time)
        resnet = lambda inputs, outputs: Resnet(inputs, outputs, time, sizes)
        transformer = lambda level: Transformer(channels[level], counts[level], depths[level], sizes)
        crosses = lambda kind: kind.startswith("CrossAttn")
        last = len(channels) - 1
        skips, width, down = [channels[0]], channels[0], []
        for level, kind in enumerate(sizes["down_block_types"]):
            resnets = [resnet(width if i == 0 else channels[level], channels[level]) for i in range(layers)]
            attentions = [transformer(level) for _ in range(layers)] if crosses(kind) else []
            width = channels[level]
            down.append(Level(resnets, attentions, down=width if level < last else None))
            skips += [width] * (layers + (level < last))
        self.down_blocks = nn.ModuleList(down)
        self.mid_block = Level([resnet(width, width) for _ in range(2)], [transformer(last)])
        up = []
        for level, kind in zip(range(last, -1, -1), sizes["up_block_types"]):
            resnets = []
            for _ in range(layers + 1):
                resnets.append(resnet(width + skips.pop(), channels[level]))
                width = channels[level]
            attentions = [transformer(level) for _ in range(layers + 1)] if crosses(kind) else []
            up.append(Level(resnets, attentions, up=width if level > 0 else None))
        self.up_blocks = nn.ModuleList(up)
        self.conv_norm_out = nn.GroupNorm(sizes["norm_num_groups"], channels[0], eps=1e-5)
        self.conv_out = conv(channels[0], sizes["out_channels"])
        self.requires_grad_(False)

    def adapt(self, rank):
        """A LoRA on the queries, keys, values and outputs of every attention, image tokens' not."""
        return adapt(self, rank, lambda name: name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0")))

    def vector(self, t, pooled, pictures):
        width = self.sizes["addition_time_embed_dim"]
        added = torch.cat((pooled, sinusoid(pictures, width).flatten(1).to(pooled.dtype)), -1)
        time = sinusoid(t, self.sizes["block_out_channels"][0]).to(pooled.dtype)
        return F.silu(embed(self.time_embedding, time) + embed(self.add_embedding, added))

    def forward(self, x, t, text, pooled, pictures, image, adapted, probe=None):
        """The prediction `[B, C, H, W]`; `probe` sees the queries and the keys of image tokens of each cross-attention."""
        again = self.checkpointing and adapted and torch.is_grad_enabled()
        def run(part, *inputs):
            if again:
                return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
            return part(*inputs)
        vector = self.vector(t, pooled, pictures)
        def through(level, i, x):
            x = run(level.resnets[i], x, vector)
            return level.attentions[i](x, text, image, adapted, run, probe) if level.attentions else x
        x = self.conv_in(x)
        skips = [x]
        for level in self.down_blocks:
            for i in range(len(level.resnets)):
                x = through(level, i, x)
                skips.append(x)
            for sampler in level.downsamplers:
                x = sampler["conv"](x)
                skips.append(x)
        middle = self.mid_block
        x = run(middle.resnets[1], through(middle, 0, x), vector)
        for level in self.up_blocks:
            for i in range(len(level.resnets)):
                x = through(level, i, torch.cat((x, skips.pop()), 1))
            for sampler in level.upsamplers:
                x = sampler["conv"](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.conv_norm_out(x)))
