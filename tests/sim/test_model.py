"""The golden model behind registers and memory does what the unit does."""

import pytest

from moska.gen.config import Config
from moska.golden.layout import ErrorCode
from moska.host import regmap
from moska.host.ring import identify
from moska.sim import fuzz as fuzz_module
from moska.sim.fuzz import fuzz
from moska.sim.model import ModelDevice

SEED = 43
TINY = Config.load("tiny")


class InPlace(ModelDevice):
    """The model in the place of the simulated device."""

    def __init__(self, config, cache, *, memory_bytes, seed, verilog):
        super().__init__(config, memory_bytes=memory_bytes, latency=seed % 300)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def allow(self, *, read, write):
        pass


def test_fuzzer_finds_nothing(monkeypatch):
    """Random queues with every error, judged as the simulated unit's are."""
    monkeypatch.setattr(fuzz_module, "Device", InPlace)
    monkeypatch.setattr(fuzz_module, "generated", lambda config, cache: None)
    report = fuzz(TINY, seed=SEED, count=1000)
    codes = {code.name.lower() for code in ErrorCode if code is not ErrorCode.RING}
    assert {code for code, count in report.codes.items() if count >= 5} >= codes
    assert report.resets >= 1


def test_parameters():
    unit = identify(ModelDevice(TINY))
    for name in ("head_dim", "fold", "query_tile", "max_rows", "max_chunks", "contexts"):
        assert getattr(unit, name) == getattr(TINY, name)
    assert unit.bus_bytes == TINY.bus_bytes


def test_registers():
    """Constants do not change, holes are refused, LOCK freezes the windows until a reset."""
    model = ModelDevice(TINY)
    model.write32(regmap.ID, 0)
    assert model.read32(regmap.ID) == regmap.ID_VALUE
    model.write32(regmap.SCRATCH, 0x1234)
    assert model.read32(regmap.SCRATCH) == 0x1234
    with pytest.raises(RuntimeError, match=r"^read of register 0x074: DECERR$"):
        model.read32(0x74)
    model.write32(regmap.READ_LIMIT_LO, 0xFFF)
    model.write32(regmap.LOCK, 1)
    model.write32(regmap.LOCK, 0)
    model.write32(regmap.READ_LIMIT_LO, 0)
    assert (model.read32(regmap.LOCK), model.read32(regmap.READ_LIMIT_LO)) == (1, 0xFFF)
    model.reset()
    assert model.read32(regmap.READ_LIMIT_LO) == 0xFFFFFFFF
