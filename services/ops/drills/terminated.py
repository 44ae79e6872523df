"""A pod is told to stop.

Hypothesis: it drains. What it holds is answered to the end, what comes later goes to the others, and the runner starts it again: no
request fails.
"""

from __future__ import annotations

import os
import signal

from services.ops.drills.drill import Drill


class Terminated(Drill):
    """SIGTERM. Ends by itself."""

    name = "terminated"

    def inject(self) -> None:
        """Tells it."""
        os.kill(self.before.pid, signal.SIGTERM)

    def has_struck(self) -> bool:
        """It ended."""
        return self.is_dead
