from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from services.ops import processes
from tests.running import until
from tests.stack.convoy import convoy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.stack.convoy import Convoy

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def stack() -> Iterator[tuple[Convoy, str]]:
    """A stack started with `up --detach`, and what that printed."""
    with convoy() as running:
        started = running.run("up", "--detach")
        assert started.returncode == 0, started.stderr
        yield running, started.stdout


def test_a_start_leaves_no_failure_in_the_statistics(stack: tuple[Convoy, str]) -> None:
    """Waiting for the stack to answer costs no 503, which would count against the service as if clients had seen it."""
    running, _ = stack
    log = running.state_dir / "logs" / "access.log"
    until(lambda: log.exists() and log.stat().st_size, lambda: "no access was logged")
    assert {json.loads(line)["status"] for line in log.read_text().splitlines()} == {200}


def test_the_curl_that_up_prints_works_when_pasted(stack: tuple[Convoy, str]) -> None:
    """When `up --detach` returns, everything is ready, and the printed line is answered."""
    _, printed = stack
    line = next(line for line in printed.splitlines() if line.startswith("curl "))
    answer = subprocess.run([*shlex.split(line), "-sS", "-m", "20"], capture_output=True, text=True, check=True)
    assert '"choices"' in answer.stdout


def test_up_shows_what_runs_where(stack: tuple[Convoy, str]) -> None:
    """The table names every part, its state and a log file that exists."""
    running, printed = stack
    rows = {line.split()[0]: line.split() for line in map(str.rstrip, printed.splitlines()) if line.endswith(".log")}
    assert {name: row[1] for name, row in rows.items()} == {
        "envoy": "running",
        "edge": "running",
        "runner": "running",
        "engine-1": "ready",
        "engine-2": "ready",
    }
    assert all(os.path.exists(row[-1]) for row in rows.values())  # noqa: PTH110 - the words as printed
    assert running.run("status").returncode == 0


def test_a_second_up_says_that_it_runs(stack: tuple[Convoy, str]) -> None:
    """Typing `up` again is no mistake: it shows the running stack and changes nothing."""
    running, _ = stack
    before = running.status()
    again = running.run("up")
    assert again.returncode == 0, again.stderr
    assert "runs already" in again.stdout
    assert before["url"] in again.stdout
    assert [row["pid"] for row in running.status()["pods"]] == [row["pid"] for row in before["pods"]]


def test_chat_answers_each_line_of_stdin(stack: tuple[Convoy, str]) -> None:
    """Without a terminal every line is a message; what the server refuses is one line on stderr and exit code 1."""
    running, _ = stack
    good = running.run("chat", "--max-tokens", "6", "--system", "Be brief.", text="hello\n\nand you?\n")
    assert (good.returncode, good.stderr) == (0, "")
    assert len(good.stdout.splitlines()) == 2
    bad = running.run("chat", "--max-tokens", "99999999", text="hello\n")
    assert bad.returncode == 1
    assert re.fullmatch(r"convoy: max_tokens must be .* \(status 400\)\n", bad.stderr)


def test_logs_show_one_or_all(stack: tuple[Convoy, str]) -> None:
    """`logs edge` prints the edge's lines as they are; without a name all logs are merged, each line with its name."""
    running, _ = stack
    assert '"edge.started"' in running.run("logs", "edge").stdout
    merged = running.run("logs", "-n", "500").stdout.splitlines()
    assert {"edge", "envoy", "runner", "engine-1", "engine-2"} <= {line.split("|")[0].strip() for line in merged}
    assert len(running.run("logs", "-n", "3").stdout.splitlines()) == 3
    assert "there are: " in running.run("logs", "egde").stderr


def test_top_shows_each_pod(stack: tuple[Convoy, str]) -> None:
    """Without a terminal once: what answered a request has a time to first token, and rates are known."""
    running, _ = stack
    assert running.answers()
    shown = running.run("top")
    assert (shown.returncode, shown.stderr) == (0, "")
    rows = {line.split()[0]: line for line in shown.stdout.splitlines()}
    assert {"engine-1", "engine-2", "total"} <= rows.keys()
    assert re.match(r"total +\d+(\.\d)? +\d+ +0/128 +\d+/32 +\d+ +~?\S+ ms +0 +0 +\d+ % +\d+ MiB", rows["total"]), rows["total"]


def test_trace_without_jaeger_says_what_is_known(stack: tuple[Convoy, str]) -> None:
    """A request of which no trace was made is one line: what became of it, and why there is no trace; an unknown one is another."""
    running, _ = stack
    url = running.status()["url"]
    subprocess.run(["curl", "-sS", "-m", "20", "-o", os.devnull, f"{url}/v1/models", "-H", "x-request-id: mine-1"], check=True)  # noqa: S607
    until(lambda: "mine-1" in (running.state_dir / "logs" / "access.log").read_text(), lambda: "not in the access log")
    known = running.run("trace", "mine-1", "--no-wait")
    assert known.returncode == 1
    assert re.fullmatch(
        r"convoy: mine-1 was answered \(GET /v1/models, 200, engine-\d, [\d.]+ ms\), but there is no trace of it: "
        r"no Jaeger runs; start without OBSERVABILITY=off\n",
        known.stderr,
    ), known.stderr
    assert running.run("trace", "nobody", "--no-wait").stderr.startswith("convoy: no request nobody is known")


def test_a_killed_pod_comes_back(stack: tuple[Convoy, str]) -> None:
    """A pod that died is there again, and `status` tells why it had to be started."""
    running, _ = stack
    pid = running.row("engine-1")["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: running.row("engine-1").get("restarts", 0) >= 1 and running.ready(), lambda: str(running.status()))
    assert "SIGKILL" in running.row("engine-1")["last_exit"]


@pytest.mark.parametrize("name", ["edge", "envoy", "runner"])
def test_a_killed_program_comes_back(stack: tuple[Convoy, str], name: str) -> None:
    """Runner, edge and Envoy heal after SIGKILL, and `status` tells how often and why each was started again."""
    running, _ = stack
    before = running.row(name)
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: running.row(name).get("restarts") == before["restarts"] + 1, lambda: str(running.status()))
    until(running.ready, lambda: str(running.status()))
    after = running.row(name)
    assert after["last_exit"] == "killed by SIGKILL"
    assert after["pid"] != before["pid"]
    assert running.answers()


def test_a_start_after_the_supervisor_was_killed_begins_afresh(stack: tuple[Convoy, str]) -> None:
    """What a killed supervisor left running is told by `status`, ended and told by `up`; `down` ends a foreground `up` in order."""
    running, _ = stack
    supervisor = processes.supervisor(processes.find(running.state_dir))
    assert supervisor
    supervisor.kill()
    until(lambda: not processes.is_alive(supervisor), lambda: "the supervisor lives")
    gone = running.run("status")
    assert gone.returncode == 1
    assert "the supervisor is gone" in gone.stdout
    with running.spawn("up") as process:
        until(running.ready, lambda: str(process.poll()))
        assert running.answers()
        assert running.run("down").returncode == 0
        printed, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert "stopped a leftover" in printed
    running.assert_nothing_left()


def test_with_nothing_running_the_commands_say_so(stack: tuple[Convoy, str]) -> None:
    """`down` with nothing to stop is no error; `status` has an exit code of its own for it."""
    running, _ = stack
    again = running.run("down")
    assert (again.returncode, again.stdout.strip()) == (0, "nothing runs")
    nothing = running.run("status")
    assert nothing.returncode == 3
    assert "nothing runs" in nothing.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_foreground(number: signal.Signals) -> None:
    """Ctrl-C and a closed terminal end `convoy up` in good order, with nothing left."""
    with convoy(PODS="1") as running, running.spawn("up") as process:
        assert process.stdout
        assert any(line.startswith("curl ") for line in process.stdout)  # it is ready; reads no further
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        running.assert_nothing_left()


def test_a_taken_port_stops_the_start() -> None:
    """One line names the port, its holder and the cure; exit code 1, nothing left."""
    with socket.create_server(("127.0.0.1", 0)) as server, convoy(PORT=str(server.getsockname()[1])) as running:
        cure = r"stop that, or choose another: PORT=\d+ convoy up"
        assert_one_line(running, rf"convoy: PORT=\d+ is taken by .* \(pid {os.getpid()}\); {cure}")


def test_a_model_that_cannot_be_loaded_stops_the_start() -> None:
    """The engine's own reason is the one line; exit code 1, nothing left."""
    with convoy(FAKE_FAILURE="load") as running:
        assert_one_line(running, "convoy: .*FAKE_FAILURE=load.*")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"QUEUE_CAPACITYY": "1"}, r"convoy: QUEUE_CAPACITYY is not a setting of Convoy \(did you mean QUEUE_CAPACITY\?\).*"),
        ({"PODS": "0"}, r"convoy: PODS=0: must be a whole number from 1 to 256"),
        ({"ENGINE": "transformers", "MODEL_NAME": "./nowhere"}, r"convoy: MODEL_NAME=\./nowhere: .* is no folder; .*"),
        ({"HOST": "192.0.2.1"}, r"convoy: HOST=192\.0\.2\.1 cannot be listened on .*"),
        ({"STATE_DIR": "/proc/nowhere"}, r"convoy: STATE_DIR=/proc/nowhere cannot be written .*"),
    ],
)
def test_a_bad_setting_stops_the_start(settings: dict[str, str], line: str) -> None:
    """One line names the setting and what is allowed; exit code 1, nothing left."""
    with convoy() as running:
        assert_one_line(running, line, **settings)


def assert_one_line(running: Convoy, line: str, **settings: str) -> None:
    """`up` fails with exactly this line on stderr."""
    failed = running.run("up", "--detach", **settings)
    assert failed.returncode == 1
    assert re.fullmatch(line + "\n", failed.stderr), failed.stderr
    running.assert_nothing_left()
