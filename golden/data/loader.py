"""Loader of the real model's arrays that lie beside this file."""

from importlib import resources

import numpy as np
from numpy.typing import NDArray

NAMES = ("layer14_kvhead1", "layer25_kvhead2")
FILE = "smollm2_shared_kv.npz"

Half = NDArray[np.float16]


def load(name: str) -> tuple[Half, Half, Half]:
    """Load (k, v, q) of one (layer, KV head): (2048, 64), (2048, 64), (64, 3, 64) float16.

    q: 64 query positions by the 3 query heads of the group.

    Raises
    ------
    ValueError
        when ``name`` is not in NAMES.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, not {name!r}")
    path = resources.files("moska.golden.data").joinpath(FILE)
    with path.open("rb") as file, np.load(file) as arrays:
        return arrays[f"{name}_k"], arrays[f"{name}_v"], arrays[f"{name}_q"]
