"""Delay lines of a pipeline."""

from amaranth.hdl import Module, Signal


def delay_line(m: Module, value, cycles: int, *, name: str, reset_less: bool = True) -> list:
    """Delay ``value`` by 0 to ``cycles`` cycles: a list whose element n lags by n cycles.

    Element 0 is ``value`` itself; element n is named ``<name>_s<n>``. Without reset, which lets a
    device use its shift registers, unless ``reset_less`` is False.
    """
    stages = [value]
    for n in range(1, cycles + 1):
        stage = Signal(value.shape(), name=f"{name}_s{n}", reset_less=reset_less)
        m.d.sync += stage.eq(stages[-1])
        stages.append(stage)
    return stages


def delayed(m: Module, value, cycles: int, *, name: str):
    """``value``, ``cycles`` cycles later; reset clears it, so that no stale ``valid`` survives."""
    return delay_line(m, value, cycles, name=name, reset_less=False)[-1]
