from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.engine.admission import Admission, Ask, Limits
from services.engine.backends.fake import FakeBackend, FakeTokenizer
from services.engine.entry import Entry
from services.engine.generation import GenerationRequest, SamplingParams
from services.engine.runs import Runs
from services.engine.token_generator import Prepared, TokenGenerator
from services.openai.errors import DeadlineExceeded, EngineError
from services.settings import EngineSettings
from services.store.promises import SharedPromises
from services.store.sqlite import Store
from services.telemetry.metrics import Metrics

PREPARED = Prepared(GenerationRequest("id", [1], SamplingParams(seed=1), max_tokens=5), ())


async def runs_of(**settings: float) -> tuple[Runs, Admission]:
    """Runs of the fake engine, with one slot."""
    generator = TokenGenerator(FakeBackend(EngineSettings(engine="fake", **settings), "engine-1"), FakeTokenizer)  # type: ignore[arg-type]
    await generator.start(lambda _: None)
    admission = Admission(Limits(slots=1, capacity=0, timeout_seconds=1))
    metrics = Metrics("demo")
    return Runs(generator, Entry(admission, SharedPromises(Store(Path("unused")), 1), metrics), metrics), admission


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_run_that_is_ended_frees_its_slot_and_tells_why(has_begun: bool) -> None:
    """Also one whose task has not had its first step: no `finally` of its own would run then."""
    runs, admission = await runs_of(fake_first_token_ms=60_000)
    run = await runs.start(PREPARED, Ask())
    subscription = run.subscribe()
    if has_begun:
        await asyncio.sleep(0)
    run.end(DeadlineExceeded("The deadline of 1 ms passed"))
    with pytest.raises(DeadlineExceeded):
        await subscription.whole()
    assert admission.running == 0
    assert not run.broke


async def test_a_run_that_is_left_before_its_first_step_frees_its_slot() -> None:
    """The same where its only subscriber goes."""
    runs, admission = await runs_of(fake_first_token_ms=60_000)
    run = await runs.start(PREPARED, Ask())
    run.subscribe().close()
    await runs.idle()
    assert admission.running == 0
    with pytest.raises(EngineError):
        run.raise_error()


async def test_a_finished_run_stays_as_it_is() -> None:
    """What ends late changes nothing of an answer that is whole."""
    runs, admission = await runs_of(fake_first_token_ms=0)
    run = await runs.start(PREPARED, Ask())
    text = await run.subscribe().whole()
    run.end(DeadlineExceeded("The deadline of 1 ms passed"))
    assert run.read(0)[0] == text
    assert run.finish_reason == "length"
    await runs.idle()
    assert admission.running == 0
