"""Trains the demo's toy backbone: a tiny FLUX transformer with UNO reference tokens, on drawn subjects.

    cargo run --release --example draw_demo -- training target/demo/train --count 12000 --seed 1
    cargo run --release --example draw_demo -- training target/demo/pairs --count 32 --seed 0   # the scenes of pairs.jsonl
    python3 -m venv target/venv && target/venv/bin/pip install torch==2.11.0 diffusers==0.42.1 safetensors numpy
    train="target/venv/bin/python data/demo/make/train_backbone.py"
    $train target/demo/train --held-out target/demo/pairs --out data/demo/backbone
    $train target/demo/pairs --evaluate data/demo/backbone

Flow matching: x_t = (1 - sigma) x0 + sigma eps, the network is given sigma and predicts eps - x0 on the target's tokens.
Tokens are 2x2 latent cells, packed channel = c*4 + dy*2 + dx; position ids are (0, y, x), and each reference starts
where the target and the references before it end, on both axes.

Beside the flow loss there is a small auxiliary one (`--align`): it raises the score of a reference at the tokens of its
subject. What FocusDPO expects a large backbone to have learned by itself, a toy of a million parameters is told.
"""

import argparse
import glob
import json
import math
import os
import time

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file

CONFIG = dict(
    patch_size=1, in_channels=64, num_layers=2, num_single_layers=4, attention_head_dim=32, num_attention_heads=3,
    joint_attention_dim=48, pooled_projection_dim=32, guidance_embeds=False, axes_dims_rope=(8, 12, 12),
)


def pack(latents):
    """[B, C, H, W] to [B, H/2 * W/2, 4C]."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def positions(sides):
    """Position ids of square token grids, each starting where the ones before it end."""
    grids, offset = [], 0
    for side in sides:
        grid = torch.zeros(side, side, 3)
        grid[..., 1] = torch.arange(side)[:, None] + offset
        grid[..., 2] = torch.arange(side)[None] + offset
        grids.append(grid.view(-1, 3))
        offset += side
    return torch.cat(grids)


def load(folder):
    """Samples by number of subjects: {1: tensors, 2: tensors}, latents packed."""
    sets = {}
    for subjects in (1, 2):
        shards = [load_file(p) for p in sorted(glob.glob(f"{folder}/subjects{subjects}-*.safetensors"))]
        if not shards:
            continue
        data = {name: torch.cat([s[name] for s in shards]) for name in shards[0]}
        data["target"] = pack(data["target"])
        n, r = data["references"].shape[:2]
        data["references"] = pack(data["references"].flatten(0, 1)).view(n, r, -1, 64)
        sets[subjects] = data
    return sets


class Backbone:
    """The transformer, and the image tokens of its last pass after every block."""

    def __init__(self, model):
        self.model, self.taps = model, []
        for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
            block.register_forward_hook(lambda module, inputs, output: self.taps.append(output[1]))

    def predict(self, x_t, sigma, batch):
        self.taps.clear()
        references = batch["references"]
        b, r, t, _ = references.shape
        n = x_t.shape[1]
        out = self.model(
            hidden_states=torch.cat([x_t, references.flatten(1, 2)], 1), timestep=sigma,
            encoder_hidden_states=batch["text"], pooled_projections=batch["pooled"],
            img_ids=positions([math.isqrt(n)] + [math.isqrt(t)] * r), txt_ids=torch.zeros(batch["text"].shape[1], 3),
            return_dict=False,
        )[0]
        return out[:, :n]

    def scores(self, batch):
        """[B, R, T]: mean over blocks of the cosine between each reference's mean foreground token and the targets."""
        masks = batch["reference_masks"]
        b, r, t = masks.shape
        n = self.taps[0].shape[1] - r * t
        total = 0
        for tokens in self.taps:
            own = tokens[:, n:].view(b, r, t, -1)
            mean = (own * masks[..., None]).sum(2) / masks.sum(2)[..., None]
            total = total + torch.einsum("brd,bnd->brn", F.normalize(mean, dim=-1), F.normalize(tokens[:, :n], dim=-1))
        return total / len(self.taps)


def recall(scores, priors):
    """Share of the K best tokens that lie in the prior of K tokens, [B, R]; and chance, K / T."""
    k = priors.sum(-1).long()
    order = scores.argsort(dim=-1, descending=True, stable=True)
    hits = priors.gather(-1, order)
    first = torch.arange(priors.shape[-1]) < k[..., None]
    return (hits * first).sum(-1) / k, k / priors.shape[-1]


@torch.no_grad()
def evaluate(backbone, sets, sigmas=(0.05, 0.1, 0.2, 0.4, 0.7), most=96):
    """Rows of (subjects, sigma, flow loss, recall, chance) on fixed noise."""
    rows = []
    for subjects, data in sets.items():
        batch = {name: x[:most] for name, x in data.items()}
        x0 = batch["target"]
        eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(5))
        for s in sigmas:
            sigma = torch.full((len(x0),), s)
            out = backbone.predict((1 - s) * x0 + s * eps, sigma, batch)
            share, chance = recall(backbone.scores(batch), batch["priors"])
            loss = (out - (eps - x0)).pow(2).mean()
            rows.append(dict(subjects=subjects, sigma=s, loss=loss.item(), recall=share.mean().item(),
                             chance=chance.mean().item(), worst_over_chance=(share / chance).min().item()))
    return rows


def show(rows):
    for r in rows:
        print("  subjects {subjects} sigma {sigma:.2f} loss {loss:.3f} recall {recall:.3f} chance {chance:.3f} "
              "lowest recall/chance {worst_over_chance:.2f}".format(**r), flush=True)


def save(model, averages, folder):
    """Write the averaged weights, in bfloat16, as a diffusers folder."""
    copy = FluxTransformer2DModel(**CONFIG)
    copy.load_state_dict(averages)
    copy.to(torch.bfloat16).save_pretrained(folder)


def read(folder):
    return Backbone(FluxTransformer2DModel.from_pretrained(folder).float().eval())


def train(a):
    torch.manual_seed(a.seed)
    sets, held_out = load(a.data), load(a.held_out)
    model = FluxTransformer2DModel(**CONFIG)
    backbone = Backbone(model)
    print(sum(p.numel() for p in model.parameters()), "parameters", {k: len(v["target"]) for k, v in sets.items()})
    show(evaluate(backbone, held_out))
    optimizer = torch.optim.AdamW(model.parameters(), lr=a.lr, betas=(0.9, 0.99), weight_decay=0.01)
    averages = {name: x.clone() for name, x in model.state_dict().items()}
    sums, start = [0.0, 0.0], time.time()
    for step in range(1, a.steps + 1):
        rate = a.lr * min(1, step / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / a.schedule)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        data = sets[2 if step % 3 == 0 else 1]
        pick = torch.randint(len(data["target"]), (a.batch,))
        batch = {name: x[pick] for name, x in data.items()}
        x0 = batch["target"]
        eps, sigma = torch.randn_like(x0), torch.rand(a.batch)
        # Half of the draws at low noise, where details are decided.
        sigma = torch.where(torch.rand(a.batch) < 0.5, 0.4 * sigma, sigma)
        s = sigma.view(-1, 1, 1)
        out = backbone.predict((1 - s) * x0 + s * eps, sigma, batch)
        flow = (out - (eps - x0)).pow(2).mean()
        # The score as a distribution over target tokens, against the uniform one over the subject's tokens.
        wanted = batch["priors"] / batch["priors"].sum(-1, keepdim=True)
        logs = (backbone.scores(batch) / a.temperature).log_softmax(-1)
        distance = (wanted * (wanted.clamp_min(1e-9).log() - logs)).sum(-1).mean(-1)
        align = ((1 - sigma) * distance).mean()
        optimizer.zero_grad()
        (flow + a.align * align).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(a.decay, step / (step + 10))
        with torch.no_grad():
            for name, x in model.state_dict().items():
                averages[name].lerp_(x, 1 - decay)
        sums[0] += flow.item()
        sums[1] += align.item()
        if step % 50 == 0:
            print(f"step {step} flow {sums[0] / 50:.4f} align {sums[1] / 50:.4f} "
                  f"{(time.time() - start) / step:.3f} s/step", flush=True)
            sums = [0.0, 0.0]
        if step % a.every == 0 or step == a.steps:
            save(model, averages, a.out)
            show(evaluate(read(a.out), held_out))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of shards")
    parser.add_argument("--held-out", help="folder of shards to evaluate on while training")
    parser.add_argument("--out", help="folder for the trained transformer")
    parser.add_argument("--evaluate", metavar="FOLDER", help="evaluate this transformer on the data, as JSON, and stop")
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--schedule", type=int, default=2600, help="steps of the cosine schedule, which may be cut short")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--align", type=float, default=0.02, help="weight of the auxiliary loss")
    parser.add_argument("--temperature", type=float, default=0.1, help="of the scores in the auxiliary loss")
    parser.add_argument("--decay", type=float, default=0.995, help="of the average of the weights")
    parser.add_argument("--every", type=int, default=200, help="steps between saved and evaluated weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.evaluate:
        print(json.dumps(evaluate(read(a.evaluate), load(a.data)), indent=1))
    elif a.held_out and a.out:
        os.makedirs(a.out, exist_ok=True)
        train(a)
    else:
        parser.error("training needs --held-out and --out")


if __name__ == "__main__":
    main()
