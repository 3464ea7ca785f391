"""Mutate the Verilog of a configuration and see which mutants the suite of scenes notices.

Every mutant is one changed operator, constant, condition or register (moska/sim/schemata.py); all
of them are in one Verilated build. Each is played through the scenes of moska/sim/suite.py until
the first difference. A mutant that changes nothing but the number of cycles is not killed.

scripts/mutants.toml has a reason for each survivor. Those under ``equivalent`` are no other unit:
nothing at the ports can tell them from the original, and they do not count. Those under ``alive``
count: a test could tell them, or only one of another size.

Usage: python scripts/mutate.py [--config tiny] [--count 400] [--seed 1] [--jobs 2]
       [--out build/mutate] [--only NUMBER ...] [--publish]

Writes OUT/mutants.json and OUT/mutants.md; with --publish also the tables of docs/verification.md.
Exits with 1 when fewer than 90 % are killed, or when the unit itself fails.
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
from collections.abc import Callable, Iterable

from moska.gen.config import Config, tomllib
from moska.sim.device import built, cache_directory, generated
from moska.sim.page import put, table
from moska.sim.reach import component
from moska.sim.schemata import KINDS, Mutant, Verilog
from moska.sim.suite import Difference, Suite

TARGET = 0.9
SECONDS = 60  # of processor time that a mutant may take before it counts as a hang
CONTEXT = 4  # lines of Verilog around a survivor
REASONS = pathlib.Path(__file__).with_name("mutants.toml")
VERDICTS = ("killed", "alive", "cycles", "equivalent")
PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "verification.md"
KILLS = ("bits", "code", "counters", "memory", "register", "violation", "hang", "crash")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a mutant."""

    kind: str  # one of KILLS, "cycles", or "" when nothing differs
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
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
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
            kind = "hang" if number == -signal.SIGPROF else "crash"
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


def reason(mutant: Mutant, reasons: dict[str, list[dict]]) -> tuple[str, str]:
    """Name of the list that explains a mutant, and why it survives; "alive" without a reason."""
    for name, entries in reasons.items():
        for entry in entries:
            if all(
                re.fullmatch(entry[key], getattr(mutant, key), re.S)
                for key in ("module", "kind", "change", "source")
                if key in entry
            ):
                return name, entry["reason"]
    return "alive", ""


def rate(rows: list[dict]) -> float:
    """Share of killed mutants among those that are not equivalent."""
    counts = collections.Counter(row["verdict"] for row in rows)
    judged = len(rows) - counts["equivalent"]
    return counts["killed"] / judged if judged else 1.0


def tallies(title: str, groups: dict[str, list[dict]]) -> list[str]:
    """Lines of Markdown: verdicts of groups of mutants."""
    rows = []
    for name, group in groups.items():
        counts = collections.Counter(row["verdict"] for row in group)
        rows.append([
            name, str(len(group)), *(str(counts[verdict]) for verdict in VERDICTS),
            f"{rate(group):.1%}",
        ])  # fmt: skip
    return table([title, "mutants", *VERDICTS, "kill rate"], rows)


def grouped(rows: list[dict], key: Callable[[dict], str], names: Iterable[str] = ()) -> dict:
    """Rows by a property, and all of them."""
    names = dict.fromkeys([*names, *sorted({key(row) for row in rows})])
    groups = {name: [row for row in rows if key(row) == name] for name in names}
    return {name: group for name, group in groups.items() if group} | {"all": rows}


def sections(summary: dict) -> dict[str, list[str]]:
    """Tables of a run, by name: for the report and for the documentation."""
    rows = summary["mutants"]
    noticed = collections.Counter(row["outcome"]["kind"] for row in rows)
    survivors = collections.defaultdict(list)
    for row in rows:
        if row["verdict"] in ("alive", "equivalent"):
            change = f"`{row['module']}` {row['change']}".replace("|", r"\|")
            survivors[row["verdict"], row["reason"] or "no reason"].append(change)
    ordered = sorted(survivors.items(), key=lambda item: (item[0][0], -len(item[1])))
    return {
        "kinds": tallies("change", grouped(rows, lambda row: row["kind"], KINDS)),
        "components": tallies("component", grouped(rows, lambda row: component(row["module"]))),
        "noticed": table(
            ["noticed by", "mutants"],
            [[kind, str(noticed[kind])] for kind in KILLS if noticed[kind]],
        ),
        "survivors": table(
            ["verdict", "mutants", "why"],
            [[verdict, ", ".join(found), why] for (verdict, why), found in ordered],
            left=3,
        ),
    }


def report(summary: dict, lines: list[str]) -> str:
    """Markdown: rates, and what is not killed with its Verilog."""
    rows = summary["mutants"]
    out = [f"# Mutants of {summary['config']}, seed {summary['seed']}", ""]
    out += [f"{rate(rows):.1%} of those that are not equivalent are killed.", ""]
    for section in sections(summary).values():
        out += section
    for verdict in ("alive", "equivalent", "cycles"):
        out += [f"## {verdict}", ""]
        for row in rows:
            if row["verdict"] != verdict:
                continue
            at = row["line"]
            out.append(f"**{row['number']}** `{row['module']}`, {row['kind']}: {row['change']}")
            out += ["", row["reason"] or row["outcome"]["text"] or "No reason."]
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
    parser.add_argument("--publish", action="store_true", help="write the documentation's tables")
    options = parser.parse_args()
    config = Config.load(options.config)
    options.out.mkdir(parents=True, exist_ok=True)

    cache = cache_directory()
    verilog = Verilog(generated(config, cache).read_text())
    mutants = verilog.sample(options.count, seed=options.seed)
    path = options.out / f"{config.name}.v"
    path.write_text(verilog.text(mutants))
    print(f"{len(verilog.sites)} places, {len(mutants)} mutants; building {path}", flush=True)
    built(path, cache)
    judge = Judge(Suite(config, verilog=path))
    for text in judge.wrong:
        print(f"the unit itself fails, so the scene is left out: {text}", flush=True)
    reasons = tomllib.loads(REASONS.read_text(encoding="utf-8"))

    chosen = [m for m in mutants if not options.only or m.number in options.only]
    rows = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        outcomes = pool.map(lambda mutant: judge.judge(mutant.number), chosen)
        for mutant, outcome in zip(chosen, outcomes, strict=True):
            named, why = reason(mutant, reasons)
            verdict = named
            if outcome.kind:
                verdict = "cycles" if outcome.kind == "cycles" else "killed"
            if why and verdict == "killed":
                print(f"mutant {mutant.number} is called {named}, but: {outcome.text}")
            row = {**dataclasses.asdict(mutant), "outcome": dataclasses.asdict(outcome)}
            rows.append(row | {"verdict": verdict, "reason": "" if outcome.kind else why})
            if verdict != "killed":
                print(
                    f"{mutant.number:4} {verdict:10} {'' if why else '?':1} {mutant.module} "
                    f"{mutant.kind}: {mutant.change} | {mutant.source}",
                    flush=True,
                )
    summary = {"config": config.name, "seed": options.seed, "rate": rate(rows), "mutants": rows}
    (options.out / "mutants.json").write_text(json.dumps(summary, indent=1) + "\n")
    (options.out / "mutants.md").write_text(report(summary, verilog.lines))
    print("\n".join(sections(summary)["kinds"]))
    if options.publish:
        for name, section in sections(summary).items():
            put(PAGE, f"mutants {name}", "\n".join(section))
    print(f"killed {rate(rows):.1%}; {options.out}/mutants.md")
    return 0 if rate(rows) >= TARGET and not judge.wrong else 1


if __name__ == "__main__":
    sys.exit(main())
