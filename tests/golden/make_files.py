"""Makes files/ in this folder: what diffusers computes with pipeline `a` when its parts come from the files that people have.

Writes, below `--out` (default: files/ beside this; see README.md for the formats):
  files.json            the files, tensor by tensor, and the cases: which file stands in for which part, which LoRAs are applied
  goldens.safetensors   the tensors, named `<case>.<stage>`

Each file is written by the package whose format it is (safetensors, gguf, peft through diffusers), read back by it, and given to
diffusers in float32, by diffusers' own conversion from these names. Where diffusers reads the file itself, too (GGUF), both must
compute the same.

Made with the packages of make.py, and gguf 0.19.0, peft 0.21.2. On another CPU the last bits of the goldens may differ.

    python make_files.py           # a minute on one core
    python make_files.py --check   # remakes it elsewhere and compares the bytes
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import argparse
import copy
import filecmp
import inspect
import logging
import tempfile
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    GGUFQuantizationConfig,
)
from diffusers.loaders import lora_pipeline, single_file_model
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
torch.set_num_threads(1)
torch.set_flush_denormal(False)

from make import short
from recipe import files, pipelines, reference, weights
from recipe.files import File, Tensor
from recipe.reference import Case, rel_l2

HERE = Path(__file__).resolve().parent / "files"
SPEC = pipelines.A
HIDDEN, TEXT, POOLED = 256, SPEC.t5["d_model"], SPEC.clip["hidden_size"]
DOUBLE, SINGLE = SPEC.transformer["num_layers"], SPEC.transformer["num_single_layers"]
LEVELS = 4
PREFIXES = {
    "transformer": "model.diffusion_model.",
    "vae": "vae.",
    "clip": "text_encoders.clip_l.transformer.",
    "t5": "text_encoders.t5xxl.transformer.",
}
BASE = Case("", "A red cat on a hill", 64, 64, steps=1, seed=0, t5_length=16)


@dataclass
class FileCase:
    """A case, and what it takes from files: part to file; LoRAs with their strengths."""

    case: Case
    parts: dict[str, File] = field(default_factory=dict)
    loras: list[tuple[File, float]] = field(default_factory=list)


def bfl(choose, guidance=False) -> list[Tensor]:
    return files.tensors_of(files.bfl_shapes(HIDDEN, TEXT, POOLED, DOUBLE, SINGLE, guidance), files.BFL, choose)


def shapes_of(module: torch.nn.Module, keep=lambda name: True) -> dict[str, list[int]]:
    return {name: list(p.shape) for name, p in module.named_parameters() if keep(name)}


def t5(pipe: FluxPipeline, choose, rename=lambda name: name) -> list[Tensor]:
    return files.tensors_of(shapes_of(pipe.text_encoder_2), pipelines.T5, choose, rename)


def clip(pipe: FluxPipeline, choose) -> list[Tensor]:
    return files.tensors_of(shapes_of(pipe.text_encoder), pipelines.CLIP, choose, lambda name: f"text_model.{name}")


def vae(pipe: FluxPipeline, choose) -> list[Tensor]:
    made = files.tensors_of(shapes_of(pipe.vae), pipelines.VAE, choose)
    for tensor in made:
        if "attentions" in tensor.name and len(tensor.shape) == 2:
            tensor.shape += [1, 1]
        tensor.name = files.bfl_vae_name(tensor.name, LEVELS)
    return made


def wide(name, shape):
    """As published: bf16, but norms and biases in f32."""
    return "F32" if len(shape) < 2 else "BF16"


def all_of(kind):
    return lambda name, shape: kind


def fp8(kind, scaled):
    """Matrices of blocks; scaled, every other of them."""

    def choose(name, shape):
        if len(shape) < 2 or not any(part in name for part in ("blocks", "block.")) or "relative" in name:
            return "BF16"
        divisor = 2.0**-9 * 1.25 if "img" in name or "linear1" in name or "SelfAttention" in name else 2.0**-9 * 0.75
        return (kind, divisor) if scaled else kind

    return choose


def blocks_in(kind):
    """Matrices of blocks in one type, the rest as llama.cpp's and ComfyUI's converters leave it."""

    def choose(name, shape):
        if len(shape) < 2:
            return "F32"
        return kind if "blocks" in name else "F16" if name.startswith("txt_in") else "BF16"

    return choose


def gguf_file(kind: str) -> File:
    return File(f"flux-{kind}.gguf", bfl(blocks_in(kind)), {"general.architecture": "flux"})


def t5_gguf(pipe: FluxPipeline) -> File:
    names = files.t5_names(SPEC.t5["num_layers"])
    kinds = ["Q8_0", "Q5_0", "Q4_0", "Q5_1", "Q4_1"]

    def choose(name, shape):
        if len(shape) < 2:
            return "F32"
        return "F16" if "relative" in name else kinds[sum(name.encode()) % len(kinds)]

    def rename(name):
        return names.get_name(name, try_suffixes=(".weight", ".bias"))

    return File("t5.gguf", t5(pipe, choose, rename), {"general.architecture": "t5encoder"})


# ---- LoRA ---------------------------------------------------------------------------------------------------

LORA = weights.Rules((r"(lora_A|lora_down)\.(default\.)?weight$", 1.0, 0.0), (r"(lora_B|lora_up)\.(default\.)?weight$", 0.3, 0.0))


def settings(model: torch.nn.Module) -> dict:
    """As peft has them, but for the order of a set and a folder of today."""
    found = model.peft_config["default"].to_dict()
    return found | {"target_modules": sorted(found["target_modules"]), "base_model_name_or_path": "a"}


def diffusers_lora(folder: Path, full: Path) -> File:
    """As `FluxPipeline.save_lora_weights` writes what peft has trained: rank 8, alpha 16, of transformer and CLIP."""
    pipe = pipelines.load(full, torch.float32)
    targets = ["to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "to_add_out", "ff.net.0.proj", "proj_mlp", "norm.linear", "x_embedder"]
    pipe.transformer.add_adapter(LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    pipe.text_encoder.add_adapter(LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "fc1"]))
    pipe.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(pipe.transformer),
        text_encoder_lora_layers=get_peft_model_state_dict(pipe.text_encoder),
        transformer_lora_adapter_metadata=settings(pipe.transformer),
        text_encoder_lora_adapter_metadata=settings(pipe.text_encoder),
        weight_name="saved.safetensors",
    )
    with files.safe_open(folder / "saved.safetensors", "pt") as file:
        metadata = dict(sorted(file.metadata().items()))
        shapes = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
    return File("diffusers-lora.safetensors", files.tensors_of(shapes, LORA, all_of("F32")), metadata)


def kohya_lora() -> File:
    """As kohya's scripts write it: fused matrices, an alpha each, bf16."""
    shapes = files.bfl_shapes(HIDDEN, TEXT, POOLED, DOUBLE, SINGLE, False)
    modules = {f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}": shape for name, shape in shapes.items()
               if name.startswith(("double", "single")) and len(shape) == 2}  # fmt: skip
    width, mlp = SPEC.clip["hidden_size"], SPEC.clip["intermediate_size"]
    for layer in range(SPEC.clip["num_hidden_layers"]):
        at = f"lora_te1_text_model_encoder_layers_{layer}_"
        modules |= {f"{at}self_attn_{p}_proj": [width, width] for p in ("q", "k", "v", "out")}
        modules |= {f"{at}mlp_fc1": [mlp, width], f"{at}mlp_fc2": [width, mlp]}
    tensors = []
    for i, (name, (out, inside)) in enumerate(modules.items()):
        rank = [4, 16, 7][i % 3]
        for part, shape in [("lora_down", [rank, inside]), ("lora_up", [out, rank])]:
            tensors += files.tensors_of({f"{name}.{part}.weight": shape}, LORA, all_of("BF16"))
        tensors.append(Tensor(f"{name}.alpha", "BF16", [], 0.0, rank / 2))
    return File("kohya-lora.safetensors", tensors, {"ss_network_module": "networks.lora_flux"})


# ---- the reference ------------------------------------------------------------------------------------------


def with_other(function, old: str, new: str):
    """The same function but for a constant that is written into it."""
    source = inspect.getsource(function)
    assert source.count(old) == 1, f"{function.__name__} is another now"
    scope = dict(vars(inspect.getmodule(function)))
    exec(source.replace(old, new), scope)
    return scope[function.__name__]


def with_this_width() -> None:
    """diffusers' conversions from other names have FLUX's width written into them: puts this pipeline's there."""
    entry = single_file_model.SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    entry["checkpoint_mapping_fn"] = with_other(
        entry["checkpoint_mapping_fn"], "inner_dim = 3072", f"inner_dim = {HIDDEN}"
    )
    lora_pipeline._convert_kohya_flux_lora_to_diffusers = with_other(
        lora_pipeline._convert_kohya_flux_lora_to_diffusers,
        "dims=[3072, 3072, 3072, 12288]",
        f"dims={[HIDDEN, HIDDEN, HIDDEN, 4 * HIDDEN]}",
    )


def own(tensors: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    """Of a file of all parts, the part's; else all."""
    prefix = PREFIXES[part]
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return found or tensors


def load_part(pipe: FluxPipeline, part: str, path: Path, scratch: Path, full: Path) -> None:
    tensors = own(files.read(path), part)
    plain = scratch / "plain.safetensors"
    if part == "transformer":
        save_file(tensors, plain)
        config = copy.deepcopy(dict(pipe.transformer.config)) | {"guidance_embeds": "guidance_in.in_layer.weight" in tensors}
        folder = scratch / "transformer"
        folder.mkdir(exist_ok=True)
        FluxTransformer2DModel.from_config(config).save_config(folder)
        options = {"config": str(folder), "torch_dtype": torch.float32}
        model = FluxTransformer2DModel.from_single_file(str(plain), **options)
        if path.suffix == ".gguf":
            check_same(model, FluxTransformer2DModel.from_single_file(
                str(path), quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32), **options))  # fmt: skip
        pipe.transformer = model
    elif part == "vae":
        save_file(tensors, plain)
        pipe.vae = AutoencoderKL.from_single_file(str(plain), config=str(full / "vae"), torch_dtype=torch.float32)
    elif part == "clip":
        pipe.text_encoder.load_state_dict({name.removeprefix("text_model."): t for name, t in tensors.items()}, strict=True)
    else:
        if path.suffix == ".gguf":
            names = files.t5_names(SPEC.t5["num_layers"])
            ours = dict(pipe.text_encoder_2.named_parameters())
            tensors = {name: tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))] for name in ours}
        missing, unexpected = pipe.text_encoder_2.load_state_dict(tensors, strict=False)
        assert not unexpected and set(missing) <= {"encoder.embed_tokens.weight"}, (missing, unexpected)


def check_same(model: FluxTransformer2DModel, other: FluxTransformer2DModel) -> None:
    """Both compute the same of something."""
    random = torch.Generator("cpu").manual_seed(1)

    def of(*shape):
        return torch.randn(*shape, generator=random)

    inputs = {
        "hidden_states": of(1, 16, 64), "encoder_hidden_states": of(1, 8, TEXT), "pooled_projections": of(1, POOLED),
        "timestep": torch.tensor([0.7]), "img_ids": torch.randint(0, 4, (16, 3), generator=random).float(), "txt_ids": torch.zeros(8, 3),
    }  # fmt: skip
    with torch.no_grad():
        error = rel_l2(other(**inputs, return_dict=False)[0], model(**inputs, return_dict=False)[0])
    assert error < 1e-3, f"diffusers reads {error:.1e} else in a GGUF file than gguf does"


def pipe_of(case: FileCase, folder: Path, full: Path) -> FluxPipeline:
    pipe = pipelines.load(full, torch.float32)
    for part, file in case.parts.items():
        load_part(pipe, part, folder / file.name, folder, full)
    if case.case.guidance_scale is not None:
        pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, shift=3.0, use_dynamic_shifting=True)
    for i, (file, _) in enumerate(case.loras):
        pipe.load_lora_weights(str(folder), weight_name=file.name, adapter_name=f"lora{i}")
    if case.loras:
        pipe.set_adapters([f"lora{i}" for i in range(len(case.loras))], [strength for _, strength in case.loras])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cases(folder: Path, full: Path) -> list[FileCase]:
    pipe = pipelines.load(full, torch.float32)

    def case(name, **parts):
        return FileCase(replace(BASE, name=name), parts)

    def prefixed(part, tensors):
        return [replace(tensor, name=PREFIXES[part] + tensor.name) for tensor in tensors]

    def alike(tensors, kind):
        return [replace(t, type=kind) for t in tensors]

    whole = File("all.safetensors", [
        *prefixed("transformer", bfl(wide)),
        *prefixed("vae", vae(pipe, all_of("F32"))),
        *prefixed("clip", clip(pipe, all_of("F16"))),
        *prefixed("t5", t5(pipe, all_of("F16"))),
    ])  # fmt: skip
    few = t5_gguf(pipe)
    dev = case("files-dev", transformer=File("flux-dev.safetensors", bfl(wide, guidance=True)))
    dev.case = replace(dev.case, steps=2, guidance_scale=3.5, width=96)
    lora, kohya = diffusers_lora(folder, full), kohya_lora()
    scaled = [Tensor("scaled_fp8", "F8_E4M3", [2], 0.0, 0.0)]
    t5_fp8 = File("t5xxl_fp8.safetensors", t5(pipe, fp8("F8_E4M3", False)))
    return [
        case("files-bfl", transformer=File("flux.safetensors", bfl(all_of("BF16"))), vae=File("ae.safetensors", vae(pipe, all_of("F32")))),
        case("files-text", clip=File("clip_l.safetensors", clip(pipe, all_of("F16"))), t5=File("t5xxl_fp16.safetensors", t5(pipe, all_of("F16")))),
        case("files-all", transformer=whole, vae=whole, clip=whole, t5=whole),
        case("files-fp8", transformer=File("flux-fp8.safetensors", bfl(fp8("F8_E4M3", False))), t5=t5_fp8),
        case("files-fp8-scaled", transformer=File("flux-fp8-scaled.safetensors", bfl(fp8("F8_E4M3", True)) + scaled), t5=File("t5xxl_fp8_scaled.safetensors", t5(pipe, fp8("F8_E4M3", True)) + scaled)),
        case("files-fp8-e5m2", transformer=File("flux-fp8-e5m2.safetensors", bfl(fp8("F8_E5M2", False))), t5=t5_fp8),
        *[case(f"files-{kind}", transformer=gguf_file(kind), t5=few) for kind in files.BLOCKS],
        case("files-t5-gguf", t5=few),
        dev,
        FileCase(replace(BASE, name="files-lora-diffusers"), loras=[(lora, 1.0)]),
        FileCase(replace(BASE, name="files-lora-kohya"), loras=[(kohya, 0.7)]),
        FileCase(replace(BASE, name="files-loras"), loras=[(lora, 0.6), (kohya, -0.5)]),
        FileCase(replace(BASE, name="files-lora-on-gguf"), {"transformer": gguf_file("Q4_K"), "t5": few}, [(lora, 0.8)]),
    ]  # fmt: skip


def make(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with_this_width()
    rows, tensors, written = [], {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        full, folder = Path(scratch) / "a", Path(scratch)
        pipelines.build(SPEC, full)
        base, _ = reference.run(pipelines.load(full, torch.float32), replace(BASE, name="base"))
        for case in cases(folder, full):
            for file in [*case.parts.values(), *(file for file, _ in case.loras)]:
                if file.name not in written:
                    files.write(file, folder / file.name)
                    written[file.name] = file
            golden, _ = reference.run(pipe_of(case, folder, full), case.case)
            pipe16 = pipe_of(case, folder, full)
            for component in (pipe16.transformer, pipe16.text_encoder, pipe16.text_encoder_2, pipe16.vae):
                component.to(torch.bfloat16)
            low, _ = reference.run(pipe16, case.case)
            row = case.case.to_json()
            row["parts"] = {part: file.name for part, file in case.parts.items()}
            row["loras"] = [[file.name, strength] for file, strength in case.loras]
            row["tensors"] = {}
            for stage, tensor in golden.items():
                if stage.startswith(("noise_pred", "t5_embeds", "clip_pooled", "vae_out", "sigmas")):
                    if stage == "vae_out" and "vae" not in case.parts:
                        continue  # it has the latents, which have these
                    if stage in base and torch.equal(tensor, base[stage]):
                        continue  # no file has a say in it
                    stored = tensor.half() if stage == "vae_out" else tensor
                    tensors[f"{case.case.name}.{stage}"] = stored.contiguous()
                    row["tensors"][stage] = {"shape": list(tensor.shape)}
                    if stage != "sigmas":
                        error = rel_l2(low[stage], tensor)
                        row["tensors"][stage]["bf16_rel_l2"] = short(error)
                        moved = rel_l2(tensor, base[stage]) if tensor.shape == base.get(stage, tensor[:0]).shape else 1.0
                        assert moved > 1.5 * max(2e-2, 2 * error), f"{case.case.name}.{stage} moves by {moved:.3f} only"
                        print(f"{case.case.name}.{stage}: bf16 {error:.4f}, moved {moved:.3f}, rms {float(tensor.float().square().mean().sqrt()):.3f}")
            assert row["tensors"], case.case.name
            rows.append(row)
    lines = ",\n".join("  " + weights.json.dumps(row) for row in rows)
    text = f'{{"cases": [\n{lines}\n],\n"files": {files.dump(list(written.values()))}}}\n'
    (out / "files.json").write_text(text, encoding="utf-8")
    save_file(tensors, out / "goldens.safetensors")
    (out / "goldens.safetensors").chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if not args.check:
        return make(args.out)
    with tempfile.TemporaryDirectory() as fresh:
        make(Path(fresh))
        different = [f.name for f in Path(fresh).iterdir() if not filecmp.cmp(f, HERE / f.name, shallow=False)]
    if different:
        raise SystemExit(f"different: {different}")


if __name__ == "__main__":
    main()
