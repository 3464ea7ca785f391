"""Exact cycles of some shapes of the benchmark: a change of the unit that costs or gains shows."""

import pytest

from moska.gen.config import Config
from moska.sim import measure
from moska.sim.causes import CAUSES
from moska.sim.device import Device
from moska.sim.shapes import Pattern, Shape

SEED = 1
ROUTED = {"chunk_tokens": 32, "keep": 0.25}
# Shape; cycles of a job in a queue by cause; cycles of a job alone.
TINY = [
    (
        Shape(rows=16, chunk_tokens=64, n_tokens=64),
        {"score_active": 2048},
        3303,
    ),
    (
        Shape(rows=8, chunk_tokens=64, n_tokens=128, latency=0),
        {"score_active": 2048},
        2699,
    ),
    (
        Shape(rows=16, chunk_tokens=32, n_tokens=512, checksum=True),
        {"score_active": 16384},
        17628,
    ),
    (
        Shape(rows=16, n_tokens=256, pattern=Pattern.SAME, **ROUTED),
        {"score_active": 2304, "stall_memory": 241, "stall_select": 91, "stall_drain": 1},
        3842,
    ),
    (
        Shape(rows=16, n_tokens=256, pattern=Pattern.APART, latency=0, **ROUTED),
        {"score_active": 2304, "stall_memory": 28},
        3356,
    ),
]
ULX3S = [
    (
        Shape(rows=64, chunk_tokens=64, n_tokens=64, latency=300),
        {"score_active": 4813.75, "stall_memory": 3984.75, "stall_softmax": 239.5},
        13122,
    ),
    (
        Shape(rows=64, chunk_tokens=64, n_tokens=320),
        {"score_active": 20480, "stall_softmax": 160},
        28834,
    ),
    (
        Shape(rows=8, chunk_tokens=64, n_tokens=576),
        {"score_active": 4608, "stall_memory": 15256},
        20956,
    ),
    (
        Shape(rows=64, n_tokens=256, pattern=Pattern.DATA, **ROUTED),
        {
            "score_active": 5279,
            "stall_memory": 3156,
            "stall_softmax": 279,
            "stall_select": 181,
            "stall_load": 1,
        },
        14072,
    ),
    (
        Shape(rows=64, n_tokens=352, pattern=Pattern.APART, **ROUTED),
        {"score_active": 9152, "stall_memory": 9136},
        20906,
    ),
]


def measured(name, cases):
    """Causes and cycles alone of each shape, as in the table."""
    config = Config.load(name)
    found = []
    with Device(config, memory_bytes=measure.MEMORY_BYTES, seed=SEED) as device:
        for shape, _, _ in cases:
            one = measure.measure(device, config, shape, seed=SEED)
            causes = {name: one.counters[name] for name in CAUSES if one.counters[name]}
            found.append((shape, causes, one.alone))
    return found


def test_cycles_of_tiny():
    assert measured("tiny", TINY) == TINY


@pytest.mark.slow
def test_cycles_of_ulx3s():
    assert measured("ulx3s", ULX3S) == ULX3S
