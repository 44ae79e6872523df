"""One request while it is generated: its tokens, what of them lies in the cache, and how it ends."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from services.engine.mailbox import Mailbox

if TYPE_CHECKING:
    from services.engine.generation import FinishReason, GenerationRequest


class Sequence:
    """Owned by the engine's thread, but for `is_cancelled`, which the event loop sets, and the mailbox, which it alone touches."""

    __slots__ = (
        "is_begun",
        "is_cancelled",
        "mailbox",
        "max_new",
        "num_cached",
        "num_new",
        "num_reused",
        "request",
        "stop_ids",
        "tokens",
        "waits_since",
    )

    def __init__(self, request: GenerationRequest, context_tokens: int) -> None:
        """`context_tokens` bounds prompt and answer together, whatever `max_tokens` says."""
        self.request = request
        self.mailbox = Mailbox()
        self.is_begun = self.is_cancelled = False
        self.tokens = [*request.prompt_token_ids, *request.resume_token_ids]
        self.num_cached = self.num_reused = 0
        self.waits_since = time.monotonic()
        self.num_new = len(request.resume_token_ids)
        self.max_new = min(request.max_tokens, context_tokens - len(request.prompt_token_ids))
        self.stop_ids = sorted(request.stop_token_ids)

    @property
    def max_total(self) -> int:
        """Tokens that it comes to at most."""
        return len(self.request.prompt_token_ids) + self.max_new

    @property
    def is_fresh(self) -> bool:
        """Whether nothing of its prompt was read yet, but for what was known before."""
        return self.num_cached == self.num_reused

    @property
    def num_to_prefill(self) -> int:
        """Tokens to compute before the first draw; the last one is left to the step that draws."""
        return len(self.tokens) - 1 - self.num_cached

    @property
    def must_go_on(self) -> bool:
        """Whether stop tokens may not be drawn yet."""
        return self.num_new < self.request.min_tokens and bool(self.stop_ids)

    def accept(self, token: int) -> FinishReason | None:
        """Takes the drawn token and says whether it was the last."""
        self.tokens.append(token)
        self.num_cached += 1
        self.num_new += 1
        if token in self.request.stop_token_ids:
            return "stop"
        return "length" if self.num_new >= self.max_new else None
