"""Trains the world's autoencoder: 4x4 pixels of three colours to 16 values, in the layout of diffusers' AutoencoderTiny.

    python data/world/make/train_autoencoder.py target/world/training --out data/world/autoencoder --minutes 4

See data/world/README.md for what draws `target/world/training`.

Crops of winners and references; the loss is on pixels alone. Latents are drawn towards mean 0 and variance 1, and noise is added to them
before they are decoded, so that the decoder forgives the small errors of a sampler and the encoder spends its sixteen values on what
matters most.
"""

import argparse
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from drawn import pictures

CONFIG = dict(
    latent_channels=16, encoder_block_out_channels=(32, 32, 32), decoder_block_out_channels=(32, 32, 32),
    num_encoder_blocks=(0, 1, 2), num_decoder_blocks=(2, 2, 1), act_fn="relu", upsampling_scaling_factor=2,
)
CROP = 48


def crops(sets, count, random):
    """`[count, 3, CROP, CROP]` in [-1, 1]."""
    out = []
    for _ in range(count):
        pictures = sets[random.integers(len(sets))]
        picture = pictures[random.integers(len(pictures))]
        y, x = random.integers(picture.shape[0] - CROP + 1), random.integers(picture.shape[1] - CROP + 1)
        out.append(picture[y:y + CROP, x:x + CROP])
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train(a):
    torch.manual_seed(0)
    torch.set_num_threads(a.threads)
    random = np.random.default_rng(0)
    sets = pictures(a.data)
    model = AutoencoderTiny(**CONFIG).to(memory_format=torch.channels_last)
    print(sum(p.numel() for p in model.parameters()), "parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=a.lr, betas=(0.9, 0.99), weight_decay=0.0)
    averages = {name: x.clone() for name, x in model.state_dict().items()}
    start, step, sums = time.process_time(), 0, np.zeros(3)
    while time.process_time() - start < 60 * a.minutes:
        step += 1
        share = (time.process_time() - start) / (60 * a.minutes)
        for group in optimizer.param_groups:
            group["lr"] = a.lr * min(1, step / 100) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * share)))
        x = crops(sets, a.batch, random).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = model.encoder(x).float()
            mean, variance = z.mean((0, 2, 3)), z.var((0, 2, 3))
            # Half of the samples stay as they are.
            noisy = (torch.rand(len(z), 1, 1, 1) < 0.5) * a.noise * torch.randn_like(z)
            y = model.decoder(z + noisy).float()
        pixels = (y - x).abs().mean() + 2 * (y - x).pow(2).mean()
        unit = mean.pow(2).mean() + (variance.clamp_min(1e-6).sqrt() - 1).pow(2).mean()
        loss = pixels + 0.05 * unit + 0.01 * F.relu(z.abs() - 2.8).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for name, value in model.state_dict().items():
                averages[name].lerp_(value, 1 - min(0.995, step / (step + 10)))
        sums += [pixels.item(), unit.item(), (y - x).detach().pow(2).mean().item()]
        if step % 100 == 0:
            l, u, m = sums / 100
            print(f"step {step} pixels {l:.4f} unit {u:.4f} psnr {10 * np.log10(4 / m):.2f} {(time.process_time() - start) / step:.3f} s/step",
                  flush=True)
            sums[:] = 0
            save(averages, sets, a.out)
    save(averages, sets, a.out)


@torch.no_grad()
def save(averages, sets, folder):
    """Write the averaged weights, with the shift and the scale that give latents mean 0 and variance 1."""
    model = AutoencoderTiny(**CONFIG)
    model.load_state_dict(averages)
    winners = torch.from_numpy(sets[0][:128]).permute(0, 3, 1, 2).float() / 127.5 - 1
    z = model.encoder(winners)
    model.register_to_config(shift_factor=round(z.mean().item(), 4), scaling_factor=round(1 / z.std().item(), 4))
    os.makedirs(folder, exist_ok=True)
    model.save_pretrained(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of shards")
    parser.add_argument("--out", required=True, help="folder for the autoencoder")
    parser.add_argument("--minutes", type=float, default=4, help="of processor time")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--noise", type=float, default=0.15, help="standard deviation of what is added to latents")
    parser.add_argument("--threads", type=int, default=1)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
