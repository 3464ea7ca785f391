"""Every scene of the suite on the smallest unit, and that the suite notices wrong results."""

import dataclasses

import numpy as np
import pytest

from moska.gen.config import Config
from moska.golden.layout import ErrorCode
from moska.sim.device import Device
from moska.sim.suite import BASES, MEMORY, SCENES, Bench, Difference, Expected, Suite

pytestmark = pytest.mark.xdist_group("device-tiny")
TINY = Config.load("tiny")


@pytest.fixture(scope="module")
def suite():
    return Suite(TINY)


@pytest.mark.parametrize("scene", SCENES, ids=[scene.name.replace(" ", "-") for scene in SCENES])
def test_scene(suite, scene):
    suite.play(scene)


def test_same_again(suite):
    """A scene takes the same cycles each time, so that a change of timing is seen."""
    scene = next(scene for scene in SCENES if scene.name == "checksums rough")
    assert suite.play(scene) == suite.play(scene)


def test_bases():
    """Between them, every bit above memory's offset is 0 and 1; both pass a multiple of 2**32."""
    offset = MEMORY - 1
    assert (BASES[0] ^ BASES[1]) >> 32 == (1 << 32) - 1
    assert all(base >> 32 != (base + offset) >> 32 for base in BASES)


@pytest.fixture
def bench(suite):
    with Device(TINY, memory_bytes=MEMORY, base=BASES[0]) as device:
        yield Bench(device, Expected())


def test_wrong_bit_is_seen(suite, bench):
    job = suite.made["simple"]["dense"]
    result = job.expected()
    wrong = dataclasses.replace(result, o=result.o ^ np.eye(*result.o.shape, dtype=np.uint32))
    bench.expected._results[id(job)] = (job, wrong)
    with pytest.raises(Difference, match=r"bits: job 0"):
        bench.run(bench.place(job))


def test_wrong_code_is_seen(suite, bench):
    placed = bench.place(suite.made["simple"]["dense"])
    with pytest.raises(Difference, match=r"code: .* expected READ"):
        bench.run(placed, {0: (ErrorCode.READ, placed[0].image.fields["k_addr"])})


def test_stray_write_is_seen(suite, bench):
    """A result that lies where nothing may be written."""
    (placed,) = bench.place(suite.made["simple"]["dense"])
    address, size = placed.image.results["lse"]
    placed.image.results["lse"] = (placed.image.results["o"][0], size)
    with pytest.raises(Difference, match=r"bits|memory"):
        bench.run([placed])
    assert address


def test_violation_is_seen(suite, bench):
    placed = bench.place(suite.made["simple"]["dense"])
    bench.device.allow(read=(bench.first, placed[0].image.fields["q_addr"]), write=None)
    with pytest.raises(Difference, match=r"violation: .*outside the allowed range"):
        bench.run(placed)


def test_hang_is_seen(suite, bench):
    bench.limit = 50
    with pytest.raises(Difference, match=r"hang: after 0 jobs"):
        bench.run(bench.place(suite.made["simple"]["dense"]))
