"""`moska eval`: what the ways to compute the shared part cost in quality."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from moska.golden.router import router_kind
from moska.host import unique
from moska.host.llm.model import geometry
from moska.host.llm.prefill import prefill
from moska.host.llm.quality import (
    Score,
    full_attention,
    score,
    shared_attention,
)
from moska.host.llm.text import continuation, recall
from moska.host.llm.variant import NUMBERS, ORACLE, Document, Variant, VariantStep

SETS = {"recall": recall, "continuation": continuation}
KEPT = (0.5, 0.25, 0.125)
ROUTERS = ("mean", "minmax", "submean:8", "submean:4", ORACLE)


@dataclass(frozen=True)
class Sizes:
    """How much is evaluated."""

    document: int = 1024  # tokens
    passages: int = 6  # of each set
    length: int = 40  # tokens of a passage, those of the warm-up too


@dataclass(frozen=True)
class Case:
    """A line of the table."""

    section: str
    variant: Variant
    documents: str = "one"  # a key of what `documents` returns
    label: str = ""


@dataclass(frozen=True)
class Outcome:
    """Its figures."""

    case: Case
    scores: dict[str, Score]  # of each set
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "section": self.case.section,
            "label": self.case.label,
            "documents": self.case.documents,
            **asdict(self.case.variant),
            "work": work(self.case.variant),
            "seconds": round(self.seconds, 2),
            "sets": {name: found.summary() for name, found in self.scores.items()},
        }


def cases(*, quick: bool = False) -> list[Case]:
    """Lines of the table."""
    numbers = [Case("numbers", Variant(numbers=name)) for name in NUMBERS]
    if quick:
        routed = [Case("router", Variant(keep=0.25, router=r)) for r in ("minmax", "submean:4")]
        return [Case("numbers", Variant()), *routed]
    router = [Case("router", Variant(keep=k, router=r)) for r in ROUTERS for k in KEPT]
    chunk = [
        Case("chunk", Variant(keep=k, router=r, chunk_tokens=c))
        for r in ("minmax", "submean:8", "submean:4")
        for c in (16, 64)
        for k in KEPT[:2]
    ]
    scope = [
        Case("scope", Variant(keep=k, router=r, group=True), label="one decision a group")
        for r in ("minmax", "submean:4")
        for k in KEPT[:2]
    ]
    dense = Variant(keep=0.25, router="submean:4", dense_layers=())
    scope.append(Case("scope", dense, label="layers 0 and 1 routed too"))
    reuse = [
        Case("reuse", Variant(), "apart", "prefilled apart, queries rotated back"),
        Case("reuse", Variant(), "unmoved", "prefilled apart, not rotated"),
    ]
    return [*numbers, *router, *chunk, *scope, *reuse]


def work(variant: Variant) -> float:
    """Score-array slots of a routed job, as a multiple of the dense one's.

    The oracle's choice counts nothing: what it computes is no unit's work.
    """
    if variant.keep == 1:
        return 1.0
    if variant.router == ORACLE:
        return variant.keep
    _, tokens = router_kind(variant.router)
    n_rows = {"mean": 1, "minmax": 2}.get(variant.router) or variant.chunk_tokens // tokens
    return n_rows / variant.chunk_tokens + variant.keep


def evaluate(
    model: Any,
    tokens: Sequence[int],
    listed: Iterable[Case],
    sizes: Sizes | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run all cases; returns figures for JSON.

    Parameters
    ----------
    model
        of the Llama architecture, on the CPU.
    tokens
        of the text: the document, and what continues it.
    progress
        is told what is done next.

    Raises
    ------
    ValueError
        when the text is too short.
    """
    sizes = sizes or Sizes()
    first = list(tokens[: sizes.document])
    sets = {
        name: cut(tokens, sizes.document, sizes.passages, sizes.length)
        for name, cut in SETS.items()
    }
    passages = [passage for cut in sets.values() for passage in cut]
    progress("full attention")
    expected = full_attention(model, first, passages)
    bare = full_attention(model, [], passages)
    progress("prefill")
    kept = documents(model, first)
    path = unique.best(device="cpu", dtype="float32")

    def scored(measured: torch.Tensor) -> dict[str, Score]:
        rows = {
            name: slice(i * sizes.passages, (i + 1) * sizes.passages) for i, name in enumerate(sets)
        }
        return {
            name: score(expected[rows[name]], measured[rows[name]], cut)
            for name, cut in sets.items()
        }

    outcomes = []
    for case in listed:
        progress(describe(case))
        start = time.perf_counter()
        step = VariantStep(kept[case.documents], case.variant, path)
        measured = shared_attention(model, step, len(first), passages)
        outcomes.append(Outcome(case, scored(measured), time.perf_counter() - start))
    return {
        "model": geometry(model).model,
        "sizes": asdict(sizes),
        "full": {name: found.summary() for name, found in scored(expected).items()},
        "none": {name: found.summary() for name, found in scored(bare).items()},
        "cases": [outcome.as_dict() for outcome in outcomes],
    }


def documents(model: Any, tokens: Sequence[int]) -> dict[str, list[Document]]:
    """Ways to hold a document: as ``one``, or as two halves, computed as if alone.

    In ``apart``, queries are rotated back to where the second half was computed; in ``unmoved``
    they are not, so that it seems to stand where the first half does.
    """
    rope = geometry(model).rope
    half = len(tokens) // 2
    whole, second = (Document(*prefill(model, part)) for part in (tokens, tokens[half:]))
    # No token attends to a later one: the first half is the same, alone or not.
    first = Document(whole.k[:, :, :half], whole.v[:, :, :half])
    moved = Document(second.k, second.v, position=half, rope=rope)
    return {"one": [whole], "apart": [first, moved], "unmoved": [first, second]}


def describe(case: Case) -> str:
    """Name a line in a few words."""
    variant = case.variant
    if variant.keep == 1:
        return case.label or f"{variant.numbers}, all chunks"
    words = f"{variant.router}, chunks of {variant.chunk_tokens}, {100 * variant.keep:g} %"
    return f"{words}, {case.label}" if case.label else words
