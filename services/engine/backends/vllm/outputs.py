"""From vLLM's engine core to the mailboxes: one pass over the step's outputs, in place of vLLM's own way from step to request.

That way makes an object, a queue entry and a detokenization per token and request, which for many short steps costs more than the model.
Here a token is put where its reader looks, and text is made by `TokenGenerator`, for all engines alike.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vllm.v1.engine import FinishReason as VllmReason
from vllm.v1.engine.output_processor import OutputProcessor, OutputProcessorOutput

from services.engine.backends.rate import Rate
from services.engine.generation import BackendError
from services.engine.mailbox import Mailbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from services.engine.generation import FinishReason

_REASONS: dict[VllmReason, FinishReason] = {VllmReason.STOP: "stop", VllmReason.LENGTH: "length"}
_PAUSE_SECONDS = 1.0
_NOTHING = OutputProcessorOutput(request_outputs=[], reqs_to_abort=[])


class Outputs(OutputProcessor):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """Stands in AsyncLLM where its OutputProcessor stood; on the event loop only."""

    def __init__(self, on_death: Callable[[str], None]) -> None:
        """`on_death` is told, once, that the engine core is gone, and why."""
        super().__init__(None, log_stats=False)
        self._on_death = on_death
        self._mailboxes: dict[str, Mailbox] = {}
        self._last_step = 0.0
        self.rate = Rate()
        """Tokens a second while there is work."""

    def mailbox(self, request_id: str) -> Mailbox:
        """That of a request that was added, by vLLM's own id of it; it exists until the last event was put."""
        return self._mailboxes[request_id]

    # What AsyncLLM calls, by vLLM's names and signatures.

    def add_request(self, request: Any, *_: Any, **__: Any) -> None:
        """Opens a mailbox."""
        self._mailboxes[request.request_id] = Mailbox()

    def process_outputs(self, engine_core_outputs: list[Any], *_: Any, **__: Any) -> OutputProcessorOutput:
        """Puts a step's tokens into the mailboxes."""
        broken, num_tokens = [], 0
        for output in engine_core_outputs:
            mailbox = self._mailboxes.get(output.request_id)
            if mailbox is None:  # cancelled meanwhile
                continue
            if output.num_nans_in_logits:
                mailbox.fail(BackendError("the model gave logits that are not finite"))
                del self._mailboxes[output.request_id]
                broken.append(output.request_id)
                continue
            token_ids = output.new_token_ids
            num_tokens += len(token_ids)
            num_cached = output.prefill_stats.num_cached_tokens if output.prefill_stats is not None else 0
            if output.finish_reason is None:
                mailbox.put(token_ids, num_tokens=len(token_ids), num_cached_tokens=num_cached)
                continue
            del self._mailboxes[output.request_id]
            reason = _REASONS.get(output.finish_reason)
            if reason is None:
                mailbox.fail(BackendError(f"vLLM ended the request: {output.finish_reason}"))
                continue
            sent = token_ids[:-1] if reason == "stop" else token_ids  # the stop token is counted, not sent on
            mailbox.put(sent, num_tokens=len(token_ids), finish_reason=reason, num_cached_tokens=num_cached)
        self._count(num_tokens)
        return OutputProcessorOutput(request_outputs=[], reqs_to_abort=broken) if broken else _NOTHING

    def _count(self, num_tokens: int) -> None:
        """A step's tokens; steps follow each other while there is work, so a longer pause is none."""
        now = time.monotonic()
        if now - self._last_step < _PAUSE_SECONDS:
            self.rate.step(num_tokens, now - self._last_step)
        self._last_step = now

    def abort_requests(self, request_ids: Iterable[str], internal: bool) -> list[str]:  # noqa: ARG002 - vLLM's signature
        """Closes the mailboxes of these; who of them is still in the engine core."""
        return [request_id for request_id in request_ids if self._mailboxes.pop(request_id, None) is not None]

    def propagate_error(self, e: Exception) -> None:
        """Fails everything: the engine core is gone, or what it sends cannot be read, which comes to the same."""
        mailboxes, self._mailboxes = self._mailboxes, {}
        reason = f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else 'no reason given'}"
        for mailbox in mailboxes.values():
            mailbox.fail(BackendError(f"the engine core is gone: {reason}"))
        self._on_death(reason)

    def get_num_unfinished_requests(self) -> int:
        """Requests in the engine core."""
        return len(self._mailboxes)

    def has_request(self, request_id: str) -> bool:
        """Whether it is in the engine core."""
        return request_id in self._mailboxes

    def has_unfinished_requests(self) -> bool:
        """Whether any is."""
        return bool(self._mailboxes)

    def get_num_queued_tokens(self) -> int:
        """Convoy's own admission decides who may enter."""
        return 0
