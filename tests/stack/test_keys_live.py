"""`convoy keys` beside a running stack: each change is in force when the command returns, and a rotation loses no request."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import httpx
import openai
import pytest

from tests.stack.convoy import convoy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.stack.convoy import Convoy

pytestmark = pytest.mark.stack

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Convoy]:
    """A stack that was started without a clients file."""
    path = tmp_path_factory.mktemp("clients") / "clients.yaml"
    with convoy(CLIENTS_FILE=str(path), PODS="1") as started:
        done = started.run("up", "--detach")
        assert done.returncode == 0, done.stderr
        yield started


def _url(stack: Convoy) -> str:
    url: str = stack.status()["url"]
    return url


def _status(stack: Convoy, key: str = "") -> int:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.get(f"{_url(stack)}/v1/models", headers=headers).status_code


def _key(stack: Convoy, *arguments: str) -> str:
    """What a `convoy keys` command prints on stdout: a key, in force."""
    done = stack.run("keys", *arguments)
    assert done.returncode == 0, done.stderr
    assert "in force after" in done.stderr
    (key,) = done.stdout.split()
    return key


def test_keys_come_rotate_and_go_while_the_stack_runs(stack: Convoy) -> None:
    """Adding closes the door to strangers, rotating keeps both keys, removing ends them: each when the command returns, no request lost."""
    assert _status(stack) == 200
    first = _key(stack, "add", "alice")
    assert (_status(stack), _status(stack, first)) == (401, 200)

    stop, statuses = threading.Event(), list[int]()

    def use() -> None:
        while not stop.is_set():
            statuses.append(_status(stack, first))

    user = threading.Thread(target=use)
    user.start()
    second = _key(stack, "rotate", "alice", "--keep", "1h")
    stop.set()
    user.join()
    assert set(statuses) == {200}
    assert (_status(stack, first), _status(stack, second)) == (200, 200)

    third = _key(stack, "rotate", "alice", "--keep", "0")
    assert [_status(stack, key) for key in (first, second, third)] == [401, 401, 200]
    with openai.OpenAI(base_url=f"{_url(stack)}/v1", api_key=third) as client:
        assert client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=3).choices  # type: ignore[arg-type] # a literal
    assert stack.run("keys", "remove", "alice").returncode == 0
    assert _status(stack, third) == 401
    assert all(key.encode() not in path.read_bytes() for key in (first, second, third) for path in stack.state_dir.rglob("*.l*g*"))


def test_chat_takes_its_key_from_the_environment(stack: Convoy) -> None:
    """Without one it says what to give; with one it talks."""
    key = _key(stack, "add", "talker")
    refused = stack.run("chat", text="hi\n")
    assert refused.returncode == 1
    assert "CONVOY_API_KEY=" in refused.stderr
    assert stack.run("chat", text="hi\n", CONVOY_API_KEY=key).stdout
