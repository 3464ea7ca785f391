"""Rotary position embedding: where keys and queries stand, and how queries move instead of keys.

Pairs are (i, i + D/2), as in the Llama family ("half split"). Rotations by positions add up, so the
score of a key that is stored at position p but meant to stand at p + d equals the score of the
query rotated back by d: stored keys, which are quantised, are never touched.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = TypeVar("Float", np.float16, np.float32, np.float64)


@dataclass(frozen=True)
class Llama3Scaling:
    """Frequency scaling of Llama 3.1 and later, named as in their configuration files."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"factor must be at least 1, not {self.factor}")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                "low_freq_factor must be positive and below high_freq_factor "
                f"({self.high_freq_factor}), not {self.low_freq_factor}"
            )
        if self.original_max_position_embeddings < 1:
            raise ValueError(
                "original_max_position_embeddings must be positive, "
                f"not {self.original_max_position_embeddings}"
            )

    def apply(self, frequency: NDArray[np.float64]) -> NDArray[np.float64]:
        """Divide low frequencies by :attr:`factor`, keep high ones, blend between."""
        turns = self.original_max_position_embeddings * frequency / (2 * np.pi)
        span = self.high_freq_factor - self.low_freq_factor
        kept = np.clip((turns - self.low_freq_factor) / span, 0.0, 1.0)
        return frequency * (kept + (1.0 - kept) / self.factor)


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of a model.

    Parameters
    ----------
    theta
        base of the frequencies, ``rope_theta`` in configuration files.
    head_dim
        D, even.
    scaling
        None or the model's frequency scaling.
    """

    theta: float
    head_dim: int
    scaling: Llama3Scaling | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "theta", float(self.theta))  # 10000 and 10000.0 are one model
        if not self.theta > 1:
            raise ValueError(f"theta must be above 1, not {self.theta}")
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim must be positive and even, not {self.head_dim}")

    @cached_property
    def frequencies(self) -> NDArray[np.float64]:
        """Radians per position of each pair, (D/2,)."""
        half = np.arange(self.head_dim // 2) / (self.head_dim // 2)
        frequency = self.theta**-half
        return frequency if self.scaling is None else self.scaling.apply(frequency)

    def rotate(self, x: NDArray[Float], positions: ArrayLike) -> NDArray[Float]:
        """Rotate vectors to their positions; float64 inside.

        Parameters
        ----------
        x
            (..., D) float16, float32 or float64; the result has its type.
        positions
            whole numbers, negative ones too; a scalar, or a shape that broadcasts to x.shape[:-1].
        """
        if x.shape[-1:] != (self.head_dim,):
            raise ValueError(f"x must end with head_dim ({self.head_dim}), not shape {x.shape}")
        whole = np.asarray(positions)
        if not np.issubdtype(whole.dtype, np.integer):
            raise TypeError(f"positions must be integers, not {whole.dtype}")
        angle = whole[..., None] * self.frequencies
        cos, sin = np.cos(angle), np.sin(angle)
        low, high = np.split(x.astype(np.float64), 2, axis=-1)
        turned = np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
        if turned.shape != x.shape:
            raise ValueError(f"positions must broadcast to {x.shape[:-1]}, not {whole.shape}")
        return turned.astype(x.dtype)

    def shift(self, x: NDArray[Float], delta: ArrayLike) -> NDArray[Float]:
        """Move vectors that are rotated already by ``delta`` positions.

        Against keys whose span is shifted by d, use queries shifted by -d.
        """
        return self.rotate(x, delta)
