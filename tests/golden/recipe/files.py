"""The files that people have, small: of which tensors each is made, how the reference packages write it, and what they read in it.

Every tensor is computed from a hash (`weights.generate`), in the type that the file has it in, so that no file need be kept. Blocks
of GGUF are bytes from that hash, between which numbers of the tensor's own stand where a block has its f16.
"""

import json
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from safetensors import safe_open
from safetensors.torch import save_file

from . import weights
from .weights import Rules

# As pipelines.TRANSFORMER, by Black Forest Labs' names, whose matrices are fused.
BFL = Rules(
    (r"_norm\.scale$", 0.4, 1.3),
    (r"^(img|txt)_in\.weight$", 1.0, 0.0),
    (r"_in\.(in|out)_layer\.weight$", 1.5, 0.0),
    (r"(mod\.lin|modulation\.lin|adaLN_modulation\.1)\.(weight|bias)$", 0.5, 0.0),
    (r"attn\.qkv\.weight$|linear1\.weight$", 0.8, 0.0),
    (r"attn\.proj\.weight$", 1.2, 0.0),
    (r"(mlp\.2|linear2)\.weight$", 1.5, 0.0),
    (r"^final_layer\.linear\.weight$", 0.8, 0.0),
    (r"\.weight$", 1.0, 0.0),
    (r"\.bias$", 0.2, 0.0),
)

DTYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip

# Of a block: where its f16 are, and the second beside the first, such that values have a mean of zero.
BLOCKS = {
    "Q4_0": ([0], 0), "Q5_0": ([0], 0), "Q8_0": ([0], 0), "Q3_K": ([108], 0), "Q6_K": ([208], 0),
    "Q4_1": ([0, 2], -7.5), "Q5_1": ([0, 2], -15.5), "Q2_K": ([80, 82], 1.5), "Q4_K": ([0, 2], 7.5), "Q5_K": ([0, 2], 15.5),
}  # fmt: skip
# Neighboring blocks differ by this.
STEPS = [1.0, 0.5, 1.5]


@dataclass
class Tensor:
    """`type`: of safetensors or GGUF. `divisor`: what fp8 has been divided by, and is multiplied by again."""

    name: str
    type: str
    shape: list[int]
    scale: float
    mean: float
    divisor: float | None = None


@dataclass
class File:
    """One file. `checksums`: of its tensors, once it has been written."""

    name: str
    tensors: list[Tensor]
    metadata: dict[str, str] | None = None
    checksums: list[str] = field(default_factory=list)

    def to_json(self) -> dict:
        rows = []
        for tensor, crc32 in zip(self.tensors, self.checksums, strict=True):
            row = {k: v for k, v in vars(tensor).items() if v is not None}
            if tensor.type in BLOCKS:
                row["halves"] = halves(self.name, tensor)
            rows.append(row | {"crc32": crc32})
        return {"name": self.name, "metadata": self.metadata, "tensors": rows}


def values(file: str, tensor: Tensor) -> torch.Tensor:
    """What the tensor would be without a type."""
    made = weights.generate(f"{file}/{tensor.name}", tensor.shape, torch.float32, tensor.scale, tensor.mean)
    return made / np.float32(tensor.divisor) if tensor.divisor else made


def raw_blocks(file: str, tensor: Tensor) -> np.ndarray:
    """[rows, bytes of a row] from the hash alone."""
    per_block, size = gguf.GGML_QUANT_SIZES[Q[tensor.type]]
    rows, count = tensor.shape[0], tensor.shape[1] // per_block * size
    index = np.arange(-(-rows * count // 8), dtype=np.uint64)
    words = weights.splitmix64(np.uint64(weights.fnv1a64(f"{file}/{tensor.name}")) + index)
    return words.astype("<u8").view(np.uint8)[: rows * count].reshape(rows, count).copy()


def with_halves(tensor: Tensor, raw: np.ndarray, bits: list[list[int]]) -> np.ndarray:
    size = gguf.GGML_QUANT_SIZES[Q[tensor.type]][1]
    blocks = raw.reshape(-1, size)
    for which, at in enumerate(BLOCKS[tensor.type][0]):
        for step, pair in enumerate(bits):
            blocks[step :: len(bits), at : at + 2] = np.frombuffer(np.uint16(pair[which]).tobytes(), np.uint8)
    return blocks.reshape(raw.shape)


def halves(file: str, tensor: Tensor) -> list[list[int]]:
    """The f16 of three blocks, again and again: such that values are as large as uniform ones of `scale` would be."""
    places, second = BLOCKS[tensor.type]

    def bits(d: float) -> list[int]:
        pair = np.array([d, d * second][: len(places)], np.float16)
        return [int(b) for b in pair.view(np.uint16)]

    # In two turns, since small f16 are far apart.
    d = 2.0**-8
    meant = gguf.dequantize(with_halves(tensor, raw_blocks(file, tensor), [bits(d * s) for s in STEPS]), Q[tensor.type])
    d *= tensor.scale / math.sqrt(3) / float(np.sqrt((meant.astype(np.float64) ** 2).mean()))
    return [bits(d * s) for s in STEPS]


def write(file: File, path: Path) -> None:
    """By the package whose format it is; keeps the checksums of what it has written."""
    if path.suffix == ".gguf":
        writer = gguf.GGUFWriter(path, file.metadata["general.architecture"])
        for tensor in file.tensors:
            if tensor.type in BLOCKS:
                raw = with_halves(tensor, raw_blocks(file.name, tensor), halves(file.name, tensor))
                writer.add_tensor(tensor.name, raw, raw_dtype=Q[tensor.type])
            else:
                data = gguf.quantize(values(file.name, tensor).numpy(), Q[tensor.type])
                writer.add_tensor(tensor.name, data, raw_dtype=Q[tensor.type])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        stored = {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors}
    else:
        tensors = {t.name: values(file.name, t).to(DTYPES[t.type]).contiguous() for t in file.tensors}
        save_file(tensors, path, metadata=file.metadata)
        stored = {name: tensor.flatten().view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}
    file.checksums = [f"{zlib.crc32(stored[t.name]):08x}" for t in file.tensors]


def read(path: Path) -> dict[str, torch.Tensor]:
    """What the packages read in it, in f32; scales of fp8 are multiplied in."""
    if path.suffix == ".gguf":
        found = {}
        for tensor in gguf.GGUFReader(path).tensors:
            shape = [int(n) for n in reversed(tensor.shape)]
            found[tensor.name] = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).reshape(shape)
        return found
    with safe_open(path, "pt") as file:
        found = {name: file.get_tensor(name).float() for name in file.keys()}
    for name in [name for name in found if name.endswith((".scale_weight", ".scale_input", "scaled_fp8"))]:
        value = found.pop(name)
        if name.endswith(".scale_weight"):
            found[name.removesuffix("scale_weight") + "weight"] *= value
    return found


# ---- what a file is made of -------------------------------------------------------------------------------


def bfl_shapes(hidden: int, text: int, pooled: int, double: int, single: int, guidance: bool) -> dict[str, list[int]]:
    """Black Forest Labs' transformer (`flux/model.py`)."""
    shapes = {}

    def linear(name, out, inside):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = [out, inside], [out]

    linear("img_in", hidden, 64)
    linear("txt_in", hidden, text)
    for name, width in [("time_in", 256), ("vector_in", pooled)] + ([("guidance_in", 256)] if guidance else []):
        linear(f"{name}.in_layer", hidden, width)
        linear(f"{name}.out_layer", hidden, hidden)
    for block in range(double):
        for side in ("img", "txt"):
            at = f"double_blocks.{block}.{side}_"
            linear(f"{at}mod.lin", 6 * hidden, hidden)
            linear(f"{at}attn.qkv", 3 * hidden, hidden)
            linear(f"{at}attn.proj", hidden, hidden)
            linear(f"{at}mlp.0", 4 * hidden, hidden)
            linear(f"{at}mlp.2", hidden, 4 * hidden)
            for norm in ("query", "key"):
                shapes[f"{at}attn.norm.{norm}_norm.scale"] = [128]
    for block in range(single):
        at = f"single_blocks.{block}."
        linear(f"{at}modulation.lin", 3 * hidden, hidden)
        linear(f"{at}linear1", 7 * hidden, hidden)
        linear(f"{at}linear2", hidden, 5 * hidden)
        for norm in ("query", "key"):
            shapes[f"{at}norm.{norm}_norm.scale"] = [128]
    linear("final_layer.adaLN_modulation.1", 2 * hidden, hidden)
    linear("final_layer.linear", 64, hidden)
    return shapes


def bfl_vae_name(name: str, levels: int) -> str:
    """Of diffusers' AutoencoderKL, as Black Forest Labs have it (`flux/modules/autoencoder.py`)."""
    for level in range(levels):
        name = name.replace(f"decoder.up_blocks.{level}.resnets.", f"decoder.up.{levels - 1 - level}.block.")
        name = name.replace(f"decoder.up_blocks.{level}.upsamplers.0.", f"decoder.up.{levels - 1 - level}.upsample.")
        name = name.replace(f"encoder.down_blocks.{level}.resnets.", f"encoder.down.{level}.block.")
        name = name.replace(f"encoder.down_blocks.{level}.downsamplers.0.", f"encoder.down.{level}.downsample.")
    for ours, theirs in [
        ("conv_shortcut", "nin_shortcut"),
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
        ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
        ("mid_block.attentions.0.to_", "mid.attn_1."),
        ("conv_norm_out", "norm_out"),
    ]:  # fmt: skip
        name = name.replace(ours, theirs)
    return name


def t5_names(layers: int) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, layers)


def tensors_of(shapes: dict[str, list[int]], rules: Rules, choose, rename=lambda name: name) -> list[Tensor]:
    """One a name; `choose(name, shape)` says the type, or the type and a divisor, beside which two scales lie."""
    made = []
    for name, shape in shapes.items():
        chosen = choose(name, shape)
        kind, divisor = chosen if isinstance(chosen, tuple) else (chosen, None)
        scale, mean = rules.of(name, shape)
        made.append(Tensor(rename(name), kind, list(shape), scale, mean, divisor))
        if divisor:
            stem = rename(name).removesuffix("weight")
            made.append(Tensor(f"{stem}scale_weight", "F32", [], 0.0, divisor))
            made.append(Tensor(f"{stem}scale_input", "F32", [], 0.0, 1.0))
    return made


def dump(files: list[File]) -> str:
    """One tensor a line."""
    made = []
    for file in files:
        row = file.to_json()
        lines = ",\n".join("    " + json.dumps(tensor) for tensor in row.pop("tensors"))
        made.append("  " + json.dumps(row)[:-1] + f', "tensors": [\n{lines}\n  ]}}')
    return "[\n" + ",\n".join(made) + "\n]"
