"""Trains the world's identity encoder: a small vision transformer in the layout of DINO's (`ViTModel` of transformers).

    python data/world/make/train_identity.py target/world/training --out data/world/identity --minutes 8
    python data/world/make/train_identity.py target/world/training --out data/world/identity_fine --patch 8 --width 96 --seed 1
    python data/world/make/train_identity.py target/world/held_out --evaluate data/world/identity

See data/world/README.md for what draws the folders.

A subject in a winner and its reference are to have near class tokens: of all references of a batch, its own is to be the nearest (InfoNCE,
arXiv 1807.03748). Of a winner the encoder sees the square around one subject. Beside that, a linear head names shape, texture and
colours from the class token, which is faster to learn and, for subjects in new combinations, the same knowledge; the head is thrown
away.

Shape letters: `B` scenes, `R` references of each, `E` width.
"""

import argparse
import json
import os
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import drawn
from muon import Muon

CONFIG = dict(
    model_type="vit", architectures=["ViTModel"], hidden_size=128, intermediate_size=256, num_hidden_layers=4,
    num_attention_heads=4, num_channels=3, patch_size=12, image_size=96, hidden_act="gelu", layer_norm_eps=1e-6, qkv_bias=True,
)
# Shapes, textures, colours of the body and of the pattern.
ATTRIBUTES = (8, 5, 8, 10)
MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
TEMPERATURE = 0.07


class Block(nn.Module):
    def __init__(self, width, mlp, heads):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=CONFIG["layer_norm_eps"]) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, mlp), nn.Linear(mlp, width)

    def forward(self, x):
        h = self.norms[0](x)
        q, k, v = (l(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for l in (self.query, self.key, self.value))
        a = ((q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5).softmax(-1) @ v
        x = x + self.out(a.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        width, side = CONFIG["hidden_size"], CONFIG["patch_size"]
        self.patches = nn.Conv2d(3, width, side, side)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + (CONFIG["image_size"] // side) ** 2, width))
        self.blocks = nn.ModuleList(
            Block(width, CONFIG["intermediate_size"], CONFIG["num_attention_heads"]) for _ in range(CONFIG["num_hidden_layers"])
        )
        self.norm = nn.LayerNorm(width, eps=CONFIG["layer_norm_eps"])

    def forward(self, pictures):
        """`[B, 3, S, S]`, normalised, to class tokens `[B, E]`."""
        x = self.patches(pictures).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.to(x.dtype).expand(len(x), -1, -1), x], 1) + self.positions.to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0])


def layout():
    """From names here to names in the files of transformers."""
    names = {"cls": "embeddings.cls_token", "positions": "embeddings.position_embeddings"}
    both = {"patches": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
    for i in range(CONFIG["num_hidden_layers"]):
        to = f"encoder.layer.{i}."
        both |= {f"blocks.{i}.norms.0": to + "layernorm_before", f"blocks.{i}.norms.1": to + "layernorm_after",
                 f"blocks.{i}.out": to + "attention.output.dense", f"blocks.{i}.up": to + "intermediate.dense",
                 f"blocks.{i}.down": to + "output.dense"}
        both |= {f"blocks.{i}.{l}": to + f"attention.attention.{l}" for l in ("query", "key", "value")}
    return names | {f"{a}.{part}": f"{b}.{part}" for a, b in both.items() for part in ("weight", "bias")}


def write(state, folder):
    os.makedirs(folder, exist_ok=True)
    names = layout()
    save_file({names[name]: x.to(torch.bfloat16).contiguous() for name, x in state.items()}, f"{folder}/model.safetensors")
    with open(f"{folder}/config.json", "w") as file:
        json.dump(CONFIG, file, indent=2)
        file.write("\n")


def read(folder):
    with open(f"{folder}/config.json") as file:
        CONFIG.update(json.load(file))
    encoder, saved = Encoder(), load_file(f"{folder}/model.safetensors")
    encoder.load_state_dict({name: saved[to].float() for name, to in layout().items()})
    return encoder.eval()


def squares(pictures):
    """Bytes `[B, side, side, 3]` to the side that the encoder takes, in [0, 1], as Pillow scales."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    if x.shape[-1] != CONFIG["image_size"]:
        x = F.interpolate(x, size=[CONFIG["image_size"]] * 2, mode="bicubic", antialias=True).round().clamp(0, 255)
    return x / 255


def normalised(x):
    return (x - MEAN[:, None, None]) / DEVIATION[:, None, None]


@torch.no_grad()
def embed(encoder, pictures, chunk=128):
    """Bytes `[B, side, side, 3]` to embeddings of unit length."""
    parts = [encoder(normalised(squares(pictures[i:i + chunk]))) for i in range(0, len(pictures), chunk)]
    return F.normalize(torch.cat(parts), dim=-1)


def around(pictures, priors, jitter=None):
    """The squares around the subjects of pictures `[B, 96, 96, 3]` with priors `[B, R, 144]`: `[B R, side, side, 3]`, 64 pixels for one
    subject and 48 for two, as far inside as they have to be. With a random generator, some pixels beside the middle."""
    b, r, _ = priors.shape
    side, out = (64, 48)[r - 1], []
    for i in range(b):
        for k in range(r):
            rows, columns = np.nonzero(priors[i, k].reshape(12, 12))
            corner = []
            for places in (rows, columns):
                middle = 4 * (places.min() + places.max() + 1) + (0 if jitter is None else jitter.integers(-5, 6))
                corner.append(int(np.clip(middle - side // 2, 0, 96 - side)))
            out.append(pictures[i, corner[0]:corner[0] + side, corner[1]:corner[1] + side])
    return np.stack(out)


def ranked_first(encoder, pictures, data, among=20, seed=0):
    """The share of subjects whose reference is nearer to their square of the picture than `among - 1` references of other subjects, none
    of which the picture shows. `pictures [B, 96, 96, 3]` stand for the first winners of `data`."""
    b, r, references = len(pictures), data["references"].shape[1], data["references"]
    of_subjects = embed(encoder, around(pictures, data["priors"][:b]))
    of_references = embed(encoder, references.reshape(-1, *references.shape[2:]))
    who = data["identities"].reshape(-1, 4).astype(np.int64) @ np.array([1000, 100, 10, 1])
    first_of = np.unique(who, return_index=True)[1]
    random, hits = np.random.default_rng(seed), []
    for i in range(b * r):
        shown = who[i // r * r:(i // r + 1) * r]
        others = random.choice([j for j in first_of if who[j] not in shown], among - 1, replace=False)
        own = of_subjects[i] @ of_references[i]
        hits.append(bool((of_references[others] @ of_subjects[i] < own).all()))
    return float(np.mean(hits))


def disturbed(x):
    """Pictures in [0, 1] as a sampler may draw them: moved, blurred, noisy, lighter or darker."""
    dy, dx = (int(v) for v in torch.randint(-3, 4, (2,)))
    x = F.pad(x, (3, 3, 3, 3), mode="replicate")[:, :, 3 + dy:99 + dy, 3 + dx:99 + dx]
    blurred = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, 1)
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.4, blurred, x)
    x = x * (1 + 0.1 * torch.randn(len(x), 1, 1, 1)) + 0.04 * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)
    return x.clamp(0, 1)


def train(a):
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    random = np.random.default_rng(a.seed)
    sets = drawn.load(a.data)
    CONFIG.update(patch_size=a.patch, hidden_size=a.width, intermediate_size=2 * a.width)
    encoder = read(a.start).train() if a.start else Encoder()
    heads = nn.Linear(CONFIG["hidden_size"], sum(ATTRIBUTES))
    print(sum(p.numel() for p in encoder.parameters()), "parameters", {k: len(v["winner"]) for k, v in sets.items()}, flush=True)
    matrices = [p for p in encoder.blocks.parameters() if p.ndim == 2]
    rest = [p for name, p in encoder.named_parameters() if not (name.startswith("blocks") and p.ndim == 2)]
    optimizers = [Muon(matrices, lr=2 * a.lr, weight_decay=0.02),
                  torch.optim.AdamW([*rest, *heads.parameters()], lr=a.lr, betas=(0.9, 0.99), weight_decay=0.0)]
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    averages = {name: x.clone() for name, x in encoder.state_dict().items()}
    start, step, sums = time.process_time(), 0, np.zeros(4)
    while (share := (time.process_time() - start) / (60 * a.minutes)) < 1:
        step += 1
        for rate, group in zip(rates, (group for optimizer in optimizers for group in optimizer.param_groups)):
            group["lr"] = rate * min(1, step / 100) * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * share)))
        squares_of, references, identities = [], [], []
        for subjects, count in ((1, a.batch // 2), (2, a.batch // 4)):
            data = sets[subjects]
            pick = random.integers(len(data["winner"]), size=count)
            squares_of.append(squares(around(data["winner"][pick], data["priors"][pick], random)))
            references.append(data["references"][pick].reshape(-1, *data["references"].shape[2:]))
            identities.append(data["identities"][pick].reshape(-1, 4))
        singles, identities = len(squares_of[0]), torch.from_numpy(np.concatenate(identities)).long()
        both = torch.cat([disturbed(torch.cat(squares_of)), disturbed(squares(np.concatenate(references)))])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            classes = encoder(normalised(both)).float()
        of_subjects, of_references = F.normalize(classes, dim=-1).chunk(2)
        who = identities @ torch.tensor([1000, 100, 10, 1])
        same = (who[:, None] == who) & ~torch.eye(len(who), dtype=torch.bool)
        logits = (of_subjects @ of_references.T / TEMPERATURE).masked_fill(same, -1e4)
        contrast = F.cross_entropy(logits, torch.arange(len(who)))
        logs = heads(classes).split(ATTRIBUTES, -1)
        naming = sum(F.cross_entropy(l, identities[:, i].repeat(2)) for i, l in enumerate(logs))
        for optimizer in optimizers:
            optimizer.zero_grad()
        (contrast + 0.5 * naming).backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            now = encoder.state_dict()
            torch._foreach_lerp_([averages[name] for name in now], list(now.values()), 1 - min(0.99, step / (step + 10)))
        hit = logits.argmax(-1) == torch.arange(len(who))
        sums += contrast.item(), naming.item(), hit[:singles].float().mean().item(), hit[singles:].float().mean().item()
        if step % 50 == 0:
            c, n, one, two = sums / 50
            print(f"step {step} contrast {c:.3f} naming {n:.3f} first one {one:.3f} two {two:.3f} of {len(who)} "
                  f"{(time.process_time() - start) / step:.2f} s/step", flush=True)
            sums[:] = 0
            write(averages, a.out)
    write(averages, a.out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of shards")
    parser.add_argument("--out", help="folder for the encoder")
    parser.add_argument("--start", metavar="FOLDER", help="begin at this encoder")
    parser.add_argument("--evaluate", metavar="FOLDER", help="rank the drawn winners by this encoder, and stop")
    parser.add_argument("--minutes", type=float, default=8, help="of processor time")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--patch", type=int, default=12, help="pixels along each side of a patch")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    if a.evaluate:
        encoder = read(a.evaluate)
        for subjects, data in drawn.load(a.data).items():
            share = ranked_first(encoder, data["winner"], data)
            print(f"winners of {subjects}: {share:.3f} of {data['references'].shape[0] * subjects} subjects first of 20, chance 0.05")
    elif a.out:
        train(a)
    else:
        parser.error("training needs --out")


if __name__ == "__main__":
    main()
