"""Every query of every panel and rule, asked of the real Prometheus after traffic, a failing request and a killed pod."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import yaml

from grafana.asking import Prometheus
from tests.running import ROOT
from tests.stack.convoy import until
from tests.stack.observed import Client

if TYPE_CHECKING:
    from tests.stack.observed import Observed

EMPTY_BY_RIGHT: dict[str, str] = {}
"""Query -> why it has no data on a stack that has seen all this."""


async def traffic(stack: Observed) -> None:
    """Answers, streams, a refusal of the request itself, and a pod that dies under one."""
    async with aiohttp.ClientSession() as session:
        client = Client(stack, session)
        for _ in range(4):
            assert [(await client.ask(stream=stream, max_tokens=4))[0] for stream in (True, False)] == [200, 200]
        assert (await client.ask(temperature=3))[0] == 400
        asking = asyncio.create_task(client.ask())
        await asyncio.to_thread(until, stack.busy_pods, lambda: "a busy pod")
        os.kill(stack.pid(stack.busy_pods()[0]), signal.SIGKILL)
        assert (await asking)[0] == 200
    until(stack.convoy.ready, lambda: str(stack.convoy.status()))


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """All panels, those in rows too, that ask Prometheus something."""
    found = [inner for panel in board["panels"] for inner in [panel, *panel.get("panels", [])]]
    return [panel for panel in found if panel.get("targets")]


def empty_queries(prometheus: Prometheus) -> list[str]:
    """The queries without a single number: of the dashboards, and of the rules."""
    empty = []
    for path in sorted((ROOT / "grafana" / "dashboards").glob("*.json")):
        board = json.loads(path.read_text())
        prometheus.choose(board["templating"].get("list", []))
        for panel in panels(board):
            for target in panel["targets"]:
                has_data = prometheus.exemplars(target) if target.get("exemplar") else prometheus.ask(target)
                if not has_data and target["expr"] not in EMPTY_BY_RIGHT:
                    empty.append(f"{board['title']} / {panel['title']}: {target['expr']}")
    rules = [rule for path in sorted(Path(ROOT / "prometheus" / "rules").glob("*.yaml")) for rule in _rules(path)]
    return empty + [f"rule {name}" for name in rules if not prometheus.ask({"expr": name, "instant": True})]


def _rules(path: Path) -> list[str]:
    return [rule["record"] for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"] if "record" in rule]


async def test_every_panel_and_rule_is_fed(stack: Observed) -> None:
    """Nothing on the dashboards is empty on a healthy stack that has seen an error and a dead pod."""
    start = time.time()
    await traffic(stack)
    with httpx.Client(base_url=stack.prometheus, timeout=30) as client:
        empty: list[str] = []

        def all_fed() -> bool:
            empty[:] = empty_queries(Prometheus(client, start, time.time()))
            return not empty

        until(all_fed, lambda: "\n".join(empty))
