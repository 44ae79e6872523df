"""All pods are replaced, one after the other, as `convoy restart pods` does.

Hypothesis: the next one drains only when the last one's successor serves, so no request fails.
"""

from __future__ import annotations

import time

from services import pods_wanted
from services.ops.drills.drill import Drill
from services.ops.state import OpsError


class Replaced(Drill):
    """A restart of all pods with the settings that they have. Ends by itself."""

    name = "replaced"

    def inject(self) -> None:
        """Asks the runner for it."""
        self._id = str(time.time_ns())
        pods_wanted.write_restart(self.state_dir, pods_wanted.Restart(id=self._id))
        self.tell_runner()

    def has_struck(self) -> bool:
        """All are new. Raises `OpsError` if one could not be replaced."""
        roll = self.known().roll
        if roll is None or roll.id != self._id or not roll.is_over:
            return False
        if roll.state == "failed":
            raise OpsError(f"{self.name}: the pods were not replaced: {roll.reason}")
        return True
