"""Functional coverage: classes of a job and its outcome, and crosses of classes that were met."""

import itertools
import json
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from moska.gen.config import Config
from moska.golden.layout import ErrorCode, KVFormat, Opcode, Selection

STALLS = (0, 25, 75)  # %
AXES: Mapping[str, tuple[str, ...]] = {
    "format": tuple(kind.name.lower() for kind in KVFormat),
    "rows": ("1", "<tile", "=tile", ">tile", "max"),
    "chunk": ("16", "32", ">slot"),
    "k": ("0", "1", "some", "all", "dense", "explicit"),
    "stall": tuple(str(stall) for stall in STALLS),
    "error": tuple(code.name.lower() for code in ErrorCode if code is not ErrorCode.RING),
}
CROSSES: tuple[tuple[str, ...], ...] = (
    ("format", "k"),
    ("rows", "chunk", "k"),
    ("k", "stall", "error"),
    ("rows", "error"),
    ("chunk", "error"),
    ("rows", "stall"),
    ("chunk", "stall"),
)


class Excluded(NamedTuple):
    """A combination that no job can have."""

    classes: dict[str, str]
    reason: str


class Classes(NamedTuple):
    """Classes of one job, a value of each axis."""

    format: str
    rows: str
    chunk: str
    k: str
    stall: str
    error: str


def excluded(config: Config) -> list[Excluded]:
    """Return the combinations that are impossible in a configuration."""
    tile, most = config.query_tile, config.max_rows
    found = [Excluded({"k": "0", "error": "checksum"}, "no chunk is read, hence none compared")]
    for name, possible, reason in (
        ("<tile", tile > 2, f"no row count lies between 1 and a tile of {tile}"),
        ("=tile", 1 < tile < most, f"a tile of {tile} rows is one row, or the most rows"),
        (">tile", most > tile + 1, f"no row count lies between a tile of {tile} and {most}"),
        ("max", most > 1, "the most rows are one row"),
    ):
        if not possible:
            found.append(Excluded({"rows": name}, reason))
    return found


def classify(
    config: Config, fields: Mapping[str, int], *, stall: int, error: ErrorCode
) -> Classes | None:
    """Classes of a job with these descriptor fields; None for a fence or a size in no class."""
    if fields["opcode"] == Opcode.FENCE or fields["kv_format"] >= len(KVFormat):
        return None
    n_rows, n_chunks, k = fields["n_rows"], fields["n_chunks"], fields["k"]
    tile = config.query_tile
    if n_rows == 1:
        rows = "1"
    elif n_rows == config.max_rows:
        rows = "max"
    else:
        rows = "=tile" if n_rows == tile else "<tile" if n_rows < tile else ">tile"
    size = fields["chunk_tokens"]
    chunk = str(size) if size in (16, 32) else ">slot" if size > config.buffer_tokens else None
    if chunk is None:
        return None
    if fields["selection"] == Selection.TOP_K:
        # More than all is all; the only chunk is all of them.
        kept = "0" if k == 0 else "all" if k >= n_chunks else "1" if k == 1 else "some"
    else:
        kept = "dense" if fields["selection"] == Selection.ALL else "explicit"
    return Classes(
        KVFormat(fields["kv_format"]).name.lower(), rows, chunk, kept, str(stall),
        error.name.lower(),
    )  # fmt: skip


class Coverage:
    """Counts how often each combination of each cross was met.

    Parameters
    ----------
    config
        decides which combinations exist
    """

    def __init__(self, config: Config):
        self.config = config
        self.excluded = excluded(config)
        self.counts: dict[tuple[str, ...], Counter[tuple[str, ...]]] = {
            cross: Counter() for cross in CROSSES
        }
        self.jobs = 0

    def possible(self, cross: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Return the combinations of a cross that a job can have."""
        result = []
        for values in itertools.product(*(AXES[axis] for axis in cross)):
            named = dict(zip(cross, values, strict=True))
            if not any(item.classes.items() <= named.items() for item in self.excluded):
                result.append(values)
        return result

    def add(self, classes: Classes) -> None:
        """Count one job.

        Raises
        ------
        ValueError
            when its combination is excluded: the exclusion is wrong.
        """
        named = classes._asdict()
        for item in self.excluded:
            if item.classes.items() <= named.items():
                raise ValueError(f"{item.classes} is excluded ({item.reason}) but was met")
        self.jobs += 1
        for cross, counter in self.counts.items():
            counter[tuple(named[axis] for axis in cross)] += 1

    def missing(self, cross: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Return the combinations of a cross that no job had."""
        return [values for values in self.possible(cross) if not self.counts[cross][values]]

    @property
    def reached(self) -> float:
        """Share of all combinations of all crosses that were met."""
        possible = sum(len(self.possible(cross)) for cross in CROSSES)
        missing = sum(len(self.missing(cross)) for cross in CROSSES)
        return 1 - missing / possible

    def as_dict(self) -> dict:
        """Everything, for JSON."""
        return {
            "config": self.config.name,
            "jobs": self.jobs,
            "reached": self.reached,
            "excluded": [{"classes": e.classes, "reason": e.reason} for e in self.excluded],
            "crosses": [
                {
                    "axes": list(cross),
                    "possible": len(self.possible(cross)),
                    "reached": len(self.possible(cross)) - len(self.missing(cross)),
                    "counts": {
                        " ".join(values): self.counts[cross][values]
                        for values in self.possible(cross)
                    },
                }
                for cross in CROSSES
            ],
        }

    def json(self) -> str:
        """JSON text."""
        return json.dumps(self.as_dict(), indent=1) + "\n"

    def markdown(self) -> str:
        """Table of the crosses, then what is missing and what is excluded."""
        lines = [
            "| cross | combinations | reached | least often |",
            "|---|---:|---:|---|",
        ]
        for cross in CROSSES:
            possible = self.possible(cross)
            counter = self.counts[cross]
            rarest = min(possible, key=lambda values: counter[values])
            reached = len(possible) - len(self.missing(cross))
            lines.append(
                f"| {' x '.join(cross)} | {len(possible)} | {reached} "
                f"| {' '.join(rarest)}: {counter[rarest]} |"
            )
        lines += ["", f"{self.jobs} jobs, {self.reached:.1%} of all combinations reached.", ""]
        for cross in CROSSES:
            for values in self.missing(cross):
                lines.append(f"- missing: {' x '.join(cross)}: {' '.join(values)}")
        for item in self.excluded:
            named = ", ".join(f"{axis} {value}" for axis, value in item.classes.items())
            lines.append(f"- excluded: {named}: {item.reason}")
        return "\n".join(lines) + "\n"
