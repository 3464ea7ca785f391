"""Keys, values and queries of a real model: what they are stands in ``docs/data.md``."""

from moska.golden.data.loader import NAMES, load

__all__ = ["NAMES", "load"]
