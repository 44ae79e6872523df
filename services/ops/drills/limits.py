"""A drill that lowers resource limits of a pod's process: the soft ones, which their owner may raise again without privileges."""

from __future__ import annotations

import resource
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from services.ops.drills.drill import Drill
from services.ops.state import OpsError

if TYPE_CHECKING:
    from pathlib import Path


class Limited(Drill):
    """The limits are in force from `inject` to `heal`, or until the process ends: the next one has its parent's limits."""

    limits: ClassVar[dict[int, int]]
    """The limits in bytes, by their numbers in `resource`."""
    seconds: ClassVar[float]

    def __init__(self, state_dir: Path, pod: str) -> None:
        """Notes what limits the process has."""
        super().__init__(state_dir, pod)
        if not hasattr(resource, "prlimit"):
            raise OpsError(f"the drill {self.name} needs prlimit(2), which only Linux has")
        self._had = {limit: resource.prlimit(self.before.pid, limit) for limit in self.limits}

    def inject(self) -> None:
        """Lowers the limits."""
        for limit, soft in self.limits.items():
            hard = self._had[limit][1]
            resource.prlimit(self.before.pid, limit, (soft, hard))

    def has_struck(self) -> bool:
        """The pod lived with them for long enough, or died of them."""
        return self.lasted >= self.seconds or self.is_dead

    def heal(self) -> None:
        """Gives back what it had."""
        for limit, had in self._had.items():
            with suppress(ProcessLookupError):
                if not self.is_dead:
                    resource.prlimit(self.before.pid, limit, had)
