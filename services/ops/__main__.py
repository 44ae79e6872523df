"""The `convoy` command: what people type to run, look at and talk to the stack."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from services.ops import keys
from services.ops.interrupts import stop_on_signals
from services.ops.plan import find_state, read_plan
from services.ops.state import ROOT, OpsError
from services.settings import SettingsError
from services.version import version

if TYPE_CHECKING:
    from services.ops.logs import Line

NOT_READY, NOTHING_RUNS = 1, 3

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serves large language models behind an OpenAI-compatible API. Settings come from the environment and .env (see .env.example).",
)
app.add_typer(keys.app, name="keys")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"convoy {version()}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")] = False,  # noqa: FBT002 - typer
) -> None:
    """Options before the command."""


@app.command()
def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when everything is ready; `convoy down` stops it.")] = False,  # noqa: FBT002 - typer
) -> None:
    """Start pods, edge and Envoy; stay in the foreground until Ctrl-C."""
    from services.ops.up import up as run  # noqa: PLC0415 - each command imports only what it needs

    stop_on_signals()
    run(read_plan(), is_detached=detach)


@app.command()
def down() -> None:
    """Stop everything: running requests finish, logs stay."""
    from services.ops.up import down as run  # noqa: PLC0415

    run(find_state())


@app.command()
def restart(
    name: Annotated[str, typer.Argument(metavar="[pods|edge|envoy|tools]", help="All of them, in this order, if left out.")] = "",
    timeout: Annotated[float, typer.Option(min=1, max=86_400, help="Seconds that each new pod may take until it serves.")] = 600,
) -> None:
    """Replace parts by new processes with new code and settings; no request is lost. Exit code 1: what ran before goes on, and why."""
    from services.ops.restart import restart as run  # noqa: PLC0415

    stop_on_signals()
    run(name, timeout)


@app.command()
def scale(
    number: Annotated[int, typer.Argument(help="Pods that there shall be until `convoy down`.")],
    timeout: Annotated[float, typer.Option(min=1, max=86_400, help="Seconds until that is to be true.")] = 600,
) -> None:
    """Start more pods, or let some finish their requests and end. Exit code 1: there are as many as before, and why."""
    from services.ops.scale import scale as run  # noqa: PLC0415

    stop_on_signals()
    run(find_state(), number, timeout)


@app.command()
def reload() -> None:
    """Show which changes of settings and files are in force, and which wait for what. The edge takes them over by itself.

    Exit code 0: all is in force, or waits for the command that is shown; 1: something is refused; 3: nothing runs.
    """
    from services.ops.reload import show  # noqa: PLC0415

    raise typer.Exit(show(os.environ))


@app.command()
def edge(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all clients.")] = False,  # noqa: FBT002 - typer
    all_clients: Annotated[bool, typer.Option("--all", help="Show all clients, not the first 20.")] = False,  # noqa: FBT002 - typer
) -> None:
    """Show what the edge does: routes, clients, limits, pods, circuits, retries. Exit code 1: Envoy is silent; 3: nothing runs."""
    from services.ops.edge import show  # noqa: PLC0415

    raise typer.Exit(show(find_state(), is_json=as_json, is_all=all_clients))


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,  # noqa: FBT002 - typer
) -> None:
    """Show what runs. Exit code 0: all is well; 1: something is not ready; 3: nothing runs."""
    import msgspec  # noqa: PLC0415

    from services.ops.processes import describe, find  # noqa: PLC0415
    from services.ops.status import gather, table  # noqa: PLC0415
    from services.ops.terminal import Terminal  # noqa: PLC0415

    state = find_state()
    found = gather(state)
    strays = [] if found else [describe(process) for process in find(state.path)]
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
    elif strays:
        typer.echo(f"the supervisor is gone, but {', '.join(strays)} still run; `convoy down` ends them, `convoy up` starts afresh")
    elif found is None:
        typer.echo("nothing runs; start it with `convoy up`")
    else:
        terminal = Terminal()
        terminal.show(table(found))
        for problem in found.problems:
            terminal.say(f"edge: {problem}")
        if found.roll:
            terminal.say(found.roll)
        terminal.say(f"{found.url} is {'ready' if found.ready else 'not ready'}")
    raise typer.Exit(0 if found and found.ready else NOT_READY if found or strays else NOTHING_RUNS)


@app.command()
def logs(
    name: Annotated[str | None, typer.Argument(help="runner, edge, envoy, access, engine-1, …; all, merged by time, if left out.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")] = False,  # noqa: FBT002 - typer
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines to show.")] = 50,
) -> None:
    """Show logs."""
    from services.ops import logs as log_files  # noqa: PLC0415

    folder = read_plan().state.logs
    chosen = log_files.pick(folder, name)

    def show(line: Line) -> None:
        typer.echo(line.text if name else f"{line.name:10} | {line.text}")

    for line in log_files.tail(folder, chosen, lines):
        show(line)
    try:
        for line in log_files.follow(folder, name) if follow else ():
            show(line)
    except KeyboardInterrupt:
        return


@app.command()
def chat(
    system: Annotated[str, typer.Option(help="System message.")] = "",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 always takes the likeliest token.")] = None,
    model: Annotated[str | None, typer.Option(help="Model; the served one if left out.")] = None,
    url: Annotated[str | None, typer.Option(help="Address of the API; the running stack's if left out.")] = None,
) -> None:
    """Talk to the model."""
    from services.ops.chat import Conversation, converse  # noqa: PLC0415

    given = {"max_tokens": max_tokens, "temperature": temperature, "model": model}
    options = {key: value for key, value in given.items() if value is not None}
    # From the environment, never from an option: what stands on a command line is seen by everybody on the machine.
    key = read_plan().ops.convoy_api_key
    raise typer.Exit(converse(Conversation((url or _running_url()).rstrip("/"), options, system, key)))


@app.command()
def trace(
    wanted: Annotated[
        str, typer.Argument(metavar="REQUEST-ID | TRACE-ID", help="Value of a response's x-request-id, x-trace-id or traceresponse.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,  # noqa: FBT002 - typer
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for the trace of a request that is just over.")] = False,  # noqa: FBT002 - typer
) -> None:
    """Show where a request's time went. Exit code 1: there is no trace of it, and why."""
    from services.ops.trace import show  # noqa: PLC0415

    show(read_plan().state, wanted, is_json=as_json, is_patient=not no_wait)


@app.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="Print once and end; so it does, too, where stdout is no terminal.")] = False,  # noqa: FBT002 - typer
) -> None:
    """Show what each pod does now, each second, until Ctrl-C."""
    from services.ops.top import show  # noqa: PLC0415

    show(read_plan().state, is_once=once)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,  # noqa: FBT002 - typer
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what takes long: the first-token limit, a pod's return.")] = False,  # noqa: FBT002 - typer
) -> None:
    """Prove each policy of the running stack by doing. Exit code 0: all is well; 1: something is not; 3: nothing runs."""
    from services.ops.doctor.command import doctor as run  # noqa: PLC0415

    stop_on_signals()
    raise typer.Exit(run(read_plan().state, is_json=as_json, is_quick=quick))


def _running_url() -> str:
    run = read_plan().state.run()
    if run is None:
        raise OpsError("nothing runs; start it with `convoy up`, or name an address: convoy chat --url http://HOST:PORT")
    return run.url


def main() -> None:
    """Runs the command line; what stops a command is one line on stderr and exit code 1."""
    os.chdir(ROOT)
    try:
        app(prog_name="convoy")
    except (OpsError, SettingsError) as error:
        print(f"convoy: {error}", file=sys.stderr)  # noqa: T201 - what a command line is for
        sys.exit(1)


if __name__ == "__main__":
    main()
