"""Several jobs submitted at once are what they are one by one."""

import time

import numpy as np
import pytest

from moska import host
from moska.golden.quantize import quantize_q
from moska.golden.unit import Store


def stores(n, seed, n_tokens=64):
    rng = np.random.default_rng(seed)
    return [
        Store.from_float(*rng.normal(size=(2, n_tokens, 16)), chunk_tokens=16) for _ in range(n)
    ]


def settled(device, used):
    """Wait until jobs have given their memory back."""
    deadline = time.monotonic() + 10
    while device.memory.used_bytes != used:
        assert time.monotonic() < deadline, device.memory.used_bytes - used
        time.sleep(0.01)


@pytest.mark.parametrize("options", [{}, {"k": 2, "group": 3}, {"n_tokens": 32}])
@pytest.mark.parametrize("n_rows", [6, 36])  # a job takes 16
def test_results(options, n_rows):
    with host.open("golden:tiny?memory=4M") as device:
        handles = [device.load(store) for store in stores(5, seed=1)]
        q = np.random.default_rng(2).normal(size=(5, n_rows, 16))
        used = device.memory.used_bytes
        jobs = [(handle, quantize_q(x)) for handle, x in zip(handles, q, strict=True)]
        together = [future.result(60) for future in device.submit_many(jobs, **options)]
        for (handle, rows), got in zip(jobs, together, strict=True):
            alone = device.attend(handle, rows, **options)
            np.testing.assert_array_equal(got.o, alone.o)
            np.testing.assert_array_equal(got.lse, alone.lse)
            assert got.counters["chunks_read"] == alone.counters["chunks_read"]
        settled(device, used)
        assert device.submit_many([]) == []


def test_more_than_memory_and_rings_hold():
    """The first jobs are under way before the last ones have a place."""
    with host.open("golden:tiny?memory=64K", ring_size=1) as device:
        handle = device.load(stores(1, seed=3)[0])
        used = device.memory.used_bytes
        q = np.random.default_rng(4).normal(size=(60, 16, 16))
        assert 60 * 16 * 16 * 6 > device.memory.free_bytes
        futures = device.submit_many((handle, x) for x in q)
        expected = device.attend(handle, q[59])
        np.testing.assert_array_equal(futures[59].result(60).o, expected.o)
        assert all(future.result(60).o.any() for future in futures)
        settled(device, used)


def test_a_job_that_is_refused():
    """Nothing is submitted, and the next jobs work."""
    with host.open("golden:tiny?memory=4M") as device:
        first, second = (device.load(store) for store in stores(2, seed=5))
        q = np.ones((4, 16))
        used, before = device.memory.used_bytes, device.statistics.jobs
        with pytest.raises(ValueError, match="q must have shape"):
            device.submit_many([(first, q), (second, q[:, :8])])
        second.free()
        with pytest.raises(host.MoskaError, match="store must not be freed"):
            device.submit_many([(first, q), (second, q)])
        assert device.statistics.jobs == before
        settled(device, used - second.nbytes)
        assert device.attend(first, q).o.any()


def test_too_large_for_memory():
    """Jobs that had a place run to their end; what they took is given back."""
    with host.open("golden:tiny?memory=64K") as device:
        handle = device.load(stores(1, seed=6)[0])
        # 320 bytes for two rows, 1,664 for 16.
        filler = device.memory.allocate(device.memory.largest_hole - 1024)
        used, done = device.memory.used_bytes, device.statistics.jobs
        small, large = np.ones((2, 16)), np.ones((16, 16))
        with pytest.raises(host.OutOfMemory):
            device.submit_many([(handle, small), (handle, large)])
        settled(device, used)
        assert device.statistics.jobs == done + 1
        device.memory.free(filler)
        assert device.attend(handle, large).o.any()
