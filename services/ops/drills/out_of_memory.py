"""A pod gets no more memory.

Hypothesis: it dies alone, or goes on with what it has; others do not notice. What it cannot answer is asked again elsewhere, so that
nothing without a first token fails.
"""

from __future__ import annotations

import resource

from services.ops.drills.limits import Limited


class OutOfMemory(Limited):
    """RLIMIT_AS, as by `ulimit -v`, at what the pod has: every further mapping fails."""

    name = "out-of-memory"
    limit = resource.RLIMIT_AS
    seconds = 3.0

    def wanted(self) -> int:
        """What it has mapped now."""
        return int(self._process.memory_info().vms)
