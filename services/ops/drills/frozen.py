"""A pod stands still for ten seconds and goes on, as on a machine that swaps or was paused.

Hypothesis: while that is less than HANG_TIMEOUT_SECONDS, nothing is lost. Streams without a first token move to another pod after
FIRST_TOKEN_TIMEOUT_SECONDS; JSON answers and streams that have begun wait until the pod goes on; nobody is answered twice.
"""

from __future__ import annotations

import os
import signal

from services.ops.drills.drill import Drill

SECONDS = 10.0


class Frozen(Drill):
    """SIGSTOP, and SIGCONT after `SECONDS`."""

    name = "frozen"

    def inject(self) -> None:
        """Stops it where it stands."""
        os.kill(self.before.pid, signal.SIGSTOP)

    def has_struck(self) -> bool:
        """It stood still for long enough, or was killed for it."""
        return self.lasted >= SECONDS or self.is_dead

    def heal(self) -> None:
        """Lets it go on."""
        if not self.is_dead:
            os.kill(self.before.pid, signal.SIGCONT)
