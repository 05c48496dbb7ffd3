"""SIGKILL, at random points and at every step: the next `ensure` heals, and fetches what was missing (G4)."""

from __future__ import annotations

import json
import os
import random
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from origin import Origin
from support import MB, blob, child, finish, kill_after_every_step, one, partials, sha256, visible
from weightcache import DownloadError, ensure, status, verify
from weightcache._store.partial_directory import BLOCK

pytestmark = pytest.mark.crash

KILLS = 20

# What a socket takes in beside a process that has no processor just now is lost with it, and would be megabytes.
ENSURE = """
import socket, urllib3.connection
urllib3.connection.HTTPConnection.default_socket_options += [(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)]
weights = ensure(json.loads(sys.argv[1]), root=sys.argv[2], progress=False)
print(json.dumps([weights.report["sam2"].outcome, weights.report["sam2"].bytes_fetched]))
"""


@pytest.mark.parametrize("containers", ["one container", "another container each time"])
@pytest.mark.timeout(600)
def test_kills_at_random_points_of_a_large_download(containers: str, origin: Origin, root: Path) -> None:
    data = blob(64 * MB)
    seed = random.SystemRandom().randrange(2**32)
    points = sorted(random.Random(seed).sample(range(MB, 63 * MB), KILLS))
    print("seed", seed)
    resource = origin.put("/a", data, rate=300e6)
    manifest = one(data, origin.url("/a"))
    victim: list = []

    connections: list[int] = []

    def kill(sent: int) -> None:
        # The n-th kill comes when the origin has sent the n-th point plus what earlier kills cost.
        if victim and points and sent >= points[0] + lost:
            points.pop(0)
            connections.append(origin.busy())
            victim.pop().kill()

    resource.on_sent = kill
    lost, kills = 0, 0
    while points:
        env = {"MODAL_TASK_ID": f"ta-{kills}"} if "another" in containers else {}
        process = child(ENSURE, json.dumps(manifest), str(root), env=env)
        victim.append(process)
        _, err = process.communicate(timeout=120)
        victim.clear()
        assert process.returncode == -signal.SIGKILL, err
        kills += 1
        assert visible(root) == []
        # What this life cost beyond what it left: sent, and not in a block that is journaled.
        lost = origin.sent() - journaled(root, data)
        assert lost <= sum(connections) * (BLOCK + BLOCK // 2), (
            f"{lost} bytes lost in {kills} kills of {connections} connections"
        )
    env = {"MODAL_TASK_ID": "ta-last"} if "another" in containers else {}
    there = journaled(root, data)
    outcome, fetched = json.loads(finish(child(ENSURE, json.dumps(manifest), str(root), env=env)))
    assert outcome == "resumed"
    assert fetched <= len(data) - there + BLOCK
    assert kills == KILLS
    [path] = visible(root)
    assert sha256((root / path).read_bytes()) == sha256(data)


@pytest.mark.timeout(600)
def test_kills_with_many_connections_busy(origin: Origin, root: Path) -> None:
    """What was sent and must be sent again is at most a block a connection, and what its socket held."""
    data = blob(120 * MB)
    resource = origin.put("/a", data, rate=4e6)
    manifest = one(data, origin.url("/a"))
    victim: list = []
    connections: list[int] = []

    def kill(sent: int) -> None:
        if victim and sent >= before + 20 * MB and origin.busy() >= 16:
            connections.append(origin.busy())
            victim.pop().kill()

    resource.on_sent = kill
    for kills in range(1, 5):
        before = origin.sent()
        process = child(ENSURE, json.dumps(manifest), str(root))
        victim.append(process)
        _, err = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, err
        assert len(connections) == kills
        lost = origin.sent() - journaled(root, data)
        assert lost <= sum(connections) * (BLOCK + BLOCK // 2), (lost, connections)
    print(f"{connections} connections busy at the kills; {lost / sum(connections) / BLOCK:.2f} MiB lost for each")
    there = journaled(root, data)
    resource.on_sent = None
    outcome, fetched = json.loads(finish(child(ENSURE, json.dumps(manifest), str(root))))
    assert outcome == "resumed"
    assert fetched <= len(data) - there + BLOCK
    [path] = visible(root)
    assert sha256((root / path).read_bytes()) == sha256(data)


def journaled(root: Path, data: bytes) -> int:
    """Bytes of the file that are in a journaled block of any partial."""
    blocks, digest = set(), sha256(data)
    for partial in partials(root):
        for line in (partial / "journal").read_text().split("\n")[:-1]:
            if line.startswith(digest):
                blocks.add(int(line.split()[1]))
    return len(blocks) * BLOCK


def three(origin: Origin, folder: str, data: bytes, small: bytes) -> dict:
    """Three checkpoints: two with one digest, and a directory of two equal files; no size is declared."""
    files = {"x": {"sha256": sha256(small)}, "y": {"sha256": sha256(small)}}
    manifest = one(data, origin.url(f"/{folder}/a"), size=False)
    manifest["checkpoints"]["twin"] = manifest["checkpoints"]["sam2"]
    manifest["checkpoints"]["bert"] = {"urls": [origin.url(f"/{folder}")], "files": files}
    return manifest


def tear(root: Path, step: int) -> None:
    """Lose the end of a journal, as a power cut does, or leave a line of it that was cut."""
    for partial in partials(root):
        if (partial / "journal").exists():
            text = (partial / "journal").read_bytes()
            ends = (text, text[:-5], text[: len(text) // 2], b"\nopened\n", text + b"wiped\n")
            (partial / "journal").write_bytes(ends[step % 5])


def test_a_kill_after_every_step(origin: Origin, tmp_path: Path) -> None:
    data, small = blob(2 * BLOCK + 5), b"small"
    for folder, served in {"good": (data, small), "other": (blob(len(data), 9), b"other")}.items():
        origin.put(f"/{folder}/a", served[0])
        origin.put(f"/{folder}/x", served[1])
        origin.put(f"/{folder}/y", served[1])
    manifest, tampered = three(origin, "good", data, small), three(origin, "other", data, small)
    work = "ensure(json.loads(sys.argv[1]), root=root, progress=False, volume=Volume())"
    killed = kill_after_every_step(work, json.dumps(manifest), tmp_path)
    assert len(killed) > 25
    for step, root in killed:
        tear(root, step)
        # The next start meets a mirror that delivers other files: it must not spoil what is published already.
        with suppress(DownloadError):
            ensure(tampered, root=root, progress=False)
        for path in visible(root):
            assert (root / path).read_bytes() in (data, small), (step, path)
        for seen in status(manifest, root=root):
            assert seen.state != "damaged", (step, seen)
        weights = ensure(manifest, root=root, progress=False)
        assert weights["sam2"].read_bytes() == weights["twin"].read_bytes() == data
        assert (weights["bert"] / "y").read_bytes() == small
        assert [seen.state for seen in verify(manifest, root=root)] == ["ready"] * 3
        leftover = [str(path) for path in (root / ".weightcache").rglob("*") if path.is_file()]
        assert all(path.endswith(".json") or "receipts" in path for path in leftover), leftover


def test_a_keyboard_interrupt_leaves_a_partial_and_nothing_open(origin: Origin, root: Path) -> None:
    data = blob(4 * BLOCK)
    resource = origin.put("/a", data, rate=50e6)
    manifest = one(data, origin.url("/a"))
    code = """
    try:
        ensure(json.loads(sys.argv[1]), root=sys.argv[2], progress=False)
    except KeyboardInterrupt:
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        targets = [os.readlink(link) for link in links if os.path.lexists(link)]
        print(json.dumps([target for target in targets if target.startswith(sys.argv[2])]))
    """
    process = child(code, json.dumps(manifest), str(root))
    once: list[int] = []
    resource.on_sent = lambda sent: (
        (once.append(sent), os.kill(process.pid, signal.SIGINT)) if sent > 2 * BLOCK and not once else None
    )
    assert json.loads(finish(process)) == []
    assert once
    assert len(partials(root)) == 1
    origin.requests.clear()
    assert ensure(manifest, root=root, progress=False).report["sam2"].outcome == "resumed"
    assert origin.sent() < 4 * BLOCK
