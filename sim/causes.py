"""What each cycle of a job went to: the counters that add up to its cycles."""

from moska.golden.layout import COUNTERS

# Counter: meaning and colour in plots (Okabe and Ito's palette, which colour-blind readers can
# tell apart).
CAUSES = {
    "score_active": ("score array busy", "#0072B2"),
    "stall_memory": ("waits for memory", "#E69F00"),
    "stall_query": ("waits for a query tile", "#56B4E9"),
    "stall_softmax": ("waits for the score buffer", "#CC79A7"),
    "stall_select": ("waits for selection", "#009E73"),
    "stall_load": ("loads queries", "#999999"),
    "stall_drain": ("drains value array", "#D55E00"),
    "stall_finish": ("writes results", "#F0E442"),
}

assert CAUSES.keys() <= set(COUNTERS)


def counter_error(record: dict[str, int]) -> str | None:
    """Say how the causes fail to add up to the cycles, or None when they do."""
    total = sum(record[name] for name in CAUSES)
    if total != record["cycles"]:
        return f"causes must add up to cycles ({record['cycles']}), not {total}"
    return None
