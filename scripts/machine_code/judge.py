"""Whether the model is any good: `scripts/sass --self-test`.

1. Loops that are kept as they were compiled (tests/sass/*.gz) have the share of the tensor cores that is known of them
   (tests/sass/known.tsv): by an earlier model, made on its own, and Marlin's, measured on three GPUs, within 0.03;
   FlashAttention-2's, measured and published, within what a GPU keeps of a loop's share.
2. Three main loops that are slow on purpose (tests/sass/slow.cu) look slow, and the one they were made from does not.
3. Launches that a GPU has timed (benches/record) take about as long as predicted.
"""

import gzip
import json
import math
import re
import statistics
import sys

from . import launches, listing, rows, sm, toolkit

FOLDER = toolkit.ROOT / "tests/sass"
# Shares may differ by so much.
KNOWN = 0.03
# A kernel that is slow on purpose uses less of the tensor cores, one that is not more.
SLOW = 0.7
# Predicted times over measured ones, or measured shares over predicted ones. A GPU keeps less of a loop's share than the model says (power,
# instruction caches, L2), so few are above 1; below the first the model has lost sight of what a kernel spends its time with.
MEASURED = (0.7, 1.1)
RECORD = toolkit.ROOT / "benches/record/2026-11-26-nvidia-h200.json"


def known_loops():
    """{name: instructions}: `# name`, then an instruction a line, as its text and 128 bits."""
    found = {}
    for path in sorted(FOLDER.glob("*.gz")):
        for line in gzip.decompress(path.read_bytes()).decode().splitlines():
            if line.startswith("# "):
                current = found.setdefault(line[2:], [])
            else:
                text, control = line.split("\t")
                current.append(listing.Instruction(0, text, int(control, 16) << 105, []))
    return found


def check_known():
    loops, faults = known_loops(), []
    lines = [line.split("\t") for line in (FOLDER / "known.tsv").read_text().splitlines() if line and not line.startswith("#")]
    print(f"{'loop':<44} {'card':>8} {'CTAs':>4} {'clocks':>7} {'share':>6} {'known':>6}  source")
    for name, card, ctas, warps, scale, known, how, source in lines[1:]:
        instructions, arch = tuple(loops[name]), sm.constants()["card"][card]["arch"]
        clocks = sm.loop_clocks(instructions, arch, int(ctas), int(warps))
        share = sm.tensor_clocks(instructions, arch, int(warps)) / clocks * float(scale)
        kept = float(known) / share
        is_off = abs(share - float(known)) > KNOWN if how == "compared" else not MEASURED[0] <= kept <= MEASURED[1]
        note = "" if how == "compared" else f", kept {kept:.2f}"
        print(f"{name:<44} {card:>8} {ctas:>4} {clocks:>7.0f} {share:>6.3f} {known:>6}  {source}{note}")
        if is_off:
            faults.append(f"{name} on {card}: a share of {share:.3f}, known is {known} ({source})")
    return faults


def conflict_degree(stride_words):
    """Most lanes of a warp that meet in one of the 32 banks when each reads a word and neighbors are so far apart."""
    banks = [lane * stride_words % 32 for lane in range(32)]
    return max(banks.count(bank) for bank in banks)


def check_slow():
    source, faults = FOLDER / "slow.cu", []
    stride = int(re.search(r"#define SLOW_STRIDE_WORDS (\d+)", source.read_text())[1])
    for arch in ("86", "80", "90"):
        code, said = toolkit.disassemble(source, arch)
        for entry, instructions in sorted(listing.functions(code).items()):
            path = tuple(rows.Main(instructions).path)
            conflicts = (("LDS", float(conflict_degree(stride))),) if entry == "slow_conflicts" else ()
            share = sm.tensor_clocks(path, arch, 4) / sm.loop_clocks(path, arch, 1, 4, conflicts)
            print(f"{entry:<44} {'sm_' + arch:>8} {1:>4} {len(path):>4} slots, share {share:.3f}")
            # So small a tile is not slow where tensor cores are: elsewhere it cannot keep them busy, whoever wrote it.
            if entry != "slow_not" and share >= SLOW or entry == "slow_not" and arch == "86" and share < SLOW:
                wanted = "above" if entry == "slow_not" else "below"
                faults.append(f"{entry} on sm_{arch}: a share of {share:.3f}, which should be {wanted} {SLOW}")
    return faults


def launch_of(name):
    """The launch that a record's time is of, by the name of the time; src/check/bench/launches.rs makes them. Convolutions are others
    than those of the record, whose times were 1.15 to 1.37 of what was predicted of them."""
    block_m, tiles = launches.gemm_block_m(), lambda m, n: math.ceil(m / 128) * math.ceil(n / 128)
    if match := re.fullmatch(r"(nf4|bf16)_gemm (\d+)x(\d+)x(\d+)", name):
        m, n, k = map(int, match.groups()[1:])
        assert block_m == 128
        return f"{match[1]}_gemm_store_.*", tiles(m, n), 2 * m * n * k
    if match := re.fullmatch(r"attention (\d+)x(\d+)x(\d+)", name):
        heads, tokens, width = map(int, match.groups())
        return f"attention_d{width}_bf16_.*", math.ceil(tokens / 64) * heads, 4 * tokens * tokens * heads * width
    return None


def check_measured():
    """Of kernels with products; the others are bound by bytes, which is no feat to predict."""
    record, faults = json.loads(RECORD.read_text()), []
    card, ratios = sm.constants()["card"]["h200"], []
    print(f"\nmeasured on an H200, commit {record['commit']} (today's kernels may be faster), and predicted, ms")
    for time in record["times"]["kernels"]:
        described = launch_of(time["kernel"])
        found = described and [row for row in launches.table().values() if row["arch"] == card["arch"] and row["clocks"] != "-"
                               and re.fullmatch(described[0], row["entry"])]
        if not found:
            continue
        row, (_, ctas, flops) = found[0], described
        threads = rows.resources()[(row["entry"], row["arch"])]["threads"]
        turns = math.ceil(flops / ctas / launches.turn_flops(row, threads) - 0.01)
        measured = statistics.median(time["ms"])
        predicted = launches.Launch(row["entry"], ctas, threads, turns, time["bytes"], flops, cheap=True).seconds(card, kept=1) * 1e3
        ratios.append(predicted / measured)
        print(f"{time['kernel']:<44} {measured:>8.3f} {predicted:>8.3f}  x {ratios[-1]:.2f}")
        if not MEASURED[0] <= ratios[-1] <= MEASURED[1]:
            faults.append(f"{time['kernel']}: predicted {predicted:.3f} ms, measured {measured:.3f}: a factor of {ratios[-1]:.2f}")
    if not ratios:
        faults.append("no measured launch has a row in docs/sass.tsv")
    return faults


def run():
    faults = check_known() + check_slow() + check_measured()
    print("\n".join([*faults, f"sass: the model itself: {len(faults)} faults"]))
    sys.exit(bool(faults))
