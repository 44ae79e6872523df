"""All drills by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.ops.drills.frozen import Frozen
from services.ops.drills.killed import Killed
from services.ops.drills.log_disk_full import LogDiskFull
from services.ops.drills.out_of_memory import OutOfMemory
from services.ops.drills.replaced import Replaced
from services.ops.drills.scaled import Scaled
from services.ops.drills.terminated import Terminated

if TYPE_CHECKING:
    from services.ops.drills.drill import Drill

DRILLS: dict[str, type[Drill]] = {drill.name: drill for drill in (Replaced, Scaled, Terminated, Killed, Frozen, OutOfMemory, LogDiskFull)}
