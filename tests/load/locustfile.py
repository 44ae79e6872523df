"""Load with Locust: `make load`, or `.venv/bin/python -m locust -f tests/load/locustfile.py --help`.

Locust's users wait for their answers before they ask again, as people do: a slow server is asked less. How a server behaves past
saturation is measured with the open-loop client (services/ops/load), which does not wait.
"""

from __future__ import annotations

import math
import sys
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING, Any

from locust import LoadTestShape, events
from locust.runners import MasterRunner, WorkerRunner

from services.ops.load.arrivals import Stage
from services.ops.load.kinds import chat, completion
from services.ops.plan import find_state
from tests.load.asking import Asker
from tests.load.recording import Recorder

if TYPE_CHECKING:
    from argparse import Namespace

    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment

    from services.ops.load.kinds import Kind

SHAPES = {"steps": (0.25, 0.5, 0.75, 1.0), "spike": (0.25, 1.0, 0.25), "poisson": (1.0, 1.0, 1.0)}
"""Users of each stage, as shares of the most."""
USERS = 20
"""The most, unless `--users` says otherwise."""
USERS_PER_SECOND = 100.0
"""So fast they come and go, unless `--spawn-rate` says otherwise: a stage shall be what it says from its begin."""
STOP_SECONDS = 60
"""Requests that run when their user is stopped are waited for."""

SHORT = ("What is a retry budget?", "Explain Docker in simple terms.", "Tell me about queues.", "Why do caches go stale?", "hi")
_SENTENCE = "A pod that answers slowly takes fewer requests, and those who wait are told how long it will be. "


class ChatJson(Asker):
    """Short chats, answered whole."""

    weight = 4

    @staticmethod
    def kind_of(options: Namespace) -> Kind:
        """What this user asks."""
        return chat(prompts=SHORT, max_tokens=options.max_tokens)


class ChatStream(Asker):
    """Short chats, streamed."""

    weight = 4

    @staticmethod
    def kind_of(options: Namespace) -> Kind:
        """What this user asks."""
        return chat(is_stream=True, prompts=SHORT, max_tokens=options.max_tokens)


class Completion(Asker):
    """Completions of a text."""

    weight = 1

    @staticmethod
    def kind_of(options: Namespace) -> Kind:
        """What this user asks."""
        return completion(prompts=SHORT, max_tokens=options.max_tokens)


class CompletionStream(Asker):
    """Completions of a text, streamed."""

    weight = 1

    @staticmethod
    def kind_of(options: Namespace) -> Kind:
        """What this user asks."""
        return completion(is_stream=True, prompts=SHORT, max_tokens=options.max_tokens)


class LongPrompt(Asker):
    """Long prompts with streamed answers; each begins in another way, so that none is known from before."""

    weight = 1

    @staticmethod
    def kind_of(options: Namespace) -> Kind:
        """What this user asks."""
        words = (_SENTENCE * (options.long_prompt_words // 18 + 1)).split(" ")[: options.long_prompt_words]
        prompts = [f"{number}. {' '.join(words)}" for number in range(20)]
        return chat("chat stream, long prompt", is_stream=True, prompts=prompts, max_tokens=options.max_tokens)


class Leaver(Asker):
    """Closes the connection in the middle of its stream."""

    weight = 1

    @staticmethod
    def kind_of(options: Namespace) -> Kind:
        """What this user asks."""
        return chat("leaves in the middle", is_stream=True, prompts=SHORT, max_tokens=options.max_tokens * 8, leave_after_tokens=5)


class Shape(LoadTestShape):
    """As many users as `--shape` has in its stage of the moment."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """Users now, and how many may come or go in a second; None when it is over."""
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        assert options is not None
        now = self.get_run_time()
        for (users, _), end in zip(_stages(options), _ends(options), strict=True):
            if now < end:
                return users, options.spawn_rate
        return None


def _stages(options: Namespace) -> list[tuple[int, Stage]]:
    """Users, and what they are called and can ask for at most."""
    # Locust 2.46, the last for Python 3.10, keeps what its page was told under another name than the option's.
    most = getattr(options, "users", options.num_users)
    counts = [max(1, round(most * share)) for share in SHAPES[options.shape]]
    names = [f"stage {number}, {count} user{'s' * (count != 1)}" for number, count in enumerate(counts, 1)]
    return [(count, Stage(count / options.wait_seconds, options.stage_seconds, name)) for count, name in zip(counts, names, strict=True)]


def _ends(options: Namespace) -> list[float]:
    return [options.stage_seconds * (number + 1) for number in range(len(SHAPES[options.shape]))]


def _above_zero(text: str) -> float:
    if not 0 < (value := _number(text)) < math.inf:
        raise ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


def _share(text: str) -> float:
    if not 0 <= (value := _number(text)) <= 1:
        raise ArgumentTypeError(f"must be a number from 0 to 1, got {text}")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be a whole number from 1, got {text}")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # which no bounds let through


@events.init_command_line_parser.add_listener
def _options(parser: LocustArgumentParser) -> None:
    parser.set_defaults(num_users=USERS, spawn_rate=USERS_PER_SECOND)
    add = parser.add_argument
    add("--shape", choices=sorted(SHAPES), default="steps", help="steps: 1/4, 1/2, 3/4, all users; spike: 1/4, all, 1/4; poisson: all.")
    add("--stage-seconds", type=_above_zero, default=20.0, help="How long a stage lasts.")
    add("--wait-seconds", type=_above_zero, default=1.0, help="From one request of a user to its next; poisson: mean after an answer.")
    add("--max-tokens", type=_count, default=64, help="Tokens of an answer.")
    add("--long-prompt-words", type=_count, default=300, help="Words of a long prompt.")
    add("--seed", type=int, default=1, help="Of prompts and waits.")
    add("--api-key", default="", env_var="CONVOY_API_KEY", is_secret=True, help="Key to show, where the edge asks for one.")
    add("--record", default=str(find_state().path / "load"), help="Below this folder each run's report is written.")
    add("--max-error-rate", type=_share, default=0.01, help="Exit code 1 if a stage has more, from 0 to 1.")
    add("--max-p95-ms", type=_above_zero, help="Exit code 1 if a stage's 95th percentile of latency is above it.")
    add("--max-ttft-p95-ms", type=_above_zero, help="The same for the time to first token.")
    add("--min-rps", type=_above_zero, help="Exit code 1 if a stage answers fewer requests a second.")
    add("--min-tokens-per-second", type=_above_zero, help="The same for tokens.")


@events.init.add_listener
def _begin(environment: Environment, runner: Any, **_told: Any) -> None:
    if isinstance(runner, MasterRunner | WorkerRunner):
        sys.exit("load: --master, --worker and --processes are not for this file: its report is made in one process")
    environment.stop_timeout = environment.stop_timeout or STOP_SECONDS
    Recorder(environment, lambda options: [stage for _, stage in _stages(options)])
