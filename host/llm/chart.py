"""Plot of `moska eval`."""

import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

SETS = {"recall": "recall: copied from the document", "continuation": "continuation: later text"}
MARKERS = {16: "^", 32: "o", 64: "s"}


def figure(figures: Mapping[str, Any]) -> Figure:
    """KL against the score array's work, one line a router and chunk size."""
    routed = [case for case in figures["cases"] if case["section"] in {"router", "chunk"}]
    dense = [
        case
        for case in figures["cases"]
        if case["section"] == "numbers" and case["numbers"] == "int8"
    ]
    picture = Figure(figsize=(9, 4.2), layout="constrained")
    axes = picture.subplots(1, len(SETS), sharex=True)
    routers = list(dict.fromkeys(case["router"] for case in routed))
    series = dict.fromkeys((case["router"], case["chunk_tokens"]) for case in routed)
    for ax, (key, title) in zip(axes, SETS.items(), strict=True):
        for router, tokens in series:
            cases = sorted(
                (c for c in routed if (c["router"], c["chunk_tokens"]) == (router, tokens)),
                key=lambda case: case["work"],
            )
            ax.errorbar(
                [case["work"] for case in cases],
                [case["sets"][key]["kl"] for case in cases],
                yerr=[case["sets"][key]["kl_error"] for case in cases],
                color=f"C{routers.index(router)}",
                marker=MARKERS.get(tokens, "x"),
                linestyle=":" if router == "oracle" else "-",
                linewidth=1.2,
                elinewidth=0.7,
                markersize=5,
                label=f"{router}, {tokens} tokens a chunk",
            )
        for case in dense:
            ax.axhline(
                case["sets"][key]["kl"], color="0.4", linewidth=1, linestyle="--",
                label="all chunks, int8",
            )  # fmt: skip
        ax.set_yscale("log")
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("score array's work, dense job = 1")
        ax.grid(visible=True, which="major", color="0.9")
    axes[0].set_ylabel("KL against full attention, nats a token")
    handles, labels = axes[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside right center", fontsize=7, frameon=False)
    return picture


def plot(figures: Mapping[str, Any], path: pathlib.Path) -> None:
    """Write the plot; the suffix decides on the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Text as text, and no date or random identifiers: the same figures give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "moska"}):
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure(figures).savefig(path, metadata=metadata, dpi=150)
