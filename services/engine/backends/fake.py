"""A deterministic engine that computes nothing, for tests and load only; its answers say so.

Like a real engine it works in steps: each step gives every running request its next token. Time to first token and tokens per second are
settings; how it fails says `faults.py`. A token is up to four bytes of UTF-8, so characters do get cut between tokens.
"""

from __future__ import annotations

import asyncio
import functools
import struct
from itertools import chain, cycle, islice, repeat
from typing import TYPE_CHECKING, Any

from services.engine.backends.faults import Faults
from services.engine.generation import WARM_UP_ID, BackendError, BackendUnavailable, Load, ModelInfo
from services.engine.mailbox import Mailbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from services.engine.backends.faults import Fault
    from services.engine.generation import GenerationRequest, TokenEvent
    from services.settings import EngineSettings

_BYTES_PER_TOKEN = 4
_FULL = _BYTES_PER_TOKEN << 32
_END_OF_TEXT = 0
_CONTEXT_TOKENS = 4096
_MIN_STEP_SECONDS = 0.001

_ANSWER = (
    "I am the fake engine of Convoy: I compute nothing and only count words 🚚. ",
    "This sentence is here to be long, naïve and full of straße, café and 漢字. ",
    "A test or a load generator asked for me; a real model would answer you. ",
)


class FakeTokenizer:
    """Four bytes of UTF-8 a token; reversible."""

    eos_token_ids = frozenset({_END_OF_TEXT})

    def encode(self, text: str) -> list[int]:
        """Token id: the bytes, little-endian, below their number."""
        data = text.encode()
        whole = len(data) // _BYTES_PER_TOKEN
        token_ids = [_FULL | piece for piece in struct.unpack_from(f"<{whole}I", data)]
        rest = data[whole * _BYTES_PER_TOKEN :]
        return [*token_ids, len(rest) << 32 | int.from_bytes(rest, "little")] if rest else token_ids

    def encode_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """One line a message."""
        return self.encode("".join(f"{message['role']}: {message.get('content') or ''}\n" for message in messages) + "assistant:")

    def decode(self, token_ids: Sequence[int]) -> str:
        """The bytes as text; incomplete characters become U+FFFD."""
        return b"".join(map(_bytes_of, token_ids)).decode(errors="replace")


@functools.lru_cache(maxsize=4096)
def _bytes_of(token_id: int) -> bytes:
    return (token_id & 0xFFFF_FFFF).to_bytes(_BYTES_PER_TOKEN, "little")[: token_id >> 32]


class FakeBackend:
    """Answers every request with the same sentences, at a set pace."""

    def __init__(self, settings: EngineSettings, pod: str) -> None:
        """Reads the `fake_*` settings; faults are looked up by the name of the `pod`."""
        self._settings = settings
        self._faults = Faults(settings.fake_faults_file, pod, settings.fake_failure)
        self._rows: dict[Mailbox, _Row] = {}
        self._wake = asyncio.Event()
        self._steps: asyncio.Task[None] | None = None
        self._death: asyncio.Future[str]

    async def start(self, progress: Callable[[str], None]) -> ModelInfo:
        """Pretends to load for `fake_load_seconds`."""
        progress("pretending to load")
        await asyncio.sleep(self._settings.fake_load_seconds)
        if self._settings.fake_failure == "load":
            raise BackendError("FAKE_FAILURE=load: the fake engine was told not to load")
        self._faults.now()  # a file with a mistake shall be told of now
        self._death = asyncio.get_running_loop().create_future()
        self._steps = asyncio.create_task(self._run())
        self._steps.add_done_callback(self._bury)
        return ModelInfo(self._settings.max_model_len or _CONTEXT_TOKENS, 5 << 32, "none", "none")

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenEvent]:
        """The fixed sentences as tokens, until `max_tokens` or, unless the stop token is ignored, their end."""
        is_warm_up = request.request_id == WARM_UP_ID  # part of loading, whose pace and failure have settings of their own
        row = _Row(request, asyncio.get_running_loop().time(), 0 if is_warm_up else self._settings.fake_first_token_ms / 1000)
        row.is_safe = is_warm_up and self._settings.fake_failure != "warm_up"
        fault = row.struck_by(self._faults.now())
        if self._death.done():
            raise BackendUnavailable(self._death.result())
        if fault is not None:
            fault.strike_at_start()
        mailbox = Mailbox()
        self._rows[mailbox] = row
        self._wake.set()
        try:
            while True:
                event = await mailbox.get()
                yield event
                if event.finish_reason:
                    return
        finally:
            self._rows.pop(mailbox, None)

    def load(self) -> Load:
        """Rows and their pace."""
        return Load(running=len(self._rows), tokens_per_second=len(self._rows) * self._settings.fake_tokens_per_second)

    async def died(self) -> str:
        """When a step broke by more than a request's error."""
        return await asyncio.shield(self._death)

    async def stop(self) -> None:
        """Ends running requests with an error."""
        if self._steps:
            self._steps.cancel()
        self._fail(BackendError("The engine was stopped"))

    def _fail(self, error: BackendError) -> None:
        for mailbox in list(self._rows):
            mailbox.fail(error)

    def _bury(self, steps: asyncio.Task[None]) -> None:
        if steps.cancelled():
            return
        error = steps.exception()
        reason = f"{type(error).__name__}: {error}"
        self._fail(BackendError(reason))
        self._death.set_result(reason)

    async def _run(self) -> None:
        """One step after the other, on a clock of its own; sleeps while no row runs."""
        loop = asyncio.get_running_loop()
        step_seconds = max(_MIN_STEP_SECONDS, 1 / self._settings.fake_tokens_per_second)
        while True:
            if not self._rows:
                self._wake.clear()
                await self._wake.wait()
            await asyncio.sleep(step_seconds)
            now, fault = loop.time(), self._faults.now()
            for mailbox, row in list(self._rows.items()):
                self._step(mailbox, row, now, row.struck_by(fault))

    def _step(self, mailbox: Mailbox, row: _Row, now: float, fault: Fault | None) -> None:
        pace = fault.pace if fault is not None else 1.0
        row.age(now, pace)
        count = row.due(self._settings.fake_tokens_per_second) if pace else 0
        if fault is not None:
            try:
                fault.strike_running(row.num_tokens, is_due=count > 0)
            except BackendError as error:
                mailbox.fail(error)
                self._rows.pop(mailbox, None)
                return
        if count < 1:
            return
        tokens = row.take(count)
        reason = row.finish_reason
        mailbox.put(tokens, num_tokens=len(tokens) + (reason == "stop"), finish_reason=reason)
        if reason:
            self._rows.pop(mailbox, None)


class _Row:
    """One request on its way; its clock stands still, or goes slowly, while a fault says so."""

    def __init__(self, request: GenerationRequest, now: float, first_token_seconds: float) -> None:
        self.num_tokens = len(request.resume_token_ids)
        self.finish_reason: Any = None
        self.is_safe = False
        """Whether no fault strikes it."""
        self._prompt_token_ids = request.prompt_token_ids
        self._looked_at = now
        self._seconds = -first_token_seconds
        """Since the first token was due."""
        self._begun = self.num_tokens
        self._max_tokens = request.max_tokens
        ends = _END_OF_TEXT in request.stop_token_ids
        self._tokens: Iterator[int] = islice(_answer(endless=not ends, at_least=request.min_tokens), self.num_tokens, None)

    @functools.cached_property
    def prompt(self) -> str:
        """The prompt's text."""
        return FakeTokenizer().decode(self._prompt_token_ids)

    def struck_by(self, fault: Fault | None) -> Fault | None:
        """The fault, if it is one that strikes this request."""
        if fault is None or self.is_safe:
            return None
        return fault if not fault.prompt or fault.prompt in self.prompt else None

    def age(self, now: float, pace: float) -> None:
        """Moves its clock on, at `pace` times the speed of ours."""
        self._seconds += (now - self._looked_at) * pace
        self._looked_at = now

    def due(self, tokens_per_second: float) -> int:
        """Tokens that should have come by now and have not."""
        if self._seconds < 0:
            return 0
        return 1 + int(self._seconds * tokens_per_second) - (self.num_tokens - self._begun)

    def take(self, count: int) -> list[int]:
        """The next tokens; sets `finish_reason` with the last."""
        wanted = min(count, self._max_tokens - self.num_tokens)
        tokens = list(islice(self._tokens, wanted))
        self.num_tokens += len(tokens)
        if len(tokens) < wanted:
            self.finish_reason = "stop"
        elif self.num_tokens == self._max_tokens:
            self.finish_reason = "length"
        return tokens


def _answer(*, endless: bool, at_least: int) -> Iterator[int]:
    """All sentences in turn, as often as it takes to reach `at_least` tokens, or for ever."""
    times = -(-max(at_least, 1) // len(_ANSWER_TOKENS))
    return cycle(_ANSWER_TOKENS) if endless else chain.from_iterable(repeat(_ANSWER_TOKENS, times))


_ANSWER_TOKENS = tuple(token for sentence in _ANSWER for token in FakeTokenizer().encode(sentence))
