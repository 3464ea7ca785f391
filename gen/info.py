"""What `moska info` shows of a configuration."""

import dataclasses
from typing import NamedTuple

from moska.gen import bound
from moska.gen.config import STORES, Config
from moska.golden.layout import DESCRIPTOR_BYTES

SHAPES = (
    "beat_dim",
    "lane_rows",
    "n_lanes",
    "merge_lanes",
    "bus_bytes",
    "score_macs",
    "value_macs",
    "macs",
)
WIDTHS = (
    "dot_width",
    "score_width",
    "p_width",
    "pv_width",
    "block_o_width",
    "l_state_width",
    "o_state_width",
    "key_width",
)


class Entry(NamedTuple):
    """One line of a section."""

    name: str
    value: int | float | str
    meaning: str


def sections(config: Config) -> dict[str, list[Entry]]:
    """Return the lines of each section; the keys are `parameters`, `shapes`, `widths` ..."""

    def derived(names):
        return [Entry(name, getattr(config, name), _summary(name)) for name in names]

    return {
        "parameters": [
            Entry(field.name, getattr(config, field.name), field.metadata["meaning"])
            for field in dataclasses.fields(config)
        ],
        "shapes": derived(SHAPES),
        "widths": derived(WIDTHS),
        "memories": derived((*STORES, "memory_bits")),
        "bound": _bound_entries(config),
    }


def as_dict(config: Config) -> dict[str, dict[str, int | float | str]]:
    """Return the sections as nested dictionaries of plain values, without the meanings."""
    return {
        title: {entry.name: entry.value for entry in entries}
        for title, entries in sections(config).items()
    }


def _summary(name: str) -> str:
    """Return the first line of a property's docstring, which is its meaning."""
    return getattr(Config, name).__doc__.strip().splitlines()[0].rstrip(".")


def _bound_entries(config: Config) -> list[Entry]:
    return [
        Entry(
            "cycles_per_token", config.fold, "cycles of each array per token and tile of queries"
        ),
        Entry(
            "bytes_per_cycle", config.memory_bytes_per_cycle, "bytes per cycle the memory gives"
        ),
        Entry("token_bytes", bound.token_bytes(config), "bytes read per token: K, V and scales"),
        Entry("query_bytes", bound.query_bytes(config), "bytes read per query row and its scale"),
        Entry("result_bytes", bound.result_bytes(config), "bytes written per row: output and LSE"),
        Entry(
            "representative_bytes",
            bound.representative_bytes(config),
            "bytes read per representative row",
        ),
        Entry("descriptor_bytes", DESCRIPTOR_BYTES, "bytes read per job"),
        Entry(
            "balance_rows",
            bound.balance_rows(config),
            "rows per token read from which on compute takes as long as memory",
        ),
    ]
