"""ENGINE=remote: what a trace tells of a request that was passed on."""

from __future__ import annotations

import json

import aiohttp
import pytest

from tests.contract.asking import CHAT
from tests.engines.remote_upstream import DONE, FRAME, KEY, MESSAGE, forwarding, upstream_server
from tests.otlp import receiver

pytestmark = [pytest.mark.stack, pytest.mark.asyncio]
_TRACES = [f"{number}af7651916cd43dd8448eb211c80319c" for number in (1, 2)]


@pytest.mark.parametrize("is_wanted", [False, True])
async def test_a_trace_tells_what_is_known_and_no_more(*, is_wanted: bool) -> None:
    """Tokens and end as the upstream told them, no seed, no limit that nobody asked for, no key; texts only where they are wanted."""
    wanted = {"otel_instrumentation_genai_capture_message_content": is_wanted}
    async with upstream_server() as upstream, receiver() as taken:
        upstream.body = b'{"choices":[{"message":{"content":"Hi!"},"finish_reason":"length"}],"usage":{"completion_tokens":7}}'
        upstream.frames = [FRAME, FRAME, DONE]
        async with forwarding(upstream.url, otel_exporter_otlp_endpoint=taken.url, **wanted) as pods, aiohttp.ClientSession() as session:
            for trace, stream in zip(_TRACES, (False, True), strict=True):
                headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
                async with session.post(pods.url + CHAT, json=MESSAGE | {"stream": stream}, headers=headers) as response:
                    await response.read()
            spans = [(await taken.trace(trace, 4))["chat big"] for trace in _TRACES]
        whole, streamed = [span.attributes for span in spans]
    assert (whole["gen_ai.usage.output_tokens"], whole["gen_ai.response.finish_reasons"]) == (7, ["length"])
    assert (streamed["gen_ai.usage.output_tokens"], streamed["gen_ai.response.finish_reasons"]) == (2, ["stop"])
    assert {"gen_ai.request.seed", "gen_ai.request.max_tokens", "gen_ai.response.id"}.isdisjoint(whole)
    assert KEY not in str(taken.spans)
    if not is_wanted:
        assert "Hello!" not in str(taken.spans)
        return
    for attributes, text in ((whole, "Hi!"), (streamed, "éé")):
        assert json.loads(attributes["gen_ai.input.messages"])[0]["parts"] == [{"type": "text", "content": "Hello!"}]
        assert json.loads(attributes["gen_ai.output.messages"])[0]["parts"] == [{"type": "text", "content": text}]
