"""A pod gets no more memory.

Hypothesis: it dies alone, or goes on with what it has; one that hangs is killed after HANG_TIMEOUT_SECONDS. What it cannot answer is asked
again elsewhere, so that nothing without a first token fails.
"""

from __future__ import annotations

import resource

from services.ops.drills.limits import Limited


class OutOfMemory(Limited):
    """Every further mapping fails, as by `ulimit -v` at less than it has, and no reserved one may become memory (`ulimit -d`)."""

    name = "out-of-memory"
    limits = {resource.RLIMIT_AS: 0, resource.RLIMIT_DATA: 0}  # noqa: RUF012 - declared as of the class
    seconds = 3.0
