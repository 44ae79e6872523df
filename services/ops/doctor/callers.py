"""Who may call: keys, what callers say of themselves, and from where the port can be reached."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import uuid
from typing import TYPE_CHECKING

import psutil

from services.ops.doctor.asking import bearer
from services.ops.doctor.rows import failed, ok, unused
from services.ops.doctor.visit import until

if TYPE_CHECKING:
    from services.ops.doctor.asking import Answer
    from services.ops.doctor.rows import Finding
    from services.ops.doctor.visit import Visit

NO_KEYS = "no clients file, loopback only"
_CONNECT_SECONDS = 1.0
_RECORD_SECONDS = 5.0
_MAX_ADDRESSES = 8

# What only Envoy may say to a pod, with values that would be seen to act: another name, no model allowed. Of x-convoy-* nothing would be.
FORGED = {
    "x-client-id": "forged",
    "x-client-role": "ops",
    "x-client-models": "none-at-all",
}


async def keys(visit: Visit) -> Finding:
    """A call without key, with a wrong one and with one that is over is refused, and one with a key is answered."""
    known = visit.asker.keys
    if known is None:
        return unused(NO_KEYS)
    wrong = {"without key": {}, "unknown key": bearer(known.unknown), "expired key": bearer(known.expired)}
    seen = []
    for what, headers in wrong.items():
        answer = await visit.lane.ask(headers={"authorization": "", **headers})
        seen.append(f"{what}: {answer}")
        if (answer.status, answer.code) != (401, "invalid_api_key"):
            return failed(f"{what}: {answer}, expected 401 invalid_api_key")
    answer = await visit.lane.ask()
    seen.append(f"with key: {answer}")
    return ok(", ".join(seen)) if answer.status == 200 else failed(", ".join(seen))


async def identity(visit: Visit) -> Finding:
    """What callers say of themselves in Envoy's own headers reaches no pod and opens no door."""
    known, request_id = visit.asker.keys, f"doctor-{uuid.uuid4()}"
    name, key = known.user() if known else ("local", "")
    own = bearer(key) if key else {}
    answer = await visit.lane.ask(headers={**own, **FORGED, "x-request-id": request_id})
    if answer.status != 200:
        return failed(f"forged x-client-* acted: {answer} {answer.error.get('message', '')}".strip())

    async def is_recorded() -> bool:
        return visit.lane.client_of(request_id) is not None

    await until(is_recorded, _RECORD_SECONDS)
    client = visit.lane.client_of(request_id)
    if client != name:
        return failed(f"the pod took the caller for {client!r}, it is {name!r}")
    seen = f"the pod was told {name!r}, not the forged name"
    if known is None:
        return ok(seen)
    door = await visit.asker.get("/envoy/server_info", {**visit.asker.user(), **FORGED})
    opened = await visit.asker.get("/envoy/server_info", {**visit.asker.operator()})
    seen += f"; /envoy/server_info: {door.status} with a forged role, {opened.status} with the role ops"
    return ok(seen) if (door.status, opened.status) == (403, 200) else failed(seen)


async def port(visit: Visit) -> Finding:
    """Without keys nobody but this machine can call; with them every call from elsewhere needs one."""
    settings, port_number = visit.target.settings, visit.asker.address[1]
    others = other_addresses()
    if settings.allow_no_keys and not visit.asker.keys:
        return unused("ALLOW_NO_KEYS: something else keeps strangers out")
    if not others:
        return unused("this machine has no address but loopback")
    reached = [address for address in others if await is_reachable(address, port_number)]
    if settings.is_loopback or not visit.asker.keys:
        if reached:
            return failed(f"port {port_number} answers at {', '.join(reached)}")
        return ok(f"port {port_number} is closed at {', '.join(others)}")
    answer: Answer = await visit.asker.get("/v1/models", {})
    seen = f"port {port_number} answers at {', '.join(reached) or 'no other address'}; without key: {answer}"
    return ok(seen) if answer.status == 401 else failed(seen)


def other_addresses() -> list[str]:
    """This machine's addresses that others can reach it at."""
    found = []
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family in {socket.AF_INET, socket.AF_INET6} and "%" not in address.address:
                number = ipaddress.ip_address(address.address)
                if not (number.is_loopback or number.is_link_local):
                    found.append(address.address)
    return sorted(found)[:_MAX_ADDRESSES]


async def is_reachable(address: str, port_number: int) -> bool:
    """Whether somebody listens there."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(address, port_number), _CONNECT_SECONDS)
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
