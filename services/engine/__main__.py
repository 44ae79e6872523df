"""`python -m services.engine`: the runner and its pods.

`… pod NAME LISTENER PIPE` is a pod that the runner executes, with two inherited file descriptors; `… check` a runner's trial of what it
would start; `… succeed FILE` the runner's next program in the same process.
"""

from __future__ import annotations

import socket
import sys
import traceback

from services.engine.environment import enter
from services.settings import EngineSettings, RunnerSettings, SettingsError, load
from services.settings.reader import environment_of

EXIT_BROKE = 70
"""EX_SOFTWARE: whoever supervises us starts us again."""


def main(arguments: list[str]) -> int:
    """The exit code."""
    try:
        if arguments[:1] == ["pod"]:
            pod = load(EngineSettings)
            enter(pod.engine, arguments)
            from services.engine.pod import run_pod  # noqa: PLC0415 - a runner that executes its pods stays small without it

            name, listener, pipe = arguments[1:]
            return run_pod(pod, name, socket.socket(fileno=int(listener)), int(pipe))
        settings = load(RunnerSettings, None if arguments else environment_of("runner"))
        enter(settings.engine, arguments)
        from services.engine.runner import Runner  # noqa: PLC0415 - likewise

        if arguments[:1] == ["check"]:
            from services.engine.succession import check  # noqa: PLC0415 - likewise

            return check(settings)
        if arguments[:1] == ["succeed"]:
            from services.engine.succession import inherit  # noqa: PLC0415 - likewise

            return Runner(settings, inherit(int(arguments[1]))).run()
        return Runner(settings).run()
    except SettingsError as error:
        print(f"engine: {error}", file=sys.stderr)
        return 1
    except Exception:  # noqa: BLE001 - a bug of ours must not look like code 1, which means: do not start me again
        traceback.print_exc()
        return EXIT_BROKE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
