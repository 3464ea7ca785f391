"""Cache of a batch whose shared keys and values lie elsewhere: it holds only unique ones."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class Step(Protocol):
    """One forward pass of a batch."""

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        scale: float | None = None,
    ) -> Tensor:
        """Attend to the shared part and to unique keys and values; q and o: (B, H, T, D)."""


class SharedLayer(DynamicLayer):
    """Unique keys and values of one layer, behind ``n_shared`` tokens that are not here."""

    keys: Tensor  # (B, G, S, D)
    values: Tensor

    def __init__(self, n_shared: int) -> None:
        super().__init__()
        self.n_shared = n_shared

    @property
    def n_unique(self) -> int:
        """Tokens whose keys and values are here."""
        return int(self.keys.shape[-2]) if self.is_initialized and self.keys.numel() else 0

    def get_seq_length(self) -> int:
        """Tokens of the sequence, shared ones too: what positions follow from."""
        return self.n_shared + self.n_unique

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length of the keys that attention sees, and the column of the mask that they begin at."""
        return self.n_unique + query_length, self.n_shared

    def crop(self, max_length: int) -> None:
        """Keep the first ``max_length`` tokens of the sequence, or drop that many when negative."""
        kept = self.get_seq_length() + max_length if max_length < 0 else max_length
        if kept < self.n_shared:
            raise ValueError(f"length must be at least the {self.n_shared} shared tokens")
        if self.is_initialized:
            own = kept - self.n_shared
            self.keys, self.values = self.keys[..., :own, :], self.values[..., :own, :]


class SharedCache(Cache):
    """Cache for ``generate()`` and for forward passes of a model with the attention ``moska``.

    The sequences of a batch are laid out as columns ``[shared | unique]``: everything in the first
    ``n_shared`` columns is known to the steps, everything behind them is computed and kept here. A
    sequence whose shared part is shorter is padded in front of it, one with fewer unique tokens
    between its shared and its unique part; the attention mask is 0 there, and positions count what
    it leaves.

    Parameters
    ----------
    n_layers
        of the model.
    n_shared
        tokens of the longest shared part.
    begin
        makes the step of each forward pass.
    batch
        sequences; others are refused. Any number when not given.
    """

    def __init__(
        self, n_layers: int, n_shared: int, begin: Callable[[], Step], batch: int | None = None
    ) -> None:
        super().__init__(layers=[SharedLayer(n_shared) for _ in range(n_layers)])
        self.n_shared = n_shared
        self.batch = batch
        self._begin = begin
        self._step: Step | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values of new tokens; return all unique ones, marked for attention."""
        if self.batch is not None and len(key_states) != self.batch:
            raise ValueError(f"batch must have {self.batch} sequences, not {len(key_states)}")
        if layer_idx == 0:
            self._step = self._begin()
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        # Attention functions are not given the cache: the keys carry what they belong to.
        keys.moska_step = self._step
        return keys, values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refuse: sequences keep their place in the batch, because their contexts do."""
        raise NotImplementedError("beam search is not supported by a shared cache")
