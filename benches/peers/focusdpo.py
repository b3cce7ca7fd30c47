"""One FocusDPO step: reference and policy passes, scores, focus mask, masked loss, backward into the LoRA, AdamW.

B pairs; rows are the winners, then the losers. S target tokens, R tokens of the reference.
"""

import torch
import torch.nn.functional as F

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


class Probe:
    """The mean over blocks of the cosines between the winners' target tokens and the mean of their reference's."""

    def __init__(self, pairs, targets):
        self.pairs, self.targets, self.sum, self.blocks = pairs, targets, 0.0, 0

    @torch.no_grad()
    def __call__(self, image):
        self.sum = self.sum + cosines(image[: self.pairs], self.targets)
        self.blocks += 1


def cosines(image, targets):
    reference = image[:, targets:].float().mean(1, keepdim=True)
    return F.cosine_similarity(reference, image[:, :targets].float(), dim=-1)


def focus(scores, prior, subject, rgb):
    """The mask `[B, S]`: what of the prior was not found, and where nearly all was found, detail as well. `subject` is the number of cells of the
    prior for each sample, on the host."""
    hit = torch.zeros_like(scores)
    for b, count in enumerate(subject):
        hit[b, scores[b].topk(count).indices] = 1
    structure = prior * (1 - hit)
    coverage = structure.sum(1, keepdim=True) / prior.sum(1, keepdim=True)
    return torch.where(coverage > TAU, structure, GAMMA * structure + (1 - GAMMA) * entropy(rgb) * prior)


def masked_loss(policy, reference, target, mask):
    mask = mask.repeat(2, 1)[..., None]
    error = lambda prediction: ((target - prediction) * mask).pow(2).mean((1, 2))
    winner, loser = (error(policy) - error(reference)).chunk(2)
    return -F.logsigmoid(-BETA / 2 * (winner - loser)).mean()


class Step:
    """A step of one model on one batch, which holds `text, pooled, reference, winner, prior`, of pairs."""

    def __init__(self, model, parameters, batch, guidance, dtype, lr):
        self.model, self.guidance, self.dtype, self.batch = model, guidance, dtype, batch
        device = batch["text"].device
        self.parameters = list(parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, fused=device.type == "cuda")
        twice = lambda x: torch.cat((x, x)).to(dtype)
        self.text, self.pooled = twice(batch["text"]), twice(batch["pooled"])
        self.reference = twice(tokens(batch["reference"]))
        self.prior = batch["prior"].flatten(1)
        self.subject = [int(n) for n in self.prior.sum(1)]
        grid, reference = batch["prior"].shape[-1], batch["reference"].shape[-1] // 2
        self.rotary = model.rotary(self.text.shape[1], grid, reference, device)

    def __call__(self, x_t, target, t):
        """The loss of noised latents `x_t`, their target and time, winners and losers below each other."""
        pairs, targets = self.prior.shape
        image = torch.cat((tokens(x_t).to(self.dtype), self.reference), 1)
        run = lambda adapted, probe=None: self.model(
            image, targets, self.text, self.pooled, t, self.guidance, self.rotary, adapted, probe
        ).float()
        with torch.no_grad():
            reference = run(False)
        probe = Probe(pairs, targets)
        policy = run(True, probe)
        with torch.no_grad():
            mask = focus(probe.sum / probe.blocks, self.prior, self.subject, self.batch["winner"])
        loss = masked_loss(policy, reference, tokens(target), mask)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def gradient_norm(self):
        return float(sum(p.grad.double().pow(2).sum() for p in self.parameters).sqrt())
