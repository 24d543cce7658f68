"""Compares a `schnell generate --dump DIR` folder with the goldens of one case.

    python compare.py DIR CASE [--image out.png] [--tolerance X] [--f32]

Prints one line per tensor: relative L2 distance to the f32 golden, the tolerance, ok or FAIL. Exit status 1 if
anything fails. Needs torch, safetensors, and for --image numpy and pillow.

Tolerance: max(2e-2, twice torch's own bf16 error of that tensor), the limit that mistakes.json is proven
against; for the image, torch's bf16 PSNR less 6 dB. --f32 asks for 1e-3 instead (an f32 implementation). Token
ids, and the f32 noise, must be equal.
"""

import argparse
import json
import sys
import zlib
from pathlib import Path

import torch
from safetensors import safe_open

HERE = Path(__file__).resolve().parent


def read_cases(file: Path) -> list[dict]:
    return json.loads(file.read_text(encoding="utf-8"))["cases"]


def find_case(name: str) -> tuple[Path, dict]:
    for file in sorted(HERE.glob("*/cases.json")):
        for case in read_cases(file):
            if case["name"] == name:
                return file.parent, case
    known = [c["name"] for f in sorted(HERE.glob("*/cases.json")) for c in read_cases(f)]
    raise SystemExit(f"no case {name}; there are: {' '.join(known)}")


def load_goldens(folder: Path, case: dict) -> tuple[dict, dict]:
    """The case's tensors and their records. What equals the base case's is kept there only."""
    cases = {c["name"]: c for c in read_cases(folder / "cases.json")}
    tensors, records = {}, {}
    with safe_open(folder / "goldens.safetensors", "pt") as file:
        for name in filter(None, (case.get("base"), case["name"])):
            for stage, record in cases[name]["tensors"].items():
                tensors[stage], records[stage] = file.get_tensor(f"{name}.{stage}"), record
    return tensors, records


def load_dump(folder: Path, stage: str) -> torch.Tensor | None:
    path = folder / f"{stage}.safetensors"
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        (key,) = file.keys()
        return file.get_tensor(key)


def rel_l2(value: torch.Tensor, golden: torch.Tensor) -> float:
    value, golden = value.double().flatten(), golden.double().flatten()
    return float((value - golden).norm() / golden.norm())


def check_noise(value: torch.Tensor, record: dict) -> tuple[str, bool]:
    if value.dtype == torch.float32:
        crc = f"{zlib.crc32(value.contiguous().flatten().view(torch.uint8).numpy().tobytes()):08x}"
        return f"crc32 {crc}, golden {record['crc32']}", crc == record["crc32"]
    # Only the first values are kept: enough to see which rule drew the noise.
    first = torch.tensor(record["first"]).to(value.dtype)
    return "first values in " + str(value.dtype), torch.equal(value.flatten()[: len(first)], first)


def check_image(path: Path, golden: Path, least_db: float) -> tuple[str, bool]:
    import numpy as np
    from PIL import Image

    a, b = (np.asarray(Image.open(p).convert("RGB"), dtype=np.float64) for p in (path, golden))
    if a.shape != b.shape:
        return f"size {a.shape[:2]}, golden {b.shape[:2]}", False
    mse = ((a - b) ** 2).mean()
    psnr = float("inf") if mse == 0 else 10 * np.log10(255**2 / mse)
    return f"PSNR {psnr:.1f} dB, at least {least_db:.1f}; largest difference {abs(a - b).max():.0f}", psnr >= least_db


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dump", type=Path)
    parser.add_argument("case")
    parser.add_argument("--image", type=Path)
    parser.add_argument("--tolerance", type=float, help="one relative L2 limit for every tensor")
    parser.add_argument("--f32", action="store_true")
    args = parser.parse_args()

    folder, case = find_case(args.case)
    goldens, records = load_goldens(folder, case)
    results = []

    def report(stage, text, passed):
        results.append(passed)
        print(f"{stage:14s} {text:58s} {'ok' if passed else 'FAIL'}")

    noise = load_dump(args.dump, "noise")
    if noise is not None:
        report("noise", *check_noise(noise, case["noise"]))
    for stage, golden in goldens.items():
        value = load_dump(args.dump, stage)
        if value is None:
            report(stage, "not in the dump", False)
        elif value.numel() != golden.numel():
            report(stage, f"shape {list(value.shape)}, golden {list(golden.shape)}", False)
        elif stage.startswith("tokens"):
            wrong = int((value.flatten().long() != golden.flatten().long()).sum())
            report(stage, f"{wrong} of {golden.numel()} ids differ", wrong == 0)
        else:
            tolerance = args.tolerance or (1e-3 if args.f32 else max(2e-2, 2 * records[stage].get("bf16_rel_l2", 0)))
            if stage == "sigmas":
                tolerance = 1e-6
            error = rel_l2(value, golden)
            report(stage, f"rel L2 {error:.2e}, at most {tolerance:.2e}", error <= tolerance)  # NaN fails
    if args.image:
        # 6 dB less is twice the error.
        least_db = case["bf16_image_psnr_db"] - 6
        report("image", *check_image(args.image, folder / "images" / f"{case['name']}.png", least_db))
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
