"""What the official client makes of a pod's answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tests.running import RunningPods

HELLO: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello! Tell me about distributed systems."}]


def assert_exact(answer: BaseModel) -> None:
    """The answer validates strictly against the client's type and holds no key that the type does not know."""
    strict = type(answer).model_validate_json(answer.model_dump_json(), strict=True)

    def extras(model: Any) -> list[str]:
        if hasattr(model, "model_extra"):
            values = [getattr(model, name) for name in type(model).model_fields]
            return [*(model.model_extra or {}), *(name for value in values for name in extras(value))]
        return [name for item in model for name in extras(item)] if isinstance(model, list) else []

    assert extras(strict) == []


def test_a_chat_is_answered_whole(client: openai.OpenAI) -> None:
    """A conversation gets a completion whose usage adds up and whose finish reason is true."""
    answer = client.chat.completions.create(model="demo", messages=HELLO, max_tokens=8, temperature=0.7, seed=1)
    assert isinstance(answer, ChatCompletion)
    assert_exact(answer)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


@pytest.mark.model
def test_what_a_request_leaves_out_is_sampled_as_the_model_wants_it(real: RunningPods) -> None:
    """Without temperature and top_p the values of the model's generation_config.json hold (the demo model: 0.7 and 0.95), else 1."""
    with openai.OpenAI(base_url=real.url + "/v1", api_key="none") as client:

        def texts(**sampling: Any) -> list[str]:
            """Continuations that the model is not sure of."""
            answers = [client.completions.create(model="demo", prompt="A", max_tokens=40, seed=seed, **sampling) for seed in range(4)]
            return [answer.choices[0].text for answer in answers]

        left_out = texts()
        assert left_out == texts(temperature=0.7, top_p=0.95)
        assert left_out != texts(temperature=1, top_p=1)


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    """With one seed, deltas join to the text of the JSON answer, and the usage chunk carries its usage."""
    options: Any = {"model": "demo", "messages": HELLO, "max_tokens": 40, "temperature": 0.7, "seed": 7}
    whole = client.chat.completions.create(**options)
    chunks: list[ChatCompletionChunk] = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        assert_exact(chunk)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert set(reasons[:-1]) == {None}
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert {chunk.usage for chunk in chunks[:-1]} == {None}


def test_the_stream_helper_accumulates_the_answer(client: openai.OpenAI) -> None:
    """`.stream()` of the client ends with a complete message and the usage."""
    with client.chat.completions.stream(model="demo", messages=HELLO, stop=["."], stream_options={"include_usage": True}) as events:
        kinds = {event.type for event in events}
        final = events.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"
    assert final.usage
    assert final.usage.completion_tokens > 1


async def test_the_asynchronous_client_gets_the_same(pod: RunningPods) -> None:
    """The asynchronous client reads JSON and streams alike."""
    async with openai.AsyncOpenAI(base_url=pod.url + "/v1", api_key="none", max_retries=0) as client:
        options: Any = {"model": "demo", "messages": HELLO, "max_tokens": 16, "seed": 3}
        whole = await client.chat.completions.create(**options)
        stream = await client.chat.completions.create(**options, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content


def test_a_bare_prompt_is_completed(client: openai.OpenAI) -> None:
    """Completions work whole, streamed, and with a list of one prompt; without max_tokens 16 tokens come at most."""
    answer = client.completions.create(model="demo", prompt=["Docker is"], seed=5)
    assert isinstance(answer, Completion)
    assert_exact(answer)
    assert answer.usage
    assert 1 <= answer.usage.completion_tokens <= 16
    chunks = list(client.completions.create(model="demo", prompt="Docker is", seed=5, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def test_the_model_is_listed_and_found(client: openai.OpenAI) -> None:
    """The one served model is listed; another is `model_not_found`."""
    listed = client.models.list().data
    assert [model.id for model in listed] == ["demo"]
    assert_exact(client.models.retrieve("demo"))
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/other")
    assert caught.value.code == "model_not_found"


def test_stop_strings_end_the_answer_and_are_not_in_it(client: openai.OpenAI) -> None:
    """The text before the first stop string comes, whole and streamed, with finish reason stop."""
    options: Any = {"model": "demo", "messages": HELLO, "max_tokens": 60, "temperature": 0}
    text = client.chat.completions.create(**options).choices[0].message.content or ""
    stop = text[12:17]
    cut = client.chat.completions.create(**options, stop=[stop, "never there"]).choices[0]
    assert cut.message.content == text[: text.index(stop)]
    assert cut.finish_reason == "stop"
    streamed = client.chat.completions.create(**options, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == text[: text.index(stop)]


def test_errors_are_the_clients_own_classes(client: openai.OpenAI) -> None:
    """A bad parameter raises BadRequestError with parameter and code; another model NotFoundError."""
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="demo", messages=HELLO, temperature=3)
    assert (bad.value.param, bad.value.code) == ("temperature", "invalid_value")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.chat.completions.create(model="demo", messages=HELLO, n=2)
    assert (unsupported.value.param, unsupported.value.code) == ("n", "unsupported_parameter")


def test_the_context_is_a_limit_that_is_told(client: openai.OpenAI) -> None:
    """A prompt beyond the context is `context_length_exceeded`; too many tokens asked for name the greatest value."""
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="demo", prompt="word " * 30_000)
    assert (long.value.param, long.value.code) == ("prompt", "context_length_exceeded")
    with pytest.raises(openai.BadRequestError, match="must be from 1 to 40") as many:
        client.chat.completions.create(model="demo", messages=HELLO, max_completion_tokens=100_000)
    assert (many.value.param, many.value.code) == ("max_completion_tokens", "invalid_value")
