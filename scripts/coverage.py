"""Lines, branches and toggles of the generated Verilog that scenes and fuzzer reach.

Plays the scenes of moska/sim/suite.py and rounds of moska/sim/fuzz.py on Verilated units that
count, for two configurations: `tiny`, and `tiny` with two read ports and four contexts. A toggle
point is one direction of one bit of one signal. Bits that wiring ties to a constant are not
counted, and neither is what scripts/coverage.toml names, with a reason.

Usage: python scripts/coverage.py [--fuzz 500] [--out build/coverage] [--cache DIR]
       [--only NAME] [--verilog NAME=FILE]

Writes OUT/coverage.md and OUT/missed.txt. Exits with 1 below 95 % of lines or 90 % of toggles.
"""

import argparse
import collections
import dataclasses
import functools
import pathlib
import re
import sys
import tempfile
from unittest import mock

import numpy as np

import moska.sim.fuzz
from moska.gen.config import Config, tomllib
from moska.sim.device import Device, cache_directory, generated
from moska.sim.suite import Difference, Suite

LINES, TOGGLES = 0.95, 0.90
REASONS = pathlib.Path(__file__).with_name("coverage.toml")
FIELD = re.compile(r"\x01([^\x02]*)\x02([^\x01]*)")
TOGGLE = re.compile(r"(?P<name>.*?)(?:\[(?P<bit>\d+)\])?:(?P<step>0->1|1->0)$")
NAME = r"\\\S+|[A-Za-z_][\w.$]*"
MODULE = re.compile(r"^module (?P<name>\S+)\s*\(.*?^endmodule$", re.M | re.S)
DECLARED = re.compile(
    rf"^  (?:(?P<way>input|output) )?(?:wire|reg) (?:\[(?P<high>\d+):0\] )?(?P<name>{NAME})"
    r"(?: +=.*)?;$",
    re.M,
)
ASSIGN = re.compile(r"^  assign (?P<target>.*?\S) += (?P<value>.*);$", re.M)
INSTANCE = re.compile(
    rf"^  (?P<type>{NAME}) +\S+ +\(\n(?P<ports>(?:    \..*\n)*)  \);$", re.M
)
CONNECTION = re.compile(rf"^    \.(?P<port>{NAME}) *\((?P<value>.*)\),?$", re.M)
PIECE = re.compile(
    rf"\s*(?:(?P<width>\d+)'(?P<base>[hdb])(?P<digits>[0-9a-f]+)"
    rf"|(?P<name>{NAME}) *(?:\[(?P<high>\d+)(?::(?P<low>\d+))?\])?)\s*(?:,|$)"
)


def plain(name):
    """Name without the escape of Verilog."""
    return name.removeprefix("\\")


class Constants:
    """Bits that wiring ties to constants, in every module of a generated design."""

    def __init__(self, text: str):
        self.values: dict[str, dict[tuple[str, int], int]] = {}
        self.widths: dict[str, dict[str, int]] = {}
        bodies = {plain(m["name"]): m[0] for m in MODULE.finditer(text)}
        links, ways, instances = {}, {}, []
        for module, body in bodies.items():
            self.values[module] = {}
            self.widths[module] = {
                plain(m["name"]): int(m["high"] or 0) + 1 for m in DECLARED.finditer(body)
            }
            ways[module] = {
                plain(m["name"]): m["way"] for m in DECLARED.finditer(body) if m["way"]
            }
            links[module] = []
            for match in ASSIGN.finditer(body):
                target, value = self.bits(module, match["target"]), self.bits(
                    module, match["value"]
                )
                if target and value:
                    links[module] += zip(target, value + [0] * len(target), strict=False)
            instances += [
                (module, plain(m["type"]), {
                    plain(c["port"]): self.bits(module, c["value"])
                    for c in CONNECTION.finditer(m["ports"])
                })
                for m in INSTANCE.finditer(body)
            ]  # fmt: skip
        while True:
            before = sum(map(len, self.values.values()))
            for module, pairs in links.items():
                self._settle(self.values[module], pairs)
            self._through_ports(instances, ways)
            if sum(map(len, self.values.values())) == before:
                return

    def bits(self, module, text):
        """Bits of an expression that is only wiring, lowest first; None when it is not."""
        text = text.strip()
        if text.startswith("{") and text.endswith("}"):
            text = text[1:-1].strip()
        out, at = [], 0
        while at < len(text):
            piece = PIECE.match(text, at)
            if not piece:
                return None
            at = piece.end()
            if piece["width"]:
                value = int(piece["digits"], {"h": 16, "d": 10, "b": 2}[piece["base"]])
                out.append([value >> i & 1 for i in range(int(piece["width"]))])
                continue
            name = plain(piece["name"])
            if name not in self.widths[module]:
                return None
            high = self.widths[module][name] - 1 if piece["high"] is None else int(piece["high"])
            low = (0 if piece["high"] is None else high) if piece["low"] is None else int(
                piece["low"]
            )
            out.append([(name, i) for i in range(low, high + 1)])
        return [bit for part in reversed(out) for bit in part]

    @staticmethod
    def _settle(values, pairs):
        changed = True
        while changed:
            changed = False
            for target, source in pairs:
                value = source if isinstance(source, int) else values.get(source)
                if value is not None and not isinstance(target, int) and target not in values:
                    values[target] = value
                    changed = True

    def _through_ports(self, instances, ways):
        inputs = collections.defaultdict(list)
        for parent, kind, ports in instances:
            for port, bits in ports.items():
                if not bits:
                    continue
                for index, bit in enumerate(bits):
                    value = bit if isinstance(bit, int) else self.values[parent].get(bit)
                    if ways[kind].get(port) == "input":
                        inputs[kind, port, index].append(value)
                    elif not isinstance(bit, int) and (port, index) in self.values[kind]:
                        self.values[parent].setdefault(bit, self.values[kind][port, index])
        for (kind, port, index), values in inputs.items():
            if None not in values and len(set(values)) == 1:
                self.values[kind].setdefault((port, index), values[0])


@dataclasses.dataclass(frozen=True)
class Point:
    """A place that is counted."""

    page: str  # v_line, v_branch, v_toggle
    module: str
    line: int
    comment: str
    lines: tuple[int, ...]


class Counts:
    """Sum of the counts of many runs of one library."""

    def __init__(self):
        self.keys: list[bytes] | None = None
        self.total = None

    def add(self, path: pathlib.Path):
        """Add a file that the device has written."""
        rows = [row.rsplit(b"' ", 1) for row in path.read_bytes().splitlines()[1:]]
        keys = [row[0] for row in rows]
        counts = np.array([int(row[1]) for row in rows], dtype=np.int64)
        if self.keys is None:
            self.keys, self.total = keys, counts
        elif keys == self.keys:
            self.total += counts
        else:
            raise ValueError(f"{path} has other points than the files before")

    def points(self) -> dict[Point, int]:
        """Return counts of the unit's points; those of a module's instances are added up."""
        out: dict[Point, int] = collections.Counter()
        for raw, count in zip(self.keys, self.total, strict=True):
            fields = dict(FIELD.findall(raw.decode()))
            page, module = fields["page"].split("/", 1)
            lines = []
            for span in fields.get("S", "").split(","):
                if span:
                    first, _, last = span.partition("-")
                    lines += range(int(first), int(last or first) + 1)
            if module.startswith("moska"):
                point = Point(page, module, int(fields["l"]), fields["o"], tuple(lines))
                out[point] += int(count)
        return out


class CountingDevice(Device):
    """A device that adds its counts to a sum when it is closed."""

    def __init__(self, *args, counts: Counts, **kwargs):
        self._counts = counts
        self._handle = None
        super().__init__(*args, coverage=True, **kwargs)

    def close(self):
        """Add the counts and end the simulation."""
        if self._handle is not None:
            with tempfile.NamedTemporaryFile(suffix=".dat") as file:
                self.write_coverage(pathlib.Path(file.name))
                self._counts.add(pathlib.Path(file.name))
        super().close()


def run(config, verilog, cache, n_fuzz) -> tuple[Counts, list[str]]:
    """Play the scenes and the fuzzer; counts, and what the unit did wrong."""
    counts, wrong = Counts(), []
    device = functools.partial(CountingDevice, counts=counts)
    with (
        mock.patch("moska.sim.suite.Device", device),
        mock.patch("moska.sim.fuzz.Device", device),
        mock.patch("moska.sim.fuzz.generated", return_value=verilog),
    ):
        suite = Suite(config, cache, verilog=verilog)
        for scene in suite.scenes:
            print(f"{config.name}: {scene.name}", flush=True)
            try:
                suite.play(scene)
            except Difference as difference:
                wrong.append(f"{config.name}, {scene.name}: {difference}")
        if n_fuzz:
            print(f"{config.name}: {n_fuzz} random descriptors", flush=True)
            try:
                moska.sim.fuzz.fuzz(config, seed=1, count=n_fuzz, cache=cache)
            except moska.sim.fuzz.FuzzError as error:
                wrong.append(f"{config.name}: {error}")
    return counts, wrong


@dataclasses.dataclass
class Tally:
    """Reached and counted points of a module."""

    lines: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    branches: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    toggles: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    constant: int = 0
    waived: int = 0


def waiver(entries, module, name, bit):
    """Reason why a toggle is not counted; empty when it is."""
    for entry in entries:
        if re.fullmatch(entry.get("module", ".*"), module) and re.fullmatch(entry["signal"], name):
            low, high = entry.get("bits", [0, 1 << 20])
            if low <= bit <= high:
                return entry["reason"]
    return ""


def tally(points, constants, text, entries):
    """Tallies by module, missed points, counts by waiver."""
    tallies = collections.defaultdict(Tally)
    missed, reasons = [], collections.Counter()
    source = text.splitlines()
    reached = collections.defaultdict(bool)  # (module, line)
    for point, count in points.items():
        module = point.module.removeprefix("moska.")
        own = tallies[module]
        if point.page == "v_toggle":
            match = TOGGLE.match(point.comment)
            name, bit = plain(match["name"]), int(match["bit"] or 0)
            if (name, bit) in constants.values.get(point.module, {}):
                own.constant += 1
                continue
            why = "" if count else waiver(entries, module, name, bit)
            if why:
                own.waived += 1
                reasons[why] += 1
                continue
            own.toggles[0] += count > 0
            own.toggles[1] += 1
            if not count:
                missed.append((module, "toggle", f"{name}[{bit}] {match['step']}"))
            continue
        if "$initial" in source[point.line - 1] or point.comment.endswith("initial"):
            continue
        for line in point.lines:
            reached[module, line] |= count > 0
        if point.page == "v_branch":
            own.branches[0] += count > 0
            own.branches[1] += 1
            if not count:
                text_of = source[point.line - 1].strip()
                missed.append((module, "branch", f"{point.line} {point.comment}: {text_of}"))
    for (module, line), hit in reached.items():
        if "$initial" in source[line - 1]:
            continue
        tallies[module].lines[0] += hit
        tallies[module].lines[1] += 1
        if not hit:
            missed.append((module, "line", f"{line}: {source[line - 1].strip()}"))
    return tallies, missed, reasons


def share(pair):
    """Part as text."""
    return f"{100 * pair[0] / pair[1]:.1f}" if pair[1] else "-"


def group(module):
    """Return the row of the table: parts of a component are added to it."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def markdown(results) -> str:
    """Tables of all configurations."""
    out = []
    for name, (tallies, _, reasons) in results.items():
        groups = collections.defaultdict(Tally)
        for module, own in tallies.items():
            for key in (group(module), "all"):
                into = groups[key]
                for field in ("lines", "branches", "toggles"):
                    pair, other = getattr(into, field), getattr(own, field)
                    pair[0] += other[0]
                    pair[1] += other[1]
                into.constant += own.constant
                into.waived += own.waived
        out += [f"`{name}`:", "", "| module | lines | % | branches | % | toggles | % |",
                "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
        for key in sorted(groups, key=lambda key: (key == "all", key)):
            own = groups[key]
            cells = " | ".join(
                f"{pair[1]:,} | {share(pair)}" for pair in (own.lines, own.branches, own.toggles)
            )
            out.append(f"| {key} | {cells} |")
        whole = groups["all"]
        out += [
            "",
            f"Not counted: {whole.constant:,} toggles of bits that wiring ties to a constant, and",
            f"{whole.waived:,} that cannot happen:",
            "",
        ]
        out += ["| toggles | reason |", "|---:|---|"]
        out += [f"| {count:,} | {why} |" for why, count in reasons.most_common()]
        out.append("")
    return "\n".join(out)


def totals(tallies, field):
    """Sum over modules."""
    pairs = [getattr(own, field) for own in tallies.values()]
    return [sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)]


def main() -> int:
    """Parse arguments, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fuzz", type=int, default=500, help="random descriptors")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("build/coverage"))
    parser.add_argument("--cache", type=pathlib.Path, default=cache_directory())
    parser.add_argument("--only", help="name of one configuration")
    parser.add_argument("--verilog", nargs="*", default=[], metavar="NAME=FILE")
    options = parser.parse_args()
    tiny = Config.load("tiny")
    configs = [tiny, dataclasses.replace(tiny, name="tiny_2x4", read_ports=2, contexts=4)]
    given = dict(item.split("=", 1) for item in options.verilog)
    entries = tomllib.loads(REASONS.read_text())["waived"] if REASONS.exists() else []
    options.out.mkdir(parents=True, exist_ok=True)
    results, wrong = {}, []
    for config in configs:
        if options.only not in (None, config.name):
            continue
        verilog = pathlib.Path(given.get(config.name) or generated(config, options.cache))
        counts, found = run(config, verilog, options.cache, options.fuzz)
        wrong += found
        text = verilog.read_text()
        results[config.name] = tally(counts.points(), Constants(text), text, entries)
    table = markdown(results)
    (options.out / "coverage.md").write_text(table)
    with (options.out / "missed.txt").open("w") as file:
        for name, (_, missed, _) in results.items():
            file.writelines(f"{name}\t" + "\t".join(item) + "\n" for item in sorted(missed))
    print(table)
    print("\n".join(wrong))
    passed = not wrong
    for name, (tallies, _, _) in results.items():
        for field, target in (("lines", LINES), ("toggles", TOGGLES)):
            hit, count = totals(tallies, field)
            if hit < target * count:
                print(f"{name}: {field} {100 * hit / count:.1f} %, target {100 * target:.0f} %")
                passed = False
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
