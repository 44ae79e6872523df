"""What a step brings a row, and what it is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.engine.generation import BackendError

if TYPE_CHECKING:
    from services.engine.backends.transformers.sequence import Sequence
    from services.engine.generation import FinishReason


@dataclass(frozen=True, slots=True)
class Drawn:
    """One row's outcome of a step: a token, the last one or not; or the error that ended it."""

    sequence: Sequence
    token: int = 0
    finish_reason: FinishReason | None = None
    error: BackendError | None = None
    num_cached_tokens: int = 0

    def deliver(self) -> None:
        """Puts it into the mailbox; on the event loop. A stop token is counted, not sent on."""
        if self.error is not None:
            self.sequence.mailbox.fail(self.error)
            return
        sent = [] if self.finish_reason == "stop" else [self.token]
        self.sequence.mailbox.put(sent, num_tokens=1, finish_reason=self.finish_reason, num_cached_tokens=self.num_cached_tokens)


def engine_error(error: Exception) -> BackendError:
    """What a request is told when the model broke on it."""
    text = str(error).strip().split("\n", 1)[0]
    return BackendError(f"the engine broke: {type(error).__name__}: {text}")
