"""Ways to compute the shared part, whose quality `moska eval` compares."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moska.golden.formats import KEY_WIDTH, scale_value
from moska.golden.quantize import quantize_q, quantize_rows
from moska.golden.router import Bool, select
from moska.golden.unit import Store, attend, route
from moska.host.merge import from_base2, merge_states
from moska.host.rope import Rope
from moska.host.unique import Path

F32 = NDArray[np.float32]

ROWS = 192  # rows that the golden model attends at a time: what they touch stays in cache
ORACLE = "oracle"  # no unit's router: the chunks with the largest true share of attention


@dataclass(frozen=True)
class Variant:
    """One way to compute the shared part.

    Parameters
    ----------
    keep
        share of the chunks that each decision keeps; 1 attends to all.
    router
        of the golden model, or ``oracle``.
    chunk_tokens
        tokens of a chunk.
    group
        one decision for all query heads of a KV head, instead of one for each.
    numbers
        format of keys and values, a key of :data:`NUMBERS`. ``int8`` is the unit's and runs through
        the golden model; the others are rounded and attended to in float32.
    dense_layers
        layers that attend to all chunks whatever ``keep`` is.
    """

    keep: float = 1.0
    router: str = "minmax"
    chunk_tokens: int = 32
    group: bool = False
    numbers: str = "int8"
    dense_layers: tuple[int, ...] = (0, 1)

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be in (0, 1], not {self.keep}")
        if self.numbers not in NUMBERS:
            raise ValueError(f"numbers must be one of {', '.join(NUMBERS)}, not {self.numbers!r}")

    def k(self, n_chunks: int) -> int:
        """Chunks that each decision keeps."""
        return math.ceil(self.keep * n_chunks)


def rounded(torch_type: torch.dtype) -> Callable[[F32], F32]:
    """Round to a floating-point format of torch; one of 8 bits is scaled per token."""
    largest = torch.finfo(torch_type).max

    def convert(x: F32) -> F32:
        scale = np.float32(1)
        if torch_type.itemsize == 1:
            scale = np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-30) / np.float32(largest)
        tensor = torch.from_numpy(np.ascontiguousarray(x / scale)).to(torch_type)
        result: F32 = tensor.float().numpy() * scale
        return result

    return convert


def integers(bits: int) -> Callable[[F32], F32]:
    """Round to integers with one scale per token."""

    def convert(x: F32) -> F32:
        whole, scale = quantize_rows(x, bits)
        return (whole * scale_value(scale)[..., None]).astype(np.float32)

    return convert


# Rounding of keys and values (S, D) to a format, for those that the unit does not have.
NUMBERS: dict[str, Callable[[F32], F32]] = {
    "float32": lambda x: x,
    "bf16": rounded(torch.bfloat16),
    "fp8_e4m3": rounded(torch.float8_e4m3fn),
    "int8": integers(8),
    "int4": integers(4),
}


class Document:
    """Keys and values of a document, and what variants make of them.

    Parameters
    ----------
    k, v
        (n_layers, n_kv_heads, S, D), keys after the rotary embedding at positions 0..S-1.
    position
        of the document in the sequences that attend to it.
    rope
        by which queries are turned back by ``position``; without it, they are left as they are.
    """

    def __init__(self, k: F32, v: F32, *, position: int = 0, rope: Rope | None = None) -> None:
        self.k = k
        self.v = v
        self.position = position
        self.rope = rope
        self._made: dict[tuple[object, ...], Any] = {}

    @property
    def n_tokens(self) -> int:
        """S."""
        return int(self.k.shape[2])

    def attend(
        self, variant: Variant, layer: int, head: int, q: F32, group: int
    ) -> tuple[F32, F32]:
        """Output (M, D) and natural-log LSE (M,) of query rows (M, D), ``group`` a token."""
        if self.rope is not None and self.position:
            q = self.rope.shift(q, -self.position)
        scope = group if variant.group else 1
        routed = variant.keep < 1 and layer not in variant.dense_layers
        if variant.numbers != "int8":
            if routed:
                raise ValueError(f"numbers must be int8 to route, not {variant.numbers}")
            k, v = self._numbers(layer, head, variant.numbers)
            return float_attention(q, k, v)
        store = self._store(layer, head, variant)
        q_int, q_scale = quantize_q(q)
        selected: Bool | None = None
        if routed:
            k_kept = variant.k(store.n_chunks)
            if variant.router == ORACLE:
                selected = oracle(store, q, k_kept, scope)
            else:
                selected = route(store, q_int, q_scale, k_kept, group=scope)
        parts = [
            attend(store, q_int[i : i + ROWS], q_scale[i : i + ROWS], _part(selected, i))
            for i in range(0, len(q), ROWS)
        ]
        o = np.concatenate([part.o.view(np.float32) for part in parts])
        lse = np.concatenate([part.lse.view(np.float32) for part in parts])
        return o, from_base2(lse)

    def _store(self, layer: int, head: int, variant: Variant) -> Store:
        router = "mean" if variant.router == ORACLE else variant.router
        key = (layer, head, variant.chunk_tokens, router)
        if key not in self._made:
            self._made[key] = Store.from_float(
                self.k[layer, head],
                self.v[layer, head],
                chunk_tokens=variant.chunk_tokens,
                router=router,
            )
        store: Store = self._made[key]
        return store

    def _numbers(self, layer: int, head: int, name: str) -> tuple[F32, F32]:
        key = (layer, head, name)
        if key not in self._made:
            convert = NUMBERS[name]
            self._made[key] = convert(self.k[layer, head]), convert(self.v[layer, head])
        k, v = self._made[key]
        return k, v


class VariantStep:
    """Step of a shared cache whose shared part is computed as a variant says.

    Parameters
    ----------
    documents
        one behind the other; all sequences of the batch attend to all of them.
    variant
        how.
    path
        of the unique part.
    """

    def __init__(self, documents: Sequence[Document], variant: Variant, path: Path) -> None:
        self.documents = documents
        self.variant = variant
        self.path = path

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None = None,
        scale: float | None = None,
    ) -> torch.Tensor:
        """Attend to the documents and to unique keys and values; q and o: (B, H, T, D)."""
        b, h, t, d = q.shape
        heads = k.shape[1]
        group = h // heads
        rows = q.reshape(b, heads, group, t, d).permute(1, 0, 3, 2, 4).reshape(heads, -1, d).numpy()
        state = self.path.attend(q, k, v, mask, scale)
        for document in self.documents:
            parts = [
                document.attend(self.variant, layer, head, rows[head], group)
                for head in range(heads)
            ]
            o, lse = (torch.from_numpy(np.stack(x)) for x in zip(*parts, strict=True))
            o = o.reshape(heads, b, t, group, d).permute(1, 0, 3, 2, 4).reshape(b, h, t, d)
            lse = lse.reshape(heads, b, t, group).permute(1, 0, 3, 2).reshape(b, h, t)
            state = merge_states(o, lse, *state)
        merged: torch.Tensor = state[0]
        return merged


def float_attention(q: F32, k: F32, v: F32) -> tuple[F32, F32]:
    """Output (M, D) and natural-log LSE (M,) in float32."""
    s = (q @ k.T) * np.float32(q.shape[1] ** -0.5)
    top = s.max(axis=1)
    p = np.exp(s - top[:, None])
    total = p.sum(axis=1)
    return (p @ v) / total[:, None], top + np.log(total)


def oracle(store: Store, q: F32, k: int, group: int) -> Bool:
    """Select the chunks with the largest true share of attention: what no router can beat by much.

    With ``group`` > 1, the largest share that one of its rows gives to a chunk counts.
    """
    keys = store.k * scale_value(store.k_scale)[:, None].astype(np.float32)
    s = (q @ keys.T) * np.float32(q.shape[1] ** -0.5)
    p = np.exp(s - s.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    share = np.add.reduceat(p, np.arange(0, store.n_tokens, store.chunk_tokens), axis=1)
    # Keys have the router's width: shares from 1 down to 2**-32 on a logarithmic scale.
    steps = np.log2(np.maximum(share, 2.0**-32)) * 2 ** (KEY_WIDTH - 6)
    return select(steps.astype(np.int64), k, keep_first=1, keep_last=1, group=group)


def _part(selected: Bool | None, start: int) -> Bool | None:
    return None if selected is None else selected[start : start + ROWS]
