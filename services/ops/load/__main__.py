"""`make load`: runs Locust on the stack that runs here. All options but these two are Locust's and the locustfile's: see `--help`."""

from __future__ import annotations

import argparse
import http.client
import os
import sys
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from services.ops.plan import read_plan
from services.ops.state import ROOT, OpsError
from services.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.ops.state import StateDir

_LOCUSTFILE = "tests/load/locustfile.py"
_ANSWER_SECONDS = 10


def main(words: Sequence[str]) -> NoReturn:
    """Becomes Locust, or ends with one line that says why not."""
    os.chdir(ROOT)
    try:
        command, env = prepared(words, os.environ)
    except (OpsError, SettingsError) as error:
        sys.exit(f"load: {error}")
    os.execve(command[0], command, env)  # noqa: S606 - no shell is what is wanted


def prepared(words: Sequence[str], environ: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Locust's command line and environment; raises `OpsError` if there is nothing to put a load on."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ui", action="store_true")
    parser.add_argument("-H", "--host")
    own, others = parser.parse_known_args(words)
    plan = read_plan(environ)
    command = [sys.executable, "-m", "locust", "-f", _LOCUSTFILE]
    command += ["--web-host", "127.0.0.1"] if own.ui else ["--headless", "--only-summary"]
    if not {"-h", "--help"} & set(others):
        command += ["--host", _answering(own.host or _running(plan.state))]
    env = dict(environ)
    if plan.ops.convoy_api_key:  # it may stand in .env; everybody on the machine sees a command line, so not there
        env["CONVOY_API_KEY"] = plan.ops.convoy_api_key
    return [*command, *others], env


def _running(state: StateDir) -> str:
    run = state.run()
    if run is None:
        raise OpsError("nothing runs; start it with `convoy up`, or name an address: --host http://HOST:PORT")
    return run.url


def _answering(url: str) -> str:
    """The address, if anybody answers there, whatever the answer is."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in {"http", "https"} or not parts.hostname or (port is None and ":" in parts.netloc.rpartition("]")[2]):
        raise OpsError(f"--host {url}: must be an address such as http://127.0.0.1:8000")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", "/readyz")
        connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise OpsError(f"nobody answers at {url} ({error or type(error).__name__}); is it up? (convoy status)") from error
    finally:
        connection.close()
    return url.rstrip("/")


if __name__ == "__main__":
    main(sys.argv[1:])
