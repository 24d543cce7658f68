#!/usr/bin/env python3
"""Fits the colors of previews: the linear map from the final latents to means of 8 x 8 pixels, by least squares.

  models/demo/fit_preview.py target/debug/schnell [--pictures N]

Draws random scenes with the bundled model and prints the table for src/pipeline/preview.rs, factors and then the bias, and how much of the
variance of other scenes it explains.
"""

import argparse
import random
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import scenes

STEPS, SIDE, CHANNELS = 4, 16, 16


def sample(schnell: str, prompt: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents with a 1 behind them, and red, green and blue in [-1, 1], of every place."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        command = [schnell, "generate", prompt, "--seed", str(seed), "--steps", str(STEPS), "--t5-length", "32"]
        command += ["--device", "emulator", "--output", str(folder / "out.png"), "--dump", str(folder / "dump")]
        subprocess.run(command, check=True, capture_output=True)
        tokens = load_file(folder / "dump" / f"latents_{STEPS - 1}.safetensors").popitem()[1]
        image = load_file(folder / "dump" / "vae_out.safetensors").popitem()[1]
    latents = tokens.reshape(SIDE // 2, SIDE // 2, CHANNELS, 2, 2).transpose(0, 3, 1, 4, 2).reshape(-1, CHANNELS)
    means = image.clip(-1, 1).reshape(3, SIDE, 8, SIDE, 8).mean(axis=(2, 4)).reshape(3, -1).T
    return np.hstack([latents, np.ones((len(latents), 1), latents.dtype)]).astype(np.float64), means.astype(np.float64)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("schnell")
    parser.add_argument("--pictures", type=int, default=64)
    args = parser.parse_args()
    rng = random.Random(0)
    prompts = [scenes.prompt(rng, scenes.draw_scene(rng, pair=i % 2 == 0, held_out=False)) for i in range(args.pictures)]
    with ThreadPoolExecutor(2) as pool:
        samples = list(pool.map(lambda job: sample(args.schnell, job[1], job[0]), enumerate(prompts)))
    fitted = samples[: len(samples) * 3 // 4]
    a, b = (np.vstack(parts) for parts in zip(*fitted))
    factors = np.linalg.lstsq(a, b, rcond=None)[0]
    for row in factors:
        print("        [" + ", ".join(f"{value:.4f}" for value in row) + "],")
    a, b = (np.vstack(parts) for parts in zip(*samples[len(fitted) :]))
    left = ((a @ factors).clip(-1, 1) - b).var()
    print(f"{len(fitted)} scenes; of {len(samples) - len(fitted)} others {1 - left / b.var():.3f} of the variance")


if __name__ == "__main__":
    main()
