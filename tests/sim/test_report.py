import contextlib
import dataclasses
import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from moska.gen.cli import main
from moska.gen.config import Config
from moska.golden.layout import COUNTERS
from moska.sim import demo, device, report
from moska.sim.causes import CAUSES
from moska.sim.driver import Outcome
from moska.sim.measure import Mismatch, Queued

JOB_KEYS = {
    "bit_exact", "rows", "tokens", "chunks", "chunks_read", "unselected_chunks_read", "cycles",
    "alone_cycles", "compute_bound", "memory_bound", "bound", "ratio", "alone_ratio",
    "mac_utilisation", "rel_error_vs_float64", "lse_error", "attention_mass_kept", "counters",
    "alone_counters",
}
GEMV_KEYS = {
    "sampled_requests", "rows_per_request", "cycles_per_request", "cycles_all_requests", "gain",
    "ideal_gain", "bit_exact",
}
CONFIG = Config.load("ulx3s")


def counters_of(job, expected, *, finish):
    """Counters of a unit that is slower than its bound by what it takes to write results."""
    limits = job.bound(CONFIG, expected.selected)
    return dict.fromkeys(COUNTERS, 0) | {
        "score_active": limits.score,
        "value_active": limits.value,
        "stall_memory": limits.bound - limits.score,
        "stall_finish": finish,
        "cycles": limits.bound + finish,
        "chunks_read": expected.chunks_read,
        "chunks_skipped": job.store.n_chunks - expected.chunks_read,
    }


def queued_of(jobs, results, *, alone):
    """Queue of jobs of a unit that is right: 100 cycles above the bound, 1,000 alone."""
    pairs = list(zip(jobs, results, strict=True))
    runs = [
        (job, Outcome(result, {"sequence": 1} | counters_of(job, result, finish=1000), False, 0))
        for job, result in pairs[:alone]
    ]
    for job, result in pairs:
        record = {"sequence": len(runs) + 1} | counters_of(job, result, finish=100)
        runs.append((job, Outcome(result, record, False, 0)))
    counters = counters_of(*pairs[0], finish=100)
    cycles = counters_of(*pairs[0], finish=1000)["cycles"]
    return Queued(counters, 0, cycles if alone else None, runs)


@pytest.fixture(scope="module")
def work():
    return demo.prepare(CONFIG, 1)


@pytest.fixture(scope="module")
def expected(work):
    return [job.expected() for job in work.jobs]


@pytest.fixture(scope="module")
def queues(work, expected):
    return [
        queued_of([work.dense] * 2, [expected[0]] * 2, alone=True),
        queued_of([work.routed] * 2, [expected[1]] * 2, alone=True),
        queued_of(work.gemv, expected[2:], alone=False),
    ]


@pytest.fixture(scope="module")
def built(work, expected, queues):
    return report.build(CONFIG, work, queues, expected, latency=100, seed=1)


def flip(queued, index):
    """Return the queue with the lowest bit of an output element of a job inverted."""
    runs = list(queued.runs)
    job, outcome = runs[index]
    o = outcome.result.o.copy()
    o[1, 2] ^= 1
    wrong = dataclasses.replace(outcome.result, o=o)
    runs[index] = (job, dataclasses.replace(outcome, result=wrong))
    return dataclasses.replace(queued, runs=runs)


def test_work(work):
    assert work.dense.q.shape == (64, 64)
    assert work.routed.k == 16
    assert len(work.gemv) == 3
    for request, job in zip(work.requests, work.gemv, strict=True):
        rows = slice(3 * request, 3 * request + 3)
        np.testing.assert_array_equal(job.q, work.dense.q[rows])
        np.testing.assert_array_equal(job.q_scale, work.dense.q_scale[rows])
    assert demo.prepare(CONFIG, 2).requests != work.requests


def test_figures(built, work, expected):
    figures = built.figures
    assert {"config", "parameters", "version", "jobs", "gemv"} <= set(figures)
    assert built.differences == []
    for name, result in zip(("dense", "routed"), expected, strict=False):
        job = figures["jobs"][name]
        assert JOB_KEYS <= set(job)
        assert job["bit_exact"] is True
        assert job["unselected_chunks_read"] == 0
        assert job["chunks_read"] == result.chunks_read
        assert job["cycles"] == job["counters"]["cycles"] == job["bound"] + 100
        assert job["alone_cycles"] == job["alone_counters"]["cycles"] == job["bound"] + 1000
        assert job["bound"] == max(job["compute_bound"], job["memory_bound"])
        assert job["ratio"] == job["cycles"] / job["bound"]
        assert job["alone_ratio"] == job["alone_cycles"] / job["bound"]
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
    assert set(gemv["counters"]) == set(CAUSES)
    assert sum(gemv["counters"].values()) == pytest.approx(gemv["cycles_all_requests"])
    # The gain of the bounds: the store once for a request against once for all of them.
    request = work.gemv[0].bound(CONFIG, expected[2].selected).bound
    assert gemv["ideal_gain"] == pytest.approx(request * 64 / 3 / dense["bound"])
    assert figures["routing"]["gain"] == dense["cycles"] / routed["cycles"]
    assert figures["routing"]["ideal_gain"] == dense["bound"] / routed["bound"]
    assert figures["memory_mb_per_second"] == 200  # 4 bytes a cycle at 50 MHz


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


@pytest.mark.parametrize(("queue", "index"), [(0, 0), (0, 2), (1, 1), (2, 2)])
def test_one_wrong_bit_is_seen(work, expected, queues, tmp_path, queue, index):
    wrong = list(queues)
    wrong[queue] = flip(queues[queue], index)
    built = report.build(CONFIG, work, wrong, expected, latency=100, seed=1)
    (text,) = built.differences
    name = ("dense", "routed", "one by one")[queue]
    assert text.startswith(f"{name}: job {index + 1}: o: 1 of ")
    assert "first at (1, 2)" in text
    figures = built.figures
    exact = [job["bit_exact"] for job in (*figures["jobs"].values(), figures["gemv"])]
    assert exact == [where != queue for where in range(3)]
    html = report.write(built, tmp_path).read_text(encoding="utf-8")
    assert "The unit and the golden model differ</h2>" in html
    assert "<b>bit-exact</b>" not in html


@pytest.fixture
def command(work, queues, tmp_path, monkeypatch):
    """Run the command around a stand-in for the simulator; ``returned`` are its queues."""

    def run(returned):
        waiting = list(returned)

        class Stand(contextlib.nullcontext):
            def __init__(self, config, *, memory_bytes, seed):
                super().__init__()
                assert (config, seed) == (CONFIG, 1)

        def queue(device, config, jobs, *, latency, max_cycles, alone):
            assert isinstance(device, Stand)
            assert (config, latency) == (CONFIG, 100)
            assert max_cycles > 1_000_000
            one = waiting.pop(0)
            if isinstance(one, Exception):
                raise one
            # The same work, prepared once more: it is told apart by its queries.
            assert alone == (one.alone is not None)
            found = [job for job, _ in one.runs[int(alone) :]]
            for a, b in zip(jobs, found, strict=True):
                np.testing.assert_array_equal(a.q, b.q)
                assert a.k == b.k
            runs = [(jobs[0], one.runs[0][1])] if alone else []
            rest = zip(jobs, one.runs[int(alone) :], strict=True)
            return dataclasses.replace(one, runs=runs + [(job, run[1]) for job, run in rest])

        monkeypatch.setattr(demo, "Device", Stand)
        monkeypatch.setattr(demo, "queue", queue)
        return CliRunner().invoke(main, ["demo", "ulx3s", "-o", str(tmp_path)])

    assert demo.Device is device.Device
    return run


@pytest.mark.parametrize("wrong", [False, True])
def test_command(command, queues, tmp_path, wrong):
    result = command([flip(queues[0], 1), *queues[1:]] if wrong else queues)
    assert result.exit_code == int(wrong), result.output
    assert str(tmp_path / "report.html") in result.stdout
    assert (tmp_path / "report.json").exists()
    lines = result.stderr.splitlines()
    if wrong:
        (line,) = lines
        start = "moska: error: the unit and the golden model differ: dense: job 2: o: 1 of"
        assert line.startswith(start)
    else:
        assert lines == []


def test_command_fails_with_the_unit(command, queues, tmp_path):
    result = command([queues[0], Mismatch("job 3: READ at 0x40")])
    assert result.exit_code == 1
    assert result.stderr == "moska: error: job 3: READ at 0x40\n"
    assert not (tmp_path / "report.html").exists()


def test_latency_is_one_that_reads_hide():
    assert demo.memory_latency(CONFIG) == 100
    shallow = dataclasses.replace(CONFIG, max_in_flight=512, memory_bytes_per_cycle=8)
    assert demo.memory_latency(shallow) == 0


def test_other_head_size_is_refused(tmp_path):
    result = CliRunner().invoke(main, ["demo", "tiny", "-o", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert result.stderr == (
        "moska: error: head_dim must be 64, the head size of the demo's data, not 16\n"
    )
    assert not (tmp_path / "none").exists()
