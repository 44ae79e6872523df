"""When requests are meant to begin: stages of a load, and the moments that follow from them and a seed. Pure; no clock."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

Arrivals = Literal["poisson", "steady"]


class Stage(Struct, frozen=True):
    """`rate` requests a second for so many seconds; with `end_rate` the rate moves there in a straight line."""

    rate: float
    seconds: float
    name: str = ""
    end_rate: float | None = None
    arrivals: Arrivals = "poisson"

    def __post_init__(self) -> None:
        """Refuses what no load can be."""
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds must be above 0, got {self.seconds:g}")
        for name, value in (("rate", self.rate), ("end_rate", self.end_rate or 0)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {value:g}")

    @property
    def label(self) -> str:
        """What to call it: its name, or its rate."""
        upto = "" if self.end_rate is None else f" to {self.end_rate:g}"
        return self.name or f"{self.rate:g}{upto}/s"

    @property
    def expected(self) -> float:
        """How many requests begin in it, on average."""
        return self.seconds * (self.rate + (self.rate if self.end_rate is None else self.end_rate)) / 2

    def moment(self, count: float) -> float:
        """Seconds into the stage at which `count` requests have begun, on average."""
        slope = 0.0 if self.end_rate is None else (self.end_rate - self.rate) / self.seconds
        # Of slope/2·t² + rate·t = count, in the form that also holds for a slope of 0.
        return 2 * count / (self.rate + math.sqrt(max(0.0, self.rate**2 + 2 * slope * count))) if count else 0.0


def poisson(rate: float, seconds: float, name: str = "") -> Stage:
    """Requests that know nothing of each other, as many users are."""
    return Stage(rate, seconds, name)


def steady(rate: float, seconds: float, name: str = "") -> Stage:
    """One request after the other at equal distances."""
    return Stage(rate, seconds, name, arrivals="steady")


def steps(rates: Sequence[float], seconds: float, arrivals: Arrivals = "poisson") -> list[Stage]:
    """One rate after the other, each for so many seconds."""
    return [Stage(rate, seconds, arrivals=arrivals) for rate in rates]


def spike(base: float, peak: float, seconds: tuple[float, float, float], arrivals: Arrivals = "poisson") -> list[Stage]:
    """A base rate, a sudden peak, and the base rate again, for so many seconds each."""
    rates = (("before", base), ("spike", peak), ("after", base))
    return [Stage(rate, lasting, name, arrivals=arrivals) for (name, rate), lasting in zip(rates, seconds, strict=True)]


def ramp(first: float, last: float, seconds: float, arrivals: Arrivals = "poisson") -> list[Stage]:
    """A rate that grows, or falls, in a straight line."""
    return [Stage(first, seconds, "ramp", end_rate=last, arrivals=arrivals)]


def moments(stages: Sequence[Stage], random_of: random.Random) -> Iterator[tuple[int, float]]:
    """Stage and intended begin, in seconds from the load's begin, of every request in order."""
    began = 0.0
    for number, stage in enumerate(stages):
        for count in _counts(stage, random_of):
            yield number, began + stage.moment(count)
        began += stage.seconds


def _counts(stage: Stage, random_of: random.Random) -> Iterator[float]:
    # In the time scale in which one request is expected per unit, so that one way serves every shape.
    count = random_of.expovariate(1) if stage.arrivals == "poisson" else 0.0
    while count < stage.expected:
        yield count
        count += random_of.expovariate(1) if stage.arrivals == "poisson" else 1.0
