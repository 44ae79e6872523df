from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.settings import CommonSettings, EdgeSettings, EngineSettings, OpsSettings, RunnerSettings, SettingsError, load, read_env_file
from services.settings.reader import as_environment, environment_of, given_path

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("cls", "env", "words"),
    [
        (RunnerSettings, {"PODS": "0"}, ["PODS=0", "from 1 to 256"]),
        (RunnerSettings, {"PODS": "two"}, ["PODS=two", "whole number"]),
        (EngineSettings, {"ENGINE": "vlm"}, ["ENGINE=vlm", "transformers, vllm, remote, fake"]),
        (EngineSettings, {"DEVICE": "gpu"}, ["DEVICE=gpu", "cuda"]),
        (EngineSettings, {"MAX_CONCURENT_REQUESTS": "3"}, ["MAX_CONCURENT_REQUESTS", "did you mean MAX_CONCURRENT_REQUESTS?"]),
        (EngineSettings, {"ENABLE_BACKPRESSURE": "perhaps"}, ["ENABLE_BACKPRESSURE=perhaps", "true or false"]),
        (EdgeSettings, {"PORT": "70000"}, ["PORT=70000", "65535"]),
        (EdgeSettings, {"KEEPALIVE_SECONDS": "40"}, ["KEEPALIVE_SECONDS=40", "less than FIRST_TOKEN_TIMEOUT_SECONDS=20"]),
        (EdgeSettings, {"REQUEST_TIMEOUT_SECONDS": "nan"}, ["REQUEST_TIMEOUT_SECONDS=nan"]),
        (OpsSettings, {"MAKEFLAGS": " -- PODZ=4"}, ["PODZ", "PODS"]),
    ],
)
def test_a_bad_setting_is_one_line_that_names_the_cure(cls: type[CommonSettings], env: dict[str, str], words: list[str]) -> None:
    """A value that is malformed, out of range, misspelt or at odds with another is refused by name, with what is allowed."""
    with pytest.raises(SettingsError) as caught:
        load(cls, env)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_values_are_typed_and_an_empty_one_means_the_default() -> None:
    """Words for booleans are understood, numbers are numbers, and `NAME=` in a file changes nothing."""
    settings = load(RunnerSettings, {"PODS": "4", "ENABLE_BACKPRESSURE": "off", "QUEUE_CAPACITY": "", "KEEPALIVE_SECONDS": "12.5"})
    assert (settings.pods, settings.enable_backpressure, settings.queue_capacity, settings.keepalive_seconds) == (4, False, 64, 12.5)


def test_foreign_variables_are_left_alone() -> None:
    """The environment holds much that is not ours, such as PATH, POSTGRES_PORT or make's own variables."""
    load(RunnerSettings, {"PATH": "/bin", "POSTGRES_PORT": "1", "HOSTNAME": "x", "MAKEFLAGS": "w -- PODS=2 DETACH=1", "HOME": "/"})
    load(OpsSettings, {"MAKEFLAGS": r" -- UI=1 SHAPE=spike ARGS=-u\ 50\ --max-p95-ms=900"})


def test_an_env_file_may_hold_settings_only(tmp_path: Path) -> None:
    """`.env` is Convoy's own: a name that is no setting is refused, with the nearest one."""
    path = tmp_path / ".env"
    assert read_env_file(path) == {}
    path.write_text('PODS=3  # three\nMODEL_NAME="my model"\n')
    assert read_env_file(path) == {"PODS": "3", "MODEL_NAME": "my model"}
    path.write_text("POD=3\n")
    with pytest.raises(SettingsError, match="POD is not a setting"):
        read_env_file(path)


def test_what_a_restart_gave_goes_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that its supervisor starts again, with the environment of the first time, has what a restart gave it since."""
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    monkeypatch.setenv("MODEL_NAME", "first")
    assert load(RunnerSettings, environment_of("runner")).model_name == "first"
    given_path(tmp_path, "runner").write_text('{"MODEL_NAME": "second"}')
    assert load(RunnerSettings, environment_of("runner")).model_name == "second"
    assert environment_of("edge")["MODEL_NAME"] == "first"


def test_settings_make_the_variables_that_make_them() -> None:
    """What one process tells another in its environment is read there as it was meant."""
    settings = load(
        RunnerSettings, {"ENABLE_BACKPRESSURE": "no", "KEEPALIVE_SECONDS": "12.5", "FAKE_TOKENS_PER_SECOND": "1e9", "PODS": "3"}
    )
    assert load(RunnerSettings, as_environment(settings)) == settings
