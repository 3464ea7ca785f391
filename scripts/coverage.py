"""Lines and toggles of the generated Verilog, and crosses of classes of jobs, that tests reach.

Plays the scenes of moska/sim/suite.py and rounds of moska/sim/fuzz.py on Verilated units that
count (moska/sim/reach.py), for two configurations: `tiny`, and `tiny` with two read ports and four
contexts. Many more rounds, on a unit that does not count, meet the crosses
(moska/sim/coverage.py).

Usage: python scripts/coverage.py [--fuzz 500] [--crosses 10000] [--out build/coverage] [--publish]

Writes OUT/coverage.json, OUT/coverage.md and OUT/missed.txt; with --publish also the tables of
docs/verification.md. Exits with 1 below 95 % of lines, 90 % of toggles or 95 % of crosses, or when
the unit does anything wrong.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
from unittest import mock

import moska.sim.fuzz
from moska.gen.config import Config
from moska.sim.device import cache_directory, generated
from moska.sim.page import put, table
from moska.sim.reach import KINDS, CountingDevice, Counts, Tally, component, tally
from moska.sim.suite import Difference, Suite

TARGETS = {"lines": 0.95, "toggles": 0.90, "crosses": 0.95}
SEED = 410_000  # of the crosses, as in tests/sim/test_fuzz.py
PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "verification.md"


def run(config: Config, n_fuzz: int) -> tuple[Counts, list[str]]:
    """Play the scenes and the fuzzer; counts, and what the unit did wrong."""
    counts, wrong = Counts(), []
    device = functools.partial(CountingDevice, counts=counts)
    with (
        mock.patch("moska.sim.suite.Device", device),
        mock.patch("moska.sim.fuzz.Device", device),
    ):
        suite = Suite(config)
        for scene in suite.scenes:
            print(f"{config.name}: {scene.name}", flush=True)
            try:
                suite.play(scene)
            except Difference as difference:
                wrong.append(f"{config.name}, {scene.name}: {difference}")
        if n_fuzz:
            print(f"{config.name}: {n_fuzz} random descriptors", flush=True)
            try:
                moska.sim.fuzz.fuzz(config, seed=1, count=n_fuzz)
            except moska.sim.fuzz.FuzzError as error:
                wrong.append(f"{config.name}: {error}")
    return counts, wrong


def figures(tallies: dict[str, Tally]) -> dict:
    """Points of each component and of all, for JSON."""
    rows: dict[str, Tally] = {}
    for module in sorted(tallies, key=component):
        rows[component(module)] = rows.get(component(module), Tally()) + tallies[module]
    rows["all"] = sum(tallies.values(), Tally())
    return {
        name: {kind: [row.reached[kind], row.counted[kind]] for kind in KINDS}
        | {"constant": row.constant}
        for name, row in rows.items()
    }


def coverage_table(rows: dict) -> list[str]:
    """Lines of Markdown: one component a row."""
    header = ["component", *(text for kind in KINDS for text in (kind, "reached"))]
    return table(
        header,
        [
            [name]
            + [
                text
                for kind in KINDS
                for reached, counted in [row[kind]]
                for text in (f"{counted:,}", f"{reached / counted:.1%}" if counted else "")
            ]
            for name, row in rows.items()
        ],
    )


def below(name: str, kind: str, share: float) -> list[str]:
    """Complain when a share is below its target."""
    target = TARGETS.get(kind, 0.0)
    return [f"{name}: {kind} must be {target:.0%}, not {share:.1%}"] if share < target else []


def main() -> int:
    """Parse arguments, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fuzz", type=int, default=500, help="random descriptors that count")
    parser.add_argument("--crosses", type=int, default=10_000, help="random descriptors of crosses")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("build/coverage"))
    parser.add_argument("--publish", action="store_true", help="write the documentation's tables")
    options = parser.parse_args()
    tiny = Config.load("tiny")
    configs = [tiny, dataclasses.replace(tiny, name="tiny_2x4", read_ports=2, contexts=4)]
    options.out.mkdir(parents=True, exist_ok=True)
    found, wrong, tables = {}, [], []
    with (options.out / "missed.txt").open("w", encoding="utf-8") as file:
        for config in configs:
            text = generated(config, cache_directory()).read_text(encoding="utf-8")
            counts, errors = run(config, options.fuzz)
            wrong += errors
            tallies, missed = tally(counts.points(), text)
            found[config.name] = figures(tallies)
            tables += [f"`{config.name}`:", "", *coverage_table(found[config.name])]
            file.writelines("\t".join((config.name, *item)) + "\n" for item in missed)
            whole = sum(tallies.values(), Tally())
            for kind in KINDS:
                wrong += below(config.name, kind, whole.share(kind))
    print(f"{tiny.name}: {options.crosses} random descriptors for crosses", flush=True)
    report = moska.sim.fuzz.fuzz(tiny, seed=SEED, count=options.crosses)
    wrong += below(tiny.name, "crosses", report.coverage.reached)

    sections = {"coverage": "\n".join(tables), "crosses": report.coverage.markdown()}
    summary = {"fuzz": options.fuzz, "configurations": found, "crosses": report.coverage.as_dict()}
    (options.out / "coverage.json").write_text(json.dumps(summary, indent=1) + "\n")
    (options.out / "coverage.md").write_text("\n".join(sections.values()))
    print("\n".join([*sections.values(), *wrong]))
    if options.publish and not wrong:
        for name, section in sections.items():
            put(PAGE, name, section)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
