"""`convoy keys` as it is typed, while nothing runs."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.clients.reading import read
from tests.stack.convoy import Convoy

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = re.compile(r"sk-convoy-[A-Za-z0-9_-]{43}")


@pytest.fixture
def convoy(tmp_path: Path) -> Iterator[Convoy]:
    """A checkout's `convoy` with a clients file and a state folder of its own; no key is ever found in a file."""
    yield Convoy(tmp_path / "state", CLIENTS_FILE=str(tmp_path / "clients.yaml"))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert not KEY.search(path.read_text()), path


def new_key(convoy: Convoy, *arguments: str) -> str:
    """The key that a command makes: the whole of stdout, and nowhere else."""
    done = convoy.run("keys", *arguments)
    assert done.returncode == 0, done.stderr
    key = done.stdout.removesuffix("\n")
    assert KEY.fullmatch(key), done.stdout
    assert key.removeprefix("sk-convoy-") not in done.stderr
    assert "takes effect at the next `convoy up`" in done.stderr
    return key


def error(convoy: Convoy, *arguments: str) -> str:
    """The one line on stderr of a command that fails, which makes no key and leaves the file."""
    path = Path(convoy.env["CLIENTS_FILE"])
    before = path.read_bytes() if path.exists() else None
    done = convoy.run("keys", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"convoy: [^\n]+\n", done.stderr), done.stderr
    assert (path.read_bytes() if path.exists() else None) == before
    return done.stderr


def hash_of(key: str) -> str:
    """As `printf %s KEY | sha256sum`."""
    return hashlib.sha256(key.encode()).hexdigest()


def test_a_client_from_its_first_key_to_its_end(convoy: Convoy, tmp_path: Path) -> None:
    """Add begins the file and says what that means; rotate keeps the old key a day; remove takes one key, then the client."""
    path = tmp_path / "clients.yaml"
    assert "without a key" in convoy.run("keys", "list").stderr
    told = convoy.run(
        "keys", "add", "alice", "--role", "ops", "--models", "demo,org/other", "--tokens-per-minute", "500", "--expires", "2099-01-31"
    )
    assert f"NOTE: {path} is new. From the next `convoy up` on EVERY REQUEST NEEDS A KEY." in told.stderr
    first = told.stdout.strip()
    assert KEY.fullmatch(first)
    assert path.stat().st_mode & 0o777 == 0o600
    second = new_key(convoy, "rotate", "alice")
    alice = json.loads(convoy.run("keys", "list", "--json").stdout)["clients"][0]
    assert [key["sha256"] for key in alice["keys"]] == [hash_of(second), hash_of(first)]
    assert (alice["role"], alice["models"], alice["tokens_per_minute"]) == ("ops", ["demo", "org/other"], 500)
    listed = convoy.run("keys", "list").stdout
    assert hash_of(second)[:8] in listed
    assert "standard (300/min, burst 30)" in listed
    assert convoy.run("keys", "remove", "alice", "--key", hash_of(first)[:8]).returncode == 0
    assert [key.sha256 for key in read(path).clients[0].all_keys()] == [hash_of(second)]
    third = new_key(convoy, "rotate", "alice", "--keep", "0")
    assert [key.sha256 for key in read(path).clients[0].all_keys()] == [hash_of(third)]
    assert "nobody may call" in convoy.run("keys", "remove", "alice").stderr
    assert read(path).clients == ()


def test_a_mistake_is_one_line_that_names_what_is_allowed(convoy: Convoy, tmp_path: Path) -> None:
    """Nothing is changed, no key is shown."""
    assert "`convoy keys add NAME` begins one" in error(convoy, "remove", "alice")
    assert "--role must be user or ops, got 'boss'" in error(convoy, "add", "alice", "--role", "boss")
    assert not (tmp_path / "clients.yaml").exists()
    new_key(convoy, "add", "alice")
    cases = {
        ("add", "alice"): "`convoy keys rotate alice`",
        ("add", "al ice"): "NAME must be a name of letters",
        ("add", "sk-convoy-secretsecret"): "NAME looks like a key",
        ("add", "bob", "--class", "gold"): "--class must be one that clients.yaml declares under `limits:`: standard; got 'gold'",
        ("add", "bob", "--max-priority", "top"): "--max-priority must be high, normal or low, got 'top'",
        ("add", "bob", "--tokens-per-minute", "0"): "--tokens-per-minute must be a whole number from 1",
        ("add", "bob", "--max-concurrent-requests", "x"): "--max-concurrent-requests must be a whole number from 1",
        ("add", "bob", "--models", "a,,b"): "--models must be model ids with commas between them",
        ("add", "bob", "--expires", "2020-01-01"): "--expires must be a date such as 2027-01-31",
        ("rotate", "alcie"): "there is no client alcie, did you mean alice?",
        ("rotate", "alice", "--keep", "soon"): "--keep must be 0 or a time such as",
        ("remove", "alice", "--key", "12"): "--key must be the first 4 to 64 hexadecimal digits",
    }
    for arguments, says in cases.items():
        told = error(convoy, *arguments)
        assert says in told
        assert "secretsecret" not in told
    (tmp_path / "clients.yaml").write_text("clients:\n- name: alice\n  keys: none\n")
    for arguments in (("add", "bob"), ("list",)):
        assert "clients.yaml:3: clients[0].keys: must be SHA-256 hashes" in error(convoy, *arguments)


def test_commands_at_once_all_count(convoy: Convoy, tmp_path: Path) -> None:
    """Also those of which each would begin the file."""
    names = [f"client-{number}" for number in range(5)]
    running = [convoy.spawn("keys", "add", name) for name in names]
    keys = [process.communicate(timeout=100)[0].strip() for process in running]
    found = {client.name: client.all_keys()[0].sha256 for client in read(tmp_path / "clients.yaml").clients}
    assert found == {name: hash_of(key) for name, key in zip(names, keys, strict=True)}


def test_a_key_that_cannot_be_shown_is_said_to_be_lost(convoy: Convoy) -> None:
    """Standard output may be a full disk."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            convoy.command("keys", "add", "alice"), env=convoy.env, stdout=full, stderr=subprocess.PIPE, text=True, timeout=100, check=False
        )
    assert done.returncode == 1
    assert "is lost; `convoy keys rotate` makes another" in done.stderr


def test_a_file_that_cannot_be_written_is_named(convoy: Convoy, tmp_path: Path) -> None:
    """With the setting that says where it is."""
    convoy.env["CLIENTS_FILE"] = str(tmp_path / "nowhere" / "clients.yaml")
    assert f"CLIENTS_FILE={tmp_path}/nowhere/clients.yaml cannot be changed (No such file or directory)" in error(convoy, "add", "alice")
