"""The gate: takes a request's ask and answers at once with a slot, a place in the queue, or a refusal that says when to return."""

from __future__ import annotations

import asyncio
import time
from itertools import takewhile
from typing import TYPE_CHECKING

from msgspec import structs

from services.engine.admission.fair_queue import FairQueue
from services.engine.admission.forecast import Forecast
from services.engine.admission.standing import StandingQueue
from services.engine.admission.ticket import Ticket
from services.openai.errors import AllPromised, DeadlineUnreachable, Draining, QueueFull, QueueTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from services.engine.admission.limits import Limits
    from services.engine.admission.ticket import Ask
    from services.openai.errors import ApiError

# What is promised for so many times the longest wait leaves no room with another pod either, whatever chance gave that one.
_SURELY = 2.0
# Playing a longer queue through would take longer than it is worth.
_MAX_PLAYED = 512


class Admission:
    """Slots and the queue before them; one event loop only."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is for tests."""
        self.limits = limits
        self.forecast = Forecast()
        self.queue = FairQueue()
        self._standing = StandingQueue(limits.timeout_seconds)
        self._clock = clock
        self._running: set[Ticket] = set()
        self._total_tokens = 0
        self._draining = False

    @property
    def running(self) -> int:
        """Slots in use."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self.queue)

    def bound(self, max_total_tokens: int, *, by_expected: bool = False) -> None:
        """Says how many tokens the engine's cache holds, once that is known, and by which of a request's; 0 is no bound."""
        self.limits = structs.replace(self.limits, max_total_tokens=max_total_tokens, by_expected=by_expected)

    async def acquire(self, ask: Ask, promised_until: float = 0.0) -> Ticket:
        """Takes a slot, waiting in line for one; the caller owes one `release`. Until `promised_until` the slots are others'.

        Raises `QueueFull`, `DeadlineUnreachable` (both with the seconds until a slot would be free, if that is known) or `Draining`.
        """
        if self._draining:
            raise Draining("This pod is stopping and takes no new request")
        now = self._clock()
        ticket = Ticket(ask, now, self.forecast.seconds(ask), self.forecast.num_tokens(ask))
        if not self.queue and self._fits(ticket):
            return self._begin(ticket)
        if self.limits.capacity is not None:
            self._make_room(ticket, self.limits.capacity)
        self.queue.push(ticket)
        self._foresee(ticket)
        if self.limits.capacity is not None:
            self._check_in_time(ticket, promised_until)
        await self._wait(ticket)
        return ticket

    def took(self, ticket: Ticket, num_tokens: int, now: float) -> None:
        """A run got tokens."""
        if ticket.first_token_at:
            self.forecast.pace.tokens(now, num_tokens)
        else:
            ticket.first_token_at = now
            self.forecast.pace.first_token(now, ticket.ask.num_prompt_tokens, now - ticket.started_at)
            self.forecast.pace.tokens(now, num_tokens - 1)
        ticket.num_tokens += num_tokens

    def release(self, ticket: Ticket, finish_reason: str | None) -> None:
        """Gives a slot back; who is next has it at once. `finish_reason` is None for a run that did not come to its end."""
        self._running.discard(ticket)
        self._total_tokens -= ticket.num_held_tokens
        now = self._clock()
        if ticket.first_token_at:
            self.forecast.pace.end(now)
            self._standing.held(now - ticket.started_at)
        if finish_reason is not None and not ticket.ask.is_exact:
            self.forecast.lengths.add(ticket.ask.client, ticket.num_tokens, is_whole=finish_reason == "stop")
        self._pass_on()

    def drain(self) -> None:
        """From now on everything new, and everything that waits, is refused with `Draining`, to be tried on another pod."""
        self._draining = True
        while self.queue:
            self._turn_away(self.queue.take_first(), Draining("This pod is stopping; the request had not begun"))

    def wait_seconds(self, now: float) -> float | None:
        """How long the next one to come at the end of the line would wait; None while nobody can know."""
        if self.running < self.limits.slots and not self.queue:
            return 0.0
        return self._wait_behind(self.queue.in_order(), now)

    def seconds_until(self, at: float) -> float:
        """From now to a time; 0 if that is over."""
        return max(0.0, at - self._clock())

    def soonest_end(self, client: str, now: float) -> float | None:
        """Seconds until one of a client's running requests should end; None if it has none here, or nobody can know."""
        if not self.forecast.pace.is_known:
            return None
        return min((self.forecast.seconds_left(ticket, now) for ticket in self._running if ticket.ask.client == client), default=None)

    def _fits(self, ticket: Ticket) -> bool:
        if self.running >= self.limits.slots:
            return False
        most = self.limits.max_total_tokens
        # What is larger than all there is runs alone: the engine has the last word on it.
        return not most or not self._running or self._total_tokens + self._to_hold(ticket) <= most

    def _to_hold(self, ticket: Ticket) -> int:
        if not self.limits.by_expected:
            return ticket.max_total_tokens
        return min(ticket.max_total_tokens, ticket.ask.num_prompt_tokens + self.forecast.likely_tokens(ticket.ask))

    def _begin(self, ticket: Ticket) -> Ticket:
        ticket.started_at = self._clock()
        self._running.add(ticket)
        ticket.num_held_tokens = self._to_hold(ticket)
        self._total_tokens += ticket.num_held_tokens
        return ticket

    def _make_room(self, ticket: Ticket, capacity: int) -> None:
        """Raises `QueueFull` unless there is room in the queue, which may be made by somebody with less right to it."""
        queue, size, most = self.queue, ticket.ask.num_bytes, self.limits.max_queue_bytes
        while queue and (len(queue) >= capacity or queue.num_bytes + size > most):
            victim = queue.least_worthy(ticket)
            if victim is None:
                break
            queue.remove(victim)
            self._turn_away(victim, self._queue_full())
        if len(queue) >= capacity or (queue and queue.num_bytes + size > most):
            raise self._queue_full()

    def _queue_full(self) -> QueueFull:
        what = f"{self.running} requests run and {len(self.queue)} wait, which is all this pod takes"
        if len(self.queue) < (self.limits.capacity or 0):
            what = f"{len(self.queue)} requests with {self.queue.num_bytes} bytes wait, which is all the memory this pod gives them"
        return QueueFull(f"{what}.", retry_after_seconds=self.wait_seconds(self._clock()))

    def _foresee(self, ticket: Ticket) -> None:
        """Its place and its wait, as it comes."""
        now = self._clock()
        if len(self.queue) > _MAX_PLAYED:
            before, ticket.place = [], len(self.queue)
        else:
            before = list(takewhile(lambda other: other is not ticket, self.queue.in_order()))
            ticket.place = len(before) + 1
        ticket.predicted_wait = self._wait_behind(before, now)

    def _check_in_time(self, ticket: Ticket, promised_until: float) -> None:
        """Takes it out of the queue and raises `DeadlineUnreachable` if it would wait, or take, too long."""
        wait, now = ticket.predicted_wait, self._clock()
        if wait is None:
            return
        timeout, is_back = self.limits.timeout_seconds, ticket.ask.is_back
        turn = wait if is_back else max(wait, promised_until - now)
        # Who was told to return has waited already.
        limit = timeout if is_back else self._standing.max_wait(turn, now)
        # Whatever was promised, the engine shall not run dry: nobody knows that those will come who were told to.
        if len(self.queue) == 1:
            turn = wait
        seconds = ticket.predicted_seconds or 0.0
        left = None if ticket.ask.deadline is None else ticket.ask.deadline - now
        if turn <= limit and (left is None or turn + seconds <= left):
            return
        self.queue.remove(ticket)
        why = f"QUEUE_TIMEOUT_SECONDS={timeout:g}" if limit == timeout else f"while so many come, nobody waits longer than {limit:.1f} s"
        if turn <= limit and left is not None:
            why = f"the answer would take {seconds:.1f} s and its deadline is in {left:.1f} s"
        # Past saturation most are refused: another pod, to which the slots are promised, too, would refuse them for the same price again.
        kind = AllPromised if turn > max(wait, limit * _SURELY) else DeadlineUnreachable
        raise kind(f"A slot would be free in {turn:.1f} s: {why}.", retry_after_seconds=wait)

    def _wait_behind(self, before: Iterable[Ticket], now: float) -> float | None:
        if len(self.queue) > _MAX_PLAYED:
            return self.forecast.rough_wait(self._running, self.queue.seconds, self.limits.slots, now)
        return self.forecast.wait(self._running, before, self.limits.slots, now)

    async def _wait(self, ticket: Ticket) -> None:
        loop = asyncio.get_running_loop()
        turn = ticket.turn = loop.create_future()
        timer = None if self.limits.capacity is None else loop.call_later(self.limits.timeout_seconds, self._time_out, ticket)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                turn.exception()  # a refusal that nobody will read
            if ticket in self._running:
                self.release(ticket, None)  # the slot came at the very moment the client left
            elif ticket in self.queue:
                self.queue.remove(ticket)
                self._pass_on()  # it may have been what the others waited for
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _time_out(self, ticket: Ticket) -> None:
        if ticket not in self.queue:
            return
        self.queue.remove(ticket)
        message = f"No slot became free within QUEUE_TIMEOUT_SECONDS={self.limits.timeout_seconds:g}."
        self._turn_away(ticket, QueueTimeout(message, retry_after_seconds=self.wait_seconds(self._clock())))
        self._pass_on()

    def _pass_on(self) -> None:
        """Gives free slots to those whose turn it is; one that can no longer be in time is told so instead of taking a slot in vain."""
        while (ticket := self.queue.first()) is not None and self._fits(ticket):
            self.queue.take_first()
            assert ticket.turn is not None
            if ticket.turn.done():
                continue
            now, deadline = self._clock(), ticket.ask.deadline
            seconds = self.forecast.seconds(ticket.ask) or 0.0
            if deadline is not None and now + seconds > deadline and self.limits.capacity is not None:
                message = f"The answer would take {seconds:.1f} s and the deadline is in {deadline - now:.1f} s."
                self._turn_away(ticket, DeadlineUnreachable(message, retry_after_seconds=self.wait_seconds(now)))
                continue
            self._begin(ticket).turn.set_result(None)  # type: ignore[union-attr]

    @staticmethod
    def _turn_away(ticket: Ticket, error: ApiError) -> None:
        if ticket.turn is not None and not ticket.turn.done():
            ticket.turn.set_exception(error)
