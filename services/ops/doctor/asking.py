"""The doctor as a client: few requests, each with a time limit, with keys of its own, all of them counted."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from services.clients.declared import Client
from services.clients.secrets import hash_of, new_key

if TYPE_CHECKING:
    from collections.abc import Mapping

CHAT = "/v1/chat/completions"
_ANSWER_SECONDS = 10.0
_DOCTOR_CLASS = "doctor"
# Each has a bucket of its own (limit_client.yaml, class `doctor`), so that together they may ask as often as the checks need.
_NUM_USERS = 60
_NUM_OPS = 6
_MAX_PATIENCE = 3


class NoAnswerError(Exception):
    """A request that was not answered; the message says why."""


@dataclass(frozen=True)
class Answer:
    """One answer. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: str
    seconds: float

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object; empty if it is none."""
        try:
            found = json.loads(self.body)["error"]
        except (ValueError, KeyError, TypeError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def code(self) -> str:
        """The error's code."""
        return str(self.error.get("code") or "")

    @property
    def pod(self) -> str:
        """Who answered: a pod's name, or `edge`."""
        return self.headers.get("x-convoy-pod", "")

    @property
    def attempts(self) -> int:
        """How many pods were asked."""
        text = self.headers.get("x-convoy-attempts", "")
        return int(text) if text.isdigit() else 0

    def __str__(self) -> str:
        return f"{self.status} {self.code}".strip()


class Keys:
    """The doctor's keys; only their hashes are ever written."""

    def __init__(self) -> None:
        """Makes them."""
        self.of = {f"doctor-{number}": new_key() for number in range(1, _NUM_USERS + 1)}
        self._ops = {f"doctor-ops-{number}": new_key() for number in range(1, _NUM_OPS + 1)}
        self.limited, self.expired, self.unknown = new_key(), new_key(), new_key()
        self._user_turns, self._ops_turns = itertools.cycle(self.of.items()), itertools.cycle(self._ops.values())

    def user(self) -> tuple[str, str]:
        """The next user's name and key."""
        return next(self._user_turns)

    def ops(self) -> str:
        """The next operator's key."""
        return next(self._ops_turns)

    def clients(self) -> tuple[Client, ...]:
        """All of them, for the guests' file."""
        users = [_client(name, key) for name, key in self.of.items()]
        users += [_client(name, key, role="ops") for name, key in self._ops.items()]
        return (*users, _client("doctor-limited", self.limited), _client("doctor-expired", self.expired, expires="2001-01-01"))


def _client(name: str, key: str, **more: Any) -> Client:
    return Client(name=name, keys=(hash_of(key),), limit_class=_DOCTOR_CLASS, **more)


class Asker:
    """Asks Envoy. With a clients file each request has a key, unless it says otherwise."""

    def __init__(self, session: aiohttp.ClientSession, url: str, keys: Keys | None) -> None:
        """`keys`: None where nobody needs one."""
        self.session = session
        self.keys = keys
        self.num_requests = 0
        self._url = url

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of Envoy."""
        parts = urlsplit(self._url)
        return parts.hostname or "", parts.port or 80

    def user(self) -> dict[str, str]:
        """The headers of a caller whom Envoy knows."""
        return bearer(self.keys.user()[1]) if self.keys else {}

    def operator(self) -> dict[str, str]:
        """Those of one who may see /envoy/*."""
        return bearer(self.keys.ops()) if self.keys else {}

    async def get(self, path: str, headers: Mapping[str, str], timeout: float = _ANSWER_SECONDS) -> Answer:
        """A GET, whose path goes out as it is."""
        return await self._patiently("GET", path, headers, None, timeout)

    async def post(self, path: str, body: Any, headers: Mapping[str, str], timeout: float = _ANSWER_SECONDS) -> Answer:
        """A POST of JSON."""
        return await self._patiently("POST", path, {"content-type": "application/json", **headers}, json.dumps(body).encode(), timeout)

    async def _patiently(self, method: str, path: str, headers: Mapping[str, str], data: bytes | None, timeout: float) -> Answer:
        """Asks again later if this address has asked too often: its bucket is shared with everybody on this machine."""
        for _ in range(_MAX_PATIENCE):
            answer = await self._once(method, path, headers, data, timeout)
            if "this address" not in answer.headers.get("x-convoy-limit", "") or answer.status != 429:
                break
            await asyncio.sleep(min(5.0, float(answer.headers.get("retry-after", "1"))))
        return answer

    async def _once(self, method: str, path: str, headers: Mapping[str, str], data: bytes | None, timeout: float) -> Answer:
        self.num_requests += 1
        began = time.monotonic()
        url = URL(self._url + path, encoded=True)
        limit = aiohttp.ClientTimeout(total=timeout)
        try:
            async with self.session.request(method, url, headers=headers, data=data, timeout=limit) as response:
                body = await response.read()
        except asyncio.TimeoutError:
            raise NoAnswerError(f"no answer to {method} {path.partition('?')[0]} within {timeout:g} s") from None
        except aiohttp.ClientError as error:
            raise NoAnswerError(f"{method} {path.partition('?')[0]}: {type(error).__name__} {error}".strip()) from error
        told = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, told, body.decode(errors="replace"), time.monotonic() - began)


class Admin:
    """Envoy's admin on loopback; reads only."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        """`port` on loopback."""
        self._session = session
        self.port = port

    async def get(self, path: str, **params: str) -> tuple[int, str]:
        """Status and text; raises `NoAnswerError`."""
        status, text, _ = await self.whole(path, **params)
        return status, text

    async def whole(self, path: str, **params: str) -> tuple[int, str, str]:
        """Status, text and the Date header."""
        try:
            limit = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
            async with self._session.get(f"http://127.0.0.1:{self.port}{path}", params=params, timeout=limit) as response:
                return response.status, await response.text(), response.headers.get("Date", "")
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise NoAnswerError(f"Envoy's admin at 127.0.0.1:{self.port} does not answer ({type(error).__name__})") from error

    async def stats(self, pattern: str) -> dict[str, Any]:
        """The statistics whose names match."""
        _, text = await self.get("/stats", filter=pattern, format="json")
        return {stat["name"]: stat["value"] for stat in json.loads(text)["stats"] if "name" in stat}

    async def cluster(self, name: str) -> dict[str, Any]:
        """What Envoy says of a cluster and its hosts; empty if it has none of that name."""
        _, text = await self.get("/clusters", format="json")
        found: list[dict[str, Any]] = [item for item in json.loads(text)["cluster_statuses"] if item["name"] == name]
        return found[0] if found else {}


def bearer(key: str) -> dict[str, str]:
    """The header with which a key is shown."""
    return {"authorization": f"Bearer {key}"}
