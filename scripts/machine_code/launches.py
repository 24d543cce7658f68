"""A launch: its tiles, their waves over the SMs, the bytes they move; and the launches of a picture, as `schnell plan --launches`
lists them. Predictions, all of it.

A tile is a prologue, turns of the main loop and an epilogue. CTAs of an SM share it: a lone one goes at its own speed, as many as
fit at the speed that the model has for them together, in between in proportion. Prologue and epilogue take their latency whoever
is beside them. A turn takes at least what its bytes take from L2, a launch at least what its bytes take from device memory, and
a kernel without products at least what its instructions take to issue. Where a GPU has been timed, all clocks are divided by what
it has kept of them (`kept` in cards.toml).
"""

import math
import re
import subprocess
import sys
from functools import lru_cache

from . import rows, sm, toolkit

LOOPS = toolkit.ROOT / "src/pipeline/loops.tsv"
FLOP_OF_HMMA = 2 * 16 * 8 * 16
CLIP_TOKENS = 77 # of every CLIP text encoder that FLUX has
# Tiles that are not full, which their multiply-adds do not show: stage, kernel, what is written, and the share that is used.
PARTIAL = [
    ("clip", r"\w*gemm_.*", ".*", CLIP_TOKENS / 128),
    ("step", r"nf4_(half_)?gemm_.*", "transformer.velocity", 64 / 128), # 64 features: 16 channels of 2 x 2
    ("vae", r"conv2d_narrow_.*", "vae.image", 3 / 8),           # red, green, blue
]
# Two warps each compute the same scores of a wide head: 64 of 96 products are needed.
REPEATED = [(r"attention_d512_.*", 2 / 3)]


@lru_cache
def table():
    return {(row["entry"], row["arch"]): row for row in rows.committed()[1]}


def row_of(entry, card):
    """Of the entry on the card's architecture, Hopper's own included."""
    arch = card["arch"]
    return table().get((entry, arch)) or table().get((entry, arch + "a"))


class Launch:
    """`ctas` that have work, each `turns` of the main loop; `num_bytes` of device memory, 0: not known."""

    def __init__(self, entry, ctas, threads, turns, num_bytes, flops=0, cheap=False):
        self.entry, self.ctas, self.threads, self.turns = entry, ctas, threads, turns
        self.num_bytes, self.flops, self.cheap = num_bytes, flops, cheap

    def seconds(self, card, kept=None):
        """On a card, without the gap to the next; nothing for an entry that there is no row of."""
        row = row_of(self.entry, card)
        if row is None:
            return None
        clocks = 0
        if row["clocks"] != "-" and self.turns:
            clocks = waves(self.ctas, self.turns, card["sms"], *tile(row, self.threads, card, self.cheap)) / (kept or card["kept"])
        elif row["slots"] != "-":
            clocks = self.issue_clocks(row, card)
        return max(clocks / (card["clock"] * 1e9), self.num_bytes / (card["memory"] * card["memory_share"]))

    def issue_clocks(self, row, card):
        """Four instructions a clock and SM: of all warps, or, of a loop, as many turns as its loads need for the bytes."""
        turns = self.ctas * self.threads / 32
        if row["loop"] != "none":
            turns = max(turns, self.num_bytes / (int(row["load_bytes"]) * 32))
        return turns * int(row["slots"]) / sm.SCHEDULERS / card["sms"]


def turn_flops(row, threads):
    """Of a CTA's turn, as far as they are needed."""
    share = next((share for entries, share in REPEATED if re.fullmatch(entries, row["entry"])), 1)
    return int(row["hmma"]) * FLOP_OF_HMMA * rows.num_warps(row["entry"], threads) * share


def tile(row, threads, card, cheap=False):
    """CTAs that fit an SM, clocks of a turn alone and together, of prologue and epilogue."""
    from_l2 = int(row["load_bytes"]) * threads / card["l2"] if card["l2"] else 0
    alone, together = (max(float(row[name]), from_l2) for name in ("clocks_alone", "clocks"))
    around = float(row["prologue_clocks"]) + float(row["epilogue_least" if cheap else "epilogue_clocks"])
    return int(row["ctas_per_sm"]), alone, together, around


def waves(num_tiles, turns, sms, ctas_per_sm, alone, together, around):
    """Clocks of a launch: waves of as many tiles as fit, all in step, and what is left over, spread over the SMs.

    src/pipeline/predict.rs has the same."""
    full, rest = divmod(num_tiles, sms * ctas_per_sm)
    # Clocks of a turn of each of an SM's CTAs: alone, all together, in between in proportion.
    pace = lambda ctas: alone + (together * ctas_per_sm - alone) * (ctas - 1) / max(1, ctas_per_sm - 1)
    last = around + turns * pace(math.ceil(rest / sms)) if rest else 0
    return full * (around + turns * pace(ctas_per_sm)) + last


class Operation:
    """A line of the list: a launch, or something that takes no time here but the gap (copies overlap kernels)."""

    def __init__(self, stage, what, giga, mega, touches):
        self.stage, self.what = stage, what
        self.flops, self.num_bytes, self.touches = giga * 1e9, mega * 1e6, touches
        match = re.match(r"(\w+) (\d+)x(\d+)x(\d+) of (\d+), \d+ B", what)
        self.entry = match[1] if match else None
        self.grid, self.threads = (tuple(map(int, match.groups()[1:4])), int(match[5])) if match else ((0, 0, 0), 0)

    def launch(self, card, text_tokens):
        row = row_of(self.entry, card)
        if row is None:
            return None
        x, y, z = self.grid
        ctas = x * y * z
        if row["clocks"] == "-":
            return Launch(self.entry, ctas, self.threads, 0, self.num_bytes, self.flops)
        if z == 2 and "gemm" in self.entry:
            # FLUX's two streams in one launch: the second is the text, the rest of its grid ends at once.
            ctas = x * y + min(x, math.ceil(text_tokens / gemm_block_m())) * y
        written = [touch.lstrip("<>") for touch in self.touches.split() if ">" in touch[:2]]
        used = next((share for stage, entry, target, share in PARTIAL if stage == self.stage and re.fullmatch(entry, self.entry)
                     and any(re.fullmatch(target, name) for name in written)), 1)
        turns = self.flops / (ctas * used * turn_flops(row, self.threads))
        # The list has six digits: what is a little above a whole number is the whole number.
        return Launch(self.entry, ctas, self.threads, max(1, math.ceil(turns - 0.01)), self.num_bytes, self.flops)


@lru_cache
def gemm_block_m():
    return int(re.search(r"#define GEMM_BLOCK_M (\d+)", (toolkit.KERNELS / "gemm.h").read_text())[1])


class Picture:
    """What `schnell plan --launches` says of one: stages that a new prompt runs, as (name, repeats, operations)."""

    def __init__(self, text):
        self.text_tokens = int(re.search(r"(\d+) T5 tokens", text)[1])
        self.stages, current = [], None
        for line in text.splitlines():
            if match := re.fullmatch(r"(\w+) x (\d+)(, .*)?", line):
                # The first of the turns is a stage of its own.
                repeats = int(match[2]) - ("those that are left" in (match[3] or ""))
                current = (match[1], repeats, [])
                if "seen before" not in (match[3] or ""):
                    self.stages.append(current)
            elif current and (match := re.match(r" *\d+  (.+?) +([\d.]+) GFLOP(?: +([\d.]+) MB)?  (.*)", line)):
                current[2].append(Operation(current[0], match[1], float(match[2]), float(match[3] or 0), match[4]))
        if not any(operations for *_, operations in self.stages):
            sys.exit("sass: `schnell plan --launches` lists no operations")
        if not any(operation.num_bytes for *_, operations in self.stages for operation in operations):
            sys.exit("sass: this `schnell` does not say how many bytes an operation touches: it is older; `cargo build --bin schnell`")

    def lines(self, card):
        """(stage, repeats, what, times in it, seconds of one), same launches together; and entries without a row."""
        found, unknown = {}, set()
        for stage, repeats, operations in self.stages:
            for operation in operations:
                launch = operation.launch(card, self.text_tokens) if operation.entry else None
                seconds = launch.seconds(card) if launch else None
                if operation.entry and seconds is None:
                    unknown.add(operation.entry)
                key = (stage, repeats, operation.what if operation.entry else "copies", round(operation.flops))
                times, spent, _ = found.get(key, (0, 0, None))
                found[key] = (times + 1, spent + (seconds or 0) + card["gap"], launch)
        return [(*key[:3], times, spent, launch) for key, (times, spent, launch) in found.items()], unknown


def picture(program, model, side, card):
    command = [program, "plan", "--launches", "--card", card, "--width", str(side), "--height", str(side), "--model", model]
    try:
        return Picture(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"sass: {error}\n{getattr(error, 'stderr', '')}`cargo build --bin schnell`, or --schnell FILE")


def loops_table():
    """What src/pipeline/predict.rs reads: every entry with products on every card."""
    lines = ["# Written by scripts/sass --write from docs/sass.tsv and scripts/machine_code/cards.toml. Predictions: CTAs that run at once on",
             "# an SM, SMs, FLOP of a turn of a CTA's main loop, and nanoseconds: of a turn alone on an SM, of one together with as many as",
             "# fit (per turn of each), of what is around the loop.",
             "card\tentry\tctas_per_sm\tsms\tturn_flops\talone_ns\ttogether_ns\taround_ns"]
    for name, card in sm.constants()["card"].items():
        for (entry, arch), row in sorted(table().items()):
            if row["clocks"] == "-" or arch.rstrip("a") != card["arch"]:
                continue
            threads = rows.resources()[(entry, arch)]["threads"]
            ctas_per_sm, *clocks = tile(row, threads, card)
            alone, together, around = (f"{clock / card['clock'] / card['kept']:.1f}" for clock in clocks)
            lines.append("\t".join([name, entry, str(ctas_per_sm), str(card["sms"]), f"{turn_flops(row, threads):.0f}", alone, together, around]))
    return "\n".join(lines) + "\n"


def print_all(program, model, sides, cards):
    """Launches that take at least a thousandth of a picture, then the stages."""
    for side in sides:
        for name in cards:
            card = sm.constants()["card"][name]
            lines, unknown = picture(program, model, side, name).lines(card)
            stages = {}
            for stage, repeats, _, _, spent, _ in lines:
                stages[stage] = stages.get(stage, 0) + repeats * spent
            total = sum(stages.values())
            print(f"\n{side} x {side} on {name}: predicted, ms")
            print(f"{'stage':<12} {'launch':<58} {'times':>6} {'tiles':>6} {'waves':>6} {'each':>8} {'share':>6} {'all':>8}")
            for stage, repeats, what, times, spent, launch in lines:
                if repeats * spent * 1000 < total or launch is None:
                    continue
                row, each = row_of(launch.entry, card), spent / times
                num_waves = launch.ctas / card["sms"] / int(row["ctas_per_sm"])
                share = f"{launch.flops / each / card['flops']:.3f}" if launch.flops else "-"
                print(f"{stage:<12} {what:<58} {repeats * times:>6} {launch.ctas:>6} {num_waves:>6.2f} {each * 1e3:>8.3f} {share:>6} "
                      f"{repeats * spent * 1e3:>8.1f}")
            print("  ".join(f"{stage} {seconds * 1e3:.1f}" for stage, seconds in stages.items()), f" all {total * 1e3:.1f}")
            if unknown:
                print(f"not counted, docs/sass.tsv has no row: {', '.join(sorted(unknown))}")
