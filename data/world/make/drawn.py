"""Reads the shards that `draw_world training` and `draw_world measured` write.

Shape letters: `N` samples, `R` references of each (1 or 2), `L` text tokens.

| tensor | shape |
|---|---|
| `winner` | `[N, 96, 96, 3]` bytes |
| `references` | `[N, R, 64, 64, 3]` bytes |
| `reference_masks` | `[N, R, 64]` bytes, 1 where at least half of a token is the subject |
| `priors` | `[N, R, 144]` bytes, the same for the winner |
| `identities` | `[N, R, 4]` bytes: shape, texture, colour of the body, colour of the pattern |
| `text`, `pooled` | `[N, L, 48]`, `[N, 32]` |
"""

import glob

import numpy as np
from safetensors.numpy import load_file


def load(folder):
    """Samples by number of subjects: {1: arrays, 2: arrays}."""
    sets = {}
    for subjects in (1, 2):
        shards = [load_file(path) for path in sorted(glob.glob(f"{folder}/subjects{subjects}-*.safetensors"))]
        if shards:
            sets[subjects] = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
    if not sets:
        raise SystemExit(f"{folder} holds no shards: draw them first (data/world/README.md)")
    return sets


def pictures(folder):
    """Arrays `[N, side, side, 3]` of bytes: winners and references, of one subject and of two."""
    sets = load(folder)
    return [x for data in sets.values() for x in (data["winner"], data["references"].reshape(-1, *data["references"].shape[2:]))]
