"""Mutate the Verilog of a configuration and see which mutants the suite of scenes notices.

Every mutant is one changed operator, constant, condition or register (moska/sim/schemata.py); all
of them are in one Verilated build. Each is played through the scenes of moska/sim/suite.py until
the first difference. A mutant that changes nothing but the number of cycles is counted apart.
Survivors that scripts/mutants.toml explains are equivalent: no test can tell them.

Usage: python scripts/mutate.py [--config tiny] [--count 400] [--seed 1] [--jobs 2]
       [--out build/mutate] [--only NUMBER ...] [--verilog FILE] [--cache DIR]

Writes OUT/mutants.json and OUT/mutants.md. Exits with 1 when fewer than 90 % are killed.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import signal
import sys
import time

from moska.gen.config import Config, tomllib
from moska.sim.device import built, cache_directory, generated
from moska.sim.schemata import KINDS, Mutant, Verilog
from moska.sim.suite import Difference, Suite

TARGET = 0.9
SECONDS = 60  # that a mutant may take before it counts as a hang
CONTEXT = 4  # lines of Verilog around a survivor
REASONS = pathlib.Path(__file__).with_name("mutants.toml")
KILLS = ("bits", "code", "counters", "memory", "register", "violation", "hang", "crash")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a mutant."""

    kind: str  # one of KILLS, "cycles", or "" for a survivor
    scene: str
    text: str
    seconds: float


class Judge:
    """Plays mutants, each in a process of its own, and compares them with the unit itself."""

    def __init__(self, suite: Suite):
        self.suite = suite
        self.reference, self.limits, self.wrong = {}, {}, []
        for scene in suite.scenes:
            cycles = []
            try:
                self.reference[scene.name] = suite.play(scene, mutant=0, cycles=cycles)
            except Difference as difference:
                self.wrong.append(f"{scene.name}: {difference}")
                continue
            # No wait within a scene is longer than the scene.
            self.limits[scene.name] = min(4000 + cycles[0] // 4, 20_000)

    def judge(self, number: int) -> Outcome:
        """Play a mutant in a child process, so that no crash or endless loop ends the run."""
        start = time.monotonic()
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            signal.alarm(SECONDS)
            code = 0
            try:
                os.write(write, json.dumps(self._play(number)).encode())
            except BaseException as error:  # the parent reads why
                os.write(write, json.dumps(["crash", "", repr(error)[:500]]).encode())
                code = 1
            os._exit(code)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            raw = pipe.read()
        _, status = os.waitpid(child, 0)
        if raw:
            kind, scene, text = json.loads(raw)
        else:
            number = os.waitstatus_to_exitcode(status)
            kind = "hang" if number == -signal.SIGALRM else "crash"
            scene, text = "", f"exit status {number}"
        return Outcome(kind, scene, text, time.monotonic() - start)

    def _play(self, number):
        cycles = ("", "", "")
        for scene in self.suite.scenes:
            if scene.name not in self.reference:
                continue
            log, sums = self.reference[scene.name]
            try:
                got = self.suite.play(scene, mutant=number, limit=self.limits[scene.name])
            except Difference as difference:
                return difference.kind, scene.name, str(difference)
            if got[1] != sums:
                return "counters", scene.name, f"work is {got[1]}, expected {sums}"
            if got[0] != log and not cycles[0]:
                cycles = ("cycles", scene.name, _first(got[0], log))
        return cycles


def _first(got, expected):
    for index, (a, b) in enumerate(zip(got, expected, strict=False)):
        if a != b:
            return f"job {index} of the log is {a}, expected {b}"
    return f"log has {len(got)} entries, expected {len(expected)}"


def reason(mutant: Mutant, table: list[dict]) -> str:
    """Why a mutant is equivalent; empty when nothing says that it is."""
    for entry in table:
        if all(
            re.fullmatch(entry.get(key, ".*"), getattr(mutant, key), re.S)
            for key in ("module", "kind", "change", "source")
        ):
            return entry["reason"]
    return ""


def table(title, names, rows):
    """Markdown table of kills by a property of mutants."""
    out = [f"| {title} | mutants | killed | cycles only | equivalent | survived | rate |",
           "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for name in names:
        own = [row for row in rows if name in ("all", row[title])]
        if not own:
            continue
        counts = collections.Counter(row["verdict"] for row in own)
        out.append(
            f"| {name} | {len(own)} | {counts['killed']} | {counts['cycles']} | "
            f"{counts['equivalent']} | {counts['survived']} | {100 * rate(own):.1f} % |"
        )
    return out


def rate(rows) -> float:
    """Share of killed mutants among those that are not equivalent."""
    counts = collections.Counter(row["verdict"] for row in rows)
    judged = len(rows) - counts["equivalent"]
    return (counts["killed"] + counts["cycles"]) / judged if judged else 1.0


def strict_rate(rows) -> float:
    """Share of killed mutants, where a changed number of cycles does not count."""
    counts = collections.Counter(row["verdict"] for row in rows)
    judged = len(rows) - counts["equivalent"]
    return counts["killed"] / judged if judged else 1.0


def report(rows, lines, *, config, seed) -> str:
    """Markdown: rates by module and kind, survivors with their Verilog."""
    modules = sorted({row["module"] for row in rows})
    kills = collections.Counter(row["outcome"]["kind"] for row in rows)
    out = [f"# Mutants of {config}", "", f"Seed {seed}, {len(rows)} mutants."]
    out += [
        "",
        f"Killed: {100 * rate(rows):.1f} % of those that are not equivalent,",
        f"{100 * strict_rate(rows):.1f} % without those that change cycles only.",
        "",
    ]
    out += table("kind", [*KINDS, "all"], rows)
    out += ["", *table("module", [*modules, "all"], rows), ""]
    out += ["| noticed by | mutants |", "|---|---:|"]
    out += [f"| {kind} | {kills[kind]} |" for kind in (*KILLS, "cycles") if kills[kind]]
    for verdict in ("survived", "equivalent", "cycles"):
        out += ["", f"## {verdict}", ""]
        for row in rows:
            if row["verdict"] != verdict:
                continue
            at = row["line"]
            out.append(f"**{row['number']}** `{row['module']}`, {row['kind']}: {row['change']}")
            out.append(row["reason"] or row["outcome"]["text"])
            context = range(max(0, at - CONTEXT), min(len(lines), at + CONTEXT + 1))
            shown = [f"{'>' if i == at else ' '} {lines[i]}" for i in context]
            out += ["", "```verilog", *shown, "```", ""]
    return "\n".join(out) + "\n"


def main() -> int:
    """Parse arguments, build, judge, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("build/mutate"))
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the mutants to play")
    parser.add_argument("--verilog", type=pathlib.Path, help="of the unit, instead of its own")
    parser.add_argument("--cache", type=pathlib.Path, default=cache_directory())
    options = parser.parse_args()
    config = Config.load(options.config)
    options.out.mkdir(parents=True, exist_ok=True)

    verilog = Verilog((options.verilog or generated(config, options.cache)).read_text())
    mutants = verilog.sample(options.count, seed=options.seed)
    path = options.out / f"{config.name}.v"
    path.write_text(verilog.text(mutants))
    print(f"{len(verilog.sites)} places, {len(mutants)} mutants; building {path}", flush=True)
    built(path, options.cache)
    judge = Judge(Suite(config, options.cache, verilog=path))
    for text in judge.wrong:
        print(f"the unit itself fails, so the scene is left out: {text}", flush=True)
    reasons = tomllib.loads(REASONS.read_text())["equivalent"] if REASONS.exists() else []

    chosen = [m for m in mutants if not options.only or m.number in options.only]
    rows = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        outcomes = pool.map(lambda mutant: judge.judge(mutant.number), chosen)
        for mutant, outcome in zip(chosen, outcomes, strict=True):
            why = reason(mutant, reasons)
            if outcome.kind == "cycles":
                verdict = "cycles"
            elif outcome.kind:
                verdict = "killed"
            else:
                verdict = "equivalent" if why else "survived"
            if why and verdict != "equivalent":
                print(f"mutant {mutant.number} is called equivalent, but: {outcome.text}")
            row = {**dataclasses.asdict(mutant), "outcome": dataclasses.asdict(outcome)}
            rows.append(row | {"verdict": verdict, "reason": why if not outcome.kind else ""})
            if verdict != "killed":
                print(
                    f"{mutant.number:4} {verdict:10} {mutant.module} {mutant.kind}: "
                    f"{mutant.change} | {mutant.source}",
                    flush=True,
                )
    seconds = sum(row["outcome"]["seconds"] for row in rows)
    summary = {
        "config": config.name, "seed": options.seed, "rate": rate(rows),
        "strict_rate": strict_rate(rows), "seconds": seconds, "mutants": rows,
    }  # fmt: skip
    (options.out / "mutants.json").write_text(json.dumps(summary, indent=1) + "\n")
    text = report(rows, verilog.lines, config=config.name, seed=options.seed)
    (options.out / "mutants.md").write_text(text)
    print("\n".join(table("kind", [*KINDS, "all"], rows)))
    print(
        f"killed {100 * rate(rows):.1f} %, without cycles only {100 * strict_rate(rows):.1f} %, "
        f"{seconds:.0f} s; {options.out}/mutants.md"
    )
    return 0 if rate(rows) >= TARGET and not judge.wrong else 1


if __name__ == "__main__":
    sys.exit(main())
