import dataclasses

import numpy as np
import pytest

from moska.gen import bound
from moska.gen.config import Config

TINY = Config.load("tiny")  # D=16, F=4, Mt=2, 8 bytes a cycle
JOB = {"n_rows": 3, "chunk_tokens": 32, "n_tokens": 80, "rows_per_chunk": [3, 0, 1], "rep_rows": 0}


def test_sizes_in_memory():
    assert bound.token_bytes(TINY) == 2 * 16 + 4
    assert bound.query_bytes(TINY) == 2 * 16 + 2
    assert bound.result_bytes(TINY) == 4 * 16 + 4
    assert bound.representative_bytes(TINY) == 16 + 4


def test_explicit_selection():
    # Chunks of 32, 32 and 16 tokens; 3 rows are two tiles, 1 row is one, the second is not read.
    result = bound.bound(TINY, **JOB)
    assert result.value == 4 * (2 * 32 + 0 + 1 * 16) == 320
    assert result.score == 320
    assert result.compute == 320
    assert result.read_bytes == 128 + 3 * 34 + (32 + 16) * 36 == 1958
    assert result.written_bytes == 128 + 3 * 68 == 332
    assert result.bytes == 2290
    assert result.memory == 287  # 2290 / 8 = 286.25
    assert result.bound == 320
    assert result.limit == "compute"


def test_routed():
    # Two representative rows for each of three chunks, against two tiles of queries.
    result = bound.bound(TINY, **{**JOB, "rep_rows": 2})
    assert result.value == 320
    assert result.score == 320 + 4 * 2 * 3 * 2 == 368
    assert result.compute == 368
    assert result.read_bytes == 1958 + 3 * 2 * 20
    assert result.bound == 368


def test_written_selection():
    # A line of 64 bytes for each of three chunks.
    plain = bound.bound(TINY, **JOB)
    written = bound.bound(TINY, **JOB, write_selection=True)
    assert written.written_bytes == 332 + 3 * 64
    assert written.read_bytes == plain.read_bytes
    assert written.memory == 311  # 2482 / 8 = 310.25


def test_checksums():
    # A record of 16 bytes for each of the two chunks that are read; on a wide bus a beat.
    plain = bound.bound(TINY, **JOB)
    checked = bound.bound(TINY, **JOB, checksums=True)
    assert checked.read_bytes == plain.read_bytes + 2 * 16
    assert checked.written_bytes == plain.written_bytes
    assert bound.checksum_bytes(Config.load("sim64")) == 64


def test_route_only():
    # Descriptor, queries and six representatives are read; three lines and a record are written.
    result = bound.bound(TINY, **{**JOB, "rep_rows": 2}, write_selection=True, route_only=True)
    assert result.value == 0
    assert result.score == result.compute == 4 * 2 * 3 * 2 == 48
    assert result.read_bytes == 128 + 3 * 34 + 3 * 2 * 20 == 350
    assert result.written_bytes == 128 + 3 * 64 == 320
    assert result.bound == result.memory == 84  # 670 / 8 = 83.75


def test_two_read_ports():
    # Values of 48 tokens have a port of their own: 768 bytes; the other one moves the rest.
    two = dataclasses.replace(TINY, read_ports=2)
    result = bound.bound(two, **JOB)
    assert result.bytes == 2290
    assert result.memory == 191  # (2290 - 768) / 8 = 190.25
    # With many tokens the ports differ by keys' scales, queries and results only.
    u55c = Config.load("u55c")
    assert u55c.read_ports == 2
    job = {"n_rows": 16, "chunk_tokens": 64, "n_tokens": 4096, "rep_rows": 0}
    result = bound.bound(u55c, **job, rows_per_chunk=[16] * 64)
    # 128 + 16 * 258 + 4096 * (128 + 4) + 16 * 516 + 128 = 553,312 bytes at 64 a cycle: 8645.5
    assert result.memory == 8646
    single = bound.bound(
        dataclasses.replace(u55c, read_ports=1), **job, rows_per_chunk=[16] * 64
    )
    assert single.bytes == result.bytes
    assert single.memory == 16838  # 553,312 + 4096 * 128 = 1,077,600: 16,837.5


def test_memory_binds():
    config = Config.load("sim64")
    result = bound.bound(
        config, n_rows=16, chunk_tokens=64, n_tokens=4096, rows_per_chunk=[16] * 64, rep_rows=0
    )
    assert result.compute == 4096
    # 128 + 16 * 130 + 4096 * 132 + 16 * 260 + 128 = 547,168 bytes at 64 a cycle: 8549.5
    assert result.memory == 8550
    assert result.bound == 8550
    assert result.limit == "memory"


def test_nothing_selected():
    result = bound.bound(TINY, **{**JOB, "rows_per_chunk": [0, 0, 0]})
    assert result.compute == 0
    assert result.bytes == 128 + 3 * 34 + 3 * 68 + 128
    assert result.bound == result.memory == 71  # 562 / 8 = 70.25


@pytest.mark.parametrize("name", ["tiny", "ulx3s", "sim64", "u55c"])
def test_balance_rows_is_where_the_terms_of_a_token_meet(name):
    config = Config.load(name)
    rows = bound.balance_rows(config)
    per_token = config.fold * rows / config.query_tile
    port_bytes = bound.token_bytes(config)
    if config.read_ports == 2:
        port_bytes -= bound.value_bytes(config)
    assert per_token == port_bytes / config.memory_bytes_per_cycle
    if name in ("sim64", "u55c"):
        assert rows == 33


def test_large_unsigned_rows_do_not_wrap():
    rows = np.full(3, 3, dtype=np.uint8)
    assert bound.bound(TINY, **{**JOB, "rows_per_chunk": rows}).value == 4 * 2 * 80


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_rows": 0}, "n_rows must be from 1 to max_rows (16), not 0"),
        ({"n_rows": 17}, "n_rows must be from 1 to max_rows (16), not 17"),
        ({"chunk_tokens": 0}, "chunk_tokens must be a positive multiple of 16, not 0"),
        ({"chunk_tokens": 40}, "chunk_tokens must be a positive multiple of 16, not 40"),
        ({"n_tokens": 0}, "n_tokens must be from 1 to 1048576, not 0"),
        ({"n_tokens": (1 << 20) + 1}, "n_tokens must be from 1 to 1048576, not 1048577"),
        (
            {"n_tokens": 513, "rep_rows": 2},
            "n_tokens must make at most max_chunks (16) chunks to route, not 17",
        ),
        ({"rep_rows": -1}, "rep_rows must be 0 or more, not -1"),
        (
            {"route_only": True, "write_selection": True},
            "route_only must come with rep_rows and write_selection, not 0 and True",
        ),
        (
            {"route_only": True, "rep_rows": 1},
            "route_only must come with rep_rows and write_selection, not 1 and False",
        ),
        ({"rows_per_chunk": [1, 1]}, "rows_per_chunk must have shape (3,), not (2,)"),
        ({"rows_per_chunk": [1, 4, 1]}, "rows_per_chunk must be from 0 to n_rows (3), not [1, 4]"),
        (
            {"rows_per_chunk": [1, -1, 1]},
            "rows_per_chunk must be from 0 to n_rows (3), not [-1, 1]",
        ),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=r"must") as error:
        bound.bound(TINY, **{**JOB, **changes})
    assert str(error.value) == message


def test_float_rows_are_refused():
    with pytest.raises(TypeError, match=r"^rows_per_chunk must be integers, not float64$"):
        bound.bound(TINY, **{**JOB, "rows_per_chunk": [1.0, 1.0, 1.0]})
