"""The doctor's own pods, and the lane of Envoy that leads to them and that nobody else can use. Both are there only while it works."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from services import pods_file
from services.clients.guests import Guests
from services.files import write_atomically
from services.ops.doctor.asking import CHAT, NoAnswerError
from services.ops.state import ROOT
from services.settings.reader import known_names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from services.ops.doctor.asking import Admin, Answer, Asker
    from services.ops.doctor.target import Target
    from services.pods_file import PodEntry

NUM_PODS = 3
"""The second is the one that breaks, the first the one that hangs; half of the pods are never ejected, so the third is there always."""
MAX_REQUESTS = 8
CLUSTER = "engine-doctor"
_START_SECONDS = 30.0
_STEP_SECONDS = 0.05

# Nothing that a pod of its own accord does when it is slow shall come before what the edge does.
_POD_SETTINGS = {
    "ENGINE": "fake",
    "PODS": str(NUM_PODS),
    "FAKE_FIRST_TOKEN_MS": "1",
    "QUEUE_TIMEOUT_SECONDS": "10000",
    "KEEPALIVE_SECONDS": "11000",
    "FIRST_TOKEN_TIMEOUT_SECONDS": "12000",
    "HANG_TIMEOUT_SECONDS": "13000",
    "STALL_TIMEOUT_SECONDS": "14000",
    "REQUEST_TIMEOUT_SECONDS": "15000",
}


class LaneError(Exception):
    """There is no lane, and why."""


class Lane:
    """The lane in force. A pod is named by its place, from 1."""

    def __init__(self, folder: Path, token: str, asker: Asker) -> None:
        """`folder` is that of the pods' runner."""
        self._folder = folder
        self._token = token
        self._asker = asker

    @property
    def pods(self) -> tuple[PodEntry, ...]:
        """The doctor's pods as their runner lists them."""
        return _pods(self._folder)

    @property
    def header(self) -> dict[str, str]:
        """Opens the lane."""
        return {"x-doctor-lane": self._token}

    def break_pods(self, faults: Mapping[int, Mapping[str, str]]) -> None:
        """From now on the pods have these faults, the others none."""
        named = {f"engine-{number}": fault for number, fault in faults.items()}
        write_atomically(self._folder / "faults.json", msgspec.json.encode(named))

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """While inside, no pod does anything."""
        pids = [pod.pid for pod in self.pods]
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    async def ask(self, prompt: str = "hello", headers: Mapping[str, str] | None = None, timeout: float = 10.0, **more: Any) -> Answer:
        """One short generation by the doctor's pods; a header that is empty is left out."""
        body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 1, **more}
        told = {**self._asker.user(), **self.header, **(headers or {})}
        return await self._asker.post(CHAT, body, {name: value for name, value in told.items() if value}, timeout)

    def client_of(self, request_id: str) -> str | None:
        """Whom a pod took for the caller of a request, by its record; None before it has written one."""
        for path in (self._folder / "logs").glob("*.log"):
            for line in path.read_bytes().splitlines():
                if request_id.encode() in line and b"request.done" in line:
                    return str(msgspec.json.decode(line).get("client", ""))
        return None


@contextlib.asynccontextmanager
async def lane(target: Target, asker: Asker, admin: Admin, seconds: float) -> AsyncIterator[Lane]:
    """Starts pods, has the edge make the lane, and takes all of it away; raises `LaneError`. `seconds`: how long it may last."""
    folder = Path(tempfile.mkdtemp(prefix="convoy-doctor-"))
    token = secrets.token_urlsafe(24)
    runner = _start_runner(folder, target.env)
    try:
        pods = await _until_listed(folder, runner)
        clients = asker.keys.clients() if asker.keys else ()
        guests = Guests(token, time.time() + seconds, pods, clients, MAX_REQUESTS)
        content = msgspec.json.encode(guests)
        write_atomically(target.guests_file, content, mode=0o600)
        await _until_in_force(target, hashlib.sha256(content).hexdigest())
        await _until_used(admin)
        yield Lane(folder, token, asker)
    finally:
        target.guests_file.unlink(missing_ok=True)
        _end(runner, folder)
        shutil.rmtree(folder, ignore_errors=True)


def _start_runner(folder: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # The environment keeps the stack's mark: should the doctor be killed, `convoy down` ends what it has left.
    own = {name: value for name, value in env.items() if name not in known_names()}
    values = {"STATE_DIR": str(folder), "POD_LOG_DIR": str(folder / "logs"), "FAKE_FAULTS_FILE": str(folder / "faults.json")}
    (folder / "logs").mkdir()
    with (folder / "runner.log").open("wb") as log:
        command = [sys.executable, "-m", "services.engine"]
        environment = {**own, **_POD_SETTINGS, **values}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def _end(runner: subprocess.Popen[bytes], folder: Path) -> None:
    """Ends runner and pods without waiting for what runs."""
    pods = _pods(folder)
    for number in (signal.SIGTERM, signal.SIGINT):  # the second signal means: at once; two of a kind may arrive as one
        if runner.poll() is None:
            runner.send_signal(number)
    try:
        runner.wait(5)
    except subprocess.TimeoutExpired:
        runner.kill()
        runner.wait()
        for pod in pods:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pod.pid, signal.SIGKILL)


def _pods(folder: Path) -> tuple[PodEntry, ...]:
    try:
        return pods_file.read(folder / pods_file.NAME).pods
    except (FileNotFoundError, ValueError):
        return ()


async def _until_listed(folder: Path, runner: subprocess.Popen[bytes]) -> tuple[PodEntry, ...]:
    end = time.monotonic() + _START_SECONDS
    while len(pods := _pods(folder)) < NUM_PODS:
        if runner.poll() is not None or time.monotonic() > end:
            log = (folder / "runner.log").read_text(errors="replace").strip().splitlines() or ["no word of it"]
            raise LaneError(f"the doctor's own pods do not start: {log[-1][:300]}")
        await asyncio.sleep(_STEP_SECONDS)
    return tuple(msgspec.structs.replace(pod, name=f"doctor-{number}") for number, pod in enumerate(pods, 1))


async def _until_in_force(target: Target, sha256: str) -> None:
    """Waits until the edge has taken the guests over, and Envoy runs what follows."""
    end = time.monotonic() + _START_SECONDS
    while True:
        told = target.told()
        said = told.get("inputs", {}).get(str(target.guests_file), {})
        runs = (told.get("envoy") or {}).get("runs")
        if said.get("error"):
            raise LaneError(f"the edge refuses the doctor's guests: {said['error']}")
        if said.get("sha256") == sha256 and runs == told["written"]:
            return
        if time.monotonic() > end:
            what = (
                f"Envoy runs {runs}, the edge wrote {told.get('written')}" if said.get("sha256") == sha256 else "the edge does not read it"
            )
            raise LaneError(f"no lane within {_START_SECONDS:g} s: {what}")
        await asyncio.sleep(_STEP_SECONDS)


async def _until_used(admin: Admin) -> None:
    """Waits until Envoy would use each of the pods."""
    end, name = time.monotonic() + _START_SECONDS, f"cluster.{CLUSTER}.membership_healthy"
    while True:
        try:
            num_healthy = (await admin.stats(f"^{name}$")).get(name, 0)
        except NoAnswerError as error:
            raise LaneError(str(error)) from error
        if num_healthy == NUM_PODS:
            return
        if time.monotonic() > end:
            raise LaneError(f"Envoy finds {num_healthy} of the doctor's {NUM_PODS} pods healthy after {_START_SECONDS:g} s")
        await asyncio.sleep(_STEP_SECONDS)
