"""Draws held-out subjects with the backbone and has the identity encoder rank their references.

    python data/world/make/measure.py target/world/held_out --world data/world --count 96 --strip strip.png
    python data/world/make/measure.py target/world/held_out --world data/world --work target/world/backbone   # a checkpoint in training

A subject counts if, of 20 references, its own is the nearest to the drawn picture, of which the encoder sees the square where the winner has
the subject. The other 19 are of other held-out subjects, and none
of them is of the picture's other subject. Chance is 0.05. The same for the drawn winners says how good the encoder is.
"""

import argparse

import numpy as np
import torch
from diffusers import AutoencoderTiny, FluxTransformer2DModel
from PIL import Image

import drawn
from lean import Lean
from train_backbone import Latents, averaged, decode, sample
from train_identity import ranked_first, read


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of shards")
    parser.add_argument("--world", required=True, help="folder of autoencoder, identity and backbone")
    parser.add_argument("--work", help="take the averaged weights of the checkpoint in this folder instead of the backbone")
    parser.add_argument("--count", type=int, default=96, help="scenes of one subject, and half as many of two")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--shift", type=float, default=1.62)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fast", action="store_true", help="compute in bfloat16")
    parser.add_argument("--strip", help="write references, winners and drawn pictures here")
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    autoencoder = AutoencoderTiny.from_pretrained(f"{a.world}/autoencoder").to(memory_format=torch.channels_last)
    if a.work:
        saved = torch.load(f"{a.work}/checkpoint.pt")
        model = averaged(saved["averages"])
        print(f"step {saved['step']}, {saved['seconds'] / 60:.0f} minutes")
    else:
        model = FluxTransformer2DModel.from_pretrained(f"{a.world}/backbone").float()
    lean, encoder, rows = Lean(model, torch.bfloat16 if a.fast else torch.float32), read(f"{a.world}/identity"), []
    for subjects, data in drawn.load(a.data).items():
        count = a.count // subjects
        batch = Latents({name: x[:count] for name, x in data.items()}, autoencoder).batch(np.arange(count))
        pictures = decode(autoencoder, sample(lean, batch, a.steps, a.shift, a.seed))
        found = ranked_first(encoder, pictures, data)
        ceiling = ranked_first(encoder, data["winner"][:count], data)
        away = np.abs(pictures.astype(float) - data["winner"][:count]).mean()
        print(f"{subjects} subject(s): {found:.3f} of {count * subjects} first of 20; drawn winners {ceiling:.3f}; chance 0.05; "
              f"grey levels from the winner {away:.1f}", flush=True)
        rows += strip(data, pictures, 12)
    if a.strip:
        Image.fromarray(np.concatenate(rows)).save(a.strip)


def strip(data, pictures, columns):
    """Rows of references, winners and drawn pictures."""
    padded = np.full((columns, data["references"].shape[1], 64, 96, 3), 255, np.uint8)
    padded[:, :, :, 16:80] = data["references"][:columns]
    return [np.concatenate(list(padded[:, r]), 1) for r in range(padded.shape[1])] + [
        np.concatenate(list(x[:columns]), 1) for x in (data["winner"], pictures)]


if __name__ == "__main__":
    main()
