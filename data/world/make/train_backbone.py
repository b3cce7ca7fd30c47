"""Trains the world's backbone: a small FLUX transformer with UNO reference tokens that draws subjects from reference pictures.

    train="python data/world/make/train_backbone.py target/world/training --autoencoder data/world/autoencoder --work target/world/backbone"
    $train --minutes 70                       # goes on from target/world/backbone/checkpoint.pt if it is there
    $train --minutes 20 --cool                # the last part: the rate falls to nothing
    $train --export data/world/backbone       # writes the running average in bfloat16

See data/world/README.md for what draws `target/world/training`.

Flow matching: x_t = (1 - sigma) x0 + sigma eps, the network is given sigma and predicts eps - x0 on the target's tokens. Tokens are
2x2 latent cells, packed channel = c*4 + dy*2 + dx; position ids are (0, y, x), and each reference starts where the target and the
references before it end, on both axes.

Shape letters: `B` batch, `N` target tokens, `R` references, `T` tokens of each.
"""

import argparse
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, FluxTransformer2DModel

import drawn
from lean import Lean
from muon import Muon

CONFIG = dict(
    patch_size=1, in_channels=64, num_layers=2, num_single_layers=5, attention_head_dim=32, num_attention_heads=5,
    joint_attention_dim=48, pooled_projection_dim=32, guidance_embeds=False, axes_dims_rope=(8, 12, 12),
)


def pack(latents):
    """`[B, C, H, W]` to `[B, H/2 * W/2, 4C]`."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def unpack(tokens):
    """The other way."""
    b, n, c = tokens.shape
    side = round(n ** 0.5)
    return tokens.view(b, side, side, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, 2 * side, 2 * side)


def positions(text, sides):
    """Position ids of text tokens and square token grids, each starting where the ones before it end."""
    grids, offset = [torch.zeros(text, 3)], 0
    for side in sides:
        grid = torch.zeros(side, side, 3)
        grid[..., 1] = torch.arange(side)[:, None] + offset
        grid[..., 2] = torch.arange(side)[None] + offset
        grids.append(grid.view(-1, 3))
        offset += side
    return torch.cat(grids)


@torch.no_grad()
def encode(autoencoder, pictures):
    """Bytes `[B, side, side, 3]` to packed latents of unit variance."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    z = autoencoder.encoder(x.contiguous(memory_format=torch.channels_last)).float()
    return pack(((z - autoencoder.config.shift_factor) * autoencoder.config.scaling_factor).contiguous())


@torch.no_grad()
def decode(autoencoder, tokens):
    """Packed latents to bytes `[B, side, side, 3]`."""
    z = unpack(tokens.float()) / autoencoder.config.scaling_factor + autoencoder.config.shift_factor
    y = autoencoder.decoder(z).clamp(-1, 1)
    return ((y + 1) * 127.5 + 0.5).permute(0, 2, 3, 1).numpy().astype(np.uint8)


class Latents:
    """Scenes of so many subjects; each is encoded when it is first asked for, and kept."""

    def __init__(self, data, autoencoder):
        self.data, self.autoencoder = data, autoencoder
        count, self.references = data["references"].shape[:2]
        self.known = np.zeros(count, bool)
        tokens = lambda side: (side // 8) ** 2
        self.target = torch.zeros(count, tokens(data["winner"].shape[1]), 64, dtype=torch.half)
        self.own = torch.zeros(count, self.references * tokens(data["references"].shape[2]), 64, dtype=torch.half)

        # Scenes of one subject by where it is said to be, row by row of nine places.
        grid = data["priors"].max(1).reshape(count, 12, 12)
        if self.references == 1:
            middles = [(grid.sum(2 - axis) * (np.arange(12) * 8 + 4)).sum(1) / grid.sum((1, 2)) for axis in (0, 1)]
            row, column = (((m - 34) / 14).round().clip(0, 2).astype(int) for m in middles)
            self.places = [np.flatnonzero(3 * row + column == place) for place in range(9)]

    def __len__(self):
        return len(self.known)

    def batch(self, pick):
        new = pick[~self.known[pick]]
        if len(new):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                self.target[new] = encode(self.autoencoder, self.data["winner"][new]).half()
                references = self.data["references"][new]
                packed = encode(self.autoencoder, references.reshape(-1, *references.shape[2:]))
            self.own[new] = packed.half().view(len(new), -1, 64)
            self.known[new] = True
        tensors = {name: torch.from_numpy(self.data[name][pick]) for name in ("text", "pooled", "reference_masks", "priors")}
        return tensors | dict(target=self.target[pick].float(), references=self.own[pick].float())


def latents(folder, autoencoder_folder):
    autoencoder = AutoencoderTiny.from_pretrained(autoencoder_folder).to(memory_format=torch.channels_last)
    return {subjects: Latents(data, autoencoder) for subjects, data in drawn.load(folder).items()}


def ids_of(batch):
    side = lambda tokens: round(tokens ** 0.5)
    references = batch["reference_masks"].shape[1]
    each = side(batch["references"].shape[1] // references)
    return positions(batch["text"].shape[1], [side(batch["target"].shape[1])] + [each] * references)


def window(place):
    """The 8x8 of 12x12 target tokens around a place."""
    top, left = 2 * (place // 3), 2 * (place % 3)
    return (torch.arange(top, top + 8)[:, None] * 12 + torch.arange(left, left + 8)).flatten()


def predict(lean, x_t, sigma, batch, ids, taps=None):
    x = torch.cat([x_t, batch["references"]], 1)
    return lean(x, sigma, batch["text"], batch["pooled"], ids, taps)[:, :x_t.shape[1]]


def scores(taps, masks):
    """`[B, R, N]`: mean over blocks of the cosine between each reference's mean foreground token and the targets."""
    b, r, t = masks.shape
    total = 0
    for tokens in taps:
        n = tokens.shape[1] - r * t
        own = tokens[:, n:].reshape(b, r, t, -1)
        mean = (own * masks[..., None]).sum(2)
        total = total + F.normalize(mean, dim=-1) @ F.normalize(tokens[:, :n], dim=-1).transpose(1, 2)
    return total / len(taps)


def sigmas(steps, shift):
    u = torch.linspace(1, 0, steps + 1)
    return shift * u / (1 + (shift - 1) * u)


@torch.no_grad()
def sample(lean, batch, steps=12, shift=1.62, seed=0):
    """Euler's method from noise; packed latents. 1.62 is `dynamic` of the operator `sample` for 12x12 tokens."""
    ids = ids_of(batch)
    x = torch.randn(batch["target"].shape, generator=torch.Generator().manual_seed(seed))
    sigma = sigmas(steps, shift)
    for here, there in zip(sigma[:-1], sigma[1:]):
        x = x + (there - here) * predict(lean, x, here.expand(len(x)), batch, ids).float()
    return x


def parameters(model):
    """Matrices of blocks, which are orthogonalised, and the rest."""
    matrices, rest = [], []
    for name, p in model.named_parameters():
        inner = "transformer_blocks" in name and p.ndim == 2 and not ("norm" in name and "linear" in name)
        (matrices if inner else rest).append(p)
    return matrices, rest


def begin(a):
    """Model, optimizers, averages and step, from the checkpoint if there is one."""
    torch.manual_seed(a.seed)
    model = FluxTransformer2DModel(**CONFIG)
    with torch.no_grad():
        # Blocks begin as the identity, and the prediction as zero.
        for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
            for name in ("norm", "norm1", "norm1_context"):
                if hasattr(block, name):
                    getattr(block, name).linear.weight.zero_()
                    getattr(block, name).linear.bias.zero_()
        for linear in (model.norm_out.linear, model.proj_out):
            linear.weight.zero_()
            linear.bias.zero_()
    matrices, rest = parameters(model)
    optimizers = [torch.optim.AdamW(rest, lr=a.lr, betas=(0.9, 0.99), weight_decay=0.0)]
    if a.muon:
        optimizers.append(Muon(matrices, lr=a.lr, weight_decay=0.02))
    else:
        optimizers.append(torch.optim.AdamW(matrices, lr=a.lr, betas=(0.9, 0.99), weight_decay=0.02))
    averages = {name: x.clone() for name, x in model.state_dict().items()}
    step, seconds = 0, 0.0
    if os.path.exists(path := f"{a.work}/checkpoint.pt"):
        saved = torch.load(path)
        model.load_state_dict(saved["model"])
        averages, step, seconds = saved["averages"], saved["step"], saved["seconds"]
        for optimizer, state in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(state)
        print(f"goes on at step {step}, after {seconds / 60:.0f} minutes", flush=True)
    return model, optimizers, averages, step, seconds


def save(a, model, optimizers, averages, step, seconds):
    path = f"{a.work}/checkpoint.pt"
    torch.save(dict(model=model.state_dict(), averages=averages, step=step, seconds=seconds,
                    optimizers=[o.state_dict() for o in optimizers]), path + ".new")
    os.replace(path + ".new", path)


def averaged(averages):
    model = FluxTransformer2DModel(**CONFIG)
    model.load_state_dict(averages)
    return model


def train(a):
    os.makedirs(a.work, exist_ok=True)
    torch.set_num_threads(a.threads)
    sets = latents(a.data, a.autoencoder)
    model, optimizers, averages, step, before = begin(a)
    torch.manual_seed(a.seed + step)
    random = np.random.default_rng(a.seed + step)
    print(sum(p.numel() for p in model.parameters()), "parameters", {k: len(data) for k, data in sets.items()}, flush=True)
    lean = Lean(model)
    if a.compile:
        lean.compile()
    ids = {k: ids_of(data.batch(np.array([0]))) for k, data in sets.items()}
    sums, last, start, saved, seconds = np.zeros(4), time.process_time(), None, time.process_time(), before
    while start is None or time.process_time() - start < 60 * a.minutes:
        step += 1
        warm = min(1, step / 200)
        fall = 1 - (time.process_time() - start) / (60 * a.minutes) if a.cool and start else 1
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = a.lr * warm * max(fall, 0.01)
        # Every third batch has two subjects, and as many tokens as the others.
        subjects = 2 if step % 3 == 0 else 1
        data = sets[subjects]
        size = a.batch if subjects == 1 else a.batch * 3 // 4
        here = ids[subjects]
        if subjects == 1 and random.random() < a.windows:
            # Only what is around the subject: the rest is ground.
            place = random.integers(9)
            batch = data.batch(random.choice(data.places[place], size, replace=False))
            tokens, text = window(place), batch["text"].shape[1]
            batch = batch | dict(target=batch["target"][:, tokens], priors=batch["priors"][:, :, tokens])
            here = torch.cat([here[:text], here[text:][tokens], here[text + 144:]])
        else:
            batch = data.batch(random.choice(len(data), size, replace=False))
        x0 = batch["target"]
        eps = torch.randn_like(x0)
        # Most draws at middle and high noise, where it is decided who is drawn.
        sigma = torch.where(torch.rand(size) < 0.2, torch.rand(size), torch.sigmoid(torch.randn(size) + 0.3))
        s = sigma.view(-1, 1, 1)
        taps = [] if a.align else None
        out = predict(lean, (1 - s) * x0 + s * eps, sigma, batch, here, taps).float()
        priors = batch["priors"].float()
        # Tokens of subjects count three times.
        weight = 1 + 2 * priors.amax(1)
        error = (out - (eps - x0)).pow(2).mean(-1)
        flow = (weight * error).mean() / weight.mean()
        loss = flow
        if a.align:
            few = size // 4
            wanted = priors[:few] / priors[:few].sum(-1, keepdim=True)
            logs = (scores([t[:few].float() for t in taps], batch["reference_masks"][:few].float()) / 0.1).log_softmax(-1)
            distance = (wanted * (wanted.clamp_min(1e-9).log() - logs)).sum(-1).mean(-1)
            align = ((1 - sigma[:few]) * distance).mean()
            loss = flow + a.align * align
            sums[3] += align.item()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        decay = min(a.decay, step / (step + 10))
        with torch.no_grad():
            now = model.state_dict()
            torch._foreach_lerp_([averages[name] for name in now], list(now.values()), 1 - decay)
        if start is None:
            # What compiling takes is not training.
            start = last = time.process_time()
        seconds = before + time.process_time() - start
        sums[:3] += flow.item(), (error.detach() * priors.amax(1)).sum().item() / priors.amax(1).sum().item(), 1
        if step % 100 == 0:
            f, s, n, al = sums[0] / sums[2], sums[1] / sums[2], sums[2], sums[3] / sums[2]
            print(f"step {step} minutes {seconds / 60:.1f} flow {f:.4f} on subjects {s:.4f} align {al:.4f} "
                  f"{(time.process_time() - last) / n:.3f} s/step", flush=True)
            sums[:], last = 0, time.process_time()
        if time.process_time() - saved > 90:
            save(a, model, optimizers, averages, step, seconds)
            saved = time.process_time()
    save(a, model, optimizers, averages, step, seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of shards")
    parser.add_argument("--autoencoder", required=True, help="folder of the trained autoencoder")
    parser.add_argument("--work", required=True, help="folder for the checkpoint")
    parser.add_argument("--minutes", type=float, default=60, help="of processor time, without what compiling takes")
    parser.add_argument("--cool", action="store_true", help="let the rate fall to nothing within these minutes")
    parser.add_argument("--export", help="write the averaged weights of the checkpoint into this folder, and stop")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--windows", type=float, default=0.75, help="share of the batches of one subject that see its surroundings only")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--muon", action=argparse.BooleanOptionalAction, default=True, help="orthogonalise the steps of matrices")
    parser.add_argument("--align", type=float, default=0.0, help="weight of the auxiliary loss on scores")
    parser.add_argument("--decay", type=float, default=0.998, help="of the average of the weights")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    if a.export:
        averaged(torch.load(f"{a.work}/checkpoint.pt")["averages"]).to(torch.bfloat16).save_pretrained(a.export)
    else:
        train(a)


if __name__ == "__main__":
    main()
