"""Makes the files *.gguf in this folder: blocks of every type that is read, and what the package `gguf` makes of them; and a file
that the package divides into several.

For each type T there are two tensors: `T`, blocks with random codes and scales, extreme ones among them (zero of both signs,
the smallest and largest subnormal, the largest number, one); and `T.values`, f32 of the same shape: its dequantization. The
file itself is written by the package, with metadata of every kind and an alignment of its own, so that it is the reference of
the container, too.

The second is `divided-00001-of-00003.gguf` and so on: the first holds metadata alone, the others two tensors each.

Made with Python 3.11, gguf 0.19.0, numpy 2.4.6. Nothing in it depends on the CPU.

    python make_gguf.py            # a second
    python make_gguf.py --check    # remakes it elsewhere and compares the bytes
"""

import argparse
import tempfile
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGUFValueType as V

HERE = Path(__file__).resolve().parent
NAME = "gguf.gguf"
DIVIDED = [f"divided-{i + 1:05}-of-00003.gguf" for i in range(3)]
ALIGNMENT = 64
ROWS = 10

# Where in a block its f16 lie.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}
# zero, minus zero, the least and the largest subnormal, the least normal, one, the largest of both signs
EXTREMES = [0x0000, 0x8000, 0x0001, 0x03FF, 0x0400, 0x3C00, 0x7BFF, 0xFBFF]


def blocks(kind: T, random: np.random.Generator) -> np.ndarray:
    """ROWS rows of 256 values: the first of extreme scales, one of codes that are all zeros, one of all ones."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    raw = random.integers(0, 256, (ROWS, 256 // values, size), dtype=np.uint8)
    raw[-1, :, :], raw[-2, :, :] = 0, 0xFF
    for row in range(ROWS):
        for block in range(256 // values):
            for at in HALVES[kind]:
                scale = random.normal(0, 0.02, 1).astype(np.float16).view(np.uint16)[0]
                if row < len(EXTREMES) and block % 2 == 0:
                    scale = EXTREMES[(row + at // 2) % len(EXTREMES)]
                raw[row, block, at : at + 2] = np.frombuffer(np.uint16(scale).tobytes(), np.uint8)
    return raw.reshape(ROWS, -1)


def write(folder: Path) -> None:
    write_blocks(folder / NAME)
    write_divided(folder / "divided.gguf")


def write_divided(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "flux", split_max_tensors=2, small_first_shard=True)
    for i in range(4):
        writer.add_tensor(f"tensor.{i}", np.arange(32 * i, 32 * (i + 1), dtype=np.float32).reshape(2, 16))
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_blocks(path: Path) -> None:
    random = np.random.default_rng(18)
    writer = gguf.GGUFWriter(path, "flux")
    writer.add_custom_alignment(ALIGNMENT)
    writer.add_quantization_version(2)
    for kind, value in [
        (V.UINT8, 255), (V.INT8, -128), (V.UINT16, 65535), (V.INT16, -32768), (V.UINT32, 2**32 - 1), (V.INT32, -(2**31)),
        (V.FLOAT32, 0.5), (V.BOOL, True), (V.STRING, "é" * 3), (V.UINT64, 2**64 - 1), (V.INT64, -(2**63)), (V.FLOAT64, 0.25),
    ]:
        writer.add_key_value(f"general.kind_{kind.name.lower()}", value, kind)
    writer.add_array("general.strings", ["a", "", "long " * 100])
    writer.add_array("general.numbers", [1, 2, 3])
    writer.add_array("general.floats", [1.5, 2.5])
    writer.add_array("general.bools", [True, False])
    for kind in HALVES:
        raw = blocks(kind, random)
        writer.add_tensor(kind.name, raw, raw_dtype=kind)
        writer.add_tensor(f"{kind.name}.values", gguf.dequantize(raw, kind))
    numbers = random.normal(0, 1, (3, 5)).astype(np.float32)
    writer.add_tensor("F32", numbers)
    writer.add_tensor("F16", numbers.astype(np.float16))
    writer.add_tensor("BF16", gguf.quantize(numbers, T.BF16), raw_dtype=T.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            for name in [NAME, *DIVIDED]:
                assert (Path(folder) / name).read_bytes() == (HERE / name).read_bytes(), f"{name} is made otherwise now"
    else:
        write(HERE)


if __name__ == "__main__":
    main()
