"""The reasons of mutants, and the tables that the script puts into the page."""

import importlib.util
import pathlib
import re
import sys

import pytest

from moska.gen.config import tomllib
from moska.sim.schemata import Mutant

ROOT = pathlib.Path(__file__).resolve().parents[2]
KEYS = {"module", "kind", "change", "source"}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "scripts" / "mutate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mutate"]


def mutant(**changes):
    fields = {"module": "unit.fetch", "line": 0, "kind": "constant", "change": "1'h0 to 1'h1"}
    return Mutant(**fields | {"number": 1, "source": "issue = 1'h0;"} | changes)


def test_every_reason():
    """Each entry names a module, and not all of its mutants without a word why."""
    lists = tomllib.loads((ROOT / "scripts" / "mutants.toml").read_text(encoding="utf-8"))
    assert set(lists) <= {"equivalent", "alive"}
    for entry in (entry for entries in lists.values() for entry in entries):
        assert {"module", "reason"} < set(entry) <= {"reason"} | KEYS
        assert entry["reason"].endswith(".")
        for key in KEYS & set(entry):
            re.compile(entry[key])


def test_first_reason_counts(script):
    lists = {
        "equivalent": [{"module": r"unit\.f.*", "change": "1'h0 to .*", "reason": "One."}],
        "alive": [{"module": r"unit\.\w+", "reason": "Two."}],
    }
    assert script.reason(mutant(), lists) == ("equivalent", "One.")
    assert script.reason(mutant(change="negated"), lists) == ("alive", "Two.")
    assert script.reason(mutant(module="unit.fetch.scan"), lists) == ("equivalent", "One.")
    assert script.reason(mutant(module="unit.load.x"), lists) == ("alive", "")


def test_tables(script):
    def row(kind, module, verdict, noticed, reason=""):
        return {
            "kind": kind, "module": module, "change": "& to |", "verdict": verdict,
            "reason": reason, "outcome": {"kind": noticed},
        }  # fmt: skip

    rows = [
        row("stuck", "unit.load", "killed", "bits"),
        row("stuck", "unit.results.finisher", "equivalent", "", "Same."),
        row("table", "unit.results", "cycles", "cycles"),
        row("table", "unit.results", "killed", "hang"),
        row("table", "unit.results", "alive", ""),
    ]
    assert script.rate(rows) == pytest.approx(0.5)
    found = script.sections({"mutants": rows})
    assert "| stuck | 2 | 1 | 0 | 0 | 1 | 100.0% |" in found["kinds"]
    assert "| table | 3 | 1 | 1 | 1 | 0 | 33.3% |" in found["kinds"]
    assert "| all | 5 | 2 | 1 | 1 | 1 | 50.0% |" in found["kinds"]
    assert "| results | 4 | 1 | 1 | 1 | 1 | 33.3% |" in found["components"]
    assert "| hang | 1 |" in found["noticed"]
    assert r"| equivalent | `unit.results.finisher` & to \| | Same. |" in found["survivors"]
    assert r"| alive | `unit.results` & to \| | no reason |" in found["survivors"]
    page = (ROOT / "docs" / "verification.md").read_text(encoding="utf-8")
    for name in ("coverage", "crosses", *(f"mutants {name}" for name in found)):
        assert page.count(f"<!-- {name} -->\n") == 1
