"""What clients see of each fault of `services/ops/drills`: the table that the drills' tests judge."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.measuring import Section
from services.ops.drills.table import DRILLS
from tests.drills.counted import PER_SECOND, drilled
from tests.drills.fleet import PATIENT, SLOW_START, SMALL, fleet

if TYPE_CHECKING:
    from collections.abc import Mapping

WHAT: Mapping[str, tuple[str, Mapping[str, Any], tuple[str, ...]]] = {
    "replaced": ("all replaced, one after the other", {}, ("hi",)),
    "scaled": ("2 → 4 → 1 → 2 pods", {}, ("hi",)),
    "terminated": ("SIGTERM", {}, ("hi",)),
    "killed": ("SIGKILL", {}, ("hi",)),
    "frozen": ("SIGSTOP for 10 s", PATIENT, ("hi",)),
    "out-of-memory": ("no memory for 3 s, prompts of 1 MB", SMALL, ("hi", "hi", "hi", "many words " * 90_000)),
    "log-disk-full": ("logs may not grow for 3 s", {}, ("hi",)),
}
"""Of each drill: what is done, the pods' settings, and the prompts meanwhile."""


async def measure() -> list[Section]:
    """Each drill once."""
    section = Section(
        "Faults under load",
        [
            "drill",
            "what is done to one of two pods, or all",
            "requests",
            "failed",
            "streams broken",
            "asked twice",
            "longest",
            "serves again after",
        ],
        notes=f"Fake engine behind Envoy and edge, {PER_SECOND:g} requests/s throughout, JSON and streams, counted by their clients. "
        "Failed: no first token and no whole answer. Broken: a stream that had begun, whose client sees that it broke. None looked whole "
        "that was not. Hypothesis and cure of each: [drills](drills.md).",
    )
    for name, (fault, settings, prompts) in WHAT.items():
        with tempfile.TemporaryDirectory() as folder:
            async with fleet(2, **{**SLOW_START, **settings, "pod_log_dir": Path(folder)}) as started:
                counted = await drilled(started, DRILLS[name](started.pods.state_dir, "engine-1"), prompts)
        broken = len(counted.lost) - len(counted.failed)
        twice = sum(one.attempts > 1 for one in counted.outcomes)
        longest = max(one.latency for one in counted.outcomes)
        counts = [len(counted.outcomes), len(counted.failed), broken, twice]
        section.rows.append([name, fault, *[str(count) for count in counts], f"{longest:.1f} s", f"{counted.seconds:.1f} s"])
    return [section]
