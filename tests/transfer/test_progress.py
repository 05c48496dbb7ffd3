"""Progress: plain lines, bars on a terminal, the caller's function, or nothing."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from origin import Origin, broken
from support import blob, change_settings, directory, one
from weightcache import Manifest, ensure
from weightcache._store.partial_directory import BLOCK
from weightcache._transfer import progress as transfer_progress

DATA = blob(BLOCK + 500)


def test_lines(origin: Origin, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    change_settings(monkeypatch, line_interval=0.0)
    origin.put("/a", DATA)
    ensure(one(DATA, origin.url("/a")), root=root)
    lines = capsys.readouterr().err.splitlines()
    pattern = r"weightcache: sam2: \d+(\.\d [kM]B| bytes) of 1\.0 MB \(\d+ %\), \d+(\.\d [kM]B| bytes)/s, \d+ s left"
    assert all(re.fullmatch(pattern, line) for line in lines[1:-1]), lines
    assert re.fullmatch(r"weightcache: 1\.0 MB of 1 file\(s\) in \d+\.\d s \(\d+\.\d [kM]B/s\)", lines[-1])
    ensure(one(DATA, origin.url("/a"), size=False, name="b"), root=root / "b")
    assert "b: 1.0 MB, " in capsys.readouterr().err


def test_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr("weightcache._transfer.progress.time.monotonic", lambda: now[0])
    checkpoint = Manifest.load(one(bytes(100_000_000 // 1000), name="x"))["x"]
    progress = transfer_progress.LineProgress([(checkpoint, checkpoint.files[0])])
    track = progress.open("x", "x.pt", 100_000)
    for second in range(1, 26):
        now[0] = float(second)
        progress.advance(track, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "weightcache: x: 10.0 kB of 0.1 MB (10 %), 1.0 kB/s, 90 s left",
        "weightcache: x: 20.0 kB of 0.1 MB (20 %), 1.0 kB/s, 80 s left",
    ]


def test_a_function(origin: Origin, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[str, int, int | None]] = []
    origin.put("/a", DATA, faults=[broken(500)], ranges=False)
    origin.put("/d/x", b"x" * 10)
    origin.put("/d/y", b"y" * 20)
    manifest = one(DATA, origin.url("/a"))
    manifest["checkpoints"] |= directory({"x": b"x" * 10, "y": b"y" * 20}, origin.url("/d"))["checkpoints"]
    ensure(manifest, root=root, progress=lambda *call: calls.append(call))
    assert ("sam2", len(DATA), len(DATA)) in calls
    assert max(done for name, done, _ in calls if name == "sam2") == len(DATA)  # though it began again
    assert calls[-1] == ("bert", 30, 30)
    assert capsys.readouterr().err == ""
    unsized: list[Any] = []
    origin.put("/b", DATA)
    ensure(one(DATA, origin.url("/b"), size=False, name="b"), root=root / "b", progress=lambda *c: unsized.append(c))
    assert unsized[-1] == ("b", len(DATA), None)


def test_a_function_that_raises_ends_it_and_loses_nothing(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)

    def stop(name: str, done: int, total: int | None) -> None:
        if done > BLOCK:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        ensure(one(DATA, origin.url("/a")), root=root, progress=stop)
    assert ensure(one(DATA, origin.url("/a")), root=root, progress=False)["sam2"].read_bytes() == DATA


def test_nothing(origin: Origin, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    origin.put("/a", DATA)
    ensure(one(DATA, origin.url("/a")), root=root, progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("progress", [3, "yes"])
def test_what_is_no_progress(progress: Any, root: Path) -> None:
    with pytest.raises(TypeError, match="progress must be"):
        ensure(one(DATA), root=root, progress=progress)


@pytest.mark.parametrize("count", [1, 2, 20])
def test_bars_on_a_terminal(count: int, origin: Origin, root: Path) -> None:
    files = {f"file-{number}.bin": blob(3000, number) for number in range(count)}
    for path, data in files.items():
        origin.put(f"/d/{path}", data)
    code = "import sys, json; from weightcache import ensure; ensure(json.loads(sys.argv[1]), root=sys.argv[2])"
    import json

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(directory(files, origin.url("/d"))), str(root)],
        stderr=theirs,
        stdout=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed (Linux: EIO)
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert process.wait() == 0
    text = shown.decode()
    assert "bert: file-0.bin" in text
    assert ("all" in text) is (count > 1)
    assert "100%" in text


class Screen(io.StringIO):
    """A terminal without a size."""

    def fileno(self) -> int:
        return 2


def test_a_bar_counts_in_thousands(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((0, 0)))
    checkpoint = Manifest.load(one(bytes(10), name="x"))["x"]
    progress = transfer_progress.BarProgress([(checkpoint, checkpoint.files[0])])
    track = progress.open("x", "weights.pt", 2_000_000)
    progress.advance(track, 1_000_000)
    track.bar.refresh()
    progress.close(track)
    progress.end()
    shown = screen.getvalue()
    assert "x: weights.pt:   0%" in shown
    assert "1.00M/2.00M" in shown
