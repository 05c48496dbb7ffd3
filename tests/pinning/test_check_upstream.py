"""`pin --check-upstream`: which references of the Hub have moved on."""

from __future__ import annotations

import json
from typing import Any

from hub import File, Hub
from origin import Origin
from origin import status as answer
from pins import DATA, FILES, text


def test_what_moved_upstream(run: Any, origin: Origin, hub: Hub) -> None:
    commit = hub.push("acme/bert", "main", FILES)
    origin.put("/a.pt", DATA)
    assert (
        run("add", "a", origin.url("/a.pt"))[0] == run("add", "bert", "hf://acme/bert", "--include", "*.json")[0] == 0
    )
    assert run("pin", "--check-upstream")[:2] == (0, "ok  nothing moved\n")
    hub.push("acme/bert", "main", {"README.md": b"news", "model.safetensors": File(b"other", lfs=True)})
    assert run("pin", "--check-upstream")[0] == 0  # nothing that is declared
    moved = hub.push("acme/bert", "main", {"config.json": b"[]"})
    origin.put("/a.pt", DATA[:-1])
    code, out, _ = run("pin", "--check-upstream")
    assert (code, out.splitlines()) == (
        1,
        [
            f"WARN  a     {origin.url('/a.pt')} has a.pt with 300000 bytes, 300001 are pinned",
            f"WARN  bert  acme/bert has other bytes of config.json at main ({moved})",
        ],
    )
    hub.push("acme/bert", "main", {"config.json": None})
    origin.put("/a.pt", b"", always=answer(404))
    rows = json.loads(run("pin", "--check-upstream", "--json")[1])["checkpoints"]
    assert "does not deliver a.pt: HTTP 404" in rows[0]["moved"][0]
    assert "has no config.json at main" in rows[1]["moved"][0]
    del hub.repositories["acme/bert"]
    assert "does not exist, or is private" in run("pin", "bert", "--check-upstream")[1]
    assert commit in text()
