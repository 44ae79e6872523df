"""A user of Locust's that understands streams: asks one kind of request again and again, and hands on what became of each."""

from __future__ import annotations

import itertools
import random
import time
from typing import TYPE_CHECKING, Any

import gevent
from locust import FastHttpUser, task
from locust.contrib.fasthttp import FAILURE_EXCEPTIONS

from services.ops.load.seen import OK, Seen
from services.ops.load.sse import EventReader

if TYPE_CHECKING:
    from argparse import Namespace

    from locust.contrib.fasthttp import ResponseContextManager
    from locust.env import Environment

    from services.ops.load.kinds import Kind

OUTCOME = "outcome"
"""Under this name an outcome travels in the context of Locust's own request event."""
# Locust's client hands out one event after the other; those that came in one read are microseconds apart, and are no gap.
_ONE_READ_SECONDS = 2e-4
_numbers = itertools.count()


class Asker(FastHttpUser):
    """Waits between its requests as `--shape` says: a drawn time for `poisson`, otherwise so that it asks at equal distances."""

    abstract = True

    def __init__(self, environment: Environment) -> None:
        """Options are there only now."""
        super().__init__(environment)
        options = environment.parsed_options
        assert options is not None
        self._options = options
        self._random = random.Random(f"{options.seed} {next(_numbers)}")
        self._asked_at = 0.0
        self.kind = self.kind_of(options)
        key = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **key}

    @staticmethod
    def kind_of(options: Namespace) -> Kind:
        """What this user asks."""
        raise NotImplementedError

    def on_start(self) -> None:
        """Users that appear together do not ask together."""
        gevent.sleep(self._random.uniform(0, self._options.wait_seconds))

    def wait_time(self) -> float:
        """Seconds until the next request."""
        mean: float = self._options.wait_seconds
        if self._options.shape == "poisson":
            return self._random.expovariate(1 / mean)
        return max(0.0, self._asked_at + mean - time.perf_counter())

    @task
    def ask(self) -> None:
        """One request."""
        kind = self.kind
        seen = Seen(time.perf_counter())
        self._asked_at = seen.sent
        sent: dict[str, Any] = {"data": self._random.choice(kind.bodies), "headers": self._headers}
        with self.client.post(kind.path, name=kind.name, stream=True, catch_response=True, **sent) as response:
            try:
                _read(response, kind, seen)
            except FAILURE_EXCEPTIONS:
                seen.broke("connection_broken")
            ended = time.perf_counter()
            outcome = seen.outcome(kind, 0, seen.sent, 0, ended)
            response.request_meta["response_time"] = (ended - seen.sent) * 1000
            response.request_meta["context"][OUTCOME] = outcome
            if outcome.is_whole or outcome.has_left:
                response.success()
            else:
                response.failure(outcome.result)


def _read(response: ResponseContextManager, kind: Kind, seen: Seen) -> None:
    if not response.status_code:
        is_refused = isinstance(getattr(response, "error", None), ConnectionRefusedError)
        seen.broke("connect_failed" if is_refused else "connection_broken")
        return
    headers = {str(name).lower(): str(value) for name, value in (response.headers or {}).items()}
    seen.began(time.perf_counter(), response.status_code, headers)
    if kind.is_stream and response.status_code == OK:
        _read_stream(response, kind, seen)
    else:
        seen.judge(response.content or b"")


def _read_stream(response: ResponseContextManager, kind: Kind, seen: Seen) -> None:
    reader, last = EventReader(), 0.0
    try:
        while event := response.stream.readline(b"\n\n"):
            if not reader.feed(event):
                continue
            now = time.perf_counter()
            if now - last > _ONE_READ_SECONDS:
                seen.text_came(now)
            last = now
            if kind.leave_after_tokens and reader.texts >= kind.leave_after_tokens:
                seen.has_left = True
                response.stream.release()  # not read to its end, so the connection is closed
                return
    finally:
        seen.ended_as(reader)
