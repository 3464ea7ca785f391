"""Tables and plot of the benchmark."""

import io
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from moska.gen.config import Config
from moska.sim.causes import CAUSES
from moska.sim.measure import LONG_JOB, LONG_TARGET, SHORT_TARGET, Measurement, shares, summary

MET, MISSED, REFERENCE, INK = "#0072B2", "#D55E00", "#999999", "#1f2933"
ROW_INCHES = 0.16
BAR_POINTS = 0.8 * 72 * ROW_INCHES
SHOWN_SHARE = 0.1  # per cent of a job's cycles; less is not drawn
RATIO_END = 1.6  # of the axis; larger ratios are drawn at its end


def _gain(pair: tuple[float, float] | None) -> str:
    if pair is None:
        return ""
    measured, ideal = pair
    return f"{measured:.2f} / {ideal:.2f} = {measured / ideal:.3f}"


def cycles_table(config: Config, measurements: Sequence[Measurement]) -> Table:
    """Cycles, bounds and gains: a line per shape."""
    table = Table(
        title=f"{config.name}: cycles of a job back to back, against its bound",
        caption="alone: a single job from doorbell to interrupt; gains: measured / ideal; "
        f"targets: {LONG_TARGET} from {LONG_JOB:,} cycles on, {SHORT_TARGET} below",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("rows", "chunk", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("selection", no_wrap=True)
    for name in ("latency", "cycles", "compute", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("limit", no_wrap=True)
    for name in ("ratio", "target", "alone", "GEMV to GEMM", "routing"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in measurements:
        shape = one.shape
        style = "" if one.met else "bold red"
        table.add_row(
            str(shape.rows),
            str(shape.chunk_tokens),
            f"{shape.n_tokens:,}",
            shape.selection + (" crc" if shape.checksum else ""),
            str(shape.latency),
            f"{one.cycles:,.0f}",
            f"{one.bound.compute:,}",
            f"{one.bound.memory:,}",
            one.bound.limit,
            f"{one.ratio:.3f}",
            "" if one.target is None else f"{one.target:.2f}" + ("" if one.met else " MISSED"),
            "" if one.alone_ratio is None else f"{one.alone_ratio:.3f}",
            _gain(one.gemv_gain),
            _gain(one.routing_gain),
            style=style,
        )
    return table


def causes_table(measurements: Sequence[Measurement]) -> Table:
    """Cycles by cause in percent: a line per shape; they add up to 100."""
    table = Table(
        title="Cycles of a job by cause, per cent",
        title_justify="left",
    )
    table.add_column("shape", no_wrap=True)
    for cause in CAUSES:
        table.add_column(cause, justify="right", no_wrap=True)
    for name in ("value_active", "read beats", "write beats"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in measurements:
        table.add_row(
            one.shape.name,
            *(f"{100 * share:.1f}" for share in shares(one).values()),
            f"{100 * one.counters['value_active'] / one.cycles:.1f}",
            f"{one.counters['read_beats']:,.0f}",
            f"{one.counters['write_beats']:,.0f}",
        )
    return table


def verdict(measurements: Sequence[Measurement]) -> str:
    """Say how many targets are met."""
    counted = summary(measurements)
    parts = []
    for name, text in (("long", f"from {LONG_JOB:,} cycles on"), ("short", "shorter")):
        group = counted[name]
        if group["judged"]:
            worst = group["worst"]
            parts.append(
                f"{text}: {group['met']} of {group['judged']} within {group['target']}, mean "
                f"{group['mean_ratio']:.3f}, worst {worst['ratio']:.3f} ({worst['name']})"
            )
    return "\n".join(parts)


def figure(config: Config, measurements: Sequence[Measurement]) -> Figure:
    """Ratio per shape on the left, its causes on the right, first shape on top."""
    count = len(measurements)
    made = Figure(figsize=(13, 1.6 + ROW_INCHES * count), layout="constrained")
    left, right = made.subplots(1, 2, sharey=True, width_ratios=(3, 4))
    places = range(count)
    names = [one.shape.name for one in measurements]

    left.axvline(1.0, color=INK, linewidth=0.8)
    for target, style in ((LONG_TARGET, "--"), (SHORT_TARGET, ":")):
        group = f"{LONG_JOB:,} cycles or more" if target == LONG_TARGET else "shorter"
        left.axvline(
            target, color=INK, linewidth=0.8, linestyle=style, label=f"target {target}: {group}"
        )
    groups = (
        ("within its target", MET, [one.met and one.shape.judged for one in measurements]),
        ("target missed", MISSED, [not one.met for one in measurements]),
        ("reference of a gain", REFERENCE, [not one.shape.judged for one in measurements]),
    )
    for label, color, members in groups:
        at = [place for place in places if members[place]]
        if at:
            ratios = [min(measurements[place].ratio, RATIO_END) for place in at]
            left.scatter(ratios, at, s=14, color=color, label=label, zorder=3)
    alone = [place for place in places if measurements[place].alone is not None]
    left.scatter(
        [min(measurements[place].alone_ratio, RATIO_END) for place in alone],
        alone,
        s=12,
        facecolors="none",
        edgecolors=REFERENCE,
        linewidths=0.8,
        label=f"a single job (at {RATIO_END}: or more)",
        zorder=2,
    )
    left.set_xlim(0.95, RATIO_END + 0.02)
    left.set_xlabel("cycles / bound, back to back")
    left.grid(axis="x", color="#dddddd", linewidth=0.5)

    # Thick lines: a bar each would make the file several times as large.
    start = np.zeros(count)
    for cause, (meaning, color) in CAUSES.items():
        widths = np.array([100 * shares(one)[cause] for one in measurements])
        at = np.flatnonzero(widths >= SHOWN_SHARE)
        right.hlines(
            at, start[at], (start + widths)[at], color=color, linewidth=BAR_POINTS,
            capstyle="butt", label=meaning,
        )  # fmt: skip
        start += widths
    right.set_xlim(0, 100)
    right.set_xlabel("cycles by cause, %")
    for axes, columns in ((left, 2), (right, 4)):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, fontsize=7, frameon=False
        )
    left.set_yticks(list(places), names, fontsize=7)
    left.tick_params(axis="y", left=False)
    right.yaxis.set_visible(False)
    left.set_ylim(count - 0.4, -0.6)
    made.suptitle(f"moska bench {config.name}", x=0.01, ha="left", fontsize=11)
    return made


def plot(config: Config, measurements: Sequence[Measurement], path: pathlib.Path) -> None:
    """Write the plot; the ending of ``path`` says the format.

    Raises
    ------
    OSError, ValueError
        when the file cannot be written, or the format is not known.
    """
    raw = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "moska"}):
        figure(config, measurements).savefig(raw, format=path.suffix[1:] or "png", dpi=150)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw.getvalue())
