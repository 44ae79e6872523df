"""`python -m services.edge [run|render|validate] [--files DIR]`: the edge as a process."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from services.edge.daemon import Edge
from services.edge.files import ENVOY_DIR
from services.edge.inputs import Inputs
from services.edge.publishing import Publisher, knows_clients
from services.edge.sources import listed, source_of
from services.edge.validation import InvalidConfigError, validate_file
from services.settings import EdgeSettings, SettingsError, load
from services.settings.reader import environment_of
from services.telemetry.logging import configure

if TYPE_CHECKING:
    from services.edge.inputs import Wanted


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; 0 if all went well, 1 after one readable line about what did not."""
    parser = argparse.ArgumentParser(prog="python -m services.edge", description=__doc__)
    parser.add_argument("command", nargs="?", default="run", choices=["run", "render", "validate"])
    parser.add_argument("--files", type=Path, default=ENVOY_DIR, metavar="DIR", help="folder of Envoy's files (default: envoy/)")
    options = parser.parse_args(arguments)
    try:
        settings = load(EdgeSettings, environment_of("edge"))
        is_render = options.command != "run"
        inputs = Inputs(settings, options.files, had_clients=not is_render and knows_clients(Path(settings.state_dir)))
        publisher = Publisher(_begun(inputs, is_strict=is_render), options.files)
        if options.command == "validate":
            return _validate(publisher, options.files)
        _require_ports(settings)
        _require_keys_or_loopback(publisher)
        publisher.check(publisher.wanted)
        return _render(publisher) if options.command == "render" else asyncio.run(_run(publisher, inputs))
    except (SettingsError, InvalidConfigError, OSError, yaml.YAMLError) as error:
        sys.stderr.write(f"edge: {error}\n")
        return 1


def _begun(inputs: Inputs, *, is_strict: bool) -> Wanted:
    """What people decided, as it is now. A daemon that starts beside a running Envoy goes on without what it can do without."""
    for part in inputs.look():
        part.accept()
    wrong = [part.error for part in inputs.parts if part.error and (is_strict or (part.value is None and part is not inputs.clients_part))]
    if wrong:
        raise SettingsError("; ".join(wrong))
    return inputs.wanted()


def _require_ports(settings: EdgeSettings) -> None:
    for name in ("port", "admin_port"):
        if getattr(settings, name) == 0:
            raise SettingsError(f"{name.upper()}=0: the edge needs a port number here; `convoy up` picks a free one and passes it on")


def _require_keys_or_loopback(publisher: Publisher) -> None:
    """Nobody listens to strangers without keys by mistake."""
    settings = publisher.settings
    if publisher.wanted.clients or publisher.wanted.keeps_clients or settings.is_loopback or settings.allow_no_keys:
        return
    raise SettingsError(
        f"HOST={settings.host} lets other machines call, and there is no clients file at CLIENTS_FILE={settings.clients_file}; make one "
        "(`convoy keys add NAME`, see clients.example.yaml), or leave HOST at 127.0.0.1"
    )


def _validate(publisher: Publisher, folder: Path) -> int:
    """Envoy judges the files as they lie, then what is rendered from them."""
    validate_file(folder.resolve() / "envoy.yaml", folder.resolve().parent)
    publisher.check(publisher.wanted)
    sys.stdout.write(f"{folder}: valid as it lies and as rendered\n")
    return 0


def _render(publisher: Publisher) -> int:
    """Writes everything once, before Envoy starts. Of the endpoints on disk only those stay whose pods are still listed."""
    try:
        present = listed(publisher.present_endpoints(), publisher.settings)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    publisher.write_all(present, publisher.present_retries())
    return 0


async def _run(publisher: Publisher, inputs: Inputs) -> int:
    """The daemon, until SIGTERM or SIGINT; Envoy then keeps what it has."""
    configure(publisher.settings.log_level, publisher.settings.log_format, "edge")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Edge(publisher, source_of(publisher.settings, publisher.present_endpoints()), inputs).run(stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
