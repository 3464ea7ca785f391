"""Figures of `moska eval` as lines of a table."""

from collections.abc import Mapping
from typing import Any

SECTIONS = {
    "numbers": "Numbers of keys and values, all chunks",
    "router": "Router, chunks of 32 tokens, a decision for each head",
    "chunk": "Tokens of a chunk",
    "scope": "Scope of decisions",
    "reuse": "Two documents prefilled apart, against prefilled as one",
}
HEADER = (
    "", "work", "recall: KL", "top-1", "perplexity", "continuation: KL", "top-1", "perplexity",
)  # fmt: skip


def line(
    sets: Mapping[str, Mapping[str, float]], case: Mapping[str, Any] | None = None
) -> list[str]:
    """Cells of a line, in the order of HEADER."""
    cells = [name(case) if case else "", f"{case['work']:.2f}" if case else ""]
    for key in ("recall", "continuation"):
        found = sets[key]
        cells += [
            f"{kl(found['kl'])} ± {kl(found['kl_error'])}",
            f"{found['top1']:.3f}",
            f"{found['perplexity']:.2f}",
        ]
    return cells


def kl(x: float) -> str:
    """Format a divergence; rounding can leave a full one a little below zero."""
    x = max(x, 0.0)
    return f"{x:.3f}" if x >= 0.01 else "0" if x < 1e-7 else f"{x:.1e}"


def name(case: Mapping[str, Any]) -> str:
    """Tell a line from the others of its section."""
    kept = f"{100 * case['keep']:g} %"
    if case["section"] == "numbers":
        how = "golden model" if case["numbers"] == "int8" else "float attention on rounded numbers"
        return "float32" if case["numbers"] == "float32" else f"{case['numbers']}, {how}"
    if case["section"] == "reuse":
        return str(case["label"])
    words = [case["router"], kept]
    if case["section"] == "chunk":
        words.insert(1, f"{case['chunk_tokens']} tokens")
    if case["label"]:
        words.append(case["label"])
    return ", ".join(words)
