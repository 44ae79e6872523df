"""Numbers as Grafana writes them, for the units that the dashboards use, and marks for an axis."""

from __future__ import annotations

import math
from itertools import pairwise

_STEPS = (1, 2, 2.5, 5, 10)
_THOUSANDS = ((1e9, " Bil"), (1e6, " Mil"), (1e3, " K"))
_BYTES = ((2.0**40, " TiB"), (2.0**30, " GiB"), (2.0**20, " MiB"), (2.0**10, " KiB"))
_SECONDS = ((86400.0, " days"), (3600.0, " hours"), (60.0, " mins"), (1.0, " s"), (1e-3, " ms"), (1e-6, " µs"))
_SUFFIXES = {"reqps": " req/s", "cps": "/s", "percent": "%"}
UNITS = {"none", "short", "percentunit", "bytes", "s", "ms", *_SUFFIXES}


def written(value: float, unit: str, decimals: int | None = None) -> str:
    """The number with its unit."""
    if not math.isfinite(value):
        return "?"
    if unit == "percentunit":
        return _plain(value * 100, decimals) + "%"
    if unit in {"s", "ms"}:
        return _scaled(value if unit == "s" else value / 1000, _SECONDS, decimals, " s")
    if unit == "bytes":
        return _scaled(value, _BYTES, decimals, " B")
    if unit in _SUFFIXES:
        return _plain(value, decimals) + _SUFFIXES[unit]
    return _scaled(value, _THOUSANDS, decimals, "") if unit == "short" else _plain(value, decimals)


def _scaled(value: float, scales: tuple[tuple[float, str], ...], decimals: int | None, small: str) -> str:
    for scale, name in scales:
        if abs(value) >= scale:
            return _plain(value / scale, decimals) + name
    return _plain(value, decimals) + small


def _plain(value: float, decimals: int | None) -> str:
    if decimals is not None:
        return f"{value:,.{decimals}f}"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))  # three digits that count
    text = f"{value:,.{min(digits, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def marks(low: float, high: float, unit: str, *, log: bool = False, count: int = 4) -> list[float]:
    """Round values from `low` to `high` at which an axis is labelled."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        return [10.0**power for power in powers]
    rough = (high - low) / count or 1
    base = 1024.0 ** math.floor(math.log(rough, 1024)) if unit == "bytes" and rough >= 1 else 1.0
    power = 10.0 ** math.floor(math.log10(rough / base))
    size = next(step for step, _ in pairwise((*_STEPS, math.inf)) if step * power * base >= rough) * power * base
    return [number * size for number in range(math.ceil(low / size), math.floor(high / size) + 1)]
