"""Which lines, branches and toggles of generated Verilog simulation has reached.

A toggle is one direction of one bit of one signal. Bits that wiring ties to a constant are not
counted. Points of several instances of a module are one: reached when it is in any of them.
"""

import collections
import dataclasses
import pathlib
import re
import tempfile
from collections.abc import Iterator

import numpy as np

from moska.gen.emit import TOP
from moska.sim.device import Device
from moska.sim.netlist import (
    ASSIGN,
    BASES,
    CONNECTION,
    CONSTANT,
    DECLARED,
    INSTANCE,
    MODULE,
    NAME,
    PORT,
    plain,
    width,
)

FIELD = re.compile(r"\x01([^\x02]*)\x02([^\x01]*)")
TOGGLE = re.compile(r"(?P<name>.*?)(?:\[(?P<bit>\d+)\])?:(?P<step>0->1|1->0)$")
MANGLED = re.compile(r"__0([0-9A-F]{2})", re.I)
SELECT = re.compile(rf"(?P<name>{NAME}) *(?:\[(?P<high>\d+)(?::(?P<low>\d+))?\])?")
KINDS = ("lines", "branches", "toggles")


class Constants:
    """Bits that wiring ties to constants: of a module, of a concatenation, through ports.

    Members
    -------
    values
        of each module: name and index of a bit, and whether it is 0 or 1
    """

    def __init__(self, text: str):
        bodies = {plain(match["name"]): match[0] for match in MODULE.finditer(text)}
        self.values: dict[str, dict[tuple[str, int], int]] = {module: {} for module in bodies}
        self._widths = {
            module: {plain(match["name"]): width(match) for match in DECLARED.finditer(body)}
            for module, body in bodies.items()
        }
        links = {module: self._links(module, body) for module, body in bodies.items()}
        inputs = {
            (module, plain(match["name"]))
            for module, body in bodies.items()
            for match in PORT.finditer(body)
            if match["way"] == "input"
        }
        connections = [
            (module, plain(instance["type"]), plain(match["port"]), bits)
            for module, body in bodies.items()
            for instance in INSTANCE.finditer(body)
            for match in CONNECTION.finditer(instance["ports"])
            if (bits := self._bits(module, match["value"]))
        ]
        before = -1
        while before != (before := sum(map(len, self.values.values()))):
            for module, pairs in links.items():
                self._settle(module, pairs)
            self._through_ports(connections, inputs)

    def _links(self, module, body):
        """Pairs of bits, the first of which is the second."""
        pairs = []
        for match in ASSIGN.finditer(body):
            target, value = self._bits(module, match["target"]), self._bits(module, match["value"])
            if target and value:
                pairs += zip(target, value + [0] * len(target), strict=False)
        return pairs

    def _bits(self, module, text):
        """Bits of an expression that is only wiring, lowest first; None when it is not."""
        out = []
        for part in reversed(text.strip().removeprefix("{").removesuffix("}").split(",")):
            piece = part.strip()
            if match := CONSTANT.fullmatch(piece):
                value = int(match["digits"], BASES[match["base"]])
                out += [value >> index & 1 for index in range(int(match["width"]))]
                continue
            match = SELECT.fullmatch(piece)
            if not match or plain(match["name"]) not in self._widths[module]:
                return None
            name = plain(match["name"])
            high = int(match["high"] or self._widths[module][name] - 1)
            low = int(match["low"] or match["high"] or 0)
            out += [(name, index) for index in range(low, high + 1)]
        return out

    def _value(self, module, bit):
        return bit if isinstance(bit, int) else self.values[module].get(bit)

    def _settle(self, module, pairs):
        values, changed = self.values[module], True
        while changed:
            changed = False
            for target, source in pairs:
                value = self._value(module, source)
                if value is not None and target not in values:
                    values[target] = value
                    changed = True

    def _through_ports(self, connections, inputs):
        given = collections.defaultdict(list)
        for parent, kind, port, bits in connections:
            for index, bit in enumerate(bits):
                if (kind, port) in inputs:
                    given[kind, port, index].append(self._value(parent, bit))
                elif (port, index) in self.values[kind]:
                    self.values[parent].setdefault(bit, self.values[kind][port, index])
        for (kind, port, index), values in given.items():
            if None not in values and len(set(values)) == 1:
                self.values[kind].setdefault((port, index), values[0])


@dataclasses.dataclass(frozen=True)
class Point:
    """What Verilator counts: ``page`` is "v_line", "v_branch" or "v_toggle"."""

    page: str
    module: str
    line: int
    comment: str
    lines: tuple[int, ...]


class Counts:
    """Sum of the counts of many runs of one library."""

    def __init__(self):
        self.keys: list[bytes] | None = None
        self.total = np.zeros(0, dtype=np.int64)

    def add(self, path: pathlib.Path):
        """Add a file that the device has written.

        Raises
        ------
        ValueError
            when it has other points than those before.
        """
        rows = [row.rsplit(b"' ", 1) for row in path.read_bytes().splitlines()[1:]]
        keys = [row[0] for row in rows]
        counts = np.array([int(row[1]) for row in rows], dtype=np.int64)
        if self.keys is None:
            self.keys, self.total = keys, counts
        elif keys == self.keys:
            self.total += counts
        else:
            raise ValueError(f"points of {path} must be those of the files before")

    def points(self) -> dict[Point, int]:
        """Return how often each point of the unit was reached."""
        out: dict[Point, int] = collections.Counter()
        for raw, count in zip(self.keys or (), self.total, strict=True):
            fields = dict(FIELD.findall(raw.decode()))
            page, module = fields["page"].split("/", 1)
            if module.split(".")[0] == TOP:
                lines = tuple(_lines(fields.get("S", "")))
                out[Point(page, module, int(fields["l"]), fields["o"], lines)] += int(count)
        return out


def _lines(spans: str) -> Iterator[int]:
    for span in filter(None, spans.split(",")):
        first, _, last = span.partition("-")
        yield from range(int(first), int(last or first) + 1)


class CountingDevice(Device):
    """A device that adds its counts to a sum when it is closed."""

    def __init__(self, *args, counts: Counts, **kwargs):
        self._counts = counts
        super().__init__(*args, coverage=True, **kwargs)

    def close(self):
        """Add the counts and end the simulation."""
        if self._handle is not None:
            with tempfile.NamedTemporaryFile(suffix=".dat") as file:
                self.write_coverage(pathlib.Path(file.name))
                self._counts.add(pathlib.Path(file.name))
        super().close()


def component(module: str) -> str:
    """Part of the unit that a module belongs to: of "unit.results.finisher" it is "results"."""
    parts = module.split(".")
    return parts[min(1, len(parts) - 1)]


@dataclasses.dataclass
class Tally:
    """Points of a part of the design: of each of KINDS, reached and counted; and constant bits."""

    reached: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    counted: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    constant: int = 0  # toggles that are not counted

    def add(self, kind: str, hit: bool):
        """Count a point."""
        self.reached[kind] += hit
        self.counted[kind] += 1

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.reached + other.reached,
            self.counted + other.counted,
            self.constant + other.constant,
        )

    def share(self, kind: str) -> float:
        """Part of the points that was reached; 1 when there are none."""
        return self.reached[kind] / self.counted[kind] if self.counted[kind] else 1.0


def tally(points: dict[Point, int], text: str) -> tuple[dict[str, Tally], list[tuple[str, ...]]]:
    """Tally of each module, and what was not reached: module, kind and what it is."""
    constants = Constants(text).values
    source = ["", *text.splitlines()]
    tallies: dict[str, Tally] = collections.defaultdict(Tally)
    missed = []
    lines: dict[tuple[str, int], bool] = collections.defaultdict(bool)
    for point, count in points.items():
        module = point.module.removeprefix(f"{TOP}.")
        if point.page == "v_toggle":
            match = TOGGLE.match(point.comment)
            assert match, point.comment
            name = MANGLED.sub(lambda hexadecimal: chr(int(hexadecimal[1], 16)), match["name"])
            bit = int(match["bit"] or 0)
            if (plain(name), bit) in constants[point.module]:
                tallies[module].constant += 1
                continue
            tallies[module].add("toggles", count > 0)
            if not count:
                missed.append((module, "toggle", f"{plain(name)}[{bit}] {match['step']}"))
            continue
        # Amaranth's way to have a block run once.
        if "$initial" in source[point.line] or point.comment.endswith("initial"):
            continue
        for line in point.lines:
            if "$initial" not in source[line]:
                lines[module, line] |= count > 0
        if point.page == "v_branch":
            tallies[module].add("branches", count > 0)
            if not count:
                what = f"{point.line} {point.comment}: {source[point.line].strip()}"
                missed.append((module, "branch", what))
    for (module, line), hit in lines.items():
        tallies[module].add("lines", hit)
        if not hit:
            missed.append((module, "line", f"{line}: {source[line].strip()}"))
    return dict(tallies), sorted(missed)
