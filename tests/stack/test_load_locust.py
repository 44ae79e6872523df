"""`make load`: Locust in a process of its own, for a few seconds, on a real edge that asks for a key."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import re
import sys
from typing import TYPE_CHECKING

import aiohttp
import msgspec
import pytest

from services.ops.load.report import Report
from services.ops.pod_figures import parse
from tests.drills.fleet import fleet
from tests.stack.harness import ROOT, free_ports, until
from tests.stack.knowing import clients_file, key_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.drills.fleet import Fleet

pytestmark = pytest.mark.stack

LIMITS = "standard: {requests_per_minute: 600000, burst: 10000}"


async def locust(running: Fleet, folder: Path, *words: str, key: str = "") -> tuple[int, str]:
    """Runs `make load`'s command to its end; its exit code and what it said on standard error."""
    command = [sys.executable, "-m", "services.ops.load", "--host", running.edge.url, "--record", str(folder), *words]
    env = {**running.edge.env, "CONVOY_API_KEY": key}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=env, stdout=asyncio.subprocess.DEVNULL, stderr=pipe)
    _, said = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


def written(folder: Path) -> dict[str, str]:
    """The files of the one run that was recorded; none if there was no run."""
    return {path.name: path.read_text() for path in folder.glob("*/*")}


async def requests_of(running: Fleet) -> dict[str, int]:
    """What all pods have counted, by class of status."""
    found: dict[str, int] = {}
    for entry in running.pods.entries:
        async with running.edge.session.get(f"http://127.0.0.1:{entry['port']}/metrics") as response:
            for status, count in parse(await response.text()).requests.items():
                found[status] = found.get(status, 0) + int(count)
    return found


async def test_locust_records_what_the_pods_served(tmp_path: Path) -> None:
    """Stages, kinds and figures in CSV, JSON and a page; clients that leave are 499 in the pods; the key stands nowhere."""
    async with fleet(2) as running:
        running.edge.write_clients(clients_file({"alice": "class: standard"}, LIMITS))
        await running.edge.until_applied(running.edge.clients_file)
        words = ["--shape", "spike", "--stage-seconds", "2", "-u", "12", "--wait-seconds", "0.4", "--max-tokens", "20"]
        code, said = await locust(running, tmp_path, *words, "--max-p95-ms", "30000", key=key_of("alice"))
        assert code == 0, said
        files = written(tmp_path)
        made = msgspec.json.decode(files["load.json"], type=Report)
        told = {"2xx": sum(stage.results.get("200", 0) for stage in made.stages), "cancelled": sum(stage.left for stage in made.stages)}

        async def same() -> bool:
            return {status: count for status, count in (await requests_of(running)).items() if count} == told

        await until(same, f"the pods count {told}")
    names = ["stage 1, 3 users", "stage 2, 12 users", "stage 3, 3 users"]
    rows = list(csv.DictReader(files["stages.csv"].splitlines()))
    assert [row["stage"] for row in rows] == [stage.stage for stage in made.stages] == names
    assert all(float(row["rps"]) > 0 and float(row["p95_ms"]) >= float(row["p50_ms"]) > 0 for row in rows)
    assert float(rows[1]["ttft_p95_ms"]) > 0
    assert float(rows[1]["tokens_per_second"]) > float(rows[0]["tokens_per_second"])
    assert {kind.stage for kind in made.kinds} >= {"chat json", "chat stream", "chat stream, long prompt", "leaves in the middle"}
    assert all(kind.error_rate == 0 for kind in made.kinds)
    assert all(name in files["index.html"] for name in names)
    assert files["index.html"].count("<svg") == 5
    assert "/index.html" in said
    assert not any(key_of("alice") in text for text in [*files.values(), said])


async def test_missed_limits_are_said_and_end_in_exit_code_1(tmp_path: Path) -> None:
    """Without a key nobody is answered: each stage says so."""
    async with fleet(1) as running:
        running.edge.write_clients(clients_file({"alice": "class: standard"}, LIMITS))
        await running.edge.until_applied(running.edge.clients_file)
        code, said = await locust(
            running, tmp_path, "--shape", "poisson", "--stage-seconds", "1", "-u", "4", "--wait-seconds", "0.3", "--min-rps", "1"
        )
    assert code == 1, said
    missed = re.findall(r"load: missed: (.*)", said)
    assert "stage 1, 4 users: error rate 1, must be at most 0.01" in missed
    assert "stage 1, 4 users: requests/s 0, must be at least 1" in missed
    assert "401 invalid_api_key" in written(tmp_path)["index.html"]


async def test_locusts_own_page_starts_runs_that_are_recorded(tmp_path: Path) -> None:
    """What its form says holds, empty limits and other stages included; each run has its report when it is over."""
    (port,) = free_ports(1)
    async with fleet(1) as running:
        words = ["--ui", "--web-port", str(port), "--host", running.edge.url, "--record", str(tmp_path)]
        command = [sys.executable, "-m", "services.ops.load", *words]
        nowhere = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=running.edge.env, stdout=nowhere, stderr=nowhere)
        try:
            page = f"http://127.0.0.1:{port}"

            async def there() -> bool:
                with contextlib.suppress(aiohttp.ClientError):
                    async with running.edge.session.get(page) as response:
                        return response.status == 200
                return False

            await until(there, "Locust's page")
            form = {"user_count": "4", "spawn_rate": "100", "shape": "spike", "stage_seconds": "1", "max_p95_ms": "", "min_rps": "1000"}
            async with running.edge.session.post(f"{page}/swarm", data={**form, "host": running.edge.url}) as response:
                assert (await response.json())["success"]

            async def recorded() -> bool:
                return "load.json" in written(tmp_path)

            await until(recorded, "a report")
        finally:
            process.terminate()
            await process.wait()
    made = msgspec.json.decode(written(tmp_path)["load.json"], type=Report)
    assert [stage.stage for stage in made.stages] == ["stage 1, 1 user", "stage 2, 4 users", "stage 3, 1 user"]
    assert sum(stage.requests for stage in made.stages) > 0
    assert "stage 2, 4 users: requests/s" in made.missed[1]
    assert len(made.missed) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shape", "flat"], "invalid choice: 'flat'"),
        (["--stage-seconds", "0"], "--stage-seconds: must be a number above 0, got 0"),
        (["--max-error-rate", "2"], "--max-error-rate: must be a number from 0 to 1, got 2"),
        (["--max-tokens", "many"], "--max-tokens: must be a whole number from 1, got many"),
    ],
)
async def test_a_wrong_option_is_named(tmp_path: Path, words: list[str], said: str) -> None:
    """Before any request is made."""
    command = [sys.executable, "-m", "locust", "-f", "tests/load/locustfile.py", "--headless", "--record", str(tmp_path), *words]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL)
    _, error = await process.communicate()
    assert process.returncode
    assert said in error.decode()
    assert not written(tmp_path)
