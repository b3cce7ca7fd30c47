#!/usr/bin/env python3
"""Writes nn/tests/solvers.json: trajectories of diffusers' schedulers (0.42) on a network that is a matrix.

    pip install torch diffusers && tests/peers/solvers.py > nn/tests/solvers.json

Latents are `[1, 4, 2, 2]`; the network multiplies their channels by `matrix`. Fresh noise is row i of `fresh` at step i.
"""

import json

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from diffusers.schedulers import scheduling_euler_ancestral_discrete as ancestral

STEPS = 7
SDXL = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)

torch.manual_seed(7)
matrix = torch.randn(4, 4, dtype=torch.float64) * 0.4
init = torch.randn(1, 4, 2, 2, dtype=torch.float64)
fresh = torch.randn(STEPS, 1, 4, 2, 2, dtype=torch.float64)


def run(scheduler):
    scheduler.set_timesteps(STEPS)
    drawn = iter(fresh)
    ancestral.randn_tensor = lambda *_, **__: next(drawn)
    x = init * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        predicted = torch.einsum("ij,bjhw->bihw", matrix, scheduler.scale_model_input(x, t))
        x = scheduler.step(predicted, t, x).prev_sample
    # On the way DPM-Solver's latents have unit variance, and Euler's are in units of the signal; at the end both are the same.
    return dict(times=[float(t) for t in scheduler.timesteps], end=x.flatten().tolist())


def both(kind, **more):
    for predicts in ("epsilon", "v_prediction"):
        yield predicts, run(kind(**SDXL, prediction_type=predicts, **more))


cases = {}
for name, kind, more in (
    ("ddim", DDIMScheduler, dict(clip_sample=False, set_alpha_to_one=False, timestep_spacing="leading")),
    ("euler", EulerDiscreteScheduler, dict(timestep_spacing="leading")),
    ("euler_ancestral", EulerAncestralDiscreteScheduler, dict(timestep_spacing="leading")),
    ("dpmpp_2m_karras", DPMSolverMultistepScheduler, dict(use_karras_sigmas=True, timestep_spacing="leading")),
):
    cases[name] = dict(both(kind, **more))
zero = dict(timestep_spacing="trailing", rescale_betas_zero_snr=True, prediction_type="v_prediction")
cases["ddim"]["zero_snr"] = run(DDIMScheduler(**SDXL, clip_sample=False, set_alpha_to_one=False, **zero))
cases["euler"]["zero_snr"] = run(EulerDiscreteScheduler(**SDXL, **zero))
print(json.dumps(dict(matrix=matrix.flatten().tolist(), init=init.flatten().tolist(), fresh=fresh.reshape(STEPS, -1).tolist(), cases=cases)))
