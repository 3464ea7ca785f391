"""Rings on the golden model, and the exceptions that completions stand for."""

import pickle

import pytest

from moska.gen.config import Config
from moska.golden.layout import COMPLETION, COMPLETION_BYTES, ErrorCode, Opcode, pack_descriptor
from moska.host import TransportError, errors, regmap
from moska.host.errors import job_error
from moska.host.ring import Ring
from moska.sim.model import ModelDevice

TINY = Config.load("tiny")
FENCE = pack_descriptor(opcode=Opcode.FENCE)


@pytest.fixture
def model():
    return ModelDevice(TINY, memory_bytes=1 << 24)


def record(**fields):
    return dict.fromkeys(COMPLETION, 0) | fields


def test_counters_pass_16_bits(model):
    """Sequence numbers go on where TAIL and COMPLETED begin again."""
    ring = Ring(model, 0, 12)
    ring.start()
    seen = []
    while ring.collected < 70_000:
        ring.post([FENCE] * ring.room)
        while ring.room < ring.entries:
            model.run(1 << 20)
            seen += [record["sequence"] for record in ring.collect()]
    assert seen == list(range(1, len(seen) + 1))
    assert model.read32(regmap.COMPLETED) == len(seen) & 0xFFFF


def test_no_more_than_there_is_room_for(model):
    ring = Ring(model, 0, 2)
    ring.start()
    ring.post([FENCE] * 3)
    assert ring.room == 1
    with pytest.raises(ValueError, match=r"^descriptors must be at most 1, not 2$"):
        ring.post([FENCE] * 2)
    assert ring.collect() == []
    with pytest.raises(ValueError, match=r"^ring_size must be from 0 to 15, not -1$"):
        Ring.n_bytes(-1)
    assert Ring.n_bytes(2) == 4 * (128 + 128)


def test_records_from_before_a_reset_are_no_completions(model):
    ring = Ring(model, 0, 1)
    ring.start()
    ring.post([FENCE])
    model.run(1 << 20)
    assert len(ring.collect()) == 1
    model.reset()
    ring.start()
    assert not any(model.read(ring.completions, 2 * COMPLETION_BYTES))
    ring.post([FENCE])
    model.run(1 << 20)
    assert [r["sequence"] for r in ring.collect()] == [1]


def test_more_completions_than_jobs(model):
    ring = Ring(model, 0, 1)
    ring.start()
    ring.post([FENCE])
    model.run(1 << 20)
    ring.announced -= 1
    with pytest.raises(TransportError, match=r"^completions must be of the 0 jobs under way, not"):
        ring.collect()


@pytest.mark.parametrize("code", [c for c in ErrorCode if c not in {0, ErrorCode.RING}])
def test_every_error_has_an_exception(code):
    error = job_error(record(code=int(code), error_addr=0x1240, sequence=7, tag=3))
    assert type(error) is errors.BY_CODE[code]
    assert (error.code, error.address, error.sequence, error.tag) == (code, 0x1240, 7, 3)
    assert str(error).startswith("job 7 (tag 3) ")
    assert str(error).endswith(", at address 0x1240")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.address) == (str(error), error.address)


def test_good_and_unknown_codes():
    assert job_error(record()) is None
    for code in (int(ErrorCode.RING), 8, 0xFFFFFFFF):
        with pytest.raises(TransportError, match=rf"^completion must .* error code, not {code}$"):
            job_error(record(code=code))
