"""What a pod does with the client that the edge has recognised."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from services.engine.client import Client, client_of
from tests.contract.asking import CHAT, body
from tests.contract.test_traces import SAMPLED, TRACE, traced
from tests.running import RunningPods, running_pods, until

ALICE = {"x-client-id": "alice", "x-client-role": "user"}
OTHER = ALICE | {"x-client-models": "other, org/third"}


def records(pods: RunningPods) -> list[dict[str, Any]]:
    """The access records."""
    return [json.loads(line) for line in (pods.state_dir / "runner.log").read_text().splitlines() if '"request.done"' in line]


def client(**headers: str) -> Client:
    """The client of a request with these headers, `max_priority` for `x-client-max-priority`."""
    return client_of(CIMultiDictProxy(CIMultiDict({f"X-Client-{name.replace('_', '-')}": text for name, text in headers.items()})))


def test_headers_are_read_once_into_a_client() -> None:
    """All seven; the same headers give the same object."""
    told = {
        "id": "alice", "role": "user", "class": "gold", "max_concurrent": "4", "tokens_per_minute": "1000", "max_priority": "low",
        "models": "demo,org/other",
    }  # fmt: skip
    alice = client(**told)
    assert alice == Client(
        id="alice",
        role="user",
        limits_class="gold",
        max_concurrent=4,
        tokens_per_minute=1000,
        max_priority="low",
        models=("demo", "org/other"),
    )
    assert client(**told) is alice
    assert client() == Client()


@pytest.mark.parametrize(("models", "may"), [(None, True), ("demo", True), ("other , demo", True), ("demo2", False), ("", False)])
def test_a_list_of_models_allows_those_alone(models: str | None, may: bool) -> None:
    """No list allows all, an empty one none."""
    assert client(id="alice", **({} if models is None else {"models": models})).may_use("demo") is may


async def test_a_client_uses_and_sees_only_its_models(fake: RunningPods) -> None:
    """Another model is 403 with what is allowed, named or left out; in the lists it does not exist."""
    async with aiohttp.ClientSession(fake.url) as session:
        for model in ("demo", None):
            async with session.post(CHAT, json=body(model=model), headers=OTHER) as response:
                error = (await response.json())["error"]
            assert response.status == 403
            assert error == {
                "message": "This client may not use model 'demo'; it may use: 'other', 'org/third'",
                "type": "invalid_request_error",
                "param": "model",
                "code": "forbidden",
            }
        async with session.post("/v1/completions", json={"prompt": "Hello!", "model": "other"}, headers=OTHER) as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"]) == (404, "model_not_found")
            assert "demo" not in error["message"]
        async with session.get("/v1/models", headers=OTHER) as response:
            assert (response.status, (await response.json())["data"]) == (200, [])
        async with session.get("/v1/models/demo", headers=OTHER) as response, session.get("/v1/models/none", headers=OTHER) as none:
            known, unknown = (await response.json())["error"], (await none.json())["error"]
            assert (response.status, none.status) == (404, 404)
            assert known == unknown | {"message": unknown["message"].replace("none", "demo")}
        for headers in ({}, ALICE, ALICE | {"x-client-models": "other,demo"}):
            async with session.post(CHAT, json=body(stream=False), headers=headers) as response:
                assert response.status == 200
            async with session.get("/v1/models", headers=headers) as response:
                assert [model["id"] for model in (await response.json())["data"]] == ["demo"]
            async with session.get("/v1/models/demo", headers=headers) as response:
                assert response.status == 200


async def test_records_and_traces_name_the_client_and_metrics_do_not() -> None:
    """`client` in the access record, `convoy.client` on the span; without a client neither is there."""
    async with traced() as (pods, taken, session):
        async with session.post(CHAT, json=body(stream=False), headers=ALICE | SAMPLED) as response:
            assert response.status == 200
        async with session.post(CHAT, json=body(stream=False)) as response:
            assert response.status == 200
        async with session.get("/metrics") as response:
            assert "alice" not in await response.text()
        server = (await taken.trace(TRACE, 4))["chat demo"]
        until(lambda: len(records(pods)) == 2, pods.log)
        assert server.attributes["convoy.client"] == "alice"
        assert [record.get("client") for record in records(pods)] == ["alice", None]


async def test_a_number_that_is_none_is_our_mistake_and_logged_once() -> None:
    """The requests are answered; the log names header and value one time."""
    with running_pods(1) as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            for name in ("alice", "bob"):
                headers = {"x-client-id": name, "x-client-max-concurrent": "many", "x-client-tokens-per-minute": "10"}
                async with session.post(CHAT, json=body(stream=False), headers=headers) as response:
                    assert response.status == 200
        until(lambda: len(records(pods)) == 2, pods.log)
        lines = [json.loads(line) for line in pods.log().splitlines() if "client.bad_header" in line]
    assert [(line["level"], line["header"], line["value"]) for line in lines] == [("error", "x-client-max-concurrent", "many")]
