"""Doors that must be shut: Envoy's admin, inner paths of Envoy and pods. Only GETs are tried: if one were open they would do nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.ops.doctor.callers import is_reachable, other_addresses
from services.ops.doctor.rows import failed, ok

if TYPE_CHECKING:
    from services.ops.doctor.rows import Finding
    from services.ops.doctor.visit import Visit

# A GET of what acts is refused (405) by Envoy's admin even where the path is allowed; a path that is not is 403.
_ACTING = ("/quitquitquit", "/logging", "/runtime_modify", "/cpuprofiler", "/config_dump")
_INNER = (
    "/drain",
    "/metrics/../drain",
    "//drain",
    "/debug",
    "/admin",
    "/envoy/quitquitquit",
    "/envoy/config_dump",
    "/envoy/stats/../quitquitquit",
)


async def admin(visit: Visit) -> Finding:
    """Envoy's admin answers on loopback only, and only reads."""
    where = visit.admin.port
    reached = [address for address in other_addresses() if await is_reachable(address, where)]
    if reached:
        return failed(f"Envoy's admin port {where} answers at {', '.join(reached)}")
    status, _ = await visit.admin.get("/ready")
    open_paths = [path for path in _ACTING if (await visit.admin.get(path))[0] != 403]
    if open_paths:
        return failed(f"Envoy's admin allows {', '.join(open_paths)}")
    return ok(f"on loopback only: /ready {status}; {', '.join(_ACTING)}: 403")


async def inner_paths(visit: Visit) -> Finding:
    """Whoever calls, Envoy's admin and what pods have besides the API is not there; pods listen on loopback."""
    wrong = []
    for path in _INNER:
        answer = await visit.asker.get(path, visit.asker.operator())
        if (answer.status, answer.pod) != (404, "edge"):
            wrong.append(f"GET {path}: {answer} from {answer.pod or 'somebody else'}")
    pods = [pod for pod in visit.target.told().get("pods", []) if pod["host"].startswith("127.")]
    for pod in pods:
        wrong += [f"{pod['name']} answers at {at}:{pod['port']}" for at in other_addresses() if await is_reachable(at, pod["port"])]
    return failed("; ".join(wrong)) if wrong else ok(f"404 from the edge: {', '.join(_INNER)}")
