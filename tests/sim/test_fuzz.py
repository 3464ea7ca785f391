"""Random queues on the simulated unit; what the fuzzer, its oracle and its coverage see."""

import json

import numpy as np
import pytest

from moska.gen.config import Config
from moska.golden.layout import (
    DESCRIPTOR,
    ErrorCode,
    Opcode,
    Selection,
    pack_array,
    pack_checksums,
    pack_scales,
)
from moska.golden.router import Router
from moska.golden.unit import Store, attend
from moska.sim import fuzz as fuzz_module
from moska.sim.coverage import AXES, CROSSES, Classes, Coverage, classify
from moska.sim.device import Device
from moska.sim.fuzz import FuzzError, fuzz, main
from moska.sim.oracle import Expectation, Injection

SEED = 41
TINY = Config.load("tiny")
WHOLE = (0, (1 << 64) - 1)

# The builds of one configuration are shared: by one worker, or under the lock of the cache.
pytestmark = pytest.mark.xdist_group("device-tiny")


def test_2000_descriptors():
    """No hang, no access outside the windows, no wrong result marked good."""
    report = fuzz(TINY, seed=SEED, count=2000)
    codes = {code.name.lower() for code in ErrorCode if code is not ErrorCode.RING}
    assert {code for code, count in report.codes.items() if count >= 20} >= codes
    assert report.resets >= 5
    assert report.coverage.reached > 0.85, report.coverage.markdown()


@pytest.mark.slow
def test_10000_descriptors():
    """Nearly all combinations of classes are met."""
    report = fuzz(TINY, seed=10_000 * SEED, count=10_000)
    assert report.coverage.reached >= 0.95, report.coverage.markdown()


def test_replay():
    """A round depends on its seed alone."""
    first = fuzz(TINY, seed=SEED, count=1)
    both = fuzz(TINY, seed=SEED - 1, count=60)
    again = fuzz(TINY, seed=SEED, count=1)
    assert both.rounds > 1
    assert (first.codes, first.cycles) == (again.codes, again.cycles)
    assert first.coverage.counts == again.coverage.counts


class Spoilt(Device):
    """A device that does something wrong."""

    fault = None

    def read(self, address, size):
        raw = super().read(address, size)
        if size == 128 and raw[0] == 9 and raw[1:4] == bytes(3):  # the ninth completion
            if self.fault == "sequence":
                return bytes([8]) + raw[1:]
            if self.fault == "code":
                return raw[:8] + bytes([raw[8] ^ 2]) + raw[9:]
            if self.fault == "address":
                return raw[:16] + bytes([raw[16] ^ 8]) + raw[17:]
            if self.fault == "tag":
                return raw[:4] + bytes([raw[4] ^ 1]) + raw[5:]
            if self.fault == "memory":
                self.memory[-1] ^= 1
        return raw

    def read32(self, offset):
        value = super().read32(offset)
        if self.fault == "status" and offset == fuzz_module.regmap.STATUS:
            return value | 1
        if self.fault == "hang" and offset == fuzz_module.regmap.COMPLETED:
            return min(value, 5)
        return value


@pytest.mark.parametrize(
    "fault", ["sequence", "code", "address", "tag", "memory", "status", "hang"]
)
def test_fault_is_found(monkeypatch, capsys, fault):
    """The fuzzer stops at what a wrong unit does, names the seed, and returns 1."""
    monkeypatch.setattr(fuzz_module, "Device", type("", (Spoilt,), {"fault": fault}))
    monkeypatch.setattr(fuzz_module, "MAX_WAIT", 40_000)
    with pytest.raises(FuzzError, match=r"^seed \d+, cycle \d+: ") as caught:
        fuzz(TINY, seed=SEED, count=400)
    seed = str(caught.value).split(",")[0].split()[1]
    assert main(["--seed", seed, "--count", "1"]) == 1
    assert f"--seed {seed} --count 1 --config tiny" in capsys.readouterr().err


def test_wrong_result_is_found(monkeypatch):
    """One bit of a result of a job marked good."""
    before = Expectation.wrong_result

    def flipped(self):
        found = self.written
        if found:
            self.memory[found[-1].first] ^= 1
        return before(self)

    monkeypatch.setattr(Expectation, "wrong_result", flipped)
    with pytest.raises(FuzzError, match="bytes differ"):
        fuzz(TINY, seed=SEED, count=200)


def test_command_line(capsys, tmp_path):
    """Summary, coverage as a table and as JSON; bad arguments are an error of their own."""
    path = tmp_path / "coverage.json"
    assert main(["--seed", str(SEED), "--count", "30", "--coverage", str(path)]) == 0
    out = capsys.readouterr().out
    assert "descriptors" in out
    assert "| k x stall x error |" in out
    assert json.loads(path.read_text())["config"] == "tiny"
    assert main(["--config", "nothing"]) == 2
    assert main(["--count", "0"]) == 2


# Coverage --------------------------------------------------------------------------------------


def fields(**changes):
    return dict.fromkeys(DESCRIPTOR, 0) | {
        "opcode": Opcode.ATTEND, "selection": Selection.TOP_K, "n_rows": 2, "n_chunks": 4,
        "chunk_tokens": 16, "n_tokens": 64, "k": 2,
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("=tile", "16", "some")),
        ({"n_rows": 1}, ("1", "16", "some")),
        ({"n_rows": 3}, (">tile", "16", "some")),
        ({"n_rows": TINY.max_rows}, ("max", "16", "some")),
        ({"chunk_tokens": 32}, ("=tile", "32", "some")),
        ({"chunk_tokens": 48}, ("=tile", ">slot", "some")),
        ({"k": 0}, ("=tile", "16", "0")),
        ({"k": 1}, ("=tile", "16", "1")),
        ({"k": 1, "n_chunks": 1}, ("=tile", "16", "all")),
        ({"k": 9}, ("=tile", "16", "all")),
        ({"selection": Selection.ALL}, ("=tile", "16", "dense")),
        ({"selection": Selection.EXPLICIT}, ("=tile", "16", "explicit")),
    ],
)
def test_classes(changes, expected):
    found = classify(TINY, fields(**changes), stall=25, error=ErrorCode.WRITE)
    assert found == ("int8", *expected, "25", "write")


def test_no_class():
    assert classify(TINY, fields(opcode=Opcode.FENCE), stall=0, error=ErrorCode.NONE) is None
    wide = Config.from_dict(TINY.parameters() | {"name": "wide", "query_tile": 4})
    found = classify(wide, fields(n_rows=3), stall=0, error=ErrorCode.NONE)
    assert found.rows == "<tile"


def test_coverage_counts():
    """Every combination is counted once a job; excluded ones are refused."""
    coverage = Coverage(TINY)
    assert coverage.reached == 0
    classes = Classes("int8", "1", "16", "dense", "0", "none")
    coverage.add(classes)
    total = sum(len(coverage.possible(cross)) for cross in CROSSES)
    assert coverage.reached == pytest.approx(len(CROSSES) / total)
    with pytest.raises(ValueError, match="is excluded"):
        coverage.add(classes._replace(k="0", error="checksum"))
    with pytest.raises(ValueError, match="is excluded"):
        coverage.add(classes._replace(rows="<tile"))
    for cross in CROSSES:
        everything = np.prod([len(AXES[axis]) for axis in cross])
        assert len(coverage.possible(cross)) <= everything
        assert len(coverage.missing(cross)) == len(coverage.possible(cross)) - 1
    shown = json.loads(coverage.json())
    assert shown["jobs"] == 1
    assert [c["reached"] for c in shown["crosses"]] == [1] * len(CROSSES)
    assert "excluded: rows <tile" in coverage.markdown()


# Oracle ----------------------------------------------------------------------------------------


@pytest.fixture
def placed():
    """Make a dense job with checksums, done without error, in memory of its own."""
    rng = np.random.default_rng(SEED)
    dim = TINY.head_dim
    memory = np.zeros(1 << 15, np.uint8)

    def put(address, raw):
        memory[address : address + len(raw)] = np.frombuffer(raw, np.uint8)

    k, v = (rng.integers(-128, 128, (40, dim)).astype(np.int8) for _ in "kv")
    ks, vs = (rng.integers(116 << 7, 124 << 7, 40).astype(np.uint16) for _ in "kv")
    q = rng.integers(-32768, 32768, (3, dim)).astype(np.int16)
    q_scale = rng.integers(116 << 7, 124 << 7, 3).astype(np.uint16)
    addresses = {name: 0x1000 + 0x800 * i for i, name in enumerate((
        "q_addr", "q_scale_addr", "k_addr", "v_addr", "scale_addr", "checksum_addr", "o_addr",
        "lse_addr",
    ))}  # fmt: skip
    put(addresses["q_addr"], pack_array(q))
    put(addresses["q_scale_addr"], pack_array(q_scale))
    put(addresses["k_addr"], pack_array(k))
    put(addresses["v_addr"], pack_array(v))
    put(addresses["scale_addr"], pack_scales(ks, vs))
    put(addresses["checksum_addr"], pack_checksums(k, v, ks, vs, 32))
    result = attend(Store(k, v, ks, vs, 32, Router.ROWS), q, q_scale)
    put(addresses["o_addr"], result.o.tobytes())
    put(addresses["lse_addr"], result.lse.tobytes())
    job = fields(
        selection=Selection.ALL, n_rows=3, n_tokens=40, n_chunks=2, chunk_tokens=32, k=0,
        checksum=1, **addresses,
    )  # fmt: skip
    return Expectation(TINY, job, 0x100, memory, [], WHOLE, WHOLE)


def test_oracle_good(placed):
    assert placed.refused == (ErrorCode.NONE, 0)
    assert placed.judge(ErrorCode.NONE, 0, timed_out=False) is None
    assert placed.judge(ErrorCode.READ, 0x1000, timed_out=False)
    assert placed.judge(ErrorCode.TIMEOUT, 0x100, timed_out=True) is None
    assert placed.judge(ErrorCode.TIMEOUT, 0x100, timed_out=False)
    assert placed.wrong_result() is None
    placed.memory[placed.fields["lse_addr"] + 11] ^= 1
    assert "1 bytes differ" in placed.wrong_result()


def test_oracle_errors(placed):
    """Every kind of error must be reported, where it is."""
    def judge(code, address):
        return placed.judge(code, address, timed_out=False) is None

    k, sums, o = (placed.fields[f"{name}_addr"] for name in ("k", "checksum", "o"))
    placed.memory[k + 32 * TINY.head_dim] ^= 1
    assert judge(ErrorCode.CHECKSUM, sums + 16)
    assert not judge(ErrorCode.CHECKSUM, sums)
    assert not judge(ErrorCode.NONE, 0)
    placed.memory[k + 32 * TINY.head_dim] ^= 1
    # The padding of the last chunk is read, the next line is not.
    end = k + 40 * TINY.head_dim
    placed.injections.append(Injection("read", end, 1))
    assert judge(ErrorCode.NONE, 0)
    placed.injections.append(Injection("read", k + 9, 1))
    assert judge(ErrorCode.READ, k + 8)
    assert not judge(ErrorCode.READ, k + 16)
    assert not judge(ErrorCode.NONE, 0)
    placed.injections[:] = [Injection("write", o + 100, 4)]
    assert judge(ErrorCode.WRITE, o)
    assert not judge(ErrorCode.WRITE, o + 104)
    assert not judge(ErrorCode.NONE, 0)


def test_oracle_refused(placed):
    placed.injections.append(Injection("read", 0x100 + 65, 1))
    assert placed.judge(ErrorCode.READ, 0x140, timed_out=False) is None
    assert placed.judge(ErrorCode.NONE, 0, timed_out=False)
