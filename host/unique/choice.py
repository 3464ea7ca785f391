"""Which paths there are, and which of them can be used on this machine."""

from dataclasses import dataclass

from moska.host.unique.flash_attn import FlashAttnPath
from moska.host.unique.flashinfer import FlashInferPath
from moska.host.unique.numpy import NumpyPath
from moska.host.unique.path import Path
from moska.host.unique.torch_cpu import TorchCpuPath
from moska.host.unique.torch_cuda import TorchCudaPath
from moska.host.unique.torch_flex import TorchFlexPath

# Best first; NumPy is always usable, so what stands behind it is taken by name only.
_PATHS: dict[str, type[Path]] = {
    path.name: path
    for path in (
        FlashInferPath,
        FlashAttnPath,
        TorchCudaPath,
        TorchCpuPath,
        NumpyPath,
        TorchFlexPath,
    )
}


@dataclass(frozen=True)
class Usability:
    """Whether a path can be used on this machine."""

    name: str
    usable: bool
    device: str  # "cuda" or "cpu"
    detail: str  # what computes, or why the path cannot be used


def available() -> list[Usability]:
    """Tell of every path, best first, whether it can be used here."""
    return [_usability(path) for path in _PATHS.values()]


def get(name: str) -> Path:
    """Return the path called ``name``.

    Raises
    ------
    ValueError
        for an unknown name.
    RuntimeError
        when the path cannot be used here, with the reason.
    """
    if name not in _PATHS:
        raise ValueError(f"path must be one of {', '.join(_PATHS)}, not {name!r}")
    reason = _PATHS[name].unusable()
    if reason:
        raise RuntimeError(f"path {name} cannot be used: {reason}")
    return _PATHS[name]()


def best(*, device: str | None = None, dtype: str | None = None) -> Path:
    """Return the first path that can be used here.

    Parameters
    ----------
    device
        where queries and keys lie, "cpu" or "cuda"; any when not given.
    dtype
        their type, "float32", "float16", "bfloat16" or "float64"; any when not given.

    Raises
    ------
    RuntimeError
        when no path takes such arrays.
    """
    for path in _PATHS.values():
        fits = device in (None, path.device) and (dtype is None or dtype in path.dtypes)
        if fits and path.unusable() is None:
            return path()
    raise RuntimeError(f"no path can be used here for {dtype or 'any dtype'} on {device}")


def _usability(path: type[Path]) -> Usability:
    reason = path.unusable()
    detail = path().detail if reason is None else reason
    return Usability(path.name, reason is None, path.device, detail)
