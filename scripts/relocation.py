"""Measure what it costs to place a stored document elsewhere, on a real model's keys and queries.

Two ways to attend to a document that was stored at position 0 but stands at an offset: rotate its
keys there and quantise them anew, or leave what is stored and rotate the queries back. Both are
compared with float64 attention to keys that were never quantised.

Usage: python scripts/relocation.py [OFFSET ...]
"""

import sys
from dataclasses import dataclass

import numpy as np

from moska.golden.data import NAMES, load
from moska.golden.formats import scale_value
from moska.golden.quantize import quantize_kv, quantize_q
from moska.golden.reference import relative_error
from moska.golden.unit import Store, attend
from moska.host.rope import Rope

ROPE = Rope(theta=100_000, head_dim=64)  # of SmolLM2-135M
OFFSETS = (0, 32, 1000, 65_536, 1_000_000)


@dataclass(frozen=True)
class Errors:
    """Relative errors (Frobenius norms) against float64, of both ways."""

    scores_moved: float  # keys rotated, then quantised
    scores_shifted: float  # keys as stored, queries rotated back
    outputs_moved: float
    outputs_shifted: float


def measure(name: str, offset: int) -> Errors:
    """Errors of the unit's integers for one (layer, KV head), ``offset`` positions further on."""
    k, v, q = (x.astype(np.float64) for x in load(name))
    rows = ROPE.shift(q.reshape(-1, 64), offset).astype(np.float32)  # as the model makes them
    moved = ROPE.shift(k, offset)
    scores = rows @ moved.T
    p = np.exp((scores - scores.max(axis=1, keepdims=True)) / 8)
    outputs = p @ v / p.sum(axis=1, keepdims=True)

    def errors(keys, queries):
        k_int, k_scale = quantize_kv(keys)
        q_int, q_scale = quantize_q(queries, softmax_scale=1 / np.log2(np.e))
        found = (q_int * scale_value(q_scale)[:, None]) @ (k_int * scale_value(k_scale)[:, None]).T
        result = attend(Store.from_float(keys, v, chunk_tokens=32), *quantize_q(queries))
        o = result.o.view(np.float32)
        return relative_error(found, scores), relative_error(o, outputs)

    scores_moved, outputs_moved = errors(moved, rows)
    scores_shifted, outputs_shifted = errors(k, ROPE.shift(rows, -offset))
    return Errors(scores_moved, scores_shifted, outputs_moved, outputs_shifted)


def row(name: str, offset: int) -> str:
    """Row of the table."""
    e = measure(name, offset)
    scores = f"{e.scores_moved:.3%} | {e.scores_shifted:.3%}"
    outputs = f"{e.outputs_moved:.2%} | {e.outputs_shifted:.2%}"
    return f"| {name} | {offset:,} | {scores} | {outputs} |"


def main(offsets: list[int]) -> None:
    """Print a Markdown table."""
    print("| data | offset | scores, moved | rotated back | outputs, moved | rotated back |")
    print("|---|---|---|---|---|---|")
    for name in NAMES:
        for offset in offsets:
            print(row(name, offset))


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or list(OFFSETS))
