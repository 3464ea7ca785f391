"""The handbook, and passages of it that stand behind its first tokens."""

import pathlib
from collections.abc import Sequence

FOLDER = pathlib.Path(__file__).parent


def handbook() -> str:
    """Handbook of an invented island: some 5,000 tokens of plain, coherent English."""
    return (FOLDER / "handbook.txt").read_text(encoding="utf-8")


def questions() -> list[str]:
    """Questions about the handbook's first chapter."""
    return (FOLDER / "questions.txt").read_text(encoding="utf-8").splitlines()


def recall(tokens: Sequence[int], n_document: int, count: int, length: int) -> list[list[int]]:
    """Passages copied from the document's tokens, evenly spread over it.

    A model that has the document in view predicts them by looking back, so they show what routing
    misses.

    Raises
    ------
    ValueError
        when the document is shorter than a passage.
    """
    return _spread(list(tokens[:n_document]), count, length)


def continuation(
    tokens: Sequence[int], n_document: int, count: int, length: int
) -> list[list[int]]:
    """Passages of the text behind the document, evenly spread over it."""
    return _spread(list(tokens[n_document:]), count, length)


def _spread(tokens: list[int], count: int, length: int) -> list[list[int]]:
    last = len(tokens) - length
    if last < 0:
        raise ValueError(f"text must have at least {length} tokens, not {len(tokens)}")
    starts = [round(i * last / max(count - 1, 1)) for i in range(count)]
    return [tokens[start : start + length] for start in starts]
