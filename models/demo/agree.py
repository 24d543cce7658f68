"""Holds `schnell` against diffusers in float32 on the demo model's files: five prompts, every stage, and the picture.

    python agree.py --schnell ../../target/release/schnell       # prints a table; exits 1 if anything is off
    python agree.py --write                                      # remakes reference/, diffusers' pictures for the suite's test

Limits are those of the golden tests: relative L2 of max(2e-2, twice what torch's own bf16 costs), and 35 dB.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import bitsandbytes
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from PIL import Image
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1] / "tests/golden"))
from recipe import nf4, reference  # noqa: E402

PIPELINE, REFERENCE = HERE / "pipeline", HERE / "reference"


def dequantized() -> FluxTransformer2DModel:
    """The transformer in f32, its NF4 weights as bitsandbytes dequantizes them."""
    folder = PIPELINE / "transformer"
    stored = load_file(folder / "diffusion_pytorch_model.safetensors")
    weights = {}
    for name, tensor in stored.items():
        parts = {key.removeprefix(name + "."): value for key, value in stored.items() if key.startswith(name + ".")}
        if parts:
            state = bitsandbytes.functional.QuantState.from_dict(parts, device=torch.device("cpu"))
            state.dtype = torch.float32
            weights[name] = bitsandbytes.functional.dequantize_4bit(tensor, state)
        elif ".weight." not in name:
            weights[name] = tensor.float()
    config = {k: v for k, v in FluxTransformer2DModel.load_config(folder).items() if k != "quantization_config"}
    network = FluxTransformer2DModel.from_config(config)
    network.load_state_dict(weights)
    return network.eval()


def load(dtype: torch.dtype) -> FluxPipeline:
    pipe = FluxPipeline.from_pretrained(PIPELINE, transformer=dequantized(), torch_dtype=dtype)
    nf4.quantize_linears(pipe.text_encoder_2)  # as schnell does on loading, unless told otherwise
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(dtype)


def cases() -> list[reference.Case]:
    prompts = (REFERENCE / "prompts.txt").read_text().splitlines()
    return [
        reference.Case(str(n), prompt, 128, 128, steps=4, seed=n, t5_length=24) for n, prompt in enumerate(prompts)
    ]


def compare(schnell: str, case: reference.Case, golden: dict, image: Image.Image, bf16_error: dict) -> bool:
    good = True
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run(
            [schnell, "generate", case.prompt, "--seed", str(case.seed), "--dump", "dump"],
            cwd=folder, capture_output=True, text=True,
        )  # fmt: skip
        if ran.returncode != 0:
            sys.exit(ran.stderr)
        print(f"{case.seed} {case.prompt}")
        for stage, expected in golden.items():
            (got,) = load_file(f"{folder}/dump/{stage}.safetensors").values()
            if stage.startswith("tokens"):
                same = torch.equal(got, expected)
                print(f"  {stage:14} {'equal' if same else 'DIFFERENT'}")
                good &= same
                continue
            error, limit = reference.rel_l2(got, expected), max(2e-2, 2 * bf16_error.get(stage, 0.0))
            print(f"  {stage:14} {error:.2e} of {limit:.2e}{'' if error <= limit else '  EXCEEDED'}")
            good &= error <= limit
        distance = reference.psnr_db(Image.open(f"{folder}/out.png"), image)
        print(f"  picture        {distance:.1f} dB{'' if distance >= 35 else '  TOO FAR'}")
        return good and distance >= 35


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schnell", default=shutil.which("schnell"), help="the command to compare, if not the one in PATH")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    if not arguments.write and not arguments.schnell:
        parser.error("no schnell in PATH: say which with --schnell")
    pipe = load(torch.float32)
    pipe16 = None if arguments.write else load(torch.bfloat16)
    good = True
    for case in cases():
        golden, image = reference.run(pipe, case)
        if arguments.write:
            image.save(REFERENCE / f"{case.name}.png")
        else:
            errors = reference.bf16_errors(pipe16, case, golden, image).whole
            good &= compare(str(Path(arguments.schnell).resolve()), case, golden, image, errors)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
