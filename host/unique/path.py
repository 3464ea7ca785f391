"""What all paths of the unique part have in common."""

import abc
import importlib
import importlib.util
import math
import sys
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Array = Any  # of the path's library: a NumPy array or a torch tensor


class Path(abc.ABC):
    """A way to compute attention with its log-sum-exp.

    Attributes
    ----------
    name
        what :func:`moska.host.unique.get` and ``moska info`` call it.
    library
        whose arrays it takes and returns, "numpy" or "torch".
    device
        where they lie, "cpu" or "cuda".
    dtypes
        their types.
    detail
        what computes, in a few words.
    """

    name: ClassVar[str]
    library: ClassVar[str] = "torch"
    device: ClassVar[str] = "cpu"
    dtypes: ClassVar[tuple[str, ...]]
    detail: str

    @classmethod
    @abc.abstractmethod
    def unusable(cls) -> str | None:
        """Why the path cannot be used on this machine, or None."""

    def attend(
        self, q: Array, k: Array, v: Array, mask: Array | None = None, scale: float | None = None
    ) -> tuple[Array, Array]:
        """Attention of queries to keys of their own request.

        Parameters
        ----------
        q
            (B, H, T, D) queries.
        k, v
            (B, G, S, D) keys and values; H is a multiple of G, and heads of a group lie side by
            side. S may be 0.
        mask
            (B, 1, T, S) booleans, True: may attend. All when not given.
        scale
            of the scores, 1/sqrt(D) when not given.

        Returns
        -------
        o
            (B, H, T, D) of the type of ``q``.
        lse
            (B, H, T) float32, natural logarithm. Rows that may attend to nothing: o = 0,
            lse = -inf.

        Raises
        ------
        ValueError
            when shapes do not fit each other.
        TypeError
            for a type that the path does not compute with, or a mask that is not of booleans.
        """
        self._check(q, k, v, mask)
        if math.prod(q.shape[:3]) == 0 or k.shape[2] == 0:
            return self._nothing(q)
        o, lse = self._attend(q, k, v, mask, q.shape[3] ** -0.5 if scale is None else scale)
        return (o, lse) if mask is None else self._guard(o, lse, mask)

    @abc.abstractmethod
    def from_numpy(self, x: NDArray[Any], like: Array) -> Array:
        """Bring an array to where ``like`` is; its type stays."""

    @abc.abstractmethod
    def cast(self, x: Array, like: Array) -> Array:
        """Convert an array to the type of ``like``."""

    @abc.abstractmethod
    def to_numpy(self, x: Array) -> NDArray[Any]:
        """Bring an array of the path to NumPy; 16-bit floating point becomes float32."""

    @abc.abstractmethod
    def _attend(
        self, q: Array, k: Array, v: Array, mask: Array | None, scale: float
    ) -> tuple[Array, Array]:
        """Attention of checked arrays; rows that may attend to nothing may be anything."""

    @abc.abstractmethod
    def _nothing(self, q: Array) -> tuple[Array, Array]:
        """Return the outputs of queries without keys."""

    @abc.abstractmethod
    def _guard(self, o: Array, lse: Array, mask: Array) -> tuple[Array, Array]:
        """Set the rows that may attend to nothing: libraries return 0, +inf or a mean there."""

    def _check(self, q: Array, k: Array, v: Array, mask: Array | None) -> None:
        if q.ndim != 4 or k.ndim != 4:
            raise ValueError(f"q and k must have 4 dimensions, not {q.ndim} and {k.ndim}")
        b, h, t, d = q.shape
        g, s = k.shape[1:3]
        if tuple(k.shape) != (b, g, s, d) or tuple(v.shape) != tuple(k.shape):
            raise ValueError(
                f"k and v must have shape ({b}, G, S, {d}), "
                f"not {tuple(k.shape)} and {tuple(v.shape)}"
            )
        if g == 0 or h % g:
            raise ValueError(f"heads must be a multiple of KV heads ({g}), not {h}")
        for name, x in (("q", q), ("k", k), ("v", v)):
            if dtype_name(x) not in self.dtypes:
                raise TypeError(
                    f"{name} must be {' or '.join(self.dtypes)} for {self.name}, "
                    f"not {dtype_name(x)}"
                )
        if mask is None:
            return
        if tuple(mask.shape) != (b, 1, t, s):
            raise ValueError(f"mask must have shape {(b, 1, t, s)}, not {tuple(mask.shape)}")
        if dtype_name(mask) != "bool":
            raise TypeError(f"mask must be bool, not {dtype_name(mask)}")


class TorchPath(Path):
    """A path whose arrays are torch tensors."""

    def __init__(self) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._kept: tuple[Any, ...] = ()
        self._made: Any = None

    def from_numpy(self, x: NDArray[Any], like: Array) -> Array:
        """Bring an array to the device of the tensor ``like``; its type stays."""
        return self._torch.from_numpy(np.ascontiguousarray(x)).to(like.device, non_blocking=True)

    def cast(self, x: Array, like: Array) -> Array:
        """Convert a tensor to the type of ``like``."""
        return x.to(like.dtype)

    def to_numpy(self, x: Array) -> NDArray[Any]:
        """Bring a tensor to NumPy; 16-bit floating point becomes float32."""
        x = x.detach()
        if x.is_floating_point() and x.element_size() == 2:
            x = x.float()
        array: NDArray[Any] = x.cpu().numpy()
        return array

    def _nothing(self, q: Array) -> tuple[Array, Array]:
        lse = self._torch.full(q.shape[:3], -math.inf, dtype=self._torch.float32, device=q.device)
        return self._torch.zeros_like(q), lse

    def _guard(self, o: Array, lse: Array, mask: Array) -> tuple[Array, Array]:
        empty = ~mask.any(dim=-1)  # (B, 1, T)
        return o.masked_fill(empty[..., None], 0.0), lse.masked_fill(empty, -math.inf)

    def _once(self, key: tuple[Any, ...], mask: Array, make: Any) -> Any:
        """Return what ``make()`` gives for this mask, kept until another mask or key comes.

        All layers of a step have one mask, and what follows from it is as large as the scores. A
        tensor that is changed in place has another version; inference tensors have none, so
        nothing is kept for them.
        """
        if mask.is_inference():
            return make()
        new = (*key, mask._version)
        if not self._kept or self._kept[0] is not mask or self._kept[1] != new:
            self._made = make()
            self._kept = (mask, new)
        return self._made


def dtype_name(x: Array) -> str:
    """Name of an array's type, without the library's."""
    return str(x.dtype).rpartition(".")[2]


def fold(x: Array, n_kv_heads: int) -> Array:
    """(B, H, T, D) to (B, G, H/G * T, D): a group's queries are rows of its KV head."""
    b, h, t, d = x.shape
    return x.reshape(b, n_kv_heads, h // n_kv_heads * t, d)


def unimportable(module: str) -> str | None:
    """Tell why a package cannot be imported, or None."""
    if sys.modules.get(module) is None and importlib.util.find_spec(module) is None:
        return f"{module} is not installed"
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        return f"{module} cannot be imported: {error}"
    return None


def no_cuda() -> str | None:
    """Tell why torch cannot compute on a GPU, or None."""
    reason = unimportable("torch")
    if reason:
        return reason
    torch: Any = importlib.import_module("torch")
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def no_cuda_for(module: str) -> str | None:
    """Tell why a package that needs a GPU cannot be used, or None; without one, do not import."""
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed"
    return no_cuda() or unimportable(module)
