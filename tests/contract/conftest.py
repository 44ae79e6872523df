"""Pods on their own, without Envoy: the same tests against every engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import openai
import pytest

from tests.running import RunningPods, running_pods, skip_without_vllm

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def fake() -> Iterator[RunningPods]:
    """A pod of the fake engine."""
    with running_pods(1, fake_first_token_ms=5, fake_tokens_per_second=500) as pods:
        yield pods


@pytest.fixture(scope="session")
def real() -> Iterator[RunningPods]:
    """A pod with the demo model, executed as it is where a fork is not possible; the stack tests fork theirs."""
    with running_pods(1, engine="transformers", pod_start="exec") as pods:
        yield pods


@pytest.fixture(scope="session")
def vllm() -> Iterator[RunningPods]:
    """A pod with vLLM and the demo model."""
    skip_without_vllm()
    with running_pods(1, engine="vllm", vllm_args="--enforce-eager") as pods:
        yield pods


@pytest.fixture(params=["fake", *(pytest.param(name, marks=pytest.mark.model) for name in ("real", "vllm"))])
def pod(request: pytest.FixtureRequest) -> RunningPods:
    """Each engine in turn."""
    pods: RunningPods = request.getfixturevalue(request.param)
    return pods


@pytest.fixture
def client(pod: RunningPods) -> Iterator[openai.OpenAI]:
    """The official client; no retries, so that a test sees the first answer."""
    with openai.OpenAI(base_url=pod.url + "/v1", api_key="none", max_retries=0) as client:
        yield client
