"""Shape of a model's attention: what a library of its keys and values must know."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moska.host.rope import Llama3Scaling, Rope


@dataclass(frozen=True)
class Geometry:
    """Attention of a model.

    Parameters
    ----------
    model
        name that stands for the weights: libraries share chunks of equal names only, so another
        fine-tuning or another precision of the prefill needs another name.
    n_layers
        layers with attention.
    n_heads, n_kv_heads
        query heads (H) and KV heads (G); H is a multiple of G.
    head_dim
        D.
    rope
        rotary embedding of the keys; None when keys do not depend on their position.
    """

    model: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope: Rope | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model must be named")
        for name in ("n_layers", "n_heads", "n_kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads must be a multiple of n_kv_heads ({self.n_kv_heads}), not {self.n_heads}"
            )
        if self.rope is not None and self.rope.head_dim != self.head_dim:
            raise ValueError(
                f"head_dim of rope must be {self.head_dim} like the model's, "
                f"not {self.rope.head_dim}"
            )

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.n_heads // self.n_kv_heads

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Geometry":
        """Geometry that :meth:`to_dict` described."""
        rope = fields["rope"]
        if rope is not None:
            scaling = rope["scaling"]
            rope = Rope(**{**rope, "scaling": scaling and Llama3Scaling(**scaling)})
        return cls(**{**fields, "rope": rope})
