"""Where the edge learns which pods there are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from services import pods_file
from services.edge.pods import Endpoint
from services.edge.sources import DnsSource, FileSource, listed, resolve, source_of
from services.pods_file import PodEntry, PodsFile
from services.settings import EdgeSettings, RunnerSettings, SettingsError, load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Network:
    """A name's addresses and who answers at each; both change as a test wants."""

    def __init__(self, **names: str | None) -> None:
        """`a_1` is the address a.1."""
        self.names = {key.replace("_", "."): name for key, name in names.items()}
        self.is_broken = False

    async def resolve(self, host: str, port: int) -> list[str]:
        """Every address, once more than needed; raises if the resolver is broken."""
        assert (host, port) == ("engine", 8001)
        if self.is_broken:
            raise OSError("no such name")
        return [*self.names, *self.names]

    async def ask(self, _: aiohttp.ClientSession, host: str, port: int) -> str | None:
        """Who is there."""
        assert port == 8001
        return self.names[host]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client that no test here really uses."""
    async with aiohttp.ClientSession() as client:
        yield client


def _source(network: Network, *known: Endpoint) -> DnsSource:
    return DnsSource("engine", 8001, known, resolve=network.resolve, ask=network.ask)


def _named(entries: tuple[PodEntry, ...] | None) -> dict[str, str] | None:
    return None if entries is None else {entry.host: entry.name for entry in entries}


async def test_each_address_is_a_pod_by_its_own_name(session: aiohttp.ClientSession) -> None:
    """Two addresses are two pods; a second look that finds the same is no news."""
    source = _source(Network(a_1="engine-x", a_2="engine-y"))
    assert source.news() is None
    await source.look(session)
    assert _named(source.news()) == {"a.1": "engine-x", "a.2": "engine-y"}
    await source.look(session)
    assert source.news() is None


async def test_pods_come_go_and_change(session: aiohttp.ClientSession) -> None:
    """A new address is added, one that left is gone, another container at an old address is another pod."""
    network = Network(a_1="engine-x", a_2="engine-y")
    source = _source(network)
    await source.look(session)
    first = source.news()
    network.names = {"a.2": "engine-z", "a.3": "engine-x"}
    await source.look(session)
    second = source.news()
    assert _named(second) == {"a.2": "engine-z", "a.3": "engine-x"}
    assert first
    assert second
    assert all(later.started_at >= first[0].started_at for later in second)


async def test_silence_changes_nothing(session: aiohttp.ClientSession) -> None:
    """Who has said its name keeps it while silent, who has not is not listed yet, and a broken resolver takes nobody away."""
    network = Network(a_1="engine-x", a_2=None)
    source = _source(network)
    await source.look(session)
    assert _named(source.news()) == {"a.1": "engine-x"}
    network.names["a.1"] = None
    await source.look(session)
    network.is_broken = True
    await source.look(session)
    assert source.news() is None


async def test_a_new_edge_keeps_silent_pods_of_the_one_before(session: aiohttp.ClientSession) -> None:
    """What was written last names pods that do not answer now, if they still have their address."""
    known = [Endpoint(f"engine-{host}", host, 8001, "HEALTHY", f"engine-{host}") for host in ("a.1", "a.9")]
    source = _source(Network(a_1=None), *known)
    await source.look(session)
    assert _named(source.news()) == {"a.1": "engine-a.1"}


async def test_a_real_name_has_addresses() -> None:
    """The system's resolver is what is asked."""
    assert await resolve("localhost", 1) == ["127.0.0.1"]


def test_the_setting_chooses(tmp_path: Path) -> None:
    """`dns:`, `file:` and nothing; what is neither is refused by name."""
    assert source_of(EdgeSettings(pod_source="dns:engine:8001"), ()).title == "engine:8001"
    assert source_of(EdgeSettings(pod_source="file:/a"), ()).title == "/a"
    assert source_of(EdgeSettings(state_dir=str(tmp_path)), ()).title == str(tmp_path / pods_file.NAME)
    with pytest.raises(SettingsError, match="POD_SOURCE=dns:engine"):
        load(EdgeSettings, {"POD_SOURCE": "dns:engine"})


def test_a_file_is_news_once(tmp_path: Path) -> None:
    """Missing is no news, changed is, broken is an error once."""
    path = tmp_path / "pods.json"
    source = FileSource(path)
    assert source.news() is None
    pods_file.write(path, PodsFile((PodEntry(name="engine-1", host="a", port=1),)))
    assert _named(source.news()) == {"a": "engine-1"}
    assert source.news() is None
    path.write_text("{")
    with pytest.raises(ValueError, match=r"pods\.json"):
        source.news()
    assert source.news() is None


def test_before_the_start_a_name_leaves_everybody_listed() -> None:
    """Envoy may be serving them already; the edge finds out who is gone."""
    pods = [Endpoint("engine-x", "a", 8001, "HEALTHY", "engine-x")]
    assert listed(pods, EdgeSettings(pod_source="dns:engine:8001")) == pods
    assert listed(pods, EdgeSettings(pod_source=f"file:{Path('/nowhere')}")) == []


def test_one_name_is_one_pods() -> None:
    """POD_NAME with several pods is refused."""
    assert load(RunnerSettings, {"POD_NAME": "engine-1f", "PODS": "1"}).pod_name == "engine-1f"
    with pytest.raises(SettingsError, match=r"POD_NAME=engine-1f .* PODS=2"):
        load(RunnerSettings, {"POD_NAME": "engine-1f"})
