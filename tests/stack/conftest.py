"""What several files of stack tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.stack.convoy import convoy
from tests.stack.observed import Observed, need_tools

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def stack() -> Iterator[Observed]:
    """Two fake pods of one slot and no queue each: a request takes 0.2 s to its first token and 10 ms for each of the others."""
    need_tools()
    pods = {"MAX_CONCURRENT_REQUESTS": "1", "QUEUE_CAPACITY": "0", "FAKE_FIRST_TOKEN_MS": "200", "FAKE_TOKENS_PER_SECOND": "50"}
    with convoy() as running:
        yield Observed(running.state_dir, **pods)
