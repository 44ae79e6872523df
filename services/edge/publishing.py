"""Renders, has Envoy judge, writes: the one place that decides when a file of Envoy's changes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from services import envoy_mark
from services.edge import clients, lane, rendering
from services.edge.files import publish, read_json, version_of, write_json
from services.edge.pods import Endpoint, endpoints_in
from services.edge.validation import InvalidConfigError, validate
from services.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.edge.files import Json
    from services.edge.inputs import Wanted
    from services.pods_file import PodEntry


TARGETS_DIR = Path("prometheus", "targets")
"""Below the state folder: files from which Prometheus learns what to scrape."""

_KEPT_SCRIPTS = 3
"""Versions of the keys' table on disk: Envoy may be reading the one before."""


class Publisher:
    """Writes Envoy's files below `STATE_DIR`, each only when its content changes."""

    def __init__(self, wanted: Wanted, envoy_dir: Path) -> None:
        """`wanted`: what people decided, until `adopt`. Writes nothing yet."""
        self.wanted = wanted
        self.settings = wanted.settings
        self.state_dir = Path(wanted.settings.state_dir)
        self.envoy_dir = envoy_dir
        self._script: tuple[Wanted, Path] | None = None

    def check(self, wanted: Wanted) -> None:
        """Has Envoy judge what would be written; raises `InvalidConfigError`.

        Pods are not among it: no value of theirs, nor of the number of retries, is invalid. Nor is the table of keys: each of its values
        was checked when the clients file was read, and the program that reads it is judged here.
        """
        pod = Endpoint("engine-1", "127.0.0.1", 1, "HEALTHY", "engine-1")
        try:
            config = rendering.bootstrap(wanted.files, wanted.settings, self.envoy_dir, self.state_dir)
            responses = self._responses(wanted, [pod], num_retries=1, script=Path("keys.lua"))
            nobody = msgspec.structs.replace(wanted.clients, clients=()) if wanted.clients else None
            whole = rendering.static(config, responses, clients.keys_script(wanted.files, nobody))
        except (LookupError, TypeError, AttributeError) as error:
            raise InvalidConfigError(f"something that the edge sets there is missing: {error!r}") from error
        validate(whole)

    def adopt(self, wanted: Wanted) -> None:
        """Takes over what people newly decided; `write_all` writes it."""
        self.wanted = wanted
        self.settings = wanted.settings

    def write_all(self, endpoints: list[Endpoint], num_retries: int) -> dict[str, int]:
        """Writes what changed, in the order of RESOURCES after the bootstrap; the new version of each resource written."""
        self._write_bootstrap()
        script = self._write_script()
        responses = self._responses(self.wanted, endpoints, num_retries, script)
        for name in ("limit_address", "limit_client", "keys") if self.wanted.keeps_clients else ():
            del responses[name]
        if self.wanted.guests.pods:
            publish(self._path(lane.NAME), lane.endpoints(self.wanted.files, self.wanted.guests))
        written = {name: publish(self._path(name), responses[name]) for name in rendering.RESOURCES if name in responses}
        self._drop_old_scripts(script)
        return {name: version for name, version in written.items() if version is not None}

    def stir(self) -> None:
        """Has Envoy read all its files again, as any rename in their folder does."""
        write_json(self._path("stirred"), {})

    def write_targets(self, entries: Iterable[PodEntry], metrics_address: str = "") -> None:
        """Tells Prometheus where the pods, Envoy's statistics and the edge's own are: all pods that there are, ready or not."""
        folder, by_age = self.state_dir / TARGETS_DIR, sorted(entries, key=lambda entry: entry.started_at)
        write_json(folder / "engine.json", rendering.targets({entry.name: f"{entry.host}:{entry.port}" for entry in by_age}))
        envoy = self.settings.stats_address or f"127.0.0.1:{self.settings.admin_port}"
        write_json(folder / "envoy.json", rendering.targets({"envoy": envoy}))
        write_json(folder / "edge.json", rendering.targets({"edge": metrics_address} if metrics_address else {}))

    def versions(self) -> dict[str, str]:
        """The version of each resource as it lies in its file."""
        return {name: str(version_of(read_json(self._path(name)))) for name in rendering.RESOURCES}

    def present_endpoints(self) -> list[Endpoint]:
        """What was written last, by this process or the one before."""
        return endpoints_in(read_json(self._path("endpoints")))

    def present_retries(self) -> int:
        """The number of retries written last; 1 if there is none."""
        present = read_json(self._path("routes"))
        if not present:
            return 1
        retries: int = present["resources"][0]["virtual_hosts"][0]["retry_policy"]["num_retries"]
        return retries

    def _responses(self, wanted: Wanted, endpoints: list[Endpoint], num_retries: int, script: Path) -> dict[str, Json]:
        """Every resource."""
        files, settings = wanted.files, wanted.settings
        return {
            "clusters": lane.clusters(rendering.clusters(files, settings, self.state_dir), wanted.guests, self.state_dir),
            "routes": lane.routes(rendering.routes(files, settings, num_retries), wanted.guests),
            "endpoints": rendering.endpoints(files, endpoints),
            "limit_address": clients.limit_address(files, wanted.clients, settings),
            "limit_client": clients.limit_client(files, wanted.clients),
            "keys": clients.keys(files, script),
        }

    def _write_bootstrap(self) -> None:
        path = self.state_dir / "envoy.yaml"
        config = rendering.bootstrap(self.wanted.files, self.wanted.settings, self.envoy_dir, self.state_dir)
        envoy_mark.put(config)
        if read_json(path) != config:
            write_json(path, config)

    def _write_script(self) -> Path:
        """The table of keys and its program, in a file named after its content: another content is another name, which Envoy notices."""
        if self._script and self._script[0] is self.wanted:
            return self._script[1]  # pods come and go far more often than clients
        text = clients.keys_script(self.wanted.files, self.wanted.clients, self.wanted.guests.clients).encode()
        path = scripts_dir(self.state_dir) / f"keys-{hashlib.sha256(text).hexdigest()[:16]}.lua"
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, text, mode=0o600)
        self._script = (self.wanted, path)
        return path

    def _drop_old_scripts(self, current: Path) -> None:
        by_age = sorted(current.parent.glob("keys-*.lua"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        in_use = (read_json(self._path("keys")) or {}).get("resources", [{}])[0]
        named = str(in_use.get("typed_config", {}).get("default_source_code", {}).get("filename", ""))
        for path in by_age[_KEPT_SCRIPTS:]:
            if path != current and str(path) != named:
                path.unlink()

    def _path(self, name: str) -> Path:
        return rendering.resource_path(self.state_dir, name)


def scripts_dir(state_dir: Path) -> Path:
    """Where the tables of keys lie, absolute; nobody else may read it."""
    return state_dir.resolve() / "keys"


def knows_clients(state_dir: Path) -> bool:
    """Whether what was written last asks for a key."""
    present = read_json(rendering.resource_path(state_dir, "limit_client"))
    if not present:
        return False
    options = present["resources"][0]["typed_config"]
    return bool(options["filter_enabled"]["default_value"]["numerator"])
