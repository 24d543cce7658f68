"""nvcc and nvdisasm: found, run with the build's flags, and what they said remembered. What the build has compiled is not compiled again."""

import gzip
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
CACHE = TARGET / "sass-cache"
KERNELS = ROOT / "kernels"


@lru_cache
def tool(name):
    """Where build/nvcc.rs looks, too: $CUDA_HOME, $PATH, .cuda."""
    places = [os.environ.get("CUDA_HOME", "/nowhere") + "/bin", *os.environ.get("PATH", "").split(":")]
    candidates = [Path(place) / name for place in places] + sorted(ROOT.glob(f".cuda/lib/python*/site-packages/nvidia/cu*/bin/{name}"))
    found = next((path for path in candidates if path.is_file()), None)
    return found or sys.exit(f"{Path(sys.argv[0]).name}: there is no {name}; run scripts/get-nvcc nvdisasm")


@lru_cache
def version(name):
    return subprocess.run([tool(name), "--version"], check=True, capture_output=True, text=True).stdout


@lru_cache
def build_script():
    return (ROOT / "build/nvcc.rs").read_text()


def flags():
    """The build's, for one target."""
    found = re.search(r"const FLAGS.*?= \[(.*?)\];", build_script())[1]
    return ["-cubin", *(flag for flag in re.findall(r'"(.*?)"', found) if flag != "-fatbin")]


def targets(stem):
    """Architectures that the build makes machine code of a kernel file for."""
    if stem.endswith(re.search(r'const HOPPER_ONLY: &str = "(\w+)"', build_script())[1]):
        return [re.search(r'const HOPPER: &str = "(\w+)"', build_script())[1]]
    return re.search(r"const CUBINS.*?= \[(.*?)\];", build_script())[1].split(", ")


def with_includes(file):
    """The file and every `#include "..."` it reaches, as sorted paths."""
    seen, todo = [], [file]
    while todo:
        file = todo.pop().resolve()
        if file in seen or not file.is_file():
            continue
        seen.append(file)
        todo += [file.parent / name for name in re.findall(r'^\s*#include\s+"(.*?)"', file.read_text(), re.M)]
    return sorted(seen)


def digest(*parts):
    """Of bytes and strings."""
    hasher = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        hasher.update(len(part).to_bytes(8, "little") + part)
    return hasher.hexdigest()[:24]


def inputs(source):
    """Everything that the machine code depends on, as build/nvcc.rs writes it down."""
    return version("nvcc") + build_script() + "".join(f"{file.name}\n{file.read_text()}" for file in with_includes(source))


def key(source, arch):
    """Changes with everything that a disassembly depends on."""
    return digest(version("nvdisasm"), arch, inputs(source))


def compact(listing):
    """Of `nvdisasm -hex`: code alone, an instruction a line, with the 128 bits that encode it."""
    out, inside = [], False
    for line in listing.splitlines():
        if match := re.match(r"(\.text\.\S+):", line):
            inside = True
            out.append(match[1])
        elif line.startswith("//---------------------"):
            inside = False
        elif inside and (match := re.match(r"(\.L_\w+):", line)):
            out.append(match[1])
        elif inside and (match := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(.*?)\s*;?\s*\}?\s*/\* 0x([0-9a-f]{16}) \*/", line)):
            out.append(f"{match[1]}\t{match[2].rstrip(' ;}')}\t{match[3]}")
        elif inside and (match := re.match(r"\s*/\* 0x([0-9a-f]{16}) \*/", line)):
            out[-1] += match[1]
    return "\n".join(out) + "\n"


def built(source, arch):
    """The cubin that a build has of a kernel file as it is, and what ptxas said of it; or nothing."""
    wanted = inputs(source)
    for record in TARGET.glob(f"nvcc-cache/{source.stem}-*/inputs"):
        if record.read_text() == wanted:
            said = re.split(r"(?=ptxas info\s*: Compiling entry function)", (record.parent / "ptxas").read_text())
            return record.parent / f"{arch}.cubin", "".join(part for part in said if f"for 'sm_{arch}'" in part)
    return None


def compiled(source, arch, folder):
    """The same, made here."""
    cubin = Path(folder) / "kernel.cubin"
    done = subprocess.run([tool("nvcc"), *flags(), f"-arch=sm_{arch}", "-o", cubin, source], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"nvcc refuses {source}:\n{done.stderr}")
    return cubin, done.stderr


def disassemble(source, arch):
    """Machine code of a kernel file for one target, and what ptxas said of it; from the cache if it is there."""
    path = CACHE / f"{source.stem}-{arch}-{key(source, arch)}.gz"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            cubin, said = built(source, arch) or compiled(source, arch, folder)
            code = subprocess.run([tool("nvdisasm"), "-hex", cubin], check=True, capture_output=True, text=True).stdout
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(gzip.compress((said + "\f" + compact(code)).encode(), mtime=0))
        unfinished.rename(path)
    said, code = gzip.decompress(path.read_bytes()).decode().split("\f")
    return code, said


def usage(said):
    """`ptxas -v` as {entry: {registers, spills}}: an entry's line, then what it and the functions compiled for it take."""
    found = {}
    for line in said.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            taken = found.setdefault(match[1], {"registers": 0, "spills": 0})
        for number, what in re.findall(r"(\d+) (bytes stack frame|bytes spill stores|bytes spill loads|registers)", line):
            which = "registers" if what == "registers" else "spills"
            taken[which] = max(taken[which], int(number))
    return found
