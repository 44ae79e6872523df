"""A drill that lowers a resource limit of a pod's process: the soft one, which its owner may raise again without privileges."""

from __future__ import annotations

import resource
from abc import abstractmethod
from contextlib import suppress
from typing import ClassVar

from services.ops.drills.drill import Drill
from services.ops.state import OpsError


class Limited(Drill):
    """The limit is in force from `inject` to `heal`, or until the process ends: the next one has its parent's limits."""

    limit: ClassVar[int]
    seconds: ClassVar[float]

    @abstractmethod
    def wanted(self) -> int:
        """The limit in bytes."""

    def inject(self) -> None:
        """Lowers the limit."""
        self._set(self.wanted())

    def has_struck(self) -> bool:
        """The pod lived with it for long enough, or died of it."""
        return self.lasted >= self.seconds or self.is_dead

    def heal(self) -> None:
        """Raises the limit to the hard one."""
        with suppress(ProcessLookupError):
            self._set(resource.RLIM_INFINITY)

    def _set(self, soft: int) -> None:
        if not hasattr(resource, "prlimit"):
            raise OpsError(f"the drill {self.name} needs prlimit(2), which only Linux has")
        hard = resource.prlimit(self.before.pid, self.limit)[1]
        may_be = soft if hard == resource.RLIM_INFINITY else hard if soft == resource.RLIM_INFINITY else min(soft, hard)
        resource.prlimit(self.before.pid, self.limit, (may_be, hard))
