"""`convoy keys`: who may call. A new key is the one line on stdout, shown once and written nowhere; all else goes to stderr."""

from __future__ import annotations

import datetime as dt
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.ops.plan import read_plan
from services.ops.state import ROOT, OpsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.ops.state import StateDir

app = typer.Typer(
    no_args_is_help=True,
    help="Who may call: clients, their keys and limits, in the file that CLIENTS_FILE names. `KEY=$(convoy keys add alice)` works.",
)

_APPLY_SECONDS = 5.0

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The client.", show_default=False)]


@dataclass(frozen=True)
class _File:
    """The clients file of this checkout, and the stack that goes by it."""

    path: Path
    state: StateDir

    def change(self, edit: Callable[[str], str], key: str = "", note: str = "") -> None:
        """Edits the file, prints a new key and what is to be known of it, and waits until the edit is in force."""
        from services.clients import saving  # noqa: PLC0415 - `convoy` starts without YAML
        from services.clients.reading import ClientsFileError  # noqa: PLC0415
        from services.clients.writing import NEW_FILE  # noqa: PLC0415
        from services.ops.in_force import Watch  # noqa: PLC0415

        is_new = False

        def edit_or_begin(text: str | None) -> str:
            nonlocal is_new
            is_new = text is None
            if text is None and not key:
                raise OpsError(_no_file(self.path))
            return edit(NEW_FILE if text is None else text)

        watch = Watch(self.state, self.path)
        try:
            content = saving.change(self.path, edit_or_begin)
        except ClientsFileError as error:
            raise OpsError(str(error)) from error
        except OSError as error:
            raise OpsError(f"CLIENTS_FILE={self.path} cannot be changed ({error.strerror or error})") from error
        began = time.monotonic()
        if is_new:
            since = "now" if watch.is_running else "the next `convoy up`"
            _say(f"NOTE: {self.path} is new. From {since} on EVERY REQUEST NEEDS A KEY.")
        if key:
            _show(key)
        if note:
            _say(note)
        if not watch.is_running:
            _say("takes effect at the next `convoy up`")
            return
        problem = watch.wait(content, _APPLY_SECONDS)
        if problem:
            raise OpsError(f"{self.path.name} is changed, but not in force: {problem}")
        _say(f"in force after {time.monotonic() - began:.1f} s")


@app.command()
def add(  # noqa: PLR0913, PLR0917 - one for each field of a client
    name: _Name,
    role: Annotated[str, typer.Option(help="user, or ops: may also see /metrics and /envoy/*.")] = "user",
    limit_class: Annotated[str, typer.Option("--class", help="Class of limits, declared in the file.")] = "standard",
    max_priority: Annotated[str, typer.Option(help="high, normal or low: the most that x-priority may ask for.")] = "normal",
    tokens_per_minute: Annotated[str | None, typer.Option(metavar="N", help="No limit if left out.")] = None,
    max_concurrent_requests: Annotated[str | None, typer.Option(metavar="N", help="Over all pods; no limit if left out.")] = None,
    models: Annotated[str | None, typer.Option(metavar="A,B", help="All if left out.")] = None,
    expires: Annotated[str | None, typer.Option(metavar="DATE", help="2027-01-31 or 2027-01-31T18:00Z: refused from then on.")] = None,
) -> None:
    """Make a client and show its key, once. Without a clients file, begin one: from then on every request needs a key."""
    from services.clients import editing, secrets  # noqa: PLC0415
    from services.ops import keys_typed as typed  # noqa: PLC0415

    key = secrets.new_key()
    given = {
        "name": name,
        "keys": [secrets.hash_of(key)],
        "role": role,
        "class": limit_class,
        "max_priority": max_priority,
        "tokens_per_minute": tokens_per_minute,
        "max_concurrent_requests": max_concurrent_requests,
        "models": None if models is None else [model.strip() for model in models.split(",")],
        "expires": expires,
    }
    client, file = typed.client(given), _file()

    def edit(text: str) -> str:
        typed.check_class(text, file.path.name, limit_class)
        return editing.add(text, file.path.name, client)

    file.change(edit, key)


@app.command()
def rotate(
    name: _Name,
    keep: Annotated[str, typer.Option(metavar="TIME", help="How long the old keys still work: 30m, 24h, 7d; 0: no longer.")] = "24h",
) -> None:
    """Give a client a new key and show it, once; its other keys end a while later."""
    from services.clients import editing, secrets  # noqa: PLC0415
    from services.ops import keys_typed as typed  # noqa: PLC0415

    typed.refuse_key("NAME", name)
    seconds, key, file = typed.seconds(keep), secrets.new_key(), _file()
    end = dt.datetime.fromtimestamp(time.time() + seconds, dt.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else None
    note = f"the old keys of {name} end at {end}, if not before" if end else f"the old keys of {name} are removed"
    file.change(lambda text: editing.rotate(text, file.path.name, name, secrets.hash_of(key), end), key, note)


@app.command()
def remove(
    name: _Name,
    key: Annotated[str | None, typer.Option(metavar="HASH", help="Only the key whose hash begins so, see `convoy keys list`.")] = None,
) -> None:
    """Remove a client, or one of its keys."""
    from services.clients import editing  # noqa: PLC0415
    from services.clients.reading import parse  # noqa: PLC0415
    from services.ops import keys_typed as typed  # noqa: PLC0415

    typed.refuse_key("NAME", name)
    prefix = "" if key is None else typed.hash_prefix(key)
    file = _file()

    def edit(text: str) -> str:
        if prefix:
            return editing.remove_key(text, file.path.name, name, prefix)
        after = editing.remove_client(text, file.path.name, name)
        if not parse(after, file.path.name).clients:
            _say("no client is left: nobody may call")
        return after

    file.change(edit)


@app.command("list")
def show_list(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,  # noqa: FBT002 - typer
) -> None:
    """Show the clients: their limits, and when which key ends."""
    from services.clients.declared import ClientsFile  # noqa: PLC0415
    from services.clients.reading import ClientsFileError, read  # noqa: PLC0415
    from services.ops import keys_view  # noqa: PLC0415
    from services.ops.terminal import Terminal  # noqa: PLC0415

    path = _file().path
    is_there = path.exists()
    try:
        found = read(path) if is_there else ClientsFile(())
    except ClientsFileError as error:
        raise OpsError(str(error)) from error
    except OSError as error:
        raise OpsError(f"CLIENTS_FILE={path} cannot be read ({error.strerror})") from error
    if as_json:
        typer.echo(keys_view.as_json(path, found, time.time(), is_there=is_there))
    elif not is_there:
        _say(_no_file(path))
    elif not found.clients:
        _say(f"{path} names no client: nobody may call")
    else:
        Terminal().show(keys_view.table(found, time.time()))


def _file() -> _File:
    plan = read_plan()
    return _File(ROOT / Path(plan.edge.clients_file).expanduser(), plan.state)


def _no_file(path: Path) -> str:
    return f"there is no clients file ({path}): only this machine can call, without a key; `convoy keys add NAME` begins one"


def _show(key: str) -> None:
    """The one place that a key goes to, before anything is waited for, so that it cannot be lost."""
    _say("the new key, which is shown only now:")
    try:
        sys.stdout.write(key + "\n")
        sys.stdout.flush()
    except OSError as error:
        raise OpsError(f"the new key could not be printed ({error.strerror}) and is lost; `convoy keys rotate` makes another") from error


def _say(text: str) -> None:
    typer.echo(text, err=True)
