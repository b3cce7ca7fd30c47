"""The pass of a small FluxTransformer2DModel, written for training on a processor in bfloat16.

The module of diffusers holds the weights; this pass gives what its own does, up to rounding, in a fraction of the time: queries, keys
and values are one product, their pairs of rotated channels stand apart instead of side by side, and attention is two products.

Shape letters: `B` batch, `T` tokens (text, then pictures), `W` width, `H` heads, `D` width of a head.
"""

import torch
import torch.nn.functional as F


def halves(width, heads, device=None):
    """Order of the rows of a query's or key's matrix in which the first channels of all pairs come before the second ones."""
    side = width // heads
    one = torch.cat([torch.arange(0, side, 2), torch.arange(1, side, 2)])
    return (torch.arange(heads)[:, None] * side + one).flatten(), one


def rotate(x, cos, sin):
    """`x [B, T, 2H, D]`, whose pairs are (i, i + D/2)."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attend(qkv, heads, norms, cos, sin):
    """`qkv [B, T, 3W]` to `[B, T, W]`."""
    b, t, w = qkv.shape
    d = w // 3 // heads
    qkv = qkv.view(b, t, 3 * heads, d)
    qk, v = qkv.split([2 * heads, heads], 2)
    # The square is summed in f32.
    size = qk.float().pow(2).mean(-1, keepdim=True)
    qk = (qk * torch.rsqrt(size + 1e-6).to(qk.dtype)) * norms
    q, k = rotate(qk, cos, sin).transpose(1, 2).split(heads, 1)
    scores = q @ k.transpose(2, 3)
    return (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2).reshape(b, t, w // 3)


def modulated(x, shift, scale):
    return torch.addcmul(shift[:, None], F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale[:, None])


def single(x, m, weights, norms, cos, sin, heads):
    w_in, b_in, w_out, b_out = weights
    shift, scale, gate = m.chunk(3, -1)
    width = x.shape[-1]
    a = F.linear(modulated(x, shift, scale), w_in, b_in)
    qkv, mlp = a.split([3 * width, a.shape[-1] - 3 * width], -1)
    both = torch.cat([attend(qkv, heads, norms, cos, sin), F.gelu(mlp, approximate="tanh")], -1)
    return torch.addcmul(x, gate[:, None], F.linear(both, w_out, b_out))


def double(c, x, mc, mx, weights, norms, cos, sin, heads):
    (qkv_x, qkv_xb, out_x, out_xb, up_x, up_xb, down_x, down_xb,
     qkv_c, qkv_cb, out_c, out_cb, up_c, up_cb, down_c, down_cb) = weights
    text = c.shape[1]
    parts_c, parts_x = mc.chunk(6, -1), mx.chunk(6, -1)
    qkv = torch.cat([F.linear(modulated(c, *parts_c[:2]), qkv_c, qkv_cb),
                     F.linear(modulated(x, *parts_x[:2]), qkv_x, qkv_xb)], 1)
    a = attend(qkv, heads, norms, cos, sin)

    def rest(x, a, parts, out, outb, up, upb, down, downb):
        x = torch.addcmul(x, parts[2][:, None], F.linear(a, out, outb))
        h = F.gelu(F.linear(modulated(x, *parts[3:5]), up, upb), approximate="tanh")
        return torch.addcmul(x, parts[5][:, None], F.linear(h, down, downb))

    return (rest(c, a[:, :text], parts_c, out_c, out_cb, up_c, up_cb, down_c, down_cb),
            rest(x, a[:, text:], parts_x, out_x, out_xb, up_x, up_xb, down_x, down_xb))


class Lean:
    """A pass with the weights of `model`, computed in `dtype`. `taps`: also give the image tokens after every block."""

    def __init__(self, model, dtype=torch.bfloat16):
        self.model, self.dtype = model, dtype
        self.heads = model.config.num_attention_heads
        self.width = self.heads * model.config.attention_head_dim
        self.rows, self.one = halves(self.width, self.heads)
        self.single, self.double = single, double
        self.ropes = {}

    def compile(self):
        """Have PyTorch compile the blocks, once for every size of a batch."""
        self.single, self.double = (torch.compile(f, dynamic=False) for f in (single, double))

    def rope(self, ids):
        key = ids.numpy().tobytes()
        if key not in self.ropes:
            cos, sin = self.model.pos_embed(ids)
            self.ropes[key] = tuple(x[:, None, ::2].to(self.dtype).contiguous() for x in (cos, sin))
        return self.ropes[key]

    def qkv(self, q, k, v):
        """Weight and bias of one product; the rows of queries are scaled where the norm is applied."""
        return (torch.cat([q.weight[self.rows], k.weight[self.rows], v.weight]),
                torch.cat([q.bias[self.rows], k.bias[self.rows], v.bias]))

    def norms(self, q, k):
        scale = (self.width // self.heads) ** -0.5
        return torch.cat([(q.weight[self.one] * scale).expand(self.heads, -1), k.weight[self.one].expand(self.heads, -1)])

    def __call__(self, x, sigma, text, pooled, ids, taps=None):
        """`x [B, N, 64]`, `sigma [B]`, `ids [T, 3]` of text and pictures; the prediction at all `N` tokens."""
        m, to = self.model, lambda *all: [a.to(self.dtype) for a in all]
        temb = F.silu(m.time_text_embed(sigma * 1000, pooled))
        cos, sin = self.rope(ids)
        lin = lambda l: (l.weight, l.bias)
        c = F.linear(*to(text, *lin(m.context_embedder)))
        x = F.linear(*to(x, *lin(m.x_embedder)))
        for block in m.transformer_blocks:
            a, mx, mc = block.attn, block.norm1.linear(temb), block.norm1_context.linear(temb)
            nx, nc = self.norms(a.norm_q, a.norm_k), self.norms(a.norm_added_q, a.norm_added_k)
            t = c.shape[1]
            norms = torch.cat([nc.expand(t, -1, -1), nx.expand(x.shape[1], -1, -1)])
            weights = [*self.qkv(a.to_q, a.to_k, a.to_v), *lin(a.to_out[0]), *lin(block.ff.net[0].proj), *lin(block.ff.net[2]),
                       *self.qkv(a.add_q_proj, a.add_k_proj, a.add_v_proj), *lin(a.to_add_out),
                       *lin(block.ff_context.net[0].proj), *lin(block.ff_context.net[2])]
            c, x = self.double(c, x, *to(mc, mx), to(*weights), *to(norms), cos, sin, self.heads)
            if taps is not None:
                taps.append(x)
        text_tokens = c.shape[1]
        x = torch.cat([c, x], 1)
        for block in m.single_transformer_blocks:
            a, mod = block.attn, block.norm.linear(temb)
            w, b = self.qkv(a.to_q, a.to_k, a.to_v)
            weights = [torch.cat([w, block.proj_mlp.weight]), torch.cat([b, block.proj_mlp.bias]), *lin(block.proj_out)]
            x = self.single(x, *to(mod), to(*weights), *to(self.norms(a.norm_q, a.norm_k)), cos, sin, self.heads)
            if taps is not None:
                taps.append(x[:, text_tokens:])
        scale, shift = m.norm_out.linear(temb).to(self.dtype).chunk(2, -1)
        return F.linear(modulated(x[:, text_tokens:], shift, scale), *to(*lin(m.proj_out)))
