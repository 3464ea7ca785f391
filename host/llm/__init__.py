"""A language model whose shared attention runs on a unit: transformers' hooks, chat, quality.

Needs the extra ``llm`` of the package.
"""

from moska.host.llm.attention import NAME, register
from moska.host.llm.batch import Batch
from moska.host.llm.cache import SharedCache, SharedLayer
from moska.host.llm.model import geometry, load
from moska.host.llm.prefill import ingest, prefill

__all__ = [
    "NAME",
    "Batch",
    "SharedCache",
    "SharedLayer",
    "geometry",
    "ingest",
    "load",
    "prefill",
    "register",
]
