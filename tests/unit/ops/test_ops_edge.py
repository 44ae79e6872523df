"""What `convoy edge`, `convoy reload` and `convoy status` make of what edge and Envoy say."""

from __future__ import annotations

import io
import json
import time
from typing import TYPE_CHECKING

import pytest
from rich.console import Console, Group

from services.clients.reading import parse
from services.files import write_atomically
from services.ops import begun, edge_facts, edge_told, reload
from services.ops.begun import Begun
from services.ops.edge import EdgeView
from services.ops.edge_told import EdgeTold, PodSaid
from services.ops.edge_view import MAX_CLIENTS, parts
from services.ops.envoy_record import EnvoyRecord
from services.ops.plan import read_plan
from services.ops.state import StateDir

if TYPE_CHECKING:
    from pathlib import Path

HASH = "97c24b4b" + "0" * 56
HOST = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}}, "hostname": "engine-1", "stats": []}


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    """A state folder with an Envoy that has run for a minute."""
    EnvoyRecord(pid=1, started_at=time.time() - 60).write(tmp_path)
    return StateDir(tmp_path)


def tell(state: StateDir, **told: object) -> None:
    """Writes edge.json."""
    write_atomically(state.path / "edge.json", json.dumps(told).encode())


def shown(view: EdgeView, *, is_all: bool = False) -> str:
    """`convoy edge` as it is printed."""
    console = Console(file=io.StringIO(), width=250)
    console.print(Group(*parts(view, is_all=is_all)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def view(num_clients: int) -> EdgeView:
    """A view with nothing but clients."""
    lines = "".join(f"- {{name: c{n}, keys: ['{n:064x}']}}\n" for n in range(num_clients))
    clients = edge_facts.clients(parse(f"clients:\n{lines}", "clients.yaml"), 0)
    return EdgeView("http://x", True, [], [], clients, {}, [], [], {}, {})


def test_an_envoy_that_does_not_run_what_is_written_is_a_problem_after_a_while(state: StateDir) -> None:
    """Not at once, for it takes a moment; and not while Envoy itself has just begun."""
    tell(state, written={"routes": "4"}, envoy={"runs": {"routes": "3"}, "refused": {}}, errors=["clients.yaml:3: no"])
    (state.path / "xds").mkdir()
    (state.path / "xds" / "routes.json").write_text("{}")
    now = time.time()
    assert edge_told.problems(state, now) == ["clients.yaml:3: no"]
    found = edge_told.problems(state, now + 12)
    assert found == ["clients.yaml:3: no", "Envoy runs version 3 of routes; version 4 was written 12 s ago, see `convoy logs envoy`"]
    EnvoyRecord(pid=2, started_at=now + 10).write(state.path)
    assert edge_told.problems(state, now + 12) == ["clients.yaml:3: no"]


def test_what_envoy_refused_is_told_once(state: StateDir) -> None:
    """The edge's own word is the better one."""
    text = "Envoy refused version 4 of routes; see envoy.log"
    tell(state, written={"routes": "4"}, envoy={"runs": {"routes": "3"}}, errors=[text])
    assert edge_told.problems(state, time.time()) == [text]


def test_what_the_stack_began_with_is_kept_for_its_owner_alone(state: StateDir) -> None:
    """Every value but the secret ones, and which of them the shell gave."""
    environ = {"STATE_DIR": str(state.path), "PODS": "3", "CONVOY_API_KEY": "sk-convoy-secret"}
    begun.write(state, begun.of(read_plan(environ, state.path)))
    assert (state.path / "begun.json").stat().st_mode & 0o777 == 0o600
    assert "sk-convoy-secret" not in (state.path / "begun.json").read_text()
    found = begun.read(state)
    assert found.settings["PODS"] == 3
    assert set(found.of_the_shell) == {"STATE_DIR", "PODS", "CONVOY_API_KEY"}


def test_a_live_setting_counts_only_when_the_edge_says_so(state: StateDir) -> None:
    """Until the edge has it and Envoy runs it, it is not called in force."""
    begun.write(state, Begun({"EJECT_AFTER_ERRORS": 5}))
    wanted = Begun({"EJECT_AFTER_ERRORS": 7})

    def found() -> list[tuple[object, object, str]]:
        report = reload.look(state, wanted, state.path / ".env")
        return [(item.running, item.wanted, item.applies) for item in report.settings]

    tell(state, settings={"EJECT_AFTER_ERRORS": 5}, written={"clusters": "1"}, envoy={"runs": {"clusters": "1"}})
    assert found() == [(5, 7, reload.PENDING)]
    tell(state, settings={"EJECT_AFTER_ERRORS": 7}, written={"clusters": "2"}, envoy={"runs": {"clusters": "1"}})
    assert found() == [(5, 7, reload.PENDING)]
    tell(state, settings={"EJECT_AFTER_ERRORS": 7}, written={"clusters": "2"}, envoy={"runs": {"clusters": "2"}})
    assert found() == [(5, 7, reload.IN_FORCE)]


def test_an_error_about_earlier_bytes_is_no_refusal_of_these(state: StateDir) -> None:
    """A file that was repaired a moment ago is waited for, not called refused."""
    env_file = state.path / ".env"
    env_file.write_text("")
    tell(state, inputs={str(env_file): {"sha256": "", "judged": "other bytes", "error": ".env:1: no"}}, envoy={})
    report = reload.look(state, Begun(), env_file)
    assert [(file.path, file.state) for file in report.files] == [(str(env_file), reload.PENDING)]
    assert not report.is_settled


@pytest.mark.parametrize(
    ("health", "word"),
    [
        ({"eds_health_status": "HEALTHY"}, "healthy"),
        ({"eds_health_status": "HEALTHY", "failed_outlier_check": True}, "ejected"),
        ({"eds_health_status": "HEALTHY", "failed_active_health_check": True}, "fails checks"),
        ({"eds_health_status": "DRAINING"}, "draining"),
    ],
)
def test_a_pod_is_what_it_says_and_what_envoy_makes_of_it(health: dict[str, object], word: str) -> None:
    """A pod can call itself ready while Envoy has ejected it."""
    told = EdgeTold(pods=[PodSaid("engine-1", "127.0.0.1", 1, "ready")])
    clusters = {"cluster_statuses": [{"name": "engine", "host_statuses": [{**HOST, "health_status": health}]}]}
    assert [(pod.state, pod.envoy) for pod in edge_facts.pods(told, clusters)] == [("ready", word)]
    assert [pod.envoy for pod in edge_facts.pods(told, {})] == ["unknown to it"]
    assert [pod.envoy for pod in edge_facts.pods(told, None)] == ["?"]


def test_routes_of_the_doctor_show_no_token() -> None:
    """The lane's token opens it, so it is nobody's to see."""
    match = {
        "safe_regex": {"regex": "/chat|/v1/completions"},
        "headers": [{"name": "x-doctor-lane", "string_match": {"exact": "secret-token-of-lane"}}],
    }
    route = {"name": "doctor_generation_json", "match": match, "route": {"cluster": "engine-doctor", "timeout": "600s"}}
    found = edge_facts.routes({"resources": [{"virtual_hosts": [{"routes": [route]}]}]}, has_clients=True)
    assert [(item.path, item.who, item.limits) for item in found] == [
        ("/chat", "the doctor", "whole 600s"),
        ("/v1/completions", "the doctor", "whole 600s"),
    ]
    assert "secret" not in str(found)


def test_many_clients_are_counted() -> None:
    """Twenty are shown, unless all are asked for."""
    text = shown(view(MAX_CLIENTS + 5))
    assert "c19 " in text
    assert "c20 " not in text
    assert "and 5 more (--all)" in text
    assert "c24 " in shown(view(MAX_CLIENTS + 5), is_all=True)


def test_clients_tell_how_many_of_their_keys_have_expired() -> None:
    """Name, class with its limits, number of keys: never a hash."""
    file = parse(f"clients:\n- {{name: a, keys: [{{sha256: {HASH}, expires: 2020-01-01}}]}}\n", "clients.yaml")
    [client] = edge_facts.clients(file, time.time())
    assert (client.num_keys, client.num_expired_keys, client.requests_per_minute, client.expires) == (1, 1, 300, "never")
    assert HASH[:8] not in str(client)
