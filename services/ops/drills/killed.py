"""A pod dies at once, as by a crash of the process.

Hypothesis: what has no first token yet is asked again elsewhere and does not fail. Streams of this pod that have begun break, and their
clients can see it; streams of other pods do not. The runner starts the pod again.
"""

from __future__ import annotations

import os
import signal

from services.ops.drills.drill import Drill


class Killed(Drill):
    """SIGKILL. Ends by itself."""

    name = "killed"

    def inject(self) -> None:
        """Kills it."""
        os.kill(self.before.pid, signal.SIGKILL)

    def has_struck(self) -> bool:
        """It is gone."""
        return self.is_dead
