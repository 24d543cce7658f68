"""A disassembly as instructions with their control codes; its loops, and the path through code that carries the work."""

import re


class Instruction:
    """`stall` clocks before the warp may issue its next; `write`, `read`: the scoreboard that it takes until it has written,
    has read (7: none); `wait`: bits of the scoreboards that it waits for."""
    __slots__ = ("at", "text", "predicate", "body", "op", "base", "stall", "write", "read", "wait", "labels")

    def __init__(self, at, text, bits, labels):
        match = re.match(r"(@!?U?P\w+)\s+(.*)", text)
        self.at, self.text, self.labels = at, text, labels
        self.predicate, self.body = (match[1], match[2]) if match else ("", text)
        self.op = self.body.split()[0]
        self.base = self.op.split(".")[0]
        # The upper 23 bits, Volta and later: reuse (4), wait mask (6), read and write scoreboard (3 each), yield, stall (4).
        control = bits >> 105
        self.stall, self.write, self.read, self.wait = control & 15, control >> 5 & 7, control >> 8 & 7, control >> 11 & 63

    @property
    def is_off(self):
        """Never done, but issued: what ptxas pads with."""
        return self.predicate in ("@!PT", "@!UPT")

    @property
    def vector_bytes(self):
        """A lane's share of a load or a store."""
        widths = {".128": 16, ".64": 8, ".U16": 2, ".S16": 2, ".U8": 1, ".S8": 1}
        return next((bytes_ for suffix, bytes_ in widths.items() if suffix in self.op), 4)

    @property
    def num_products(self):
        """Of m16n8k16 that a warp has of it; a warpgroup's m64nNk16 is N / 8 of them for each of its warps."""
        if self.base == "HGMMA":
            return int(re.match(r"HGMMA\.64x(\d+)x16", self.op)[1]) // 8
        return int(self.base == "HMMA")

    @property
    def target(self):
        """Label that it may go on at."""
        if self.base not in ("BRA", "CALL"):
            return None
        match = re.search(r"\((\.L_\w+)\)", self.text)
        return match[1] if match else None


def functions(code):
    """{name: instructions} of what `toolkit.compact` wrote."""
    found, current, labels = {}, None, []
    for line in code.splitlines():
        if line.startswith(".text."):
            current, labels = found.setdefault(line[6:], []), []
        elif line.startswith(".L_"):
            labels.append(line)
        else:
            at, text, bits = line.split("\t")
            # nvdisasm prints the lower half first.
            current.append(Instruction(int(at, 16), text, int(bits[16:] + bits[:16], 16), labels))
            labels = []
    return found


class Block:
    """Instructions that are issued one after the other."""

    def __init__(self, instructions):
        self.instructions, self.next = instructions, []


class Loop:
    """`head`, the blocks in it, and those that jump back to the head."""

    def __init__(self, head):
        self.head, self.blocks, self.latches = head, {head}, []


class Flow:
    """A function's blocks, numbered in the order of their addresses, and its loops."""

    def __init__(self, instructions):
        at = {label: i for i, x in enumerate(instructions) for label in x.labels}
        leaders = {0, *at.values()}
        leaders |= {i + 1 for i, x in enumerate(instructions) if x.base in ("BRA", "EXIT", "CALL", "RET", "BRX")}
        leaders = sorted(i for i in leaders if i < len(instructions))
        number = {first: block for block, first in enumerate(leaders)}
        self.blocks = [Block(instructions[i:j]) for i, j in zip(leaders, leaders[1:] + [len(instructions)])]
        for i, block in enumerate(self.blocks):
            last = block.instructions[-1]
            # Conditions are a predicate before it or an operand: BRA.U !UP0, BRA.DIV UR4.
            always = not last.predicate and not re.match(r"BRA\S* [^`]", last.body)
            # The compiler calls what returns, and also jumps by CALL: the former goes on behind the call.
            target = number.get(at.get(last.target)) if last.target else None
            if last.base == "CALL" and target is not None and self.returns(target):
                target = None
            if target is not None:
                block.next.append(target)
            falls = not always or target is None and last.base in ("CALL", "BRA") or last.base not in ("BRA", "CALL", "EXIT", "RET", "BRX")
            if falls and i + 1 < len(self.blocks):
                block.next.append(i + 1)
        self.find_loops()

    def returns(self, i):
        """Whether code from block i on ends in a RET before anything else ends it."""
        for block in self.blocks[i:]:
            last = block.instructions[-1]
            if last.base in ("RET", "EXIT") and not last.predicate:
                return last.base == "RET"
        return False

    def find_loops(self):
        """Natural loops: edges back to a block that is on the way from the entry, found depth first."""
        state, order, back = {0: 1}, [], []
        todo = [(0, iter(self.blocks[0].next))]
        while todo:
            i, following = todo[-1]
            j = next(following, None)
            if j is None:
                state[i] = 2
                order.append(i)
                todo.pop()
            elif j not in state:
                state[j] = 1
                todo.append((j, iter(self.blocks[j].next)))
            elif state[j] == 1:
                back.append((i, j))
        self.order, self.back = order, set(back)
        before = {}
        for i in order:
            for j in self.blocks[i].next:
                before.setdefault(j, []).append(i)
        loops = {}
        for latch, head in back:
            loop = loops.setdefault(head, Loop(head))
            loop.latches.append(latch)
            todo = [latch]
            while todo:
                i = todo.pop()
                if i not in loop.blocks:
                    loop.blocks.add(i)
                    todo += before.get(i, [])
        self.loops = [loop for loop in loops.values() if len(loop.blocks) > 1 or len(self.blocks[loop.head].instructions) > 1]

    def num_products(self, blocks):
        return sum(x.num_products for i in blocks for x in self.blocks[i].instructions)

    def inner(self, blocks, head=None):
        """Loops within these blocks, but for the one that begins at `head`."""
        return [loop for loop in self.loops if loop.head != head and loop.blocks <= set(blocks)]

    def trips(self, loop):
        """How often a counted loop turns, or None: a counter that starts, steps and ends at constants."""
        body = [x for i in sorted(loop.blocks) for x in self.blocks[i].instructions]
        last = self.blocks[loop.latches[0]].instructions[-1]
        flag = re.search(r"U?P\d", last.text)
        test = flag and next((x for x in reversed(body) if "ISETP" in x.base and f" {flag[0]}," in x.text), None)
        match = test and re.search(r"ISETP\.NE\S* U?P\d, U?PT, (U?R\d+)(?:\.reuse)?, (0x[0-9a-f]+), U?PT$", test.text)
        if not match:
            return None
        counter, end = match[1], int(match[2], 16)
        # Also 2 c + 2 - c, which ptxas has been seen to step by 2 with.
        step = next((match for x in body if (match := re.match(rf"(?:U?IADD3|VIADD) {counter}, .*?\b(0x[0-9a-f]+)", x.body))), None)
        earlier = [x for block in self.blocks[:loop.head] for x in block.instructions]
        start = next((x.body for x in reversed(earlier) if re.match(rf"\S+ {counter},", x.body)), "")
        value = re.match(r"(?:U?MOV|IMAD\.MOV\.U32|CS2R\S*) .*?(RZ|0x[0-9a-f]+)$", start)
        if not step or not value:
            return None
        turns, rest = divmod(end - int(value[1].replace("SRZ", "0").replace("RZ", "0"), 16), int(step[1], 16))
        return turns if rest == 0 else None

    def path(self, blocks, begin, ends, weight):
        """From `begin` to one of `ends` within `blocks`, no edge back: the path whose weights, summed, are greatest.

        `weight` is of an instruction and a tuple, the first place deciding; instructions of counted loops count as often as
        the loop turns, and are in the path so often."""
        turns = {}
        for loop in self.inner(blocks, begin):
            for i in loop.blocks:
                turns[i] = turns.get(i, 1) * (self.trips(loop) or 1)
        best = {}
        # Those that others lead to come first.
        for i in self.order:
            if i not in blocks:
                continue
            sums = [sum(part) * turns.get(i, 1) for part in zip(*map(weight, self.blocks[i].instructions))]
            # A block may end the path and go on, too: EXIT under a predicate.
            options = [(best[j][0], j) for j in self.blocks[i].next if j in best and (i, j) not in self.back]
            options += [([0] * len(sums), None)] if i in ends else []
            if options:
                further, j = max(options, key=lambda option: option[0])
                best[i] = ([a + b for a, b in zip(sums, further)], j)
        chosen, i = [], begin if begin in best else None
        while i is not None:
            chosen.append(i)
            i = best[i][1]
        return self.unrolled(chosen, self.inner(blocks, begin))

    def unrolled(self, chosen, loops):
        """Instructions of the chosen blocks, counted loops turned."""
        out, i = [], 0
        while i < len(chosen):
            loop = next((loop for loop in sorted(loops, key=lambda l: -len(l.blocks)) if loop.head == chosen[i]), None)
            last = i
            if loop:
                while last + 1 < len(chosen) and chosen[last + 1] in loop.blocks:
                    last += 1
                body = self.unrolled(chosen[i:last + 1], [other for other in loops if other is not loop])
                out += body * (self.trips(loop) or 1)
            else:
                out += self.blocks[chosen[i]].instructions
            i = last + 1
        return out
