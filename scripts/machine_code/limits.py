"""What docs/sass-limits.tsv allows of the rows."""

import re

from . import rows, toolkit

FILE = toolkit.ROOT / "docs/sass-limits.tsv"


class Limit:
    """One line: entries and targets it is for (expressions that match whole names), column, >= or <=, limit, and the goal: what the limit
    shall be one day."""

    def __init__(self, line):
        self.line = line
        fields = line.split("\t")
        if len(fields) != 6 or fields[2] not in rows.COLUMNS or fields[3] not in (">=", "<="):
            raise ValueError(f"docs/{FILE.name}: {line!r} is not entries, archs, a column of docs/sass.tsv, >= or <=, limit, goal")
        self.entries, self.archs, self.column, self.sign = fields[:4]
        self.limit, self.goal = map(float, fields[4:])

    def matches(self, row):
        """Clocks are asked of kernels with products alone."""
        named = re.fullmatch(self.entries, row["entry"]) and re.fullmatch(self.archs, row["arch"])
        return bool(named) and (row[self.column] != "-" or row["hmma"] != "0")

    def holds(self, value, limit):
        return value >= limit if self.sign == ">=" else value <= limit


def read():
    lines = [line for line in FILE.read_text().splitlines() if line and not line.startswith("#")]
    return [Limit(line) for line in lines[1:]]


def faults(found_rows, limits):
    """What breaks a limit, and limits that nothing is checked by: an entry's name has changed."""
    found = []
    for limit in limits:
        matched = [row for row in found_rows if limit.matches(row)]
        if not matched:
            found.append(f"docs/sass-limits.tsv: no entry is called {limit.entries} on {limit.archs}")
        for row in matched:
            value = row[limit.column]
            if value == "-":
                found.append(f"{row['entry']} on sm_{row['arch']}: no {limit.column}, the limit is {limit.sign} {limit.limit:g}")
            elif not limit.holds(float(value), limit.limit):
                found.append(f"{row['entry']} on sm_{row['arch']}: {limit.column} is {value}, the limit is {limit.sign} {limit.limit:g}")
    return found


def ahead(found_rows, limits):
    """Limits whose goals are not reached, a line each with the value that is farthest from it."""
    found = []
    for limit in limits:
        values = [float(row[limit.column]) for row in found_rows if limit.matches(row) and row[limit.column] != "-"]
        worst = (min if limit.sign == ">=" else max)(values, default=limit.goal)
        if not limit.holds(worst, limit.goal):
            found.append(f"{limit.entries} on {limit.archs}: {limit.column} {worst:g}, goal {limit.sign} {limit.goal:g}")
    return found
