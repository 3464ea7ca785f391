"""Figures, plots and page of the demonstration's report."""

import io
import json
import pathlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata

import jinja2
import matplotlib
import matplotlib.lines
import matplotlib.patches
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from moska.gen.config import Config, preset_names
from moska.golden.formats import scale_value
from moska.golden.reference import attention, relative_error
from moska.golden.router import Router, chunk_keys, representatives, select
from moska.golden.unit import Result, Store
from moska.sim.causes import CAUSES
from moska.sim.job import Job, difference
from moska.sim.measure import Queued

BLUE, ORANGE, GREEN, RED, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#1f2933"


def _yes(value: bool) -> str:
    return "yes" if value else "NO"


def _count(value: int) -> str:
    return f"{value:,}"


def _rounded(value: float) -> str:
    return f"{value:,.0f}"


def _ratio(value: float) -> str:
    return f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _small(value: float) -> str:
    return f"{value:.1e}"


# Lines of the tables: label, key of a job's figures, how to show it.
ROWS = (
    ("every bit as the golden model", "bit_exact", _yes),
    ("query rows", "rows", _count),
    ("tokens in the store", "tokens", _count),
    ("chunks read / in the store", "chunks_of", str),
    ("unselected chunks read", "unselected_chunks_read", _count),
    ("attention mass kept", "attention_mass_kept", _percent),
    ("bound, cycles", "bound", _count),
    ("bound by", "limit", str),
    ("in a queue: cycles a job", "cycles", _rounded),
    ("in a queue: cycles / bound", "ratio", _ratio),
    ("in a queue: multipliers in use", "mac_utilisation", _percent),
    ("in a queue: ms a job", "milliseconds", lambda x: f"{x:.2f}"),
    ("alone: cycles", "alone_cycles", _count),
    ("alone: cycles / bound", "alone_ratio", _ratio),
    ("relative error of O", "rel_error_vs_float64", _small),
    ("largest error of LSE (base 2)", "lse_error", _small),
)


@dataclass
class Report:
    """Figures for JSON and the arrays that the plots show."""

    figures: dict
    curves: dict[str, NDArray[np.float64]]  # name: attention mass kept; "fraction": the x axis
    errors: dict[str, NDArray[np.float64]]  # job: log10 of relative errors of elements
    differences: list[str] = field(default_factory=list)  # in words, empty when bit-exact


def chunk_mass(store: Store, q: NDArray[np.floating]) -> NDArray[np.float64]:
    """Share of each row's attention that each chunk holds, (M, N) float64; rows add up to 1."""
    k = store.k * scale_value(store.k_scale)[:, None]
    s = (np.asarray(q, np.float64) @ k.T) * q.shape[1] ** -0.5
    p = np.exp(s - s.max(axis=1, keepdims=True))
    starts = np.arange(store.n_chunks) * store.chunk_tokens
    return np.add.reduceat(p, starts, axis=1) / p.sum(axis=1, keepdims=True)


def mass_curves(job: Job, q: NDArray[np.floating]) -> dict[str, NDArray[np.float64]]:
    """Mean attention mass kept when 1/16 .. 16/16 of the chunks are kept.

    Keys: ``fraction``, ``oracle`` (chunks of the largest mass), ``minmax`` and ``mean`` (routers,
    first and last chunk always kept).
    """
    store = job.store
    mass = chunk_mass(store, q)
    stored = store.k * scale_value(store.k_scale)[:, None]
    ks = np.unique(np.maximum(1, np.arange(1, 17) * store.n_chunks // 16))
    curves = {"fraction": ks / store.n_chunks}
    order = np.sort(mass, axis=1)[:, ::-1].cumsum(axis=1)
    curves["oracle"] = order[:, ks - 1].mean(axis=0)
    for name, kind in (("minmax", Router.MINMAX), ("mean", Router.ROWS)):
        rep, rep_scale = representatives(stored, store.chunk_tokens, name)
        keys = chunk_keys(job.q, job.q_scale, rep, rep_scale, kind)
        kept = [mass[select(keys, int(k), keep_first=1, keep_last=1)].sum() for k in ks]
        curves[name] = np.array(kept) / len(mass)
    return curves


def queue_difference(queued: Queued, golden: dict[int, Result]) -> str | None:
    """First difference of a queue's results in words, or None; ``golden`` by id of the job."""
    for job, outcome in queued.runs:
        if text := difference(outcome.result, golden[id(job)]):
            return f"job {outcome.record['sequence']}: {text}"
    return None


def measure(
    config: Config, job: Job, queued: Queued, expected: Result, q: NDArray[np.floating]
) -> tuple[dict, NDArray[np.float64]]:
    """Figures of a job, and log10 of the error of each element of O over its row's RMS.

    The float64 reference attends from the float queries to the same stored keys and values, over
    the chunks that the job itself selected.
    """
    store = job.store
    _, alone = queued.runs[0]
    limits = job.bound(config, expected.selected)
    o_ref, lse_ref = attention(store, q, expected.selected)
    o = alone.result.o.view(np.float32).astype(np.float64)
    lse = alone.result.lse.view(np.float32).astype(np.float64)
    kept = (chunk_mass(store, q) * expected.selected).sum(axis=1).mean()
    cycles = queued.counters["cycles"]
    active = queued.counters["score_active"] + queued.counters["value_active"]
    chunks_read = alone.counters["chunks_read"]
    figures = {
        "bit_exact": queue_difference(queued, {id(job): expected}) is None,
        "rows": len(job.q),
        "tokens": store.n_tokens,
        "chunks": store.n_chunks,
        "chunks_read": chunks_read,
        "chunks_of": f"{chunks_read} / {store.n_chunks}",
        "unselected_chunks_read": chunks_read - expected.chunks_read,
        "rows_per_chunk_read": float(expected.selected.sum() / max(1, expected.chunks_read)),
        "cycles": cycles,
        "spread": queued.spread,
        "alone_cycles": queued.alone,
        "compute_bound": limits.compute,
        "memory_bound": limits.memory,
        "bound": limits.bound,
        "limit": limits.limit,
        "ratio": cycles / limits.bound,
        "alone_ratio": queued.alone / limits.bound,
        "mac_utilisation": active / (2 * cycles),
        "milliseconds": cycles / (config.clock_mhz * 1e3),
        "rel_error_vs_float64": relative_error(o, o_ref),
        "lse_error": float(np.abs(lse - lse_ref).max()),
        "attention_mass_kept": float(kept),
        "counters": queued.counters,
        "alone_counters": alone.counters,
    }
    rms = np.sqrt((o_ref**2).mean(axis=1, keepdims=True))
    return figures, np.log10(np.maximum(np.abs(o - o_ref) / rms, 1e-9)).ravel()


def build(
    config: Config,
    work,
    queues: Sequence[Queued],
    expected: Sequence[Result],
    *,
    latency: int,
    seed: int,
) -> Report:
    """Compare and measure all jobs of :class:`moska.sim.demo.Work`.

    ``queues`` are those of the dense job, the routed job and the single requests; ``expected``
    are the golden model's results of ``work.jobs``; ``latency`` is that of the memory.
    """
    names = ("dense", "routed", "one by one")
    golden = {id(job): result for job, result in zip(work.jobs, expected, strict=True)}
    differences = [
        f"{name}: {text}"
        for name, queued in zip(names, queues, strict=True)
        if (text := queue_difference(queued, golden))
    ]
    jobs, errors = {}, {}
    for name, job, queued in zip(names[:2], (work.dense, work.routed), queues[:2], strict=True):
        jobs[name], errors[name] = measure(config, job, queued, golden[id(job)], work.q)
    dense, routed = jobs["dense"], jobs["routed"]

    singles = queues[2]
    # Rows, not requests: the last request of a full job may have lost rows.
    scale = len(work.q) / work.heads
    limits = [job.bound(config, golden[id(job)].selected).bound for job in work.gemv]
    single_bound = sum(limits) / len(limits)
    cycles = singles.counters["cycles"]
    gemv = {
        "sampled_requests": len(work.requests),
        "requests": work.requests,
        "rows_per_request": work.heads,
        "cycles_per_request": cycles,
        "spread": singles.spread,
        "bound_per_request": single_bound,
        "ratio": cycles / single_bound,
        "cycles_all_requests": cycles * scale,
        "bound_all_requests": single_bound * scale,
        "gain": cycles * scale / dense["cycles"],
        "ideal_gain": single_bound * scale / dense["bound"],
        "bit_exact": queue_difference(singles, golden) is None,
        "counters": {name: singles.counters[name] * scale for name in CAUSES},
    }
    figures = {
        "config": config.name,
        "parameters": config.parameters(),
        "version": metadata.version("moska"),
        "seed": seed,
        "memory_latency": latency,
        "memory_mb_per_second": config.memory_bytes_per_cycle * config.clock_mhz,
        "multipliers": config.macs,
        "chunk_tokens": work.dense.store.chunk_tokens,
        "k": work.routed.k,
        "jobs": jobs,
        "gemv": gemv,
        "routing": {
            "gain": dense["cycles"] / routed["cycles"],
            "ideal_gain": dense["bound"] / routed["bound"],
        },
    }
    return Report(figures, mass_curves(work.dense, work.q), errors, differences)


# Plots --------------------------------------------------------------------------------------------

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "moska",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a94a0",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ed",
    "legend.frameon": False,
}


def svg(figure: Figure) -> str:
    """Inline SVG of a figure, without what refers to other places (namespaces, metadata)."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # HTML knows the namespaces of inline SVG by itself.
    return re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)


def plot_mass(report: Report) -> str:
    """Attention mass kept against the share of chunks kept."""
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    x = 100 * report.curves["fraction"]
    for name, label, colour, style, marker in (
        ("oracle", "oracle (largest mass)", INK, "--", None),
        ("minmax", "minmax router (used)", BLUE, "-", "o"),
        ("mean", "mean router", ORANGE, "-", "s"),
    ):
        y = 100 * report.curves[name]
        axes.plot(x, y, style, color=colour, marker=marker, markersize=4, label=label)
    figures = report.figures
    routed = figures["jobs"]["routed"]
    at = 100 * figures["k"] / routed["chunks"], 100 * routed["attention_mass_kept"]
    axes.plot(*at, "o", markersize=11, markerfacecolor="none", color=RED, markeredgewidth=2)
    axes.annotate(
        f"the routed job: {at[1]:.1f} % of the mass\nin {at[0]:.0f} % of the chunks",
        at,
        xytext=(36, -42),
        textcoords="offset points",
        arrowprops={"arrowstyle": "-", "color": RED},
    )
    axes.set(xlabel="chunks kept per row (%)", ylabel="attention mass kept (%)", xlim=(0, 102))
    axes.set_ylim(top=101)
    axes.legend(loc="lower right")
    return svg(figure)


def _bars(axes, bars: Sequence[tuple[str, dict, float]]) -> None:
    """Stacked bars (label, counters, bound) in thousands of cycles, first one on top."""
    for row, (_, counters, limit) in enumerate(bars):
        left = 0.0
        for name, (_, colour) in CAUSES.items():
            width = counters[name] / 1e3
            axes.barh(row, width, left=left, height=0.55, color=colour, linewidth=0)
            left += width
        axes.vlines(limit / 1e3, row - 0.42, row + 0.42, color=INK, linewidth=2, zorder=3)
        axes.annotate(
            f"{left:,.0f} k", (max(left, limit / 1e3), row), xytext=(6, 0),
            textcoords="offset points", va="center",
        )
    axes.set_yticks(range(len(bars)), [label for label, _, _ in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")


def plot_cycles(report: Report) -> str:
    """Cycles by cause, with bounds: both jobs, then the dense job against single requests."""
    figures = report.figures
    jobs, gemv = figures["jobs"], figures["gemv"]
    bars = []
    for name, job in jobs.items():
        bars.append((f"{name}, in a queue", job["counters"], job["bound"]))
        bars.append((f"{name}, alone", job["alone_counters"], job["bound"]))
    single = ("one by one", gemv["counters"], gemv["bound_all_requests"])
    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, height_ratios=(4.6, 2.4))
    _bars(upper, bars)
    upper.set_title("All rows in one job", loc="left", fontsize=10)
    _bars(lower, [("all rows at once", *bars[0][1:]), single])
    lower.set_title(
        "The dense work in a queue: all rows at once, one request at a time",
        loc="left",
        fontsize=10,
    )
    lower.set_xlabel("thousands of cycles")
    present = [
        (meaning, colour)
        for name, (meaning, colour) in CAUSES.items()
        # Less than a thousandth of a bar cannot be seen.
        if any(c[name] >= 1e-3 * sum(c[n] for n in CAUSES) for _, c, _ in [*bars, single])
    ]
    handles = [matplotlib.patches.Patch(color=colour, label=text) for text, colour in present]
    handles.append(matplotlib.lines.Line2D([], [], color=INK, linewidth=2, label="bound"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    return svg(figure)


def plot_errors(report: Report) -> str:
    """Histogram of the elements' errors."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    every = np.concatenate(list(report.errors.values()))
    # The few elements beyond the ends would squeeze the rest; they count in the outer bins.
    low, high = np.floor(2 * np.percentile(every, 0.2)) / 2, np.ceil(2 * every.max()) / 2
    bins = np.linspace(low, high, round(10 * (high - low)) + 1)
    for (name, errors), colour in zip(report.errors.items(), (BLUE, ORANGE), strict=True):
        errors = np.maximum(errors, low)
        axes.hist(errors, bins, histtype="stepfilled", color=colour, alpha=0.25)
        axes.hist(errors, bins, histtype="step", color=colour, linewidth=1.6, label=name)
    axes.axvline(-4, color=INK, linestyle="--", linewidth=1.2)
    axes.annotate(
        "promise for the whole\nof O: 1e-4", (-4, 0.97), xycoords=("data", "axes fraction"),
        xytext=(6, 0), textcoords="offset points", va="top", fontsize=9,
    )
    axes.set(
        xlabel="log10 of an element's error / RMS of its row (no unit)", ylabel="elements of O"
    )
    axes.legend(loc="upper left")
    return svg(figure)


# Output -------------------------------------------------------------------------------------------


def render(report: Report) -> str:
    """Page of the report: one HTML file that refers to nothing outside itself."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("moska.sim"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    with matplotlib.rc_context(STYLE):
        plots = {
            "mass": plot_mass(report),
            "cycles": plot_cycles(report),
            "errors": plot_errors(report),
        }
    name = report.figures["config"]
    return environment.get_template("report.html").render(
        **report.figures,
        # A configuration that is no preset is named by its file.
        argument=name if name in preset_names() else f"{name}.toml",
        differences=report.differences,
        rows=ROWS,
        plots=plots,
    )


def write(report: Report, output: pathlib.Path) -> pathlib.Path:
    """Write ``report.json`` and ``report.html`` into ``output``; returns the page's path."""
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.figures, indent=2) + "\n"
    (output / "report.json").write_text(text, encoding="utf-8")
    page = output / "report.html"
    page.write_text(render(report), encoding="utf-8")
    return page
