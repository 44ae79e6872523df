"""What a pod tells of itself: its pages, its description of the API, its log, its metrics."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from openapi_spec_validator import validate

from tests.running import running_pods, until

if TYPE_CHECKING:
    from tests.running import RunningPods

CHAT = "/v1/chat/completions"
SECRET = "my-secret-prompt-7431"
DESIGN_METRICS = {
    "llm_requests_total",
    "llm_requests_in_progress",
    "llm_request_duration_seconds",
    "llm_generation_tokens_total",
    "llm_generation_latency_seconds",
    "llm_engine_errors_total",
    "llm_time_to_first_token_seconds",
    "llm_inter_token_latency_seconds",
    "llm_queue_depth",
    "llm_queue_wait_seconds",
    "llm_admission_rejected_total",
    "llm_prompt_tokens_total",
    "llm_kv_cache_usage_ratio",
}
"""The names that dashboards and rules rely on, apart from those of features that do not exist yet."""


async def test_the_page_works_without_a_network(fake: RunningPods) -> None:
    """/docs names only assets that the pod itself serves."""
    async with aiohttp.ClientSession(fake.url) as session:
        async with session.get("/docs") as response:
            page = await response.text()
        assert "http://" not in page
        assert "https://" not in page
        assets = re.findall(r'(?:href|src)="([^"]+)"', page)
        assert len(assets) == 3
        for asset in assets:
            async with session.get("/" + asset) as response:
                assert response.status == 200, asset
                assert len(await response.read()) > 500
        assert response.headers["Server"] == "convoy"
        async with session.get("/docs/assets/../../pod.py") as response:
            assert response.status == 404


async def test_every_example_of_the_description_can_be_tried(fake: RunningPods) -> None:
    """/openapi.json is valid OpenAPI, and each example request in it is answered 200."""
    async with aiohttp.ClientSession(fake.url) as session:
        async with session.get("/openapi.json") as response:
            spec = json.loads(await response.read())
        validate(spec)
        tried = 0
        for path, methods in spec["paths"].items():
            for example in _examples(methods.get("post", {})):
                async with session.post(path, json=example) as response:
                    assert response.status == 200, (path, await response.text())
                    tried += 1
            if "get" in methods and "{" not in path:
                async with session.get(path) as response:
                    assert response.status == 200, path
        assert tried >= 3


def _examples(operation: dict[str, Any]) -> list[Any]:
    media = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return [entry["value"] for entry in media.get("examples", {}).values()] + ([media["example"]] if "example" in media else [])


async def test_metrics_carry_the_names_and_count_what_was_answered() -> None:
    """The names are all there after one request, and tokens are counted exactly."""
    with running_pods(1) as pods:
        async with aiohttp.ClientSession(pods.url) as session:
            body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 7}
            async with session.post(CHAT, json=body) as response:
                usage = (await response.json())["usage"]
            async with session.get("/metrics") as response:
                text = await response.text()
    declared = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert declared >= DESIGN_METRICS
    assert 'llm_requests_total{endpoint="/v1/chat/completions",model="demo",status="2xx"} 1.0' in text
    assert f'llm_generation_tokens_total{{model="demo"}} {float(usage["completion_tokens"])}' in text
    assert f'llm_prompt_tokens_total{{model="demo"}} {float(usage["prompt_tokens"])}' in text


async def test_made_up_paths_and_models_make_no_new_series() -> None:
    """Labels come from the server, not from the request: a hundred inventions add no series after the first."""
    with running_pods(1) as pods:
        async with aiohttp.ClientSession(pods.url) as session:

            async def series() -> int:
                async with session.get("/metrics") as response:
                    return len((await response.text()).splitlines())

            counts = []
            for start in (0, 50):
                for number in range(start, start + 50):
                    async with session.get(f"/made/up/{number}") as response:
                        assert response.status == 404
                    async with session.post(CHAT, json={"model": f"model-{number}", "messages": []}) as response:
                        assert response.status == 400
                counts.append(await series())
    assert counts[0] == counts[1]


@pytest.mark.parametrize("log_prompts", [False, True])
async def test_one_record_a_request_without_its_text(log_prompts: bool) -> None:
    """The log has one access record per request, with id, tokens and times; the prompt's text only with LOG_PROMPTS=true."""
    with running_pods(1, log_prompts=log_prompts) as pods:
        async with aiohttp.ClientSession(pods.url, headers={"x-request-id": "wanted-id"}) as session:
            body = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 5}
            async with session.post(CHAT, json=body) as response:
                assert response.status == 200
        log = pods.state_dir / "runner.log"
        until(lambda: "request.done" in log.read_text(), pods.log)
        text = log.read_text()
    records = [json.loads(line) for line in text.splitlines() if '"request.done"' in line]
    assert len(records) == 1
    told = {"request_id", "model", "pod", "status", "prompt_tokens", "completion_tokens"}
    assert set(records[0]) >= told | {"queue_ms", "prefill_ms", "decode_ms", "total_ms"}
    assert records[0]["request_id"] == "wanted-id"
    assert records[0]["completion_tokens"] == 5
    assert (SECRET in text) == log_prompts
