"""The doctor is green on a well stack, red on exactly the right line for a policy that is broken, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest

from services.ops import processes
from services.ops.doctor.checks import CHECKS
from services.ops.doctor.examination import examine
from services.ops.doctor.target import Target
from services.settings import EdgeSettings, load
from tests.running import RunningPods, running_pods
from tests.stack.convoy import Convoy, convoy
from tests.stack.convoy import until as until_now
from tests.stack.harness import ROOT, running_edge
from tests.stack.knowing import clients_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from services.ops.doctor.rows import Report
    from tests.stack.harness import RunningEdge

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]

# Short, so that an examination is: the first-token limit and an ejection are waited for.
QUICK: dict[str, Any] = {"first_token_timeout_seconds": 3, "keepalive_seconds": 2, "queue_timeout_seconds": 1, "ejection_seconds": 1}
CLIENTS = clients_file({"alice": "role: user"})
NEEDS_KEYS = {"keys", "client limit"}
NEEDS_TOOLS = {"trace", "metrics"}

# What is broken: the row that must be red, a file of Envoy's, its text, and what stands there instead.
BROKEN = {
    "retry without 500 and 503": ("retry", "routes.yaml", "retriable_status_codes: [429, 500, 502, 503]", "retriable_status_codes: [429]"),
    "no ejection": (
        "ejection",
        "clusters.yaml",
        "enforcing_consecutive_gateway_failure: 100",
        "enforcing_consecutive_gateway_failure: 0\n    enforcing_consecutive_5xx: 0",
    ),
    "forged clients believed": ("identity", "envoy.yaml", "{prefix: x-client-}", "{prefix: x-nobody-}"),
    "limit not enforced": (
        "client limit",
        "limit_client.yaml",
        "filter_enforced: {default_value: {numerator: 100}",
        "filter_enforced: {default_value: {numerator: 0}",
    ),
    "deadline ignored": ("deadline", "lua/request.lua", "x-envoy-upstream-rq-timeout-ms", "x-nothing"),
    "breaker tells a dead engine": ("circuit breaker", "envoy.yaml", "endsWith('{overflow}')", "endsWith('{nothing}')"),
    "no body limit": (
        "body limit",
        "envoy.yaml",
        "envoy.extensions.filters.http.body_size_limit.v3.BodySizeLimit\n              max_request_bytes: 8388608",
        "envoy.extensions.filters.http.cors.v3.Cors",
    ),
    "admin that can be stopped": ("admin", "envoy.yaml", "'/(ready|", "'/(quitquitquit|ready|"),
    "an inner path of the pods": ("inner paths", "routes.yaml", r"/docs(/.*)?|", r"/docs(/.*)?|/drain|"),
    "a stream that is not tried again": (
        "first token",
        "routes.yaml",
        "first token\n          retry_on: connect-failure,refused-stream,reset-before-request,reset,retriable-status-codes",
        "first token\n          retry_on: connect-failure,refused-stream,reset-before-request,retriable-status-codes",
    ),
    "keys open to all": ("keys", "lua/keys.lua", 'return refuse(handle, "This API key has expired.")', "client.expires = nil"),
}


@pytest.fixture(scope="module")
def pods() -> Iterator[RunningPods]:
    """The pods in service."""
    with running_pods(2) as running:
        yield running


async def _examine(edge: RunningEdge) -> Report:
    target = Target(edge.url, load(EdgeSettings, edge.env), edge.env, edge.processes["envoy"].pid)
    report = await examine(target, lambda _: None)
    assert not target.guests_file.exists()
    return report


def _failed(report: Report) -> dict[str, str]:
    return {row.name: row.seen for row in report.rows if row.mark == "failed"}


@pytest.mark.parametrize("what", BROKEN)
async def test_what_is_broken_is_red_and_nothing_else(pods: RunningPods, what: str) -> None:
    """One red row, which says the cure; no pod in service broke for it."""
    row, name, old, new = BROKEN[what]
    edit: Mapping[str, Mapping[str, str]] = {name: {old: new}}
    source = f"file:{pods.state_dir / 'pods.json'}"
    async with running_edge(pod_source=source, clients=CLIENTS, edit=edit, **QUICK) as edge:
        await edge.until_healthy("engine-1", "engine-2")
        report = await _examine(edge)
        assert set(_failed(report)) == {row}, _failed(report)
        assert all(found.cure for found in report.rows if found.mark == "failed")
        assert not report.healthy
        assert await edge.healthy_pods() == {"engine-1", "engine-2"}


async def test_a_program_changed_after_the_start_is_drift(pods: RunningPods, tmp_path: Path) -> None:
    """Envoy reads lua/request.lua at its start only: that another one lies there now is told."""
    folder = tmp_path / "envoy"
    shutil.copytree(ROOT / "envoy", folder)
    async with running_edge(pod_source=f"file:{pods.state_dir / 'pods.json'}", envoy_dir=folder, **QUICK) as edge:
        await edge.until_healthy("engine-1", "engine-2")
        with (folder / "lua" / "request.lua").open("a") as file:
            file.write("-- one more line\n")
        assert set(_failed(await _examine(edge))) == {"bootstrap"}


async def test_without_an_edge_the_lane_is_what_fails(pods: RunningPods) -> None:
    """What needs the lane is not tried, and what does not is still examined."""
    async with running_edge(pod_source=f"file:{pods.state_dir / 'pods.json'}", **QUICK) as edge:
        await edge.until_healthy("engine-1", "engine-2")
        await edge.stop("edge")
        report = await _examine(edge)
        rows = {row.name: row for row in report.rows}
        assert set(_failed(report)) == {"lane"}
        assert rows["retry"].mark == "not in use"
        assert rows["admin"].mark == "ok"


@pytest.fixture(scope="module")
def stack() -> Iterator[Convoy]:
    """`convoy up` with fake pods and a clients file that a test writes."""
    settings = {name.upper(): str(value) for name, value in QUICK.items()}
    with convoy(**settings) as running:
        running.env["CLIENTS_FILE"] = str(running.state_dir / "clients.yaml")
        assert running.run("up", "--detach").returncode == 0
        yield running


def _run(stack: Convoy) -> dict[str, dict[str, Any]]:
    done = stack.run("doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["healthy"]
    return {row["name"]: row for row in told["rows"]}


def test_a_well_stack_is_green_with_and_without_keys(stack: Convoy) -> None:
    """`convoy doctor` ends with 0; what is not in use is said to be so; the table has all rows."""
    rows = _run(stack)
    assert {name for name, row in rows.items() if row["mark"] == "not in use"} == NEEDS_KEYS | NEEDS_TOOLS
    assert set(rows) == {"lane", *(check.name for check in CHECKS)}
    num_processes = len(processes.find(stack.state_dir))
    (stack.state_dir / "clients.yaml").write_text(CLIENTS)
    until_now(lambda: json.loads((stack.state_dir / "edge.json").read_text())["num_clients"] == 1, lambda: "clients taken over")
    rows = _run(stack)
    assert {name for name, row in rows.items() if row["mark"] == "not in use"} == NEEDS_TOOLS
    assert len(processes.find(stack.state_dir)) == num_processes
    shown = stack.run("doctor", "--quick").stdout
    assert "3 pods of its own" in shown
    assert "✓  retry" in shown


def test_a_doctor_that_is_stopped_takes_everything_away(stack: Convoy) -> None:
    """SIGTERM in the middle: neither pods nor guests are left."""
    num_processes = len(processes.find(stack.state_dir))
    doctor = stack.spawn("doctor", "--json")
    guests = stack.state_dir / "doctor.json"
    until_now(guests.exists, lambda: "guests written")
    assert guests.stat().st_mode & 0o777 == 0o600
    doctor.send_signal(signal.SIGTERM)
    doctor.wait(30)
    assert not guests.exists()
    until_now(lambda: len(processes.find(stack.state_dir)) == num_processes, lambda: "the doctor's pods are gone")


def test_where_nothing_runs_it_says_so() -> None:
    """Exit code 3."""
    with convoy() as stopped:
        assert stopped.run("doctor").returncode == 3


def test_the_docs_tell_every_check() -> None:
    """docs/doctor.md has a row for each."""
    text = (ROOT / "docs" / "doctor.md").read_text()
    assert all(f"| {name} |" in text for name in ("lane", *(check.name for check in CHECKS)))
