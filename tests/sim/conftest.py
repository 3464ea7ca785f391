"""A functional stand-in for the simulated device that may misbehave."""

import pytest

from moska.golden.formats import ALIGN
from moska.sim.model import ModelDevice


class StandIn(ModelDevice):
    """The golden model behind the device's methods, with a fault.

    ``fault`` makes it misbehave: "silent" (no completion), "sequence" (a wrong number), "overrun"
    (a byte behind the LSE), "bit" (one bit of O of every third job), "counters" (causes that do
    not add up), "chunks" (a chunk counted twice).
    """

    def __init__(self, config, *, memory_bytes=1 << 20, ratio=1.03, latency=200, fault=None):
        super().__init__(config, memory_bytes=memory_bytes, ratio=ratio, latency=latency)
        self.fault = fault
        self.options = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def timing(self, **options):
        self.options = options

    def allow(self, *, read, write):
        self.allowed = {"read": read, "write": write}

    def _start(self, now=None):
        if self.fault != "silent":
            super()._start(now)

    def _record(self, work):
        record = super()._record(work)
        record["sequence"] += self.fault == "sequence"
        record["stall_memory"] -= self.fault == "counters"
        record["chunks_read"] += self.fault == "chunks"
        return record

    def _write_results(self, work):
        if self.fault == "bit" and self._sequence % 3 == 0:
            work.result.o[0, 0] ^= 1
        super()._write_results(work)
        if self.fault == "overrun":
            end = work.fields["lse_addr"] + -(-4 * len(work.result.lse) // ALIGN) * ALIGN
            self.write(end, b"\x01")


@pytest.fixture(scope="session")
def model_device():
    """Class of the stand-in."""
    return StandIn
