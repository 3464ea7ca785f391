"""Shapes, patterns, statistics and commands of the benchmark, on a stand-in of the device."""

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner

from moska.gen.cli import main
from moska.gen.config import Config, preset_names
from moska.golden.layout import COUNTERS
from moska.golden.unit import Result, Store
from moska.sim import chart, measure, shapes, single
from moska.sim.causes import CAUSES
from moska.sim.driver import Outcome
from moska.sim.shapes import Pattern, Shape

SEED = 20_251_124
TINY = Config.load("tiny")
MEMORY = 1 << 22


def job_of(config, **properties):
    return shapes.make_job(config, Shape(**properties), seed=SEED)


# Shapes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", preset_names())
def test_every_shape_fits_the_unit(name, quick):
    config = Config.load(name)
    listed = shapes.shapes(config, quick=quick)
    assert len(set(listed)) == len(listed)
    assert len({shape.name for shape in listed}) == len(listed)
    for shape in listed:
        # The bound refuses what the unit does not hold.
        assert shapes.estimate(config, shape).bound > 0
        assert shape.latency * config.memory_bytes_per_cycle <= config.max_in_flight
        assert shape.k is None or 1 <= shape.k <= shape.n_chunks
        assert shape.judged == (shape not in listed[len([s for s in listed if s.judged]) :])
    # Cycles in simulation, all jobs: minutes at the speed of the preset's model.
    total = sum(measure.expected_cycles(config, shape) for shape in listed)
    assert total < (4e6 if quick else 40e6)


@pytest.mark.parametrize("name", ["ulx3s", "sim64", "u55c"])
def test_full_list_covers_what_the_target_names(name):
    config = Config.load(name)
    judged = [shape for shape in shapes.shapes(config) if shape.judged]
    rows = [m for m in (8, 16, 32, 64, 128, 256, 512) if m <= config.max_rows]
    for dense in (True, False):
        group = [shape for shape in judged if (shape.k is None) == dense]
        assert {shape.rows for shape in group} == set(rows)
        assert {shape.chunk_tokens for shape in group} >= {32, 64, 128, 256, 512, 1024, 2048}
        assert {shape.latency for shape in group} == {0, 100, 300}
        sizes = [shapes.estimate(config, shape).bound for shape in group]
        # The smallest routed job has two of eight chunks a row.
        assert min(sizes) < (3_000 if dense else 7_000)
        assert sum(size >= 16_384 for size in sizes) >= 15
        assert max(sizes) >= 100_000
    for pattern, keep in [(p, 0.25) for p in Pattern if p is not Pattern.DENSE]:
        group = [s for s in judged if s.pattern is pattern and s.keep == pytest.approx(keep)]
        sizes = [shapes.estimate(config, shape).bound for shape in group]
        assert min(sizes) < 10_000
        assert max(sizes) >= 16_384
    assert any(s.pattern is Pattern.DATA and s.keep == pytest.approx(0.5) for s in judged)
    assert any(shape.checksum for shape in judged)


def test_every_gain_has_its_reference():
    listed = shapes.shapes(Config.load("sim64"))
    references = [shape for shape in listed if not shape.judged]
    assert references
    for reference in references:
        assert reference.k is None
        assert any(
            shapes.same_work(reference, other)
            for shape in listed
            if shape.judged
            for other in (shape.single(), shape.dense())
        )


def test_sized_finds_the_smallest_store():
    config = Config.load("sim64")
    shape = shapes.sized(config, 18_000, rows=64, chunk_tokens=64)
    assert shapes.estimate(config, shape).bound >= 18_000
    smaller = dataclasses.replace(shape, n_tokens=shape.n_tokens - 64)
    assert shapes.estimate(config, smaller).bound < 18_000
    # Two chunks a row to choose from at the least; nothing when the unit holds too few chunks.
    routed = {"rows": 16, "chunk_tokens": 2048, "keep": 0.25, "pattern": Pattern.DATA}
    assert shapes.sized(config, 2_000, **routed).n_chunks == 8
    assert shapes.sized(TINY, 1_000_000, rows=2, chunk_tokens=32) is None
    # A store almost as large will do.
    full = shapes.estimate(TINY, Shape(rows=16, chunk_tokens=32, n_tokens=512)).bound
    assert shapes.sized(TINY, round(full * 1.05), rows=16, chunk_tokens=32).n_tokens == 512


def test_names():
    shape = Shape(rows=8, chunk_tokens=32, n_tokens=512)
    assert shape.name == "m8 c32 s512 dense l100"
    shape = dataclasses.replace(shape, pattern=Pattern.APART, keep=0.25, checksum=True, latency=0)
    assert shape.name == "m8 c32 s512 25% apart l0 crc"
    assert shape.k == 4
    assert shape.dense().name == "m8 c32 s512 dense l0 crc"
    assert shape.single().name == "m1 c32 s512 25% apart l0 crc"
    assert shapes.same_work(shape, dataclasses.replace(shape, judged=False))
    assert not shapes.same_work(shape, shape.dense())


# Data and patterns ------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [16, 32, 64, 128, 256])
def test_head_of_every_size_keeps_scores(head_dim):
    k, v, q = shapes.head(head_dim)
    assert k.shape == v.shape == (2048, head_dim)
    assert q.shape == (192, head_dim)
    # Scores as softmax sees them; for a larger head those of both heads together.
    native = 64 if head_dim <= 64 else 128
    k0, _, q0 = shapes.head(native)
    scores, exact = q @ k.T / np.sqrt(head_dim), q0 @ k0.T / np.sqrt(native)
    if head_dim >= 64:
        assert np.allclose(scores, exact)
    else:
        # The leading vectors carry most of what tells tokens apart.
        centred = [x - x.mean(axis=1, keepdims=True) for x in (scores, exact)]
        assert np.corrcoef(*(x.ravel() for x in centred))[0, 1] > 0.7


def test_repeated_rows_are_the_same_text_with_noise():
    x = np.arange(12.0).reshape(6, 2)
    long = shapes.repeated(x, 15, np.random.default_rng(SEED))
    assert long.shape == (15, 2)
    assert np.array_equal(long[:6], x)
    assert not np.array_equal(long[6:12], x)
    assert np.corrcoef(long[6:12].ravel(), x.ravel())[0, 1] > 0.7
    assert np.array_equal(shapes.repeated(x, 4, np.random.default_rng(SEED)), x[:4])
    for size in (1, 4, 7, 20):
        parts = list(shapes.repeated_parts(x, 15, np.random.default_rng(SEED), size=size))
        assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
        assert np.array_equal(np.concatenate(parts), long)


def test_long_store_is_that_of_its_parts(monkeypatch):
    properties = {"router": "submean:8", "seed": SEED}
    whole = shapes.real_store(16, 5000, 48, **properties)
    monkeypatch.setattr(shapes, "PART_TOKENS", 1000)
    parts = shapes.real_store(16, 5000, 48, **properties)
    assert whole.n_tokens == 5000
    for name in ("k", "v", "k_scale", "v_scale", "rep", "rep_scale"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name
    k = np.zeros((40, 16))
    with pytest.raises(ValueError, match=r"^parts must hold whole chunks of 16 tokens, not 40 t"):
        Store.from_parts([(k, k), (k, k)], chunk_tokens=16)


@pytest.mark.parametrize("config", ["tiny", "ulx3s", "sim64", "u55c"])
@pytest.mark.parametrize("keep", [0.25, 0.5])
def test_forced_patterns(config, keep):
    config = Config.load(config)
    chunks = min(config.max_chunks, 128)
    rows = min(config.max_rows, 64)
    size = {"rows": rows, "chunk_tokens": 32, "n_tokens": 32 * chunks, "keep": keep}
    same = job_of(config, pattern=Pattern.SAME, **size).selected().sum(axis=0)
    assert sorted(set(same.tolist())) == [0, rows]
    assert (same > 0).sum() == round(chunks * keep)

    job = job_of(config, pattern=Pattern.APART, **size)
    selected = job.selected()
    assert (selected.sum(axis=1) == round(chunks * keep)).all()
    # All chunks are read, by about as many rows each.
    per_chunk = selected.sum(axis=0)
    assert per_chunk.min() >= keep * rows - 2
    assert per_chunk.max() <= keep * rows + 2
    # Rows choose different sets.
    assert len({row.tobytes() for row in selected}) == rows


def test_few_rows_apart_share_no_chunk():
    config = Config.load("sim64")
    job = job_of(
        config, rows=8, chunk_tokens=32, n_tokens=32 * 256, pattern=Pattern.APART, keep=0.125
    )
    per_chunk = job.selected().sum(axis=0)
    assert per_chunk.max() <= 2
    assert (per_chunk == 1).mean() > 0.9


def test_data_pattern_is_the_routers_choice():
    config = Config.load("sim64")
    job = job_of(
        config, rows=64, chunk_tokens=32, n_tokens=2048, pattern=Pattern.DATA, keep=0.25
    )
    selected = job.selected()
    assert (selected.sum(axis=1) == 16).all()
    assert selected[:, [0, -1]].all()
    # Real rows agree in part: some chunks are popular, others are not read.
    per_chunk = np.sort(selected.sum(axis=0)[1:-1])
    assert per_chunk[0] == 0
    assert per_chunk[-1] > 32
    # The same seed makes the same job.
    again = job_of(
        config, rows=64, chunk_tokens=32, n_tokens=2048, pattern=Pattern.DATA, keep=0.25
    )
    assert np.array_equal(job.q, again.q)
    assert np.array_equal(job.store.k, again.store.k)


# Statistics -------------------------------------------------------------------------------------


def record(sequence, cycles, stall=10):
    return dict.fromkeys(COUNTERS, 0) | {
        "sequence": sequence,
        "cycles": cycles,
        "score_active": cycles - stall,
        "stall_load": stall,
    }


def test_steady_state_is_the_mean_of_the_jobs_that_count():
    records = [record(3, 500), record(4, 506), record(5, 494)]
    counters, spread = measure.steady(records)
    assert counters["cycles"] == 500
    assert counters["stall_load"] == 10
    assert sum(counters[name] for name in CAUSES) == 500
    assert spread == 12
    records[2]["stall_load"] += 1
    with pytest.raises(measure.Mismatch, match=r"^job 5: causes must add up to cycles \(494\), no"):
        measure.steady(records)


def test_fewer_jobs_of_long_ones_count():
    shape = Shape(rows=8, chunk_tokens=32, n_tokens=512)
    counts = [measure.counted_jobs(made(shape, n, n).bound, shape) for n in (9_000, 20_000, 99_000)]
    assert counts == [4, 3, 2]
    reference = dataclasses.replace(shape, judged=False)
    assert measure.counted_jobs(made(reference, 9_000, 9_000).bound, reference) == 1


def test_sampled_rows():
    assert measure.sampled_rows(16, 2048, SEED).tolist() == list(range(16))
    rows = measure.sampled_rows(512, 4096, SEED)
    assert len(rows) == measure.CHECKED_TOKENS // 4096 == 64
    assert rows[0] == 0
    assert rows[-1] == 511
    assert (np.diff(rows) > 0).all()
    assert measure.sampled_rows(512, 1 << 20, SEED).tolist() == [0, 511]


def made(shape, bound, cycles, alone=None):
    limits = shapes.estimate(TINY, Shape(rows=2, chunk_tokens=32, n_tokens=32))
    limits = dataclasses.replace(limits, bound=bound, compute=bound, memory=1)
    counters = record(1, cycles)
    return measure.Measurement(
        shape=shape, bound=limits, jobs=5, cycles=cycles, spread=0, counters=counters,
        alone=alone, rows_per_chunk=1.0, chunks_read=1, checked_rows=1,
    )  # fmt: skip


def test_targets():
    shape = Shape(rows=8, chunk_tokens=32, n_tokens=512)
    cases = [
        (16_000, 16_383, 1.15, True),
        (16_000, 16_384, 1.05, True),
        (16_000, 16_800, 1.05, True),
        (16_000, 16_801, 1.05, False),
        (2_000, 2_300, 1.15, True),
        (2_000, 2_301, 1.15, False),
    ]
    for bound, cycles, target, met in cases:
        one = made(shape, bound, cycles)
        assert (one.target, one.met) == (target, met), (bound, cycles)
    reference = made(dataclasses.replace(shape, judged=False), 2_000, 9_000)
    assert reference.target is None
    assert reference.met
    counted = measure.summary([made(shape, *case[:2]) for case in cases] + [reference])
    assert (counted["judged"], counted["met"]) == (6, 4)
    assert (counted["long"]["judged"], counted["long"]["met"]) == (3, 2)
    assert counted["long"]["worst"] == {"name": shape.name, "ratio": 16_801 / 16_000}
    assert counted["short"]["mean_ratio"] == pytest.approx((16_383 / 16_000 + 1.15 + 1.1505) / 3)


def test_gains_are_those_of_the_references():
    dense = Shape(rows=8, chunk_tokens=32, n_tokens=512)
    routed = dataclasses.replace(dense, pattern=Pattern.DATA, keep=0.25)
    lonely = dataclasses.replace(routed, latency=0)
    found = measure.with_gains(
        [
            made(dense, 1_000, 1_100),
            made(routed, 400, 500),
            made(lonely, 400, 500),
            made(dense.single(), 300, 310),
        ]
    )
    assert found[0].gemv_gain == (8 * 310 / 1_100, 8 * 300 / 1_000)
    assert found[0].routing_gain is None
    # The dense job is its reference, judged or not.
    assert found[1].routing_gain == (1_100 / 500, 1_000 / 400)
    assert found[1].gemv_gain is None
    assert found[2].routing_gain is None
    assert found[3].gemv_gain is None
    share = found[0].as_dict()["gemv_gain"]["share"]
    assert share == pytest.approx((8 * 310 / 1_100) / 2.4)


def test_check_finds_every_kind_of_difference():
    job = job_of(TINY, rows=6, chunk_tokens=16, n_tokens=96, pattern=Pattern.DATA, keep=0.5)
    selected, right = job.selected(), job.expected()
    rows = np.array([0, 5])

    def outcomes(**changes):
        wrong = Result(right.o.copy(), right.lse.copy(), right.selected.copy())
        for name, at in changes.items():
            getattr(wrong, name)[at] ^= 1
        made = enumerate((right, wrong), 1)
        return [Outcome(result, {"sequence": index}, False, 0) for index, result in made]

    measure.check(job, selected, outcomes(), rows)
    # A row that the golden model does not compute differs between the jobs.
    for changes, message in (
        ({"o": (3, 2)}, r"^job 2: o: 1 of 96 differ, first at \(3, 2\)"),
        ({"lse": (3,)}, r"^job 2: lse: 1 of 6 differ"),
        ({"selected": (3, 1)}, r"^job 2: selected: 1 of 36 differ"),
    ):
        with pytest.raises(measure.Mismatch, match=message):
            measure.check(job, selected, outcomes(**changes), rows)
    # All jobs equal and wrong: the golden model tells.
    both = [outcomes(o=(5, 0))[1]] * 2
    with pytest.raises(measure.Mismatch, match=r"^rows \[0, 5\]: o: 1 of 32 differ"):
        measure.check(job, selected, both, rows)
    measure.check(job, selected, both, np.arange(0))


# On the stand-in --------------------------------------------------------------------------------

SMALL = [
    Shape(rows=8, chunk_tokens=32, n_tokens=128),
    Shape(rows=8, chunk_tokens=32, n_tokens=256, pattern=Pattern.DATA, keep=0.5, checksum=True),
    Shape(rows=1, chunk_tokens=32, n_tokens=128, judged=False),
]


@pytest.fixture
def small_memory(monkeypatch):
    monkeypatch.setattr(measure, "MEMORY_BYTES", MEMORY)
    monkeypatch.setattr(single, "MEMORY_BYTES", MEMORY)


def test_measured_cycles_are_those_of_the_device(model_device, small_memory):
    device = model_device(TINY, memory_bytes=MEMORY, ratio=1.03, latency=200)
    seen = []
    found = measure.measure_all(device, TINY, SMALL, seed=SEED, progress=seen.append)
    assert seen == SMALL
    # Jobs still wait when those that count are complete: the contexts stay busy.
    assert device.waiting >= TINY.contexts
    for one in found:
        assert one.cycles == round(one.bound.bound * 1.03)
        assert one.spread == 0
        assert sum(one.counters[name] for name in CAUSES) == one.cycles
        assert one.checked_rows == one.shape.rows
        assert one.met
        if one.shape.judged:
            # A job alone: register access, latency, the job.
            assert 200 <= one.alone - one.cycles <= 210
    assert found[0].gemv_gain[1] == pytest.approx(8 * found[2].bound.bound / found[0].bound.bound)
    assert device.options == {"latency": 100, "bytes_per_cycle": 8}
    reading, writing = device.allowed["read"], device.allowed["write"]
    assert reading[0] < writing[0] < writing[1] == reading[1] < MEMORY


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("bit", r"o: 1 of 128 differ"),
        ("overrun", r"job 1: bytes behind a result were written$"),
        ("counters", r"job \d: causes must add up"),
        ("chunks", r"chunks_read must be 4, not 5$"),
        ("silent", r"no completion within \d+ cycles, after 0 jobs$"),
    ],
)
def test_faults_end_the_measurement(model_device, small_memory, fault, message):
    device = model_device(TINY, memory_bytes=MEMORY, fault=fault)
    with pytest.raises((measure.Mismatch, RuntimeError), match=message) as error:
        measure.measure_all(device, TINY, SMALL[:1], seed=SEED)
    assert str(error.value).startswith(f"m8 c32 s128 dense l100, seed {SEED}: ")


def test_violations_end_the_measurement(model_device, small_memory):
    device = model_device(TINY, memory_bytes=MEMORY)
    device.violations.append("cycle 5: AR changed")
    with pytest.raises(measure.Mismatch, match=r"memory port: cycle 5: AR changed$"):
        measure.measure(device, TINY, SMALL[0])


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot_shows_every_shape(tmp_path, suffix):
    measured = [made(SMALL[0], 1_000, 1_100, 2_000), made(SMALL[2], 500, 600)]
    path = tmp_path / "new" / f"plot{suffix}"
    chart.plot(TINY, measured, path)
    raw = path.read_bytes()
    assert raw.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    if suffix == ".svg":
        text = raw.decode()
        for one in measured:
            assert one.shape.name in text
        for meaning, _ in CAUSES.values():
            assert meaning in text


# Commands ---------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, model_device, small_memory):
    """Run a command with the stand-in in place of the device."""
    simulated = pytest.importorskip("moska.sim.device")

    def run(*arguments, **options):
        def device(config, directory=None, *, memory_bytes, seed=0, trace=None):
            return model_device(config, memory_bytes=memory_bytes, **options)

        monkeypatch.setattr(simulated, "Device", device)
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


def test_bench_command(command, tmp_path):
    plot, figures = tmp_path / "bench.svg", tmp_path / "bench.json"
    result = command(
        "bench", "tiny", "--quick", "--only", "25%", "--json", figures, "--plot", plot
    )
    assert result.exit_code == 0, result.output
    assert "within 1.15" in result.stdout
    # Without a terminal, a line a shape says how far it is.
    assert result.stderr.splitlines()[-1].startswith("1 of 1: m16 c32 s")
    assert "Latencies left out" in result.stdout
    assert plot.stat().st_size > 1000
    loaded = json.loads(figures.read_text())
    assert loaded["summary"]["judged"] == loaded["summary"]["met"] == len(loaded["shapes"]) == 1
    (shape,) = loaded["shapes"]
    assert shape["ratio"] == pytest.approx(1.03, abs=1e-3)
    assert sum(shape["counters"][name] for name in CAUSES) == shape["counters"]["cycles"]


def test_bench_command_fails_when_a_target_is_missed(command):
    result = command("bench", "tiny", "--quick", "--only", "25%", "--json", "-", ratio=1.2)
    assert result.exit_code == 1
    loaded = json.loads(result.stdout)
    assert loaded["shapes"][0]["met"] is False
    assert "MISSED" in result.stderr
    assert result.stderr.endswith("moska: error: 1 of 1 targets are missed\n")


def test_bench_command_fails_when_a_bit_differs(command):
    result = command("bench", "tiny", "--quick", "--only", "25%", fault="bit")
    assert result.exit_code == 1
    assert "differ, first at" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bench", "tiny", "--only", "c7"), "only must be part of a shape's name, not 'c7'"),
        (("bench", "tiny", "--plot", "a.pdf"), "plot must be a .png or .svg file, not a.pdf"),
        (
            ("simulate", "tiny", "--tokens", 600, "--chunk", 32),
            "tokens must be at most 512 (max_chunks times the chunk's tokens), not 600",
        ),
        (
            ("simulate", "tiny", "--tokens", 1048577),
            "tokens must be at most 1048576, not 1048577",
        ),
        (("simulate", "tiny", "--rows", 17), "rows must be at most max_rows (16), not 17"),
        (
            ("simulate", "tiny", "--chunk", 24),
            "chunk_tokens must be a positive multiple of 16, not 24",
        ),
        (
            ("simulate", "tiny", "--keep", 0.5, "--router", "best"),
            "router must be mean, minmax or submean:<tokens>, not 'best'",
        ),
    ],
)
def test_refusals_of_the_commands(command, arguments, message):
    result = command(*arguments)
    assert result.exit_code == 2
    assert result.stderr == f"moska: error: {message}\n"


def test_simulate_command(command):
    result = command(
        "simulate", "tiny", "--rows", 4, "--tokens", 200, "--keep", 0.5, "--checksum",
        "--jobs", 3, "--latency", 7, "--json", "-",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    loaded = json.loads(result.stdout)
    assert loaded["bit_exact"] is True
    assert (loaded["rows"], loaded["tokens"], loaded["chunks"], loaded["k"]) == (4, 200, 7, 4)
    assert [job["sequence"] for job in loaded["jobs"]] == [1, 2, 3]
    assert "every bit as the golden model" in result.stderr


def test_simulate_command_fits_chunks_to_a_long_store(command):
    result = command("simulate", "tiny", "--rows", 2, "--tokens", 2000, "--json", "-")
    assert result.exit_code == 0, result.output
    loaded = json.loads(result.stdout)
    # The smallest power of two with which 16 chunks hold them.
    assert (loaded["tokens"], loaded["chunk_tokens"], loaded["chunks"]) == (2000, 128, 16)


def test_simulate_command_without_the_golden_model(command):
    result = command("simulate", "tiny", "--rows", 2, "--no-check", "--json", "-", fault="bit")
    assert result.exit_code == 0, result.output
    loaded = json.loads(result.stdout)
    assert loaded["checked"] is False
    assert loaded["bit_exact"] is None
    assert "not compared" in result.stderr
    assert loaded["cycles_per_second"] == loaded["cycles_in_all"] / loaded["device_seconds"]
    # What needs no golden model is checked.
    result = command("simulate", "tiny", "--rows", 2, "--no-check", fault="overrun")
    assert result.exit_code == 1
    assert "bytes behind a result were written" in result.stderr


def test_simulate_command_says_what_differs(command):
    result = command("simulate", "tiny", "--rows", 2, "--tokens", 64, "--jobs", 3, fault="bit")
    assert result.exit_code == 1
    assert result.stderr.startswith("moska: error: job 3: o: 1 of 32 differ, first at (0, 0)")
    assert "NO" in result.stdout


def test_simulate_command_reads_a_store(command, tmp_path):
    rng = np.random.default_rng(SEED)
    path = tmp_path / "store.npz"
    k, v, q = (rng.normal(size=(n, 16)) for n in (100, 100, 5))
    np.savez(path, k=k, v=v, q=q)
    result = command("simulate", "tiny", "--store", path, "--json", "-")
    assert result.exit_code == 0, result.output
    loaded = json.loads(result.stdout)
    assert (loaded["rows"], loaded["tokens"]) == (5, 100)

    for changes, arguments, message in (
        ({"k": k, "v": v, "q": q}, ("--rows", 6), f"rows must be at most 5, as in {path}, not 6"),
        ({"k": k}, (), f"store must have an array 'v': {path}"),
        (
            {"k": k[:, :8], "v": v[:, :8]},
            (),
            "k and v must have shape (tokens, 16), not (100, 8) and (100, 8)",
        ),
    ):
        np.savez(path, **changes)
        result = command("simulate", "tiny", "--store", path, *arguments)
        assert result.exit_code == 2
        assert result.stderr == f"moska: error: {message}\n"
    path.write_text("no array")
    result = command("simulate", "tiny", "--store", path)
    assert result.exit_code == 2
    assert result.stderr.startswith("moska: error: store must be an .npz file of numbers: ")


@pytest.mark.parametrize("name", ["bench", "simulate"])
def test_help_gives_examples(name):
    runner = CliRunner()
    assert f"  {name}  " in runner.invoke(main, ["--help"]).stdout
    result = runner.invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert f"moska {name}" in result.stdout.split("Examples:")[1]
