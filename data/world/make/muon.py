"""Muon (Jordan et al. 2024): the step of a matrix is its momentum, orthogonalised by Newton and Schulz's iteration, here for all matrices of
one shape at once. Steps have the root mean square that AdamW's have, 0.2 of the rate (Liu et al. 2025, arXiv 2502.16982)."""

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonal(x, rounds=5):
    """`[K, M, N]`, M <= N: about the nearest matrices with orthonormal rows."""
    a, b, c = COEFFICIENTS
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(rounds):
        square = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.float()


class Muon(torch.optim.Optimizer):
    def __init__(self, matrices, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(matrices, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                shapes.setdefault(tuple(sorted(p.shape)), []).append(p)
            for (small, large), matrices in shapes.items():
                directions = []
                for p in matrices:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    # Nesterov's.
                    direction = p.grad.lerp(buffer, group["momentum"])
                    directions.append(direction if p.shape[0] == small else direction.T)
                rate = group["lr"] * 0.2 * large**0.5
                for p, direction in zip(matrices, orthogonal(torch.stack(directions))):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(direction if p.shape[0] == small else direction.T, alpha=rate)
