"""Where the edge learns which pods there are: the runner's pods file, or a name that has an address for each pod."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from services import pods_file
from services.edge.asking import ask_name
from services.pods_file import PodEntry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    import aiohttp

    from services.edge.pods import Endpoint
    from services.settings import EdgeSettings

    Resolve = Callable[[str, int], Awaitable[Iterable[str]]]
    Ask = Callable[[aiohttp.ClientSession, str, int], Awaitable[str | None]]

# A container's address appears and goes within a second of it; asking Docker's resolver once a second costs nothing.
_RESOLVE_INTERVAL = 1.0


class Source(Protocol):
    """What lists the pods."""

    title: str
    """For the log."""
    num_crash_loops: int
    """Pods that die again and again, as far as it knows."""

    def news(self) -> tuple[PodEntry, ...] | None:
        """All pods, if they are others than at the last call; raises `ValueError` if what lists them is broken."""

    async def follow(self, session: aiohttp.ClientSession) -> None:
        """Does what cannot be done at once, beside the edge's own work, until it is cancelled."""


class FileSource:
    """The pods file, read again when it is another one."""

    def __init__(self, path: Path) -> None:
        """Need not exist yet."""
        self.title = str(path)
        self.num_crash_loops = 0
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._pods: tuple[PodEntry, ...] | None = None

    def news(self) -> tuple[PodEntry, ...] | None:
        """The file's pods; a missing file is no news, nor are other things that the runner writes there."""
        try:
            stat = self._path.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen == self._seen:
                return None
            self._seen = seen
            before, self._pods = self._pods, None  # after a broken file all is news
            told = pods_file.read(self._path)
        except FileNotFoundError:
            return None
        self.num_crash_loops = len(told.loops)
        self._pods = told.pods
        return None if told.pods == before else told.pods

    async def follow(self, session: aiohttp.ClientSession) -> None:
        """Nothing: a look at a file is quick."""


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name; raises `OSError` if there is none or nobody knows."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, family=socket.AF_INET)
    return [str(address[0]) for *_, address in found]


class DnsSource:
    """A pod at each address of a name, called what it calls itself.

    Who has said nothing yet is not listed; who falls silent keeps its name. A name that does not resolve changes nothing: the resolver may
    be what is broken, and of pods that are gone Envoy's own checks know.
    """

    def __init__(self, host: str, port: int, known: Iterable[Endpoint] = (), *, resolve: Resolve = resolve, ask: Ask = ask_name) -> None:
        """`known`: what an earlier edge wrote, for pods that are silent now."""
        self.title = f"{host}:{port}"
        self.num_crash_loops = 0
        self._host, self._port, self._resolve, self._ask = host, port, resolve, ask
        self._entries = {pod.host: PodEntry(name=pod.name, host=pod.host, port=port) for pod in known if pod.port == port}
        self._listed: tuple[PodEntry, ...] | None = None
        self._taken: tuple[PodEntry, ...] | None = None

    def news(self) -> tuple[PodEntry, ...] | None:
        """The pods as they were found, if they changed."""
        if self._listed == self._taken:
            return None
        self._taken = self._listed
        return self._taken

    async def follow(self, session: aiohttp.ClientSession) -> None:
        """Looks once a second."""
        while True:
            await self.look(session)
            await asyncio.sleep(_RESOLVE_INTERVAL)

    async def look(self, session: aiohttp.ClientSession) -> None:
        """Resolves the name and asks everybody there who it is; one that hangs delays this look, not the edge."""
        try:
            addresses = sorted(set(await self._resolve(self._host, self._port)))
        except OSError:
            return
        names = await asyncio.gather(*(self._ask(session, address, self._port) for address in addresses))
        self._entries = {address: entry for address, name in zip(addresses, names, strict=True) if (entry := self._entry(address, name))}
        self._listed = tuple(self._entries.values())

    def _entry(self, address: str, name: str | None) -> PodEntry | None:
        known = self._entries.get(address)
        if name is None or (known and known.name == name):
            return known
        return PodEntry(name=name, host=address, port=self._port, started_at=time.time())


def source_of(settings: EdgeSettings, known: Iterable[Endpoint]) -> Source:
    """What POD_SOURCE says."""
    kind, _, rest = settings.pod_source.partition(":")
    if kind == "dns":
        host, _, port = rest.rpartition(":")
        return DnsSource(host, int(port), known)
    return FileSource(Path(rest or Path(settings.state_dir) / pods_file.NAME))


def listed(endpoints: Iterable[Endpoint], settings: EdgeSettings) -> list[Endpoint]:
    """Those whose pods a file still names. A name is not asked here: Envoy may be serving those that it had."""
    source = source_of(settings, ())
    if isinstance(source, DnsSource):
        return list(endpoints)
    named = {(pod.name, pod.host, pod.port) for pod in source.news() or ()}
    return [pod for pod in endpoints if (pod.name, pod.host, pod.port) in named]
