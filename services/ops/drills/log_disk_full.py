"""A pod cannot write its log: the disk is full.

Hypothesis: records are lost, requests are not. When there is room again, the log goes on and says how many records are missing.
"""

from __future__ import annotations

import resource

from services.ops.drills.limits import Limited


class LogDiskFull(Limited):
    """RLIMIT_FSIZE at nothing: every write to a file fails, as on a full disk (the kernel says "File too large" instead of "No space")."""

    name = "log-disk-full"
    limits = {resource.RLIMIT_FSIZE: 0}  # noqa: RUF012 - declared as of the class
    seconds = 3.0
