"""Renders, has Envoy judge, writes: the one place that decides when a file of Envoy's changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from services.edge import rendering
from services.edge.files import EnvoyFiles, publish, read_json, version_of, write_json
from services.edge.pods import Endpoint, endpoints_in
from services.edge.validation import validate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.pods_file import PodEntry
    from services.settings import EdgeSettings


TARGETS_DIR = Path("prometheus", "targets")
"""Below the state folder: files from which Prometheus learns what to scrape."""


class Publisher:
    """Writes Envoy's files below `STATE_DIR`, each only when its content changes."""

    def __init__(self, settings: EdgeSettings, envoy_dir: Path) -> None:
        """Reads `envoy_dir`; writes nothing yet. Raises `OSError`, `yaml.YAMLError`."""
        self.settings = settings
        self.state_dir = Path(settings.state_dir)
        self.envoy_dir = envoy_dir
        self.files = EnvoyFiles.load(envoy_dir)

    def check(self) -> None:
        """Has Envoy judge what can be written from these settings; raises `InvalidConfigError`.

        Once, at the start: afterwards only endpoints and the number of retries change, and no value of theirs is invalid.
        """
        pod = Endpoint("engine-1", "127.0.0.1", 1, "HEALTHY", "engine-1")
        validate(
            rendering.static(
                rendering.bootstrap(self.files, self.settings, self.envoy_dir, self.state_dir),
                rendering.routes(self.files, self.settings, num_retries=1),
                rendering.clusters(self.files, self.settings, self.state_dir),
                rendering.endpoints(self.files, [pod]),
            ),
        )

    def write_all(self, endpoints: list[Endpoint], num_retries: int) -> dict[str, int]:
        """Writes what changed; the new version of each resource written. Bootstrap first, routes before endpoints.

        Routes first, because a second pod may only be there when Envoy may already retry on it.
        """
        self._write_bootstrap()
        written = {
            "clusters": publish(self._path("clusters"), rendering.clusters(self.files, self.settings, self.state_dir)),
            **self.write_live(endpoints, num_retries),
        }
        return {name: version for name, version in written.items() if version is not None}

    def write_live(self, endpoints: list[Endpoint], num_retries: int) -> dict[str, int]:
        """Writes routes and endpoints if they changed: all that changes while pods come and go."""
        written = {
            "routes": publish(self._path("routes"), rendering.routes(self.files, self.settings, num_retries)),
            "endpoints": publish(self._path("endpoints"), rendering.endpoints(self.files, endpoints)),
        }
        return {name: version for name, version in written.items() if version is not None}

    def write_targets(self, entries: Iterable[PodEntry]) -> None:
        """Tells Prometheus where the pods and Envoy's statistics are: all pods that there are, ready or not."""
        folder, by_age = self.state_dir / TARGETS_DIR, sorted(entries, key=lambda entry: entry.started_at)
        write_json(folder / "engine.json", rendering.targets({entry.name: f"{entry.host}:{entry.port}" for entry in by_age}))
        envoy = self.settings.stats_address or f"127.0.0.1:{self.settings.admin_port}"
        write_json(folder / "envoy.json", rendering.targets({"envoy": envoy}))

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

    def _write_bootstrap(self) -> None:
        path = self.state_dir / "envoy.yaml"
        config = rendering.bootstrap(self.files, self.settings, self.envoy_dir, self.state_dir)
        if read_json(path) != config:
            write_json(path, config)

    def _path(self, name: str) -> Path:
        return rendering.resource_path(self.state_dir, name)
