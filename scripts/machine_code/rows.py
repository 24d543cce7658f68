"""A kernel entry as a row of docs/sass.tsv: what its machine code has in the loop that carries the work, and how fast the
model says that goes."""

import json
import multiprocessing
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path

from . import listing, sm, toolkit

TABLE = toolkit.ROOT / "docs/sass.tsv"
RESOURCES = toolkit.ROOT / "docs/resources.tsv"
COLUMNS = ("entry arch registers smem_bytes ctas_per_sm spill_bytes fchk loop slots slots_per_hmma hmma ldsm lds sts ldgsts ldg load_bytes bar "
           "alu fma imad mufu other wavefronts clocks_alone clocks share_alone share "
           "prologue_clocks epilogue_slots epilogue_clocks epilogue_least").split()
# Of an asynchronous copy of accesses.txt, what it writes to shared memory; a name there, and what the machine code calls it.
ACCESSES = {"cp.async to": "LDGSTS", "ldmatrix": "LDSM", "shared read": "LDS", "shared write": "STS"}


@lru_cache
def resources():
    """{(entry, arch): what tests/resources.rs has reviewed}: ptxas does not know of shared memory that a launch asks for."""
    lines = [line.split("\t") for line in RESOURCES.read_text().splitlines()[1:]]
    rows = [dict(zip(lines[0], line)) for line in lines[1:]]
    return {(row["entry"], row["arch"]): {name: int(row[name]) for name in lines[0][2:]} for row in rows}


@lru_cache
def conflicts():
    """{entry: {LDS: 1.0, ..}}: wavefronts that its accesses took when the emulator counted them, over the least they could."""
    sums, entry = {}, None
    for line in (toolkit.ROOT / "docs/accesses.txt").read_text().splitlines():
        if re.fullmatch(r"\w+", line):
            entry = line
        match = re.match(r"[* ] (cp.async to|ldmatrix|shared read|shared write) +(\d+) +\d+ +([\d.]+) +([\d.]+)", line)
        if match:
            counted = sums.setdefault(entry, {}).setdefault(ACCESSES[match[1]], [0.0, 0.0])
            for i in (0, 1):
                counted[i] += int(match[2]) * float(match[3 + i])
    return {entry: {base: cost / least for base, (cost, least) in of.items()} for entry, of in sums.items()}


def heavier(x):
    """Through a loop: the path with the most products, then with the most that goes into shared memory (a fetch that the last turns
    leave out, a norm that pixels outside of a map do), then without calls of slow paths, then the shortest."""
    return (x.num_products, (x.base in ("LDGSTS", "STS")) * x.vector_bytes, -(x.base == "CALL"), -1)


def most_loads(x):
    """The same for kernels without products."""
    return ((x.base in ("LDG", "LDGSTS")) * x.vector_bytes, -(x.base == "CALL"), -1)


def fetching(x):
    """Up to the loop: with all that it fetches beforehand, then the shortest."""
    return (-x.num_products, (x.base == "LDGSTS") * x.vector_bytes, -(x.base == "CALL"), -1)


def storing(most, avoided):
    """From the loop to the end: past other loops of products and what is `avoided`; with the most 16-byte stores, as inside a matrix;
    without narrow ones and without loads of single bf16, as at its edge; without calls of slow paths. Of what is left, that with the
    most of `most`."""
    def weight(x):
        wide = x.base == "STG" and x.vector_bytes == 16
        narrow = x.base == "STG" and not wide or x.base == "LDG" and x.vector_bytes < 4
        return (-x.num_products, -(id(x) in avoided), wide, -narrow, -(x.base == "CALL"), most(x), 1)
    return weight


# An entry's epilogues differ in what costs them most: instructions, latencies of memory, exchanges between warps. And the shortest.
COSTS = (lambda x: 1, lambda x: (x.base == "LDG") * x.vector_bytes, lambda x: x.base in ("BAR", "SHFL"), lambda x: -2)


class Main:
    """The loop of an entry that carries the work, and what is before and after it.

    Of loops within loops the inner one, if it has three of four products of the outer; of loops that have as many as any the one that
    is in the fewest others (a LoRA's products are in a loop over its parts), and of those the first (attention: tiles without a mask
    come before tiles with one). Without products: the one that loads most."""

    def __init__(self, instructions):
        self.flow = flow = listing.Flow(instructions)
        self.has_products = any(x.num_products for x in instructions)
        weight = heavier if self.has_products else most_loads
        work = lambda x: x.num_products if self.has_products else int(x.base == "LDG")
        paths = {}
        for loop in flow.loops:
            path = flow.path(loop.blocks, loop.head, set(loop.latches), weight)
            if any(work(x) for x in path):
                paths[loop] = path
        amount = {loop: sum(work(x) for x in path) for loop, path in paths.items()}
        within = {loop: [other for other in paths if other is not loop and other.blocks < loop.blocks] for loop in paths}
        candidates = [loop for loop in paths if not any(4 * amount[other] >= 3 * amount[loop] for other in within[loop])]
        most = max((amount[loop] for loop in candidates), default=0)
        depth = {loop: sum(loop.blocks < other.blocks for other in paths) for loop in paths}
        self.candidates = sorted((loop for loop in candidates if amount[loop] == most), key=lambda loop: (depth[loop], loop.head))
        self.loop = self.candidates[0] if self.candidates else None
        self.path = paths[self.loop] if self.loop else [x for x in instructions]
        self.place = f"1/{len(self.candidates)}" if self.loop else "none"
        for inner in flow.inner(self.loop.blocks, self.loop.head) if self.loop else []:
            if self.has_products and flow.num_products(inner.blocks) and flow.trips(inner) is None:
                raise ValueError("a loop of products within the main loop, and how often it turns is not to be seen")

    def prologue(self):
        """Up to the loop's first product, where that is in its first block, which may be all of the loop."""
        head = self.flow.blocks[self.loop.head].instructions
        products = next((i for i, x in enumerate(head) if x.num_products), len(head))
        path = self.flow.path(set(range(len(self.flow.blocks))), 0, {self.loop.head}, fetching)
        return path[:len(path) - len(head) + products]

    def epilogues(self):
        """Ways from the loop to the end, inside a matrix; the costliest and the cheapest are among them."""
        flow, blocks = self.flow, set(range(len(self.flow.blocks))) - self.loop.blocks
        exits = {j for i in self.loop.blocks for j in flow.blocks[i].next if j in blocks}
        ends = {i for i in blocks if flow.blocks[i].instructions[-1].base == "EXIT"}
        # Slices of a split tile count themselves. A whole tile leaves the way there as soon as it can.
        counts = lambda i: any(x.base.startswith("ATOM") for x in flow.blocks[i].instructions)
        to_count = {i for i in blocks if counts(i)}
        while more := {i for i in blocks - to_count if to_count & set(flow.blocks[i].next)}:
            to_count |= more
        avoided = {id(x) for i in to_count for x in flow.blocks[i].instructions}
        found = []
        for most in COSTS:
            weight = storing(most, avoided)
            paths = [flow.path(blocks, i, ends, weight) for i in exits]
            summed = lambda path: [sum(part) for part in zip(*map(weight, path))]
            found.append(max((path for path in paths if path), key=summed, default=[]))
        return found


def num_warps(entry, threads):
    """That multiply. Of Hopper's CTAs the first warpgroup fetches."""
    return threads // 32 - (4 if entry.endswith("_sm90") else 0)


@lru_cache
def step_bytes():
    """{entry's beginning: bytes of a k-step that Hopper's first warpgroup fetches}, from the headers."""
    headers = "".join(path.read_text() for path in sorted(toolkit.KERNELS.glob("*_sm90.h")))
    return {match[1].lower(): int(match[2]) for match in re.finditer(r"#define (\w+)_SM90_STEP_BYTES (\d+)", headers)}


def copied_by_others(entry, path, threads):
    """Per thread of a CTA, of a turn: a k-step has four HGMMA."""
    if not any(x.base == "HGMMA" for x in path):
        return 0
    of_step = next(size for name, size in step_bytes().items() if entry.startswith(name))
    return round(sum(x.base == "HGMMA" for x in path) / 4 * of_step / threads)


def figure(number):
    """Clocks without fractions, shares with three digits."""
    return f"{number:.3f}" if number < 2 else f"{number:.0f}"


def row(entry, arch, instructions, usage):
    """All columns as text; what the model does not say of an entry is "-"."""
    known = resources().get((entry, arch))
    if known is None:
        raise ValueError(f"docs/resources.tsv does not know {entry} on sm_{arch}; renew it first")
    main = Main(instructions)
    path = main.path
    counts, pipes = Counter(x.base for x in path if not x.is_off), Counter(sm.pipe_of(x) for x in path)
    found = {
        "entry": entry, "arch": arch, "registers": usage["registers"],
        "smem_bytes": known["static_smem_bytes"] + known["dynamic_smem_bytes"], "ctas_per_sm": known["ctas_per_sm"],
        "spill_bytes": usage["spills"], "fchk": sum(x.base == "FCHK" for x in instructions), "loop": main.place, "slots": len(path),
        "alu": pipes[sm.ALU], "fma": pipes[sm.FMA], "imad": pipes[sm.IMAD], "mufu": pipes[sm.MUFU],
        **{name: counts[name.upper()] for name in ("ldsm", "lds", "sts", "ldgsts", "ldg", "bar")}, "hmma": sum(x.num_products for x in path),
        "wavefronts": sum(sm.wavefronts(x) for x in path),
        "load_bytes": sum(x.vector_bytes for x in path if x.base in ("LDG", "LDGSTS")) + copied_by_others(entry, path, known["threads"]),
    }
    named = sum(found[name] for name in "ldsm lds sts ldgsts ldg bar alu fma imad mufu".split())
    found["other"] = len(path) - named - pipes[sm.TENSOR]
    if main.has_products and main.loop and found["hmma"]:
        warps, more = num_warps(entry, known["threads"]), tuple(sorted(conflicts().get(entry, {}).items()))
        least = sm.tensor_clocks(path, arch, warps)
        alone, resident = (sm.loop_clocks(tuple(path), arch, ctas, warps, more) for ctas in (1, known["ctas_per_sm"]))
        ends = [(sm.straight_clocks(tuple(path), arch, warps), len(path)) for path in main.epilogues()]
        found |= {
            "slots_per_hmma": f"{len(path) / found['hmma']:.2f}",
            "clocks_alone": alone, "clocks": resident, "share_alone": least / alone, "share": least / resident,
            "prologue_clocks": sm.straight_clocks(tuple(main.prologue()), arch, warps),
            "epilogue_slots": max(ends)[1], "epilogue_clocks": max(ends)[0], "epilogue_least": min(ends)[0],
        }
    shown = lambda value: value if isinstance(value, str) else figure(value) if isinstance(value, float) else str(value)
    return {name: shown(found.get(name, "-")) for name in COLUMNS}


def model_key():
    """Of everything that a row depends on beside the machine code."""
    here = Path(__file__).parent
    files = [*sorted(here.glob("*.py")), here / "cards.toml", RESOURCES, toolkit.ROOT / "docs/accesses.txt"]
    return toolkit.digest(*(file.read_bytes() for file in files))


def rows_of(job):
    """Of one kernel file and target."""
    source, arch, model = job
    remembered = toolkit.CACHE / f"rows-{source.stem}-{arch}-{toolkit.digest(toolkit.key(source, arch), model)}.json"
    if remembered.exists():
        return json.loads(remembered.read_text())
    code, said = toolkit.disassemble(source, arch)
    usage, entries = toolkit.usage(said), listing.functions(code)
    rows = []
    for entry, instructions in entries.items():
        try:
            rows.append(row(entry, arch, instructions, usage[entry]))
        except ValueError as error:
            raise ValueError(f"{entry} on sm_{arch}: {error}") from error
    remembered.write_text(json.dumps(rows))
    return rows


def sources():
    """Of the product: probes are there to be tested, not to be fast."""
    return [path for path in sorted(toolkit.KERNELS.glob("*.cu")) if not path.stem.startswith("probe")]


def all_rows(archs=None):
    """Every entry on every target, or on those of `archs`, sorted."""
    model = model_key()
    jobs = [(source, arch, model) for source in sources() for arch in toolkit.targets(source.stem)]
    jobs = [job for job in jobs if not archs or job[1] in archs]
    # The longest first.
    jobs.sort(key=lambda job: (job[0].stem not in ("attention", "nf4_gemm", "nf4_half_gemm", "bf16_gemm"), job[0].stem))
    with multiprocessing.Pool(2) as pool:
        found = [row for rows in pool.imap_unordered(rows_of, jobs) for row in rows]
    return sorted(found, key=lambda row: (row["entry"], int(row["arch"].rstrip("a"))))


def release():
    return re.search(r"release ([\d.]+)", toolkit.version("nvcc"))[1]


def as_text(rows):
    lines = [f"# nvcc {release()}; written by scripts/sass --write. docs/testing.md explains the columns; clocks and shares are predictions."]
    lines += ["\t".join(COLUMNS)] + ["\t".join(row[name] for name in COLUMNS) for row in rows]
    return "\n".join(lines) + "\n"


def committed():
    """The table as it is in the repository: its release of nvcc, and its rows."""
    lines = TABLE.read_text().splitlines() if TABLE.exists() else ["# nvcc none", ""]
    names = lines[1].split("\t")
    return re.search(r"# nvcc ([\w.]+)", lines[0])[1], [dict(zip(names, line.split("\t"))) for line in lines[2:]]
