import dataclasses
import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from moska.gen.cli import main
from moska.gen.config import Config
from moska.sim import demo, report, runner
from moska.sim.runner import Outcome

JOB_KEYS = {
    "bit_exact", "rows", "tokens", "chunks", "chunks_read", "unselected_chunks_read", "cycles",
    "compute_bound", "memory_bound", "bound", "ratio", "mac_utilisation", "rel_error_vs_float64",
    "lse_error", "attention_mass_kept", "counters",
}
GEMV_KEYS = {
    "sampled_requests", "rows_per_request", "cycles_per_request", "cycles_all_requests", "gain",
    "bit_exact",
}
CONFIG = Config.load("ulx3s")


def outcome_of(job, expected):
    """Outcome of a unit that is right and 1,000 cycles slower than its bound."""
    limits = report.job_bound(CONFIG, job, expected.selected)
    counters = dict.fromkeys(report.CAUSES, 0) | {
        "score_active": limits.score,
        "value_active": limits.value,
        "stall_memory": limits.bound - limits.score,
        "stall_finish": 1000,
        "cycles": limits.bound + 1000,
        "chunks_read": expected.chunks_read,
        "chunks_skipped": job.store.n_chunks - expected.chunks_read,
    }
    return Outcome(expected, counters, True, False, 0, 0, False)


@pytest.fixture(scope="module")
def work():
    return demo.prepare(CONFIG, 1)


@pytest.fixture(scope="module")
def expected(work):
    return [job.expected() for job in work.jobs]


@pytest.fixture(scope="module")
def outcomes(work, expected):
    return [outcome_of(job, result) for job, result in zip(work.jobs, expected, strict=True)]


@pytest.fixture(scope="module")
def built(work, expected, outcomes):
    return report.build(CONFIG, work, outcomes, expected, seed=1)


def flip(outcome):
    """Return the outcome with the lowest bit of one output element inverted."""
    o = outcome.result.o.copy()
    o[1, 2] ^= 1
    return dataclasses.replace(outcome, result=dataclasses.replace(outcome.result, o=o))


def test_work(work):
    assert work.dense.q.shape == (64, 64)
    assert work.routed.k == 16
    assert len(work.gemv) == 3
    for request, job in zip(work.requests, work.gemv, strict=True):
        rows = slice(3 * request, 3 * request + 3)
        np.testing.assert_array_equal(job.q, work.dense.q[rows])
        np.testing.assert_array_equal(job.q_scale, work.dense.q_scale[rows])
    assert demo.prepare(CONFIG, 2).requests != work.requests


def test_figures(built, expected):
    figures = built.figures
    assert {"config", "parameters", "version", "jobs", "gemv"} <= set(figures)
    assert built.differences == []
    for name, result in zip(("dense", "routed"), expected, strict=False):
        job = figures["jobs"][name]
        assert JOB_KEYS <= set(job)
        assert job["bit_exact"] is True
        assert job["unselected_chunks_read"] == 0
        assert job["chunks_read"] == result.chunks_read
        assert job["cycles"] == job["bound"] + 1000
        assert job["bound"] == max(job["compute_bound"], job["memory_bound"])
        assert job["ratio"] == job["cycles"] / job["bound"]
        assert 0 < job["rel_error_vs_float64"] <= 1e-4
        assert 0 < job["lse_error"] <= 1e-3
    dense, routed = figures["jobs"].values()
    # fold 8 beats for each of 8 tiles of queries and 2,048 tokens
    assert dense["compute_bound"] == 8 * 8 * 2048
    assert dense["mac_utilisation"] == dense["bound"] / dense["cycles"]
    assert dense["attention_mass_kept"] == pytest.approx(1.0)
    assert 0.8 < routed["attention_mass_kept"] < 1.0

    gemv = figures["gemv"]
    assert GEMV_KEYS <= set(gemv)
    assert gemv["bit_exact"] is True
    assert gemv["cycles_all_requests"] == pytest.approx(gemv["cycles_per_request"] * 64 / 3)
    assert gemv["gain"] == gemv["cycles_all_requests"] / dense["cycles"]
    assert sum(gemv["counters"].values()) == pytest.approx(gemv["cycles_all_requests"])


def test_curves(built, work):
    curves = built.curves
    mass = report.chunk_mass(work.dense.store, work.q)
    np.testing.assert_allclose(mass.sum(axis=1), 1.0)
    for name in ("oracle", "minmax", "mean"):
        assert curves[name].shape == curves["fraction"].shape == (16,)
        assert curves[name][-1] == pytest.approx(1.0)
        assert np.all(np.diff(curves[name]) > 0)
        assert np.all(curves[name] <= curves["oracle"] + 1e-12)
    # A quarter of the chunks is what the routed job keeps: two ways to the same number.
    kept = built.figures["jobs"]["routed"]["attention_mass_kept"]
    assert curves["minmax"][3] == pytest.approx(kept)


def test_files(built, tmp_path):
    page = report.write(built, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "report.json").read_text()) == built.figures
    html = page.read_text(encoding="utf-8")
    assert "http:" not in html
    assert "https:" not in html
    assert html.count("<svg") == html.count("</svg>") == 3
    assert not re.search(r"<(script|link|iframe|object|embed|img)\b", html)
    assert not re.search(r"@import|<\?xml|<!DOCTYPE svg", html)
    # Links, also those of style sheets, stay inside the page.
    links = re.findall(r"(?:href|src)=[\"']([^\"']*)", html) + re.findall(r"url\(([^)]*)", html)
    assert links
    assert all(link.startswith("#") for link in links)
    assert "bit-exact" in html
    assert "differ</h2>" not in html


@pytest.mark.parametrize("index", [0, 1, 3])
def test_one_wrong_bit_is_seen(work, expected, outcomes, tmp_path, index):
    wrong = list(outcomes)
    wrong[index] = flip(outcomes[index])
    built = report.build(CONFIG, work, wrong, expected, seed=1)
    (text,) = built.differences
    assert "first at (1, 2)" in text
    figures = built.figures
    exact = [job["bit_exact"] for job in (*figures["jobs"].values(), figures["gemv"])]
    assert exact == [where != min(index, 2) for where in range(3)]
    html = report.write(built, tmp_path).read_text(encoding="utf-8")
    assert "The unit and the golden model differ</h2>" in html
    assert "<b>bit-exact</b>" not in html


def test_error_of_the_unit_is_seen(expected, outcomes):
    wrong = dataclasses.replace(outcomes[0], error=True, error_code=3, error_address=0x40)
    assert report.job_difference(wrong, expected[0]) == "error 3 at 0x40"
    assert report.job_difference(None, expected[0]) == "did not end"


@pytest.mark.parametrize("wrong", [False, True])
def test_command(work, outcomes, tmp_path, monkeypatch, wrong):
    """The command around a stand-in for the simulator."""
    seen = {}

    class Stand:
        def __init__(self, config, directory):
            assert config == CONFIG

        def run(self, jobs, *, beat_interval, seed):
            seen["beat_interval"] = beat_interval
            assert len(jobs) == len(outcomes)
            return [flip(outcomes[0]), *outcomes[1:]] if wrong else outcomes

    assert demo.Simulation is runner.Simulation
    monkeypatch.setattr(demo, "Simulation", Stand)
    result = CliRunner().invoke(main, ["demo", "ulx3s", "-o", str(tmp_path)])
    assert result.exit_code == int(wrong)
    assert seen == {"beat_interval": 2}  # 8 bytes a beat, 4 bytes a cycle
    assert str(tmp_path / "report.html") in result.stdout
    assert (tmp_path / "report.json").exists()
    lines = result.stderr.splitlines()
    if wrong:
        (line,) = lines
        assert line.startswith("moska: error: the unit and the golden model differ: dense: o: 1 of")
    else:
        assert lines == []


def test_other_head_size_is_refused(tmp_path):
    result = CliRunner().invoke(main, ["demo", "tiny", "-o", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert result.stderr == (
        "moska: error: head_dim must be 64, the head size of the demo's data, not 16\n"
    )
    assert not (tmp_path / "none").exists()
