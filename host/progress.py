"""Progress bars, which load rich only when one is shown."""

from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def track(items: Iterable[Item], description: str, *, disable: bool) -> Iterable[Item]:
    """Return the items; show how many were taken unless this is disabled."""
    if disable:
        return items
    from rich.progress import track as shown

    return shown(items, description)
