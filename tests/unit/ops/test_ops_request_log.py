from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from services.ops import request_log

if TYPE_CHECKING:
    from pathlib import Path

TRACE, ADDRESS = "0af7651916cd43dd8448eb211c80319c", "127.0.0.1:1001"


def test_logs_tell_what_jaeger_does_not(tmp_path: Path) -> None:
    """Found by request id and by trace id, the newest first, in rotated files too; half lines and other words are passed over."""
    line = {"request_id": "mine", "trace_id": TRACE, "status": 200, "pod": "engine-1", "upstream": ADDRESS, "total_ms": 7}
    old, new = ({**line, "ts": f"2026-01-01T00:00:0{second}.500Z"} for second in (1, 2))
    edges_own = {**line, "request_id": "other", "trace_id": "", "pod": "edge", "status": None, "ts": "2026-01-01T00:00:03Z"}
    (tmp_path / "access.log.1").write_text(json.dumps(old) + "\n")
    (tmp_path / "access.log").write_text(f'{json.dumps(new)}\n{json.dumps(edges_own)}\nwords "mine"\n{{"request_id": "mine"')
    done = {"ts": "2026-01-01T00:00:02Z", "event": "request.done", "request_id": "mine", "trace_id": TRACE, "decode_ms": 3.5}
    (tmp_path / "engine-1.log").write_text(json.dumps(done) + "\n")
    assert [record.ts for record in request_log.access(tmp_path, "mine")] == [new["ts"], old["ts"]]
    assert len(request_log.access(tmp_path, TRACE)) == 2
    assert request_log.access(tmp_path, "min") == []
    assert request_log.access(tmp_path, "mine")[0].ended_at == pytest.approx(1767225602.507)
    assert [record.decode_ms for record in request_log.done(tmp_path, "mine")] == [3.5]
    assert request_log.pods_at(tmp_path, [ADDRESS, "unknown"]) == {ADDRESS: "engine-1"}
