"""Descriptor check: the first error wins, every limit to its edge, sizes as layout packs them."""

import numpy as np
import pytest

from moska.golden.check import MAX_ALL_CHUNKS, arrays, check, inside
from moska.golden.formats import MAX_TOKENS
from moska.golden.layout import (
    DESCRIPTOR,
    ErrorCode,
    Opcode,
    Selection,
    pack_array,
    pack_checksums,
    pack_descriptor,
    pack_scales,
    pack_selection,
)
from moska.golden.router import Router

ADDRESS = 0x5_0000_0040
LIMITS = {"head_dim": 16, "max_rows": 16, "max_chunks": 64, "buffer_tokens": 32}
ANY = (0, (1 << 64) - 1)
ADDRESSES = tuple(name for name in DESCRIPTOR if name.endswith("_addr"))

ATTEND = {
    **dict.fromkeys(DESCRIPTOR, 0),
    "opcode": Opcode.ATTEND,
    "selection": Selection.ALL,
    "n_rows": 6,
    "n_tokens": 160,
    "n_chunks": 4,
    "chunk_tokens": 48,
    "tag": 0xDEADBEEF,
    **{name: (index + 1) << 32 for index, name in enumerate(ADDRESSES)},
}
TOP_K = {
    **ATTEND,
    "selection": Selection.TOP_K,
    "group": 3,
    "k": 2,
    "rep_rows": 4,
    "keep_first": 1,
    "keep_last": 2,
    "checksum": 1,
}
ROUTE = {**TOP_K, "opcode": Opcode.ROUTE, "write_selection": 1}
EXPLICIT = {**ATTEND, "selection": Selection.EXPLICIT}
FENCE = {**dict.fromkeys(DESCRIPTOR, 0), "opcode": Opcode.FENCE}
FENCE_FIELDS = ("opcode", "reserved")  # the only ones that a fence has
JOBS = {
    "all": ATTEND,
    "top-k": TOP_K,
    "top-k, written": {**TOP_K, "write_selection": 1},
    "explicit": EXPLICIT,
    "route": ROUTE,
    "fence": FENCE,
}
USED = {
    "all": "q_addr q_scale_addr k_addr v_addr scale_addr o_addr lse_addr",
    "top-k": "q_addr q_scale_addr k_addr v_addr scale_addr rep_addr rep_scale_addr o_addr lse_addr "
    "checksum_addr",
    "top-k, written": "q_addr q_scale_addr k_addr v_addr scale_addr rep_addr rep_scale_addr "
    "selection_addr o_addr lse_addr checksum_addr",
    "explicit": "q_addr q_scale_addr k_addr v_addr scale_addr selection_addr o_addr lse_addr",
    "route": "q_addr q_scale_addr rep_addr rep_scale_addr selection_addr",
    "fence": "",
}
WRITTEN = {"all": 2, "top-k": 2, "top-k, written": 3, "explicit": 2, "route": 1, "fence": 0}


def run(fields, *, read=ANY, write=ANY, **limits):
    return check(
        fields, address=ADDRESS, read_window=read, write_window=write, **{**LIMITS, **limits}
    )


def blame(name):
    return ErrorCode.DESCRIPTOR, ADDRESS + DESCRIPTOR[name][0]


@pytest.mark.parametrize("job", JOBS)
def test_legal_jobs(job):
    assert run(JOBS[job]) == (ErrorCode.NONE, 0)
    used = arrays(JOBS[job], LIMITS["head_dim"])
    assert [array.field for array in used] == USED[job].split()
    assert sum(array.written for array in used) == WRITTEN[job]


@pytest.mark.parametrize(
    ("job", "name", "good", "bad"),
    [
        ("all", "opcode", [Opcode.ATTEND, Opcode.FENCE], [0, 4, 255]),
        ("all", "selection", [0, 2], [3, 255]),
        ("route", "selection", [1], [0, 2, 3]),
        ("all", "router", list(Router), [2, 255]),
        ("all", "write_selection", [0], [1, 2]),
        ("explicit", "write_selection", [0], [1]),
        ("top-k", "write_selection", [0, 1], [2, 255]),
        ("route", "write_selection", [1], [0, 2]),
        ("all", "n_rows", [1, 16], [0, 17, 65535]),
        ("all", "group", [0, 4, 65535], []),
        ("top-k", "group", [1, 2, 3, 6], [0, 4, 5, 7, 65535]),
        ("all", "n_tokens", [145, 192], [0, MAX_TOKENS + 1, 1 << 31]),
        ("all", "n_chunks", [4], [0, MAX_ALL_CHUNKS + 1, 3, 5, 1 << 31]),
        ("all", "chunk_tokens", [48], [0, 24, 47, MAX_TOKENS + 16]),
        ("all", "rep_rows", [0, 3, 65535], []),
        ("top-k", "rep_rows", [1, 2, 32], [0, 3, 64, 6, 65535]),
        ("all", "checksum", [0, 1], [2, 255]),
        ("route", "checksum", [0, 1], [2]),
        ("all", "kv_format", [0], [1, 255]),
        ("all", "reserved", [0], [1, 1 << 47]),
        ("fence", "reserved", [0], [1, 1 << 47]),
        *(("fence", name, [1, 255], []) for name in DESCRIPTOR if name not in FENCE_FIELDS),
    ],
)  # fmt: skip
def test_field_limits(job, name, good, bad):
    for value in good:
        assert run({**JOBS[job], name: value}) == (ErrorCode.NONE, 0), value
    for value in bad:
        pack_descriptor(**{**JOBS[job], name: value})
        assert run({**JOBS[job], name: value}) == blame(name), value


def test_minmax_needs_two_representatives():
    minmax = {**TOP_K, "router": Router.MINMAX}
    assert run({**minmax, "rep_rows": 1}) == blame("rep_rows")
    assert run({**minmax, "rep_rows": 2}) == (ErrorCode.NONE, 0)


def test_most_chunks():
    """All chunks may be many; chunks that are selected one by one are limited."""
    for job, most in (("all", MAX_ALL_CHUNKS), ("top-k", 64), ("explicit", 64), ("route", 64)):
        fields = {**JOBS[job], "chunk_tokens": 16}
        assert run({**fields, "n_chunks": most, "n_tokens": 16 * most}) == (ErrorCode.NONE, 0)
        more = {**fields, "n_chunks": most + 1, "n_tokens": min(16 * most + 1, MAX_TOKENS)}
        assert run(more) == blame("n_chunks")


def test_chunks_cover_the_tokens_exactly():
    for tokens in range(1, 200):
        for chunks in range(1, 15):
            fields = {**ATTEND, "n_tokens": tokens, "n_chunks": chunks, "chunk_tokens": 16}
            covers = 16 * (chunks - 1) < tokens <= 16 * chunks
            assert (run(fields)[0] == ErrorCode.NONE) == covers, (tokens, chunks)


@pytest.mark.parametrize("job", JOBS)
def test_only_used_arrays_are_tested(job):
    for name in ADDRESSES:
        used = name in USED[job].split()
        for low in (1, 32):
            fields = {**JOBS[job], name: JOBS[job][name] | low}
            assert run(fields) == (blame(name) if used else (ErrorCode.NONE, 0)), name
        # The last line of memory is too short for any of these arrays but those of one line.
        fields = {**JOBS[job], name: (1 << 64) - 64}
        size = {array.field: array.n_bytes for array in arrays(fields, 16)}.get(name, 0)
        expected = (ErrorCode.WINDOW, (1 << 64) - 64) if size > 64 else (ErrorCode.NONE, 0)
        assert run(fields) == expected, name


@pytest.mark.parametrize("job", JOBS)
def test_windows_to_the_byte(job):
    """The array at an end of its window: good up to the window's last byte, and no further."""
    for array in arrays(JOBS[job], LIMITS["head_dim"]):
        window = "write" if array.written else "read"
        padded = -(-array.n_bytes // 64) * 64
        top = {**JOBS[job], array.field: 1 << 60}  # the others lie below
        last = (1 << 60) + padded - 1
        assert run(top, **{window: (0, last)}) == (ErrorCode.NONE, 0)
        assert run(top, **{window: (0, last - 1)}) == (ErrorCode.WINDOW, 1 << 60)
        bottom = {**JOBS[job], array.field: 0x1240}  # the others lie above
        assert run(bottom, **{window: (0x1240, ANY[1])}) == (ErrorCode.NONE, 0)
        assert run(bottom, **{window: (0x1241, ANY[1])}) == (ErrorCode.WINDOW, 0x1240)


def test_inside():
    top = (1 << 64) - 1
    assert inside(0, 1, (0, 0))
    assert inside(top - 63, 64, (0, top))
    assert not inside(top - 62, 64, (0, top))
    assert not inside(top, 1 << 20, (0, top))
    assert not inside(5, 1, (6, 4))


def test_order_of_errors():
    """With everything wrong, errors are corrected one by one in the documented order."""
    fields = {
        **TOP_K, "opcode": 0, "selection": 9, "router": 2, "write_selection": 2, "n_rows": 17,
        "group": 0, "n_tokens": 0, "n_chunks": 65, "chunk_tokens": 1, "rep_rows": 3, "checksum": 2,
        "kv_format": 1, "reserved": 1, **{name: 32 for name in ADDRESSES},
    }  # fmt: skip
    good = {**TOP_K, "write_selection": 1}
    seen = []
    while True:
        code, address = run(fields, read=(1, 0), write=(1, 0))
        if code != ErrorCode.DESCRIPTOR:
            break
        name = next(name for name, (at, _) in DESCRIPTOR.items() if ADDRESS + at == address)
        seen.append(name)
        # Group and chunks first get values that only the relations refuse.
        wrong_relation = {"group": 4, "n_chunks": 5}
        fields[name] = wrong_relation[name] if name not in seen[:-1] and name in wrong_relation \
            else good[name]  # fmt: skip
    harmless = {"k", "keep_first", "keep_last", "tag"}
    expected = [name for name in DESCRIPTOR if name not in harmless]
    assert seen == [*expected, "group", "n_chunks"]
    assert fields == good
    assert (code, address) == (ErrorCode.WINDOW, good["q_addr"])


@pytest.mark.parametrize("head_dim", [16, 64, 256])
def test_sizes_are_those_of_the_packed_arrays(head_dim):
    rows, tokens, chunk_tokens, rep_rows = 7, 100, 32, 4
    chunks = 4
    fields = {
        **TOP_K, "n_rows": rows, "n_tokens": tokens, "n_chunks": chunks,
        "chunk_tokens": chunk_tokens, "rep_rows": rep_rows, "write_selection": 1,
    }  # fmt: skip
    k = np.zeros((tokens, head_dim), np.int8)
    scales = np.zeros(tokens, np.uint16)
    reps = np.zeros((chunks, rep_rows, head_dim), np.int8)
    expected = {
        "q_addr": pack_array(np.zeros((rows, head_dim), np.int16)),
        "q_scale_addr": pack_array(np.zeros(rows, np.uint16)),
        "k_addr": pack_array(k),
        "v_addr": pack_array(k),
        "scale_addr": pack_scales(scales, scales),
        "rep_addr": pack_array(reps),
        "rep_scale_addr": pack_scales(np.zeros((chunks, rep_rows), np.uint16)),
        "selection_addr": pack_selection(np.zeros((rows, chunks), dtype=bool)),
        "o_addr": pack_array(np.zeros((rows, head_dim), np.float32)),
        "lse_addr": pack_array(np.zeros(rows, np.float32)),
        "checksum_addr": pack_checksums(k, k, scales, scales, chunk_tokens),
    }
    sizes = {array.field: -(-array.n_bytes // 64) * 64 for array in arrays(fields, head_dim)}
    assert sizes == {name: len(raw) for name, raw in expected.items()}
