"""Weights that need not be stored: every value is a hash of its tensor's name and its index.

README.md states the formula for implementers in other languages; this is its Python form. All integer
arithmetic is modulo 2^64, and every float operation below is one IEEE f32 operation, so two
implementations that follow the same order agree in every bit.
"""

import json
import math
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
WEIGHTED = ("transformer", "text_encoder", "text_encoder_2", "vae")


def fnv1a64(text: str) -> int:
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def splitmix64(x: np.ndarray) -> np.ndarray:
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def generate(key: str, shape, dtype: torch.dtype, scale: float, mean: float) -> torch.Tensor:
    """`mean + scale * r`, r uniform in [-1, 1) in steps of 2^-23, element i hashed from (key, i)."""
    index = np.arange(math.prod(shape), dtype=np.uint64)
    bits = splitmix64(np.uint64(fnv1a64(key)) + index) >> np.uint64(40)
    r = (bits.astype(np.int64) - 2**23).astype(np.float32) * np.float32(2.0**-23)
    values = np.float32(mean) + np.float32(scale) * r
    assert values.dtype == np.float32
    return torch.from_numpy(values).reshape(tuple(shape)).to(dtype)


def crc32(tensor: torch.Tensor) -> str:
    """Of the little-endian bytes, as they lie in a safetensors file."""
    return f"{zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()):08x}"


class Rules:
    """First matching pattern decides a tensor's (scale, mean).

    A rule is `(pattern, gain, mean)`. For matrices and convolutions `gain` is the ratio of output to input
    RMS that uniform weights of the chosen scale give; for vectors and tables it is the scale itself.
    """

    def __init__(self, *rules, tables=()):
        self.rules = [(re.compile(pattern), gain, mean) for pattern, gain, mean in rules]
        self.tables = re.compile("|".join(tables) or "$^")

    def of(self, name: str, shape) -> tuple[float, float]:
        for pattern, gain, mean in self.rules:
            if pattern.search(name):
                break
        else:
            raise KeyError(f"no rule for {name}")
        scale = gain
        if len(shape) > 1 and not self.tables.search(name):
            scale = gain * math.sqrt(3 / math.prod(shape[1:]))
        # Multiples of 2^-12 are exact in f32 and in decimal: no reader of the manifest can round them.
        return round(scale * 4096) / 4096, round(mean * 4096) / 4096


def fill(model: torch.nn.Module, prefix: str, rules: Rules, rename=lambda name: name) -> dict:
    """Fills `model`; returns {saved name: (scale, mean)}. `rename` maps a module's name to the saved one."""
    recipe = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            saved = rename(name)
            scale, mean = rules.of(saved, parameter.shape)
            parameter.copy_(generate(f"{prefix}/{saved}", parameter.shape, parameter.dtype, scale, mean))
            recipe[saved] = (scale, mean)
    return recipe


def rename_saved(path: Path, rename) -> None:
    """Rewrites one safetensors file with other tensor names."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {rename(k): file.get_tensor(k) for k in file.keys()}
    save_file(tensors, path, metadata=metadata)


def manifest(pipe_name: str, folder: Path, recipes: dict) -> list[dict]:
    """Lists every saved tensor, after checking that its saved bits are what the formula gives."""
    entries = []
    for component in WEIGHTED:
        for path in sorted((folder / component).glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for name in sorted(file.keys()):
                    tensor = file.get_tensor(name)
                    scale, mean = recipes[component][name]
                    expected = generate(f"{pipe_name}/{component}/{name}", tensor.shape, tensor.dtype, scale, mean)
                    assert torch.equal(tensor, expected), name
                    entries.append(
                        {
                            "file": f"{component}/{path.name}",
                            "name": name,
                            "shape": list(tensor.shape),
                            "dtype": DTYPES[tensor.dtype],
                            "scale": scale,
                            "mean": mean,
                            "crc32": crc32(tensor),
                        }
                    )
        assert {e["name"] for e in entries if e["file"].startswith(component + "/")} == set(recipes[component])
    return entries


def write_manifest(path: Path, pipe_name: str, entries: list[dict]) -> None:
    # One line per tensor keeps diffs readable.
    lines = ",\n".join("  " + json.dumps(e) for e in entries)
    path.write_text(f'{{"pipeline": "{pipe_name}", "tensors": [\n{lines}\n]}}\n')
