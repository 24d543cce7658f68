"""NF4 by bitsandbytes (CPU): the reference for quantized pipelines and for the code tests."""

import bitsandbytes.functional as bnb
import torch

from .weights import crc32, generate

BLOCK = 64
# absmax of a tensor: how many, and the (scale, mean) of their hash. All edges of groups, vectors and cascades of sums;
# more than 32768, where torch would give several threads a part each; all the same; so close that few codes are used.
NESTED = [(n, 0.4375, 0.5) for n in (1, 5, 7, 8, 9, 31, 32, 33, 100, 255, 256, 257, 1000, 2047, 2048, 4097, 36864, 294912)]
NESTED += [(300, 0.0, 0.25), (768, 2.0**-12, 1.0), (5000, 2.0**-12, 2.0**-11)]


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, "bnb.QuantState"]:
    """Returns (packed codes [n/2], f32 absmax [n/64], state)."""
    packed, state = bnb.quantize_4bit(
        weight.contiguous(), blocksize=BLOCK, quant_type="nf4", compress_statistics=False
    )
    return packed.flatten(), state.absmax, state


def round_trip(weight: torch.Tensor) -> torch.Tensor:
    """`bf16(code * absmax)`: one rounding, from f32, whatever the weight's own dtype."""
    packed, _, state = quantize(weight)
    state.dtype = torch.float32
    return bnb.dequantize_4bit(packed.reshape(-1, 1), state).reshape(weight.shape).to(torch.bfloat16)


def quantize_linears(model: torch.nn.Module) -> None:
    """Replaces every Linear weight by its round trip."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            assert module.in_features % BLOCK == 0, "the fixtures' Linears all hold whole quant blocks per row"
            module.weight.data = round_trip(module.weight.data).to(module.weight.dtype)


def code_cases() -> dict[str, torch.Tensor]:
    """Small tensors with everything a quantizer can get wrong, weights, codes and absmax."""
    generator = torch.Generator().manual_seed(4)
    code = bnb.get_4bit_type("nf4", device="cpu", blocksize=BLOCK).float()
    thresholds = (code[1:].double() + code[:-1].double()) / 2

    gaussian = torch.randn(64, 64, generator=generator)
    zero_block = torch.randn(8, 128, generator=generator) * 0.02
    zero_block.view(-1, BLOCK)[5] = 0.0
    # absmax 1 makes the normalized value the weight itself; rows sit on, just below and just above.
    on = thresholds.float()
    rows = torch.stack([on, torch.nextafter(on, torch.tensor(-2.0)), torch.nextafter(on, torch.tensor(2.0))])
    threshold = torch.zeros(6, BLOCK)
    threshold[:3, :15] = rows
    threshold[3:, :15] = rows
    threshold[:3, 15] = 1.0
    threshold[3:, 15] = -1.0
    threshold[:, 16:32] = code
    bfloat = (torch.randn(16, 192, generator=generator) * 3).to(torch.bfloat16)
    # Below 1e-38 there is no reciprocal; a short last block is divided, and an odd last value has a neighbor that is zero.
    tiny = torch.randn(4, BLOCK, generator=generator) * torch.tensor([[1e-39], [3e-39], [1e-41], [1.0]])
    short = torch.randn(3 * BLOCK + 23, generator=generator)
    short_zero = torch.cat([torch.randn(BLOCK, generator=generator), torch.zeros(6)])

    tensors = {}
    for name, weight in {
        "gaussian": gaussian, "zero_block": zero_block, "threshold": threshold, "bfloat": bfloat,
        "tiny": tiny, "short": short, "short_zero": short_zero,
    }.items():
        packed, absmax, _ = quantize(weight)
        tensors |= {
            f"{name}.weight": weight.clone(),
            f"{name}.packed": packed.clone(),
            f"{name}.absmax": absmax.clone(),
            f"{name}.dequantized": round_trip(weight),
        }
    return tensors


def serialized_linears() -> dict[str, torch.Tensor]:
    """One Linear as prequantized checkpoints hold it, with f32 and with double-quantized absmax.

    Keys are the checkpoint's own (`plain.weight`, `plain.weight.absmax`, ...), plus `<name>.dequantized`, the
    bf16 weights both must give. 384 quant blocks: the nested absmax has a full group of 256 and a partial one.
    """
    generator = torch.Generator().manual_seed(5)
    weight = (torch.randn(192, 128, generator=generator) * 0.05).to(torch.bfloat16)
    tensors = {}
    for name, nested in (("plain", False), ("nested", True)):
        packed, state = bnb.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4", compress_statistics=nested)
        tensors[f"{name}.weight"] = packed
        tensors |= {f"{name}.weight.{key}": value.clone() for key, value in state.as_dict(packed=True).items()}
        state.dtype = torch.float32
        tensors[f"{name}.dequantized"] = bnb.dequantize_4bit(packed, state).to(torch.bfloat16)
    return tensors


def nested_cases() -> list[dict]:
    """absmax quantized once more: the mean, and checksums of scales and codes."""
    cases = []
    for elements, scale, mean in NESTED:
        absmax = generate(f"nested/{elements}", (elements,), torch.float32, scale, mean)
        offset = absmax.mean()
        codes, state = bnb.quantize_blockwise(absmax - offset, blocksize=256)
        read = bnb.dequantize_blockwise(codes, state) + offset
        cases.append(
            {
                "elements": elements,
                "scale": scale,
                "mean": mean,
                "offset": f"{offset.view(torch.int32).item():08x}",
                "scales": crc32(state.absmax),
                "codes": crc32(codes),
                "read": crc32(read),
            }
        )
    return cases
