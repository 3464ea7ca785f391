"""Unique part: attention of requests to their own keys and values, on the GPU or the CPU.

Every path computes the same thing; they differ in what they need. A path's library is imported when
the path is asked for, so that this package needs NumPy only.
"""

from moska.host.unique.choice import Usability, available, best, get
from moska.host.unique.path import Path

__all__ = ["Path", "Usability", "available", "best", "get"]
