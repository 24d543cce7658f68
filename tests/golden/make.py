"""Makes everything in this folder: small random FLUX pipelines and what diffusers computes with them.

Writes, below `--out` (default: this folder; see README.md for the formats):
  <pipe>/pipeline/          configs and tokenizers as `FluxPipeline.save_pretrained` writes them, no weights
  <pipe>/manifest.json      every weight tensor: file, name, shape, dtype, scale, mean
  <pipe>/cases.json         the cases, their tensors, and torch's own bf16 error for each tensor
  <pipe>/goldens.safetensors, <pipe>/images/<case>.png
  <pipe>/quantized.json     what diffusers and transformers save of it with bitsandbytes
  a/mistakes.{json,safetensors}   the same run with one planted mistake each
  tokens.json, noise.json, nf4.safetensors, nf4_linears.safetensors, nf4_nested.json

Made with Python 3.11, torch 2.15.0 (CPU build), diffusers 0.42.1, transformers 5.23.0, tokenizers 0.23.3,
sentencepiece 0.2.3, bitsandbytes 0.50.2, safetensors 0.8.0, numpy 2.4.6, pillow 13.0.0.
torch 2.12 or newer is needed (bf16 noise). On another CPU the last bits of the f32 goldens may differ.

    python make.py               # half a minute on one core; weights go to a temporary folder
    python make.py --keep DIR    # keeps the complete pipelines, weights included, in DIR/<pipe>
    python make.py --check       # remakes everything elsewhere and compares the bytes with this folder
"""

import os

# Before torch: one thread, so that reductions have one order.
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import argparse
import filecmp
import json
import logging
import shutil
import tempfile
import warnings
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

warnings.filterwarnings("ignore", category=FutureWarning)
logging.disable(logging.WARNING)
torch.set_num_threads(1)
torch.set_flush_denormal(False)

from recipe import checks, mistakes, nf4, noise, pipelines, reference, saved, text, weights
from recipe.reference import Case, rel_l2

HERE = Path(__file__).resolve().parent

LONG = "an oil painting of a quiet lighthouse and two misty ships at night, ultra-detailed, 8k; " * 12
CASES = {
    "a": [
        Case("a-base", "A red cat on a hill", 64, 64, steps=1, seed=0, t5_length=16),
        Case("a-wide", "Un café près de la forêt: naïve façade, crème brûlée", 96, 64, steps=2, seed=42, t5_length=64),
        # Over 77 CLIP tokens and over 256 T5 tokens; the seed's high word must not matter to the noise.
        Case("a-long", LONG, 128, 128, steps=4, seed=2**32 + 42, t5_length=256),
        Case(
            "a-two-prompts", "山の上の古い城 🏔️", 64, 96, steps=2, seed=1234567, t5_length=16,
            prompt_2="Two prompts: the second is longer than sixteen T5 tokens, so it's cut before its end.",
        ),
        Case("a-four-steps", "DON'T stop! 3.14 <b>x</b>", 64, 64, steps=4, seed=7, t5_length=16),
        Case(
            "a-true-cfg", "a red cat on a hill", 64, 64, steps=2, seed=5, t5_length=16,
            negative_prompt="blue dog, blurry", true_cfg_scale=2.5,
        ),
    ],
    "b": [
        Case("b-base", "a tiny golden dragon", 64, 64, steps=1, seed=3, t5_length=16),
        Case("b-scripts", "قطة على الجبل, בית ליד הים, 비 오는 거리 🐱🚀 ✨", 96, 64, steps=4, seed=2**31, t5_length=64),
        Case(
            "b-long", "an old city in winter", 128, 128, steps=2, seed=42, t5_length=256,
            prompt_2="солнце над рекой и лесом, " + LONG,
        ),
        Case("b-empty", "", 64, 64, steps=1, seed=1, t5_length=16),
    ],
}  # fmt: skip
CASES["a"] += [reference.nf4(c) for c in CASES["a"] if c.name in ("a-base", "a-wide", "a-two-prompts")]
CASES["a"].append(
    Case("a-four-steps-bf16-time", "DON'T stop! 3.14 <b>x</b>", 64, 64, steps=4, seed=7, t5_length=16, timesteps="bf16")
)
CASES["b"] += [reference.nf4(c) for c in CASES["b"] if c.name in ("b-base", "b-scripts")]
MISTAKES_CASE = "a-wide"
# A tolerance of max(2e-2, twice torch's bf16 error) must reject every mistake with this much to spare.
MISTAKE_MARGIN = 1.5


def write_json(path: Path, value) -> None:
    """Indented, but with lists of plain values on one line."""

    def dump(value, indent):
        pad = "  " * (indent + 1)
        if isinstance(value, dict) and any(isinstance(v, (dict, list)) for v in value.values()):
            items = [f"{pad}{json.dumps(k)}: {dump(v, indent + 1)}" for k, v in value.items()]
            return "{\n" + ",\n".join(items) + "\n" + "  " * indent + "}"
        if isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
            return "[\n" + ",\n".join(pad + dump(v, indent + 1) for v in value) + "\n" + "  " * indent + "]"
        return json.dumps(value, ensure_ascii=False)

    path.write_text(dump(value, 0) + "\n", encoding="utf-8")


def stored(name: str, tensor: torch.Tensor) -> torch.Tensor:
    # vae_out is the largest tensor; f16 rounds it by 2e-4, far below any tolerance.
    return tensor.to(torch.float16) if name == "vae_out" else tensor


def short(value: float) -> float:
    return float(f"{value:.3g}")


def same_inputs(case: Case, other: Case) -> bool:
    fields = ("prompt", "prompt_2", "negative_prompt", "true_cfg_scale", "width", "height", "steps", "seed", "t5_length")
    return all(getattr(case, f) == getattr(other, f) for f in fields)


def make_cases(name: str, full: Path, out: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Runs every case; writes goldens, images and cases.json. Returns the golden stages by case."""
    pipes = {}
    for kind in ("plain", "nf4"):
        pipe, pipe16 = pipelines.load(full, torch.float32), pipelines.load(full, torch.bfloat16)
        if kind == "nf4":
            # Quantize the stored weights in their own dtype, then run the result in f32 and in bf16.
            source = pipelines.load(full, pipelines.SPECS[name].dtype)
            for component in ("transformer", "text_encoder_2"):
                quantized = getattr(source, component)
                nf4.quantize_linears(quantized)
                for target in (pipe, pipe16):
                    getattr(target, component).load_state_dict(quantized.state_dict())
        pipes[kind] = (pipe, pipe16)

    (out / "images").mkdir(parents=True)
    rows, tensors, goldens = [], {}, {}
    for case in CASES[name]:
        pipe, pipe16 = pipes[case.weights]
        golden, image = reference.run(pipe, case)
        for stage, tensor in reference.stagewise(pipe, case, golden).items():
            assert rel_l2(tensor, golden[stage]) < 1e-6, "stagewise() feeds a network something else than the pipeline"
        errors = reference.bf16_errors(pipe16, case, golden, image)
        checks.demand(checks.report(pipe, case))
        base = next(c for c in CASES[name] if same_inputs(c, case))
        row = case.to_json()
        if base != case:
            row["base"] = base.name
        noise_tensor = golden["noise"]
        row["noise"] = {"crc32": weights.crc32(noise_tensor), "first": noise_tensor.flatten()[:16].tolist()}
        row["bf16_image_psnr_db"] = short(errors.image_psnr_db)
        row["tensors"] = {}
        for stage, tensor in golden.items():
            if stage == "noise" or (base != case and torch.equal(tensor, goldens[base.name][stage])):
                continue  # noise: by crc32; the rest: kept once, under the base case
            tensors[f"{case.name}.{stage}"] = stored(stage, tensor).contiguous()
            row["tensors"][stage] = {"shape": list(tensor.shape)}
            if stage in errors.whole:
                row["tensors"][stage]["bf16_rel_l2"] = short(errors.whole[stage])
            if stage in errors.alone:
                row["tensors"][stage]["bf16_rel_l2_stage"] = short(errors.alone[stage])
        goldens[case.name] = golden
        rows.append(row)
        image.save(out / "images" / f"{case.name}.png", optimize=True)

    write_json(out / "cases.json", {"pipeline": name, "cases": rows})
    save_file(tensors, out / "goldens.safetensors")
    check_coverage(name, goldens)
    return goldens


def check_coverage(name: str, goldens: dict) -> None:
    """The cases are what their names promise."""
    for case in CASES[name]:
        clip, t5 = goldens[case.name]["tokens_clip"][0], goldens[case.name]["tokens_t5"][0]
        assert len(clip) == 77 and len(t5) == case.t5_length
        if case.name.startswith("a-long"):
            assert (clip == clip.max()).sum() == 1, "not over 77 CLIP tokens"
        if case.name.startswith(("a-long", "a-two", "b-long")):
            assert t5[-1] == 1, "not over the T5 length"
        if case.name.startswith(MISTAKES_CASE):
            assert (clip == clip.max()).sum() > 20 and (t5 == 0).sum() > 8, "no padding to get wrong"


def make_mistakes(full: Path, out: Path, golden: dict) -> None:
    """The case's run with each mistake; its tensors must be unmistakably wrong."""
    case = next(c for c in CASES["a"] if c.name == MISTAKES_CASE)
    pipe = pipelines.load(full, torch.float32)
    bf16_stages, _ = reference.run(pipelines.load(full, torch.bfloat16), case)
    rows, tensors = [], {}
    for name, meaning, stages in mistakes.plant(pipe, case):
        errors = {}
        for stage, tensor in stages.items():
            error, bf16_error = rel_l2(tensor, golden[stage]), rel_l2(bf16_stages[stage], golden[stage])
            tolerance = max(2e-2, 2 * bf16_error)
            assert error >= MISTAKE_MARGIN * tolerance, f"{name}: {stage} moves by {error:.4f} only"
            errors[stage] = short(error)
            tensors[f"{name}.{stage}"] = stored(stage, tensor).contiguous()
        rows.append({"name": name, "meaning": meaning, "rel_l2": errors})
    again, _ = reference.run(pipe, case)
    assert all(torch.equal(again[stage], golden[stage]) for stage in golden), "a mistake was not undone"
    write_json(out / "mistakes.json", {"case": MISTAKES_CASE, "mistakes": rows})
    save_file(tensors, out / "mistakes.safetensors")


def make_tokens(full: dict[str, Path], out: Path) -> None:
    """Ids without truncation or padding. Other implementations of T5's tokenizer only where they differ."""
    tokenizers = {}
    for name, folder in full.items():
        pipe = pipelines.load(folder, torch.float32)
        spiece = text.train_t5(text.corpus(pipelines.SPECS[name].corpus_seed), pipelines.SPECS[name].t5_pieces)
        file = folder / "tokenizer_2" / "tokenizer.json"
        published = text.t5_published_json(spiece, legacy=not file.exists())
        if file.exists():
            assert Tokenizer.from_file(str(file)).to_str() == published.to_str()
        slow = sentencepiece.SentencePieceProcessor(model_proto=spiece)
        tokenizers[name] = (pipe.tokenizer, published, pipe.tokenizer_2, slow)
    rows = []
    for string in text.strings():
        row = {"text": string}
        for name, (clip, published, transformers_5, slow) in tokenizers.items():
            ids = published.encode(string).ids
            row[name] = {"clip": clip(string).input_ids, "t5": ids}
            others = {
                "t5_transformers": transformers_5(string).input_ids,
                "t5_sentencepiece": slow.encode(string) + [1],
            }
            row[name] |= {kind: other for kind, other in others.items() if other != ids}
        rows.append(row)
    assert len(rows) >= 200
    for name, (_, published, transformers_5, _) in tokenizers.items():
        for case in CASES[name]:
            prompt = case.prompt_2 or case.prompt
            assert published.encode(prompt).ids == transformers_5(prompt).input_ids, "a golden depends on the tokenizer"
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    (out / "tokens.json").write_text(f'{{"strings": [\n{lines}\n]}}\n')


def make(out: Path, keep: Path) -> None:
    full = {}
    for name, spec in pipelines.SPECS.items():
        folder = full[name] = keep / name
        entries = pipelines.build(spec, folder)
        pipelines.check_loaded(folder, entries)
        shutil.rmtree(out / name, ignore_errors=True)
        shutil.copytree(folder, out / name / "pipeline", ignore=shutil.ignore_patterns("*.safetensors"))
        weights.write_manifest(out / name / "manifest.json", name, entries)
        goldens = make_cases(name, folder, out / name)
        write_json(out / name / "quantized.json", saved.quantized(folder, spec.dtype))
        if name == "a":
            make_mistakes(folder, out / name, goldens[MISTAKES_CASE])
    make_tokens(full, out)
    write_json(out / "noise.json", {"noise": noise.cases()})
    save_file(nf4.code_cases(), out / "nf4.safetensors")
    save_file(nf4.serialized_linears(), out / "nf4_linears.safetensors")
    write_json(out / "nf4_nested.json", {"cases": nf4.nested_cases()})
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)  # save_file makes them private


def check(keep: Path) -> None:
    """Remakes everything in a temporary folder and compares it with this one."""
    with tempfile.TemporaryDirectory() as fresh:
        make(Path(fresh), keep)

        def files(root):
            return {str(p.relative_to(root)) for p in Path(root).rglob("*") if p.is_file()}

        names = files(fresh)
        stale = {name for name in files(HERE) if name.split("/")[0] in pipelines.SPECS} - names
        different = [
            name
            for name in sorted(names)
            if not (HERE / name).exists() or not filecmp.cmp(HERE / name, Path(fresh, name), shallow=False)
        ]
    if stale or different:
        raise SystemExit(f"different: {different}, not made any more: {sorted(stale)}")
    print(f"{len(names)} files, all identical")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--keep", type=Path, help="keep the complete pipelines here")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        keep = args.keep or Path(scratch)
        check(keep) if args.check else make(args.out, keep)


if __name__ == "__main__":
    main()
