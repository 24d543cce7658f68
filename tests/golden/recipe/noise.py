"""Initial noise as torch's CPU generator draws it, in the three rules a caller can ask for."""

import numpy as np
import torch

from .weights import crc32

SEEDS = (0, 1, 42, 1234567, 2**31, 2**32 - 1, 2**32 + 42, 2**63 - 1)
# (width, height) in pixels; latents are [1, 16, height / 8, width / 8].
SIZES = ((16, 16), (64, 64), (96, 64), (64, 96), (128, 128), (512, 512))
# crc32 over the little-endian bytes for 1024 x 1024, from independent runs of several torch versions.
KNOWN = {
    0: {"f32": 0xBF901766, "bf16": 0x6B479EEA, "bf16-legacy": 0x396B89CD},
    42: {"f32": 0x0FA124CC, "bf16": 0x8D0485D4, "bf16-legacy": 0x2013F503},
}


def latent_shape(width: int, height: int) -> tuple[int, ...]:
    return (1, 16, height // 8, width // 8)


def round_bf16(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(torch.bfloat16).float().numpy()


def bf16_legacy(seed: int, count: int) -> np.ndarray:
    """torch <= 2.11: 8-bit uniforms, Box-Muller with every intermediate rounded to bf16. Needs count % 16 == 0."""
    assert count % 16 == 0
    words = np.random.RandomState(seed & 0xFFFFFFFF).randint(0, 2**32, size=count, dtype=np.uint32)
    uniform = ((words & 0xFF).astype(np.float32) * np.float32(2.0**-8)).reshape(-1, 2, 8)
    r = round_bf16(np.log(round_bf16(1 - uniform[:, 0])))
    r = round_bf16(np.sqrt(round_bf16(np.float32(-2) * r)))
    theta = round_bf16(2 * np.pi * uniform[:, 1].astype(np.float64))
    out = np.stack([round_bf16(r * round_bf16(np.cos(theta))), round_bf16(r * round_bf16(np.sin(theta)))], axis=1)
    return out.reshape(-1) + np.float32(0)  # -0 becomes +0


def draw(seed: int, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The unpacked noise [1, 16, h, w] under each rule."""

    def torch_randn(dtype):
        return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=dtype)

    f32, bf16 = torch_randn(torch.float32), torch_randn(torch.bfloat16)
    assert torch.equal(bf16, f32.to(torch.bfloat16)), "torch before 2.12 draws the legacy bf16 noise"
    legacy = torch.from_numpy(bf16_legacy(seed, f32.numel())).reshape(shape).to(torch.bfloat16)
    return {"f32": f32, "bf16": bf16, "bf16-legacy": legacy}


def cases() -> list[dict]:
    for seed, expected in KNOWN.items():
        drawn = draw(seed, latent_shape(1024, 1024))
        for rule, crc in expected.items():
            assert crc32(drawn[rule]) == f"{crc:08x}", (seed, rule)
    rows = []
    for seed in SEEDS:
        for width, height in SIZES:
            row = {"seed": seed, "width": width, "height": height}
            for rule, tensor in draw(seed, latent_shape(width, height)).items():
                row[rule] = {"crc32": crc32(tensor), "first": tensor.flatten()[:8].tolist()}
            rows.append(row)
    return rows
