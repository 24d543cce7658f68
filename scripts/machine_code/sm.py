"""The cycle model of one SM: a loop's instructions in order, each when its control code and the pipes allow.

Four schedulers issue an instruction a clock each, of a warp whose stall count is over, whose scoreboards are free and whose
pipe is free; among several, the one that has waited longest. Shared memory has one port for all. Stall counts carry all fixed
latencies; loads, shared memory, tensor cores and barriers have theirs from cards.toml. CTAs begin half a turn apart.

Of wgmma a warp's share is a product like others, which it waits for at the end of its group alone; barriers in shared memory
(mbarrier) are open when they are asked.

Not modelled: instruction caches, power, register banks, L2 and DRAM contention (launches.py has those as rates), warps that do
different things. Bank conflicts cannot be read from machine code: `conflicts` says by how much an access costs more
than its least, {"LDS": 32.0}; rows.py takes that from docs/accesses.txt, where the emulator has counted it.
"""

import re
import tomllib
from functools import lru_cache
from pathlib import Path

SCHEDULERS = 4
TENSOR, ALU, FMA, IMAD, MIO, MUFU, FREE = range(7)
PIPES = {
    TENSOR: "HMMA HGMMA",
    ALU: "IADD3 LOP3 SHF PRMT ISETP LEA IMNMX SEL MOV F2FP FSETP FMNMX PLOP3 FSEL VIADD VIMNMX VIADDMNMX P2R R2P LOP BMSK SGXT IABS "
         "FCHK FLO VABSDIFF ICMP CS2R FMNMX3 VIMNMX3 IADD",
    FMA: "FFMA FMUL FADD",
    IMAD: "IMAD HFMA2 HADD2 HMUL2",
    MIO: "LDS LDSM STS LDGSTS SHFL LDG STG ATOMG RED LDC S2R S2UR LDCU STSM SYNCS",
    MUFU: "MUFU I2F F2I I2FP FRND F2F",
}
PIPE_OF = {base: pipe for pipe, bases in PIPES.items() for base in bases.split()}
NEVER = float("inf")


@lru_cache
def constants():
    return tomllib.loads((Path(__file__).parent / "cards.toml").read_text())


def pipe_of(x):
    return FREE if x.is_off else PIPE_OF.get(x.base, FREE)


def wavefronts(x):
    """Of the shared memory's port (loads from memory pass it, too), where every bank is used once."""
    if x.is_off:
        return 0
    if x.base in ("LDSM", "STSM"):
        return int(x.op[-1]) if x.op[-1] in "24" else 1
    if x.base in ("LDS", "STS", "LDG", "STG"):
        return max(1, x.vector_bytes // 4)
    return {"LDGSTS": max(1, x.vector_bytes // 4), "SHFL": 1}.get(x.base, 0)


def hmma_clocks(x, sm):
    """Of one instruction: with f32 accumulation, unless the machine code says fp16 (HMMA.16816.F16)."""
    if x.base == "HGMMA":
        return sm["wgmma"] * x.num_products
    return sm["hmma_half" if x.op.endswith(".F16") else "hmma"] / (2 if "1688" in x.op else 1)


class Step:
    """An instruction as the model sees it."""
    __slots__ = ("base", "pipe", "wavefronts", "stall", "write", "read", "wait", "pending", "products", "ends_group", "clocks", "leaps")

    def __init__(self, x, sm, pipes, conflicts):
        self.base, self.pipe, self.stall = x.base, pipe_of(x), max(1, x.stall)
        self.write, self.read = x.write, x.read
        self.wait = [i for i in range(6) if x.wait >> i & 1]
        self.wavefronts = wavefronts(x) * conflicts.get(x.base, 1) * pipes["smem_wavefront"]
        # Groups of asynchronous copies that may still be on their way.
        match = re.search(r"DEPBAR\S* SB0, (0x\w+)", x.body)
        self.pending = int(match[1], 16) if match else None
        # Groups of wgmma that may still be.
        match = re.search(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x\w+)", x.body)
        self.products = int(match[1], 16) if match else None
        self.ends_group = x.base == "HGMMA" and "gsb0" in x.body
        self.clocks = {TENSOR: hmma_clocks(x, sm), ALU: pipes["alu"], FMA: pipes["fma"],
                       IMAD: pipes["imad"], MIO: pipes["mio"], MUFU: pipes["mufu"]}.get(self.pipe, 0)
        if self.base in ("BRA", "CALL", "BSYNC"):
            self.stall = max(self.stall, 4 if self.base == "BSYNC" else 6)


class Barrier:
    def __init__(self):
        self.arrived, self.turn, self.released = 0, 0, 0


class Warp:
    def __init__(self, barrier, steps, begin):
        self.barrier, self.steps, self.at, self.next = barrier, steps, 0, begin
        self.boards = [0] * 6
        self.copies, self.groups, self.products = 0, [], []
        self.turns = []     # the clock at which each ended
        self.waits_for = None

    def ready(self, pipes):
        """The clock from which on its next instruction may be issued."""
        step = self.steps[self.at]
        clock = max(self.next, pipes[step.pipe])
        for board in step.wait:
            clock = max(clock, self.boards[board])
        if step.pending is not None and len(self.groups) > step.pending:
            clock = max(clock, sorted(self.groups, reverse=True)[step.pending])
        if step.products is not None and len(self.products) > step.products:
            clock = max(clock, self.products[len(self.products) - 1 - step.products])
        if step.base == "BAR" and self.waits_for is not None:
            clock = max(clock, self.barrier.released) if self.barrier.turn > self.waits_for else NEVER
        return clock


class Sm:
    """`ctas` CTAs of `warps` warps that issue `instructions` over and over."""

    def __init__(self, instructions, arch, ctas, warps, conflicts=None):
        known = constants()
        sm = known["sm"][arch.rstrip("a")]
        self.latency, self.memory = known["latency"], sm["memory"]
        steps = [Step(x, sm, known["pipes"] | sm, conflicts or {}) for x in instructions]
        # Half a turn of the bound that is nearest.
        tensor = sum(step.clocks if step.base == "HGMMA" else sm["hmma"] for step in steps if step.pipe == TENSOR)
        apart = max(tensor * warps / SCHEDULERS, len(steps) * warps / SCHEDULERS) / 2
        barriers = [Barrier() for _ in range(ctas)]
        self.num_warps = warps
        self.warps = [Warp(barriers[cta], steps, int(cta * apart)) for cta in range(ctas) for _ in range(warps)]
        self.queues = [self.warps[i::SCHEDULERS] for i in range(SCHEDULERS)]
        self.pipes = [[0.0] * 7 for _ in range(SCHEDULERS)]
        self.smem_free, self.issued, self.clock = 0.0, [], 0

    def arrive(self, warp):
        barrier = warp.barrier
        warp.waits_for = barrier.turn
        barrier.arrived += 1
        if barrier.arrived == self.num_warps:
            barrier.arrived, barrier.turn, barrier.released = 0, barrier.turn + 1, self.clock + self.latency["barrier"]

    def through_memory(self, warp, step):
        """When a queued instruction has read its registers, and when it is done."""
        clock, latency = self.clock, self.latency
        if step.base in ("LDC", "LDCU", "S2R", "S2UR"):
            return clock + latency["read"], clock + latency["constant"]
        begin = max(self.smem_free, clock + 4)
        self.smem_free = begin + step.wavefronts
        if step.base == "LDGSTS":
            warp.copies = clock + self.memory
            return begin + latency["read"], clock + self.memory
        if step.base in ("LDG", "ATOMG"):
            return begin + latency["read"], clock + self.memory
        if step.base in ("STS", "STG", "RED", "STSM", "SYNCS"):
            return begin + latency["read"], self.smem_free
        # Latencies are from issue, without what the port makes it wait.
        return begin + latency["read"], self.smem_free + latency["ldsm" if step.base == "LDSM" else "lds"] - 5

    def issue(self, warp, pipes):
        step, clock = warp.steps[warp.at], self.clock
        read, done = clock + 3, clock + 5
        pipe = step.pipe
        if pipe == TENSOR:
            pipes[TENSOR] = max(pipes[TENSOR], clock - 0.999) + step.clocks
            if step.ends_group:
                warp.products = [*warp.products, pipes[TENSOR] + self.latency["wgmma"]][-8:]
        elif pipe != FREE:
            pipes[pipe] = clock + step.clocks
        # The two share a way to issue.
        if pipe == FMA:
            pipes[IMAD] = max(pipes[IMAD], clock + 1)
        elif pipe == IMAD:
            pipes[FMA] = clock + 1
        elif pipe == MIO:
            read, done = self.through_memory(warp, step)
        elif pipe == MUFU:
            read, done = clock + self.latency["read"], clock + self.latency["mufu"]
        if step.base == "LDGDEPBAR":
            warp.groups = [*warp.groups, warp.copies][-8:]
            warp.copies = 0
        if step.write != 7:
            warp.boards[step.write] = max(warp.boards[step.write], done)
        if step.read != 7:
            warp.boards[step.read] = max(warp.boards[step.read], read)
        warp.next, warp.waits_for = clock + step.stall, None
        warp.at += 1
        if warp.at == len(warp.steps):
            warp.at = 0
            warp.turns.append(clock)

    def choose(self, queue, pipes, turns):
        """The warp that issues now, or nothing and the clock from which on there may be one."""
        soonest = NEVER
        for warp in queue:
            if len(warp.turns) >= turns:
                continue
            ready = warp.ready(pipes)
            if ready <= self.clock and warp.steps[warp.at].base == "BAR" and warp.waits_for is None:
                self.arrive(warp)
                # The last to arrive lets warps go that other schedulers have been asked about already.
                ready = self.clock + self.latency["barrier"]
            if ready <= self.clock:
                return warp, self.clock + 1
            soonest = min(soonest, ready)
        return None, soonest

    def run(self, turns):
        """Until every warp has made so many turns; `issued` then has the clock of each instruction that counts."""
        counts = TENSOR if any(step.pipe == TENSOR for step in self.warps[0].steps) else None
        while any(len(warp.turns) < turns for warp in self.warps):
            soonest = NEVER
            for queue, pipes in zip(self.queues, self.pipes):
                warp, next_clock = self.choose(queue, pipes, turns)
                soonest = min(soonest, next_clock)
                if warp:
                    if counts is None or warp.steps[warp.at].pipe == counts:
                        self.issued.append(self.clock)
                    self.issue(warp, pipes)
                    if len(queue) > 1:
                        queue.remove(warp)
                        queue.append(warp)
            if soonest == NEVER:
                raise ValueError("every warp waits at a barrier: the model cannot run this code")
            self.clock = max(self.clock + 1, int(-(-soonest // 1)))
        return self


TURNS, SETTLED = 7, 2


@lru_cache(maxsize=None)
def loop_clocks(instructions, arch, ctas, warps, conflicts=()):
    """Clocks of an SM per turn of a loop and CTA, with so many CTAs on it. Instructions and conflicts as tuples."""
    sm = Sm(instructions, arch, ctas, warps, dict(conflicts)).run(TURNS)
    # From where all have settled to where the first is done.
    begin, end = max(warp.turns[SETTLED - 1] for warp in sm.warps), min(warp.turns[-1] for warp in sm.warps)
    tensor = sum(pipe_of(x) == TENSOR for x in instructions)
    per_turn = (tensor or len(instructions)) * warps
    return (end - begin) * per_turn / sum(begin <= clock < end for clock in sm.issued)


def tensor_clocks(instructions, arch, warps):
    """The least that the tensor cores take for a CTA's turn."""
    of = constants()["sm"][arch.rstrip("a")]
    return sum(hmma_clocks(x, of) for x in instructions if pipe_of(x) == TENSOR) * warps / SCHEDULERS


@lru_cache(maxsize=None)
def straight_clocks(instructions, arch, warps):
    """Of code that a lone CTA runs once, its warps alike."""
    if not instructions:
        return 0
    sm = Sm(instructions, arch, 1, warps).run(1)
    return max(max(warp.turns) for warp in sm.warps)
