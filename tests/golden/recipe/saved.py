"""The pipelines as diffusers and transformers save them when bitsandbytes has quantized them, on a CPU."""

import json
import tempfile
from pathlib import Path

import torch
from diffusers import BitsAndBytesConfig as DiffusersConfig
from diffusers import FluxTransformer2DModel
from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer
from safetensors import safe_open
from transformers import BitsAndBytesConfig, T5EncoderModel

from .weights import crc32

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}
MODELS = {
    "transformer": (FluxTransformer2DModel, DiffusersConfig),
    "text_encoder_2": (T5EncoderModel, BitsAndBytesConfig),
}


def without_gpu() -> None:
    """diffusers asks for a GPU before it loads or makes 4-bit weights, none of which needs one."""
    BnB4BitDiffusersQuantizer.validate_environment = lambda self, *args, **kwargs: None
    BnB4BitDiffusersQuantizer.update_device_map = lambda self, device_map: device_map or {"": "cpu"}


def tensors(folder: Path) -> list[list[str]]:
    """Names with dtype, shape and checksum, of all safetensors files there."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                tensor = file.get_tensor(name)
                found[name] = f"{DTYPES[tensor.dtype]} {list(tensor.shape)} {crc32(tensor)}"
    return [list(item) for item in sorted(found.items())]


def quantized(folder: Path, dtype: torch.dtype) -> dict:
    """By kind of quantization and by component: what its config says of it, and its tensors."""
    without_gpu()
    kinds = {}
    for kind, double in (("plain", False), ("double", True)):
        kinds[kind] = {}
        for component, (model, config) in MODELS.items():
            quantization = config(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=torch.bfloat16,
                bnb_4bit_use_double_quant=double,
            )
            loaded = model.from_pretrained(
                folder, subfolder=component, quantization_config=quantization, torch_dtype=dtype
            )
            with tempfile.TemporaryDirectory() as out:
                loaded.save_pretrained(out)
                saved = json.loads(Path(out, "config.json").read_text())
                kinds[kind][component] = {
                    "quantization_config": saved["quantization_config"],
                    "tensors": tensors(Path(out)),
                }
    return kinds
