"""One FocusDPO step: reference and policy passes, scores, focus mask, masked loss, backward into the LoRA, AdamW.

B pairs; rows are the winners, then the losers. S cells of the focus grid, C channels of a cell, R tokens of the reference.
"""

import torch
import torch.nn.functional as F

from flux import Flux
from unet import UNet

BETA = 2000.0
TAU, GAMMA = 0.1, 0.3


def tokens(latents):
    """2x2 cells are a token: `[B, C, H, W]` as `[B, H W / 4, 4 C]`."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 2) * (w // 2), 4 * c)


def entropy(rgb, patch=16, bins=32, sigma=0.01):
    """Entropy of the grey values of each patch, `[B, patches]`, stretched to [0, 1]."""
    channels = rgb.float() / 127.5 - 1
    gray = channels @ torch.tensor([0.2989, 0.5870, 0.1140], device=rgb.device)
    b, h, w = gray.shape
    values = gray.view(b, h // patch, patch, w // patch, patch).permute(0, 1, 3, 2, 4).reshape(b, -1, patch * patch, 1)
    counts = torch.exp(-0.5 * ((values - torch.linspace(-1, 1, bins, device=rgb.device)) / sigma) ** 2).sum(-2)
    share = counts / counts.sum(-1, keepdim=True).clamp_min(1e-30)
    found = -torch.special.xlogy(share, share).sum(-1)
    low, high = found.amin(1, keepdim=True), found.amax(1, keepdim=True)
    return (found - low) / (high - low).clamp_min(1e-30)


class Mean:
    """The mean over blocks of what their cells have in common with the reference, `[B, S]`."""

    def __init__(self):
        self.sum, self.blocks = 0.0, 0

    def add(self, found):
        self.sum, self.blocks = self.sum + found, self.blocks + 1

    def value(self):
        return self.sum / self.blocks


def cosines(cells, reference):
    """Of each cell with the mean of the reference's tokens."""
    mean = reference.float().mean(1, keepdim=True)
    return F.cosine_similarity(mean, cells.float(), dim=-1)


class FluxCase:
    """FLUX on a batch: its cells are tokens of 2x2 latents, and the reference stands behind the target."""

    def __init__(self, model, batch, guidance, dtype):
        self.model, self.guidance, self.dtype = model, guidance, dtype
        twice = lambda x: torch.cat((x, x)).to(dtype)
        self.text, self.pooled = twice(batch["text"]), twice(batch["pooled"])
        self.reference = twice(tokens(batch["reference"]))
        self.pairs, self.targets = batch["prior"].flatten(1).shape
        grid, reference = batch["prior"].shape[-1], batch["reference"].shape[-1] // 2
        self.rotary = model.rotary(self.text.shape[1], grid, reference, self.text.device)

    def cells(self, latents):
        return tokens(latents)

    def detail(self, rgb):
        return entropy(rgb)

    def predict(self, x_t, t, adapted, scores=None):
        """The prediction `[2B, S, C]`; `scores` gets those of the winners."""
        @torch.no_grad()
        def probe(image):
            winners = image[: self.pairs]
            scores.add(cosines(winners[:, : self.targets], winners[:, self.targets :]))
        image = torch.cat((tokens(x_t).to(self.dtype), self.reference), 1)
        look = probe if scores is not None else None
        args = (self.targets, self.text, self.pooled, t, self.guidance, self.rotary, adapted, look)
        return self.model(image, *args).float()


class UNetCase:
    """A U-Net on a batch: its cells are latents, and the reference is image tokens."""

    def __init__(self, model, batch, guidance, dtype):
        self.model, self.dtype = model, dtype
        twice = lambda x: torch.cat((x, x)).to(dtype)
        self.text, self.pooled, self.image = (twice(batch[name]) for name in ("text", "pooled", "image_prompt"))
        self.pairs, self.grid = batch["prior"].shape[0], batch["prior"].shape[-1]
        side = 8.0 * self.grid
        self.pictures = torch.tensor([side, side, 0, 0, side, side], device=self.text.device).repeat(2 * self.pairs, 1)

    def cells(self, latents):
        return latents.flatten(2).transpose(1, 2)

    def detail(self, rgb):
        found = entropy(rgb)
        side = self.grid // 2
        return self.spread(found.view(-1, side, side))

    def spread(self, maps):
        """Maps of fewer cells, each repeated over those that it covers."""
        each = self.grid // maps.shape[-1]
        return maps.repeat_interleave(each, 1).repeat_interleave(each, 2).flatten(1)

    def predict(self, x_t, t, adapted, scores=None):
        @torch.no_grad()
        def probe(q, k_ip, rows, columns):
            found = cosines(q[: self.pairs], k_ip[: self.pairs])
            scores.add(self.spread(found.view(-1, rows, columns)))
        x = x_t.to(self.dtype).contiguous(memory_format=torch.channels_last)
        look = probe if scores is not None else None
        return self.cells(self.model(x, t, self.text, self.pooled, self.pictures, self.image, adapted, look)).float()


CASES = {Flux: FluxCase, UNet: UNetCase}


def focus(scores, prior, subject, detail):
    """The mask `[B, S]`: what of the prior was not found, and where nearly all was found, detail as well. `subject` is the number of cells of the
    prior for each sample, on the host."""
    hit = torch.zeros_like(scores)
    for b, count in enumerate(subject):
        # Of equal scores the first cell's: those of a coarse attention are the same in several cells.
        hit[b, scores[b].sort(descending=True, stable=True).indices[:count]] = 1
    structure = prior * (1 - hit)
    coverage = structure.sum(1, keepdim=True) / prior.sum(1, keepdim=True)
    return torch.where(coverage > TAU, structure, GAMMA * structure + (1 - GAMMA) * detail * prior)


def masked_loss(policy, reference, target, mask):
    mask = mask.repeat(2, 1)[..., None]
    error = lambda prediction: ((target - prediction) * mask).pow(2).mean((1, 2))
    winner, loser = (error(policy) - error(reference)).chunk(2)
    return -F.logsigmoid(-BETA / 2 * (winner - loser)).mean()


class Step:
    """A step of one model on one batch of pairs, which holds `text, pooled, winner, prior`, and `reference` or `image_prompt`."""

    def __init__(self, model, parameters, batch, guidance, dtype, lr):
        self.case = CASES[type(model)](model, batch, guidance, dtype)
        self.winner = batch["winner"]
        self.parameters = list(parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, fused=self.winner.device.type == "cuda")
        self.prior = batch["prior"].flatten(1)
        self.subject = [int(n) for n in self.prior.sum(1)]

    def __call__(self, x_t, target, t):
        """The loss of noised latents `x_t`, their target and time, winners and losers below each other."""
        case, scores = self.case, Mean()
        with torch.no_grad():
            reference = case.predict(x_t, t, False)
        policy = case.predict(x_t, t, True, scores)
        with torch.no_grad():
            mask = focus(scores.value(), self.prior, self.subject, case.detail(self.winner))
        loss = masked_loss(policy, reference, case.cells(target), mask)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def gradient_norm(self):
        return float(sum(p.grad.double().pow(2).sum() for p in self.parameters).sqrt())
