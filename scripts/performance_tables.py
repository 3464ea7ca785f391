"""Put figures of `moska bench` and `moska demo` into the page docs/performance.md.

Of a file that `moska bench --json FILE` wrote, the tables between ``<!-- bench NAME -->`` and
``<!-- end -->`` are written anew, NAME being its configuration; ``docs/images/bench-NAME.svg`` is
drawn if the page shows it. Of the demonstration's report.json, that is the table behind
``<!-- demo -->``.

    python scripts/performance_tables.py build/demo/report.json build/bench/*.json
"""

import json
import pathlib
import re
import sys
from collections.abc import Callable
from statistics import fmean

from moska.gen.bound import Bound
from moska.gen.config import Config
from moska.sim import chart, page
from moska.sim.causes import CAUSES
from moska.sim.measure import LONG_JOB, Measurement
from moska.sim.page import table
from moska.sim.shapes import Pattern, Shape

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "performance.md"
SETS = ("counters", "alone_counters")  # of a job of the demonstration: in a queue, alone


def selection(shape: dict) -> str:
    """How a shape selects chunks, as in its name."""
    return re.fullmatch(r"m\d+ c\d+ s\d+ (.*) l\d+( crc)?", shape["name"])[1]


def group_row(name: str, group: list[dict]) -> list[str]:
    """Ratios of some shapes."""
    worst = max(group, key=lambda shape: shape["ratio"])
    alone = [shape["alone_ratio"] for shape in group]
    return [
        name,
        str(len(group)),
        f"{sum(shape['met'] for shape in group)}",
        f"{fmean(shape['ratio'] for shape in group):.3f}",
        f"{worst['ratio']:.3f}",
        f"{fmean(alone):.2f}",
        f"{max(alone):.2f}",
    ]


def ratio_table(shapes: list[dict]) -> list[str]:
    """Ratios by size, by selection, by rows and by latency."""
    judged = [shape for shape in shapes if not shape["reference"]]
    groups: list[tuple[str, Callable[[dict], bool]]] = [
        ("all", lambda shape: True),
        (f"{LONG_JOB:,} cycles or more", lambda shape: shape["cycles"] >= LONG_JOB),
        ("shorter", lambda shape: shape["cycles"] < LONG_JOB),
        ("bound by compute", lambda shape: shape["limit"] == "compute"),
        ("bound by memory", lambda shape: shape["limit"] == "memory"),
    ]
    for name in dict.fromkeys(selection(shape) for shape in judged):
        text = name if name == "dense" else f"routed, {name}"
        groups.append((text, lambda shape, name=name: selection(shape) == name))
    for key, text in (("rows", "{} rows"), ("latency", "latency {}")):
        for value in sorted({shape[key] for shape in judged}):
            groups.append((
                text.format(value),
                lambda shape, key=key, value=value: shape[key] == value,
            ))
    groups.append(("with checksums", lambda shape: shape["checksum"]))
    rows = []
    for name, member in groups:
        group = [shape for shape in judged if member(shape)]
        if group:
            rows.append(group_row(name, group))
    header = ("jobs", "shapes", "within target", "mean", "worst", "alone: mean", "alone: worst")
    return table(header, rows)


def gain_table(shapes: list[dict], key: str, title: str) -> list[str]:
    """Gains of one kind, measured against ideal; no lines when there are none."""
    found = [shape for shape in shapes if shape[key]]
    rows = [
        [
            str(shape["rows"]),
            str(shape["chunk_tokens"]),
            f"{shape['tokens']:,}",
            selection(shape),
            f"{shape[key]['measured']:.2f}",
            f"{shape[key]['ideal']:.2f}",
            f"{shape[key]['share']:.3f}",
        ]
        for shape in sorted(found, key=lambda shape: (shape["rows"], shape["tokens"]))
    ]
    header = ("rows", "chunk", "tokens", "selection", title, "of the bounds", "share")
    return table(header, rows, left=0) if rows else []


def bench_section(figures: dict) -> str:
    """Markdown of one configuration."""
    shapes = figures["shapes"]
    lines = [
        *ratio_table(shapes),
        *gain_table(shapes, "gemv_gain", "rows at once against one by one"),
        *gain_table(shapes, "routing_gain", "routed against dense"),
    ]
    return "\n".join(lines)


def measurement(figures: dict) -> Measurement:
    """Return what the plot needs of a measurement, from its dictionary."""
    kept = re.search(r"(\d+)%", figures["name"])
    shape = Shape(
        rows=figures["rows"],
        chunk_tokens=figures["chunk_tokens"],
        n_tokens=figures["tokens"],
        pattern=Pattern(figures["pattern"]),
        keep=int(kept[1]) / 100 if kept else 1.0,
        latency=figures["latency"],
        checksum=figures["checksum"],
        judged=not figures["reference"],
    )
    assert shape.name == figures["name"]
    return Measurement(
        shape=shape,
        bound=Bound(
            score=figures["compute_bound"],
            value=figures["compute_bound"],
            compute=figures["compute_bound"],
            memory=figures["memory_bound"],
            bound=figures["bound"],
            read_bytes=figures["bytes"],
            written_bytes=0,
        ),
        jobs=figures["jobs"],
        cycles=figures["cycles"],
        spread=figures["spread"],
        counters=figures["counters"],
        alone=figures["alone_cycles"],
        rows_per_chunk=figures["rows_per_chunk"],
        chunks_read=figures["chunks_read"],
        checked_rows=figures["checked_rows"],
    )


def demo_section(figures: dict) -> str:
    """Markdown of the demonstration: both jobs in a queue and alone, and single requests."""
    dense, routed, gemv = figures["jobs"]["dense"], figures["jobs"]["routed"], figures["gemv"]

    def counts(key: str) -> list[str]:
        found = [job[which][key] for job in (dense, routed) for which in SETS]
        return [f"{value:,.0f}" for value in (*found, gemv["counters"].get(key, 0))]

    def line(label: str, values: list, form: str = ",.0f") -> list[str]:
        return [label, *(format(value, form) for value in values)]

    cycles = [*(job[key] for job in (dense, routed) for key in ("cycles", "alone_cycles"))]
    bounds = [*(job["bound"] for job in (dense, routed) for _ in SETS)]
    ratios = [*(job[key] for job in (dense, routed) for key in ("ratio", "alone_ratio"))]
    kept = f"{figures['k']} of {routed['chunks']} chunks a row"
    header = (
        "", "dense, in a queue", "dense, alone", f"routed ({kept}), in a queue", "routed, alone",
        "one by one, in a queue",
    )  # fmt: skip
    rows = [
        line("cycles", [*cycles, gemv["cycles_all_requests"]]),
        line("bound", [*bounds, gemv["bound_all_requests"]]),
        line("cycles / bound", [*ratios, gemv["ratio"]], ".3f"),
        *([f"`{cause.upper()}`", *counts(cause)] for cause in CAUSES),
    ]
    return "\n".join(table(header, rows))


def put(name: str, section: str, source: pathlib.Path) -> str:
    """Replace a section of the page; returns the page."""
    try:
        return page.put(PAGE, name, section)
    except ValueError as error:
        sys.exit(f"{error} for {source}")


def refresh(path: pathlib.Path) -> None:
    """Write the tables and the plot of one file."""
    figures = json.loads(path.read_text(encoding="utf-8"))
    if "jobs" in figures:
        put("demo", demo_section(figures), path)
        return
    name = figures["config"]
    text = put(f"bench {name}", bench_section(figures), path)
    image = f"images/bench-{name}.svg"
    if image in text:
        config = Config(**figures["parameters"])
        chart.plot(config, [measurement(shape) for shape in figures["shapes"]], DOCS / image)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for argument in sys.argv[1:]:
        refresh(pathlib.Path(argument))
