"""Measured tables in pages of the documentation."""

import pathlib
import re
from collections.abc import Iterable


def table(header: Iterable[str], rows: Iterable[Iterable[str]], *, left: int = 1) -> list[str]:
    """Lines of a Markdown table and an empty one; the first ``left`` columns are text."""
    header = list(header)
    marks = ["---"] * left + ["---:"] * (len(header) - left)
    return [f"| {' | '.join(line)} |" for line in (header, marks, *rows)] + [""]


def put(page: pathlib.Path, name: str, section: str) -> str:
    """Replace what is between ``<!-- name -->`` and ``<!-- end -->``; returns the page.

    Raises
    ------
    ValueError
        when the page has no such lines.
    """
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{page} must have a line <!-- {name} -->")
    text = pattern.sub(lambda match: f"{match[1]}\n{section}\n{match[2]}", text)
    page.write_text(text, encoding="utf-8")
    return text
