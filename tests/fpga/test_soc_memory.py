"""The unit's way to memory in the simulated SoC: its rate, and resets while it is in use."""

import numpy as np
import pytest

from moska.fpga.simulate import open_soc
from moska.golden.quantize import quantize_q
from moska.golden.unit import Store, attend
from moska.host import Device, DeviceTimeout

pytestmark = [pytest.mark.fpga, pytest.mark.xdist_group("soc-tiny")]
SECONDS = 300
N_RESETS = 6


def test_jobs_after_a_reset_in_the_midst_of_others():
    """The SDRAM controller goes on, its contents stay, and the next job's result is right."""
    rng = np.random.default_rng(5)
    k, v = rng.normal(size=(2, 512, 16))
    whole = Store.from_float(k, v, chunk_tokens=16)
    q = 2 * rng.normal(size=(16, 16))
    expected = attend(whole, *quantize_q(q), None)
    with Device(open_soc("tiny", {})) as device, device.load(whole) as handle:
        timeout = device.stall_timeout
        for _ in range(N_RESETS):
            device.stall_timeout = 0.0
            with pytest.raises(DeviceTimeout):
                device.submit(handle, q).result(SECONDS)
            device.stall_timeout = timeout
            result = device.submit(handle, q).result(SECONDS)
            np.testing.assert_array_equal(result.o.view(np.uint32), expected.o)


def test_rate():
    """Bytes a cycle that a job gets which waits for memory all the time; 4 is the SDRAM's limit."""
    rng = np.random.default_rng(6)
    k, v = rng.normal(size=(2, 1024, 16))
    whole = Store.from_float(k, v, chunk_tokens=32)
    with Device(open_soc("tiny", {})) as device, device.load(whole) as handle:
        counters = device.submit(handle, rng.normal(size=(1, 16))).result(SECONDS).counters
    rate = 8 * (counters["read_beats"] + counters["write_beats"]) / counters["cycles"]
    print(f"{rate:.2f} bytes a cycle")
    assert 3.4 < rate < 4
