"""Addresses of chunks."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moska.host.chunks import ChunkFormat, chain, token_array
from moska.host.geometry import Geometry
from moska.host.rope import Llama3Scaling, Rope

GEOMETRY = Geometry("a model", 2, 4, 2, 64, Rope(10_000, 64))
FORMAT = ChunkFormat(GEOMETRY, 16, "minmax")
CHECK = settings(deadline=None, derandomize=True, database=None)
texts = st.lists(st.integers(0, 3), max_size=100)


@CHECK
@given(texts, texts)
def test_equal_addresses_are_equal_prefixes(a, b):
    first, second = (FORMAT.addresses(token_array(x)) for x in (a, b))
    assert len(first) == len(a) // 16
    for index, (x, y) in enumerate(zip(first, second, strict=False)):
        end = (index + 1) * 16
        assert (x == y) == (a[:end] == b[:end])


def test_addresses_chain():
    tokens = token_array(range(80))
    addresses = FORMAT.addresses(tokens)
    assert tuple(chain(addresses[1], tokens[32:], 16)) == addresses[2:]
    assert len(set(addresses)) == 5
    assert addresses[0] != next(chain(addresses[0], tokens, 16))


def test_an_address_does_not_change_between_versions():
    assert FORMAT.addresses(token_array(range(16)))[0].hex() == (
        "a630207900b5e9454c0cd4086446f98bfacf696009bbfd25000441e6a8a91218"
    )


def test_whatever_decides_the_bits_changes_the_root():
    def geometry(**changes):
        return dataclasses.replace(GEOMETRY, **changes)

    others = [
        ChunkFormat(GEOMETRY, 32, "minmax"),
        ChunkFormat(GEOMETRY, 16, "mean"),
        ChunkFormat(geometry(model="another"), 16, "minmax"),
        ChunkFormat(geometry(n_layers=3), 16, "minmax"),
        ChunkFormat(geometry(rope=None), 16, "minmax"),
        ChunkFormat(geometry(rope=Rope(20_000, 64)), 16, "minmax"),
        ChunkFormat(
            geometry(rope=Rope(10_000, 64, Llama3Scaling(8.0, 1.0, 4.0, 8192))), 16, "minmax"
        ),
    ]
    assert len({FORMAT.root, *(other.root for other in others)}) == len(others) + 1
    for form in (FORMAT, *others):
        assert ChunkFormat.from_dict(form.to_dict()) == form
        assert ChunkFormat.from_dict(form.to_dict()).root == form.root


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.uint8, np.uint32])
def test_any_integer_type_gives_the_same_address(dtype):
    tokens = np.arange(16, dtype=dtype)
    assert FORMAT.addresses(token_array(tokens)) == FORMAT.addresses(token_array(list(range(16))))


def test_refuses_tokens():
    assert token_array([]).shape == (0,)
    with pytest.raises(TypeError, match="tokens must be integers, not float64"):
        token_array([0.5])
    with pytest.raises(ValueError, match=r"tokens must be a flat sequence, not of shape \(1, 2\)"):
        token_array([[1, 2]])
    with pytest.raises(ValueError, match=r"tokens must fit 32 bits, not -1\.\.5"):
        token_array([5, -1])
    with pytest.raises(ValueError, match="tokens must fit 32 bits"):
        token_array([1 << 32])


def test_refuses_formats():
    for size in (0, 8, 24, -16, 1 << 21):
        with pytest.raises(ValueError, match="chunk_tokens must be a positive multiple of 16"):
            ChunkFormat(GEOMETRY, size, "minmax")
    with pytest.raises(ValueError, match="router must be mean, minmax or submean"):
        ChunkFormat(GEOMETRY, 16, "best")
    with pytest.raises(ValueError, match="chunk_tokens must be a multiple of submean's 3, not 16"):
        ChunkFormat(GEOMETRY, 16, "submean:3")
    with pytest.raises(ValueError, match="kv_format must be INT8, not FP8"):
        ChunkFormat.from_dict(FORMAT.to_dict() | {"kv_format": "FP8"})


def test_refuses_geometries():
    with pytest.raises(ValueError, match="model must be named"):
        Geometry("", 1, 1, 1, 16)
    with pytest.raises(ValueError, match="n_layers must be positive, not 0"):
        Geometry("m", 0, 1, 1, 16)
    with pytest.raises(ValueError, match=r"n_heads must be a multiple of n_kv_heads \(2\), not 3"):
        Geometry("m", 1, 3, 2, 16)
    with pytest.raises(ValueError, match="head_dim of rope must be 16 like the model's, not 64"):
        Geometry("m", 1, 2, 2, 16, Rope(10_000, 64))
    assert GEOMETRY.group == 2
