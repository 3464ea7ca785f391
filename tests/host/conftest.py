"""A small device and a stand-in of a language model for tests of what lies above the driver."""

import numpy as np
import pytest

import moska.host
from moska.host import Geometry, Rope


class TinyModel:
    """Keys and values that depend on the tokens before and on the position, as a model's do."""

    def __init__(self):
        self.geometry = Geometry("tiny", 2, 4, 2, 16, Rope(10_000, 16))
        self.vocabulary = 64
        self.table = np.random.default_rng(7).normal(size=(2, self.vocabulary, 2, 2, 16))

    def kv(self, tokens, start=0):
        """Keys after RoPE and values (L, G, S - start, D)."""
        own = self.table[:, np.asarray(tokens, dtype=int)]
        past = np.cumsum(own, axis=1) / np.sqrt(np.arange(1, len(own[0]) + 1))[:, None, None, None]
        k, v = np.moveaxis(own + past, 1, 3)
        k = self.geometry.rope.rotate(k, np.arange(len(own[0])))
        return k[:, :, start:], v[:, :, start:]

    def tokens(self, rng, n_tokens):
        """Random text."""
        return rng.integers(0, self.vocabulary, n_tokens)


@pytest.fixture(scope="session")
def model():
    """Model for the unit of the preset `tiny`."""
    return TinyModel()


@pytest.fixture
def tiny():
    """Open device: the golden model with the parameters of the preset `tiny`."""
    with moska.host.open("golden:tiny?memory=16M") as device:
        yield device
