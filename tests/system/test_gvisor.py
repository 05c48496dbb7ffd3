"""What gVisor, the sandbox of Modal's containers, does otherwise than Linux. It holds on both; see `in_gvisor.py`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

import in_gvisor
from origin import Origin
from support import blob, child, finish, one
from weightcache._store.partial_directory import BLOCK

DATA = blob(24 * BLOCK)
ENSURE = """
report = ensure(json.loads(sys.argv[1]), root=sys.argv[2], progress=False).report["sam2"]
print(json.dumps([report.outcome, report.bytes_fetched]))
"""


def bytes_in(root: Path) -> int:
    """Bytes of all files, where a file with a gap counts whole: the sandbox has no other number."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                total += os.stat(f"{folder}/{name}").st_size
            except FileNotFoundError:
                continue
    return total


def test_a_download_that_was_killed_goes_on_in_its_own_file(origin: Origin, root: Path) -> None:
    """On Modal, where gVisor has no leases that show another process with the file open, and no copy is needed."""
    half, peaks = len(DATA) // 2, [0]
    origin.put("/a", DATA, rate=40e6, on_sent=lambda sent: sent >= half and victim and victim.pop().kill())
    manifest, env = json.dumps(one(DATA, origin.url("/a"))), {"MODAL_TASK_ID": "ta-1"}
    victim: list[subprocess.Popen[str]] = []
    killed = child(ENSURE, manifest, str(root), env=env)
    victim.append(killed)
    killed.communicate(timeout=60)
    origin.files["/a"].on_sent = lambda sent: peaks.append(bytes_in(root))
    outcome, fetched = json.loads(finish(child(ENSURE, manifest, str(root), env=env)))
    assert outcome == "resumed"
    assert 0 < fetched < len(DATA)
    assert max(peaks) <= len(DATA) + 100_000  # and a journal


def test_no_apt_is_a_reason_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(in_gvisor, "HOME", tmp_path)
    monkeypatch.setattr(in_gvisor.sys, "argv", ["in_gvisor.py", "--sample"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert in_gvisor.main() == 0
    assert capsys.readouterr().out.splitlines() == [
        f"gVisor of {release}: not run: no apt of Debian on this machine" for release in ("bookworm", "trixie")
    ]


@pytest.mark.parametrize("status", [0, 7])
def test_a_sandbox_that_does_not_start_is_a_reason_and_a_command_that_fails_a_failure(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "trixie/package/usr/bin/runsc"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nfor last; do :; done\n[ "$last" = true ] && exit 0\nexit {status}\n')
    program.chmod(0o755)
    monkeypatch.setattr(in_gvisor, "HOME", tmp_path)
    monkeypatch.setattr(in_gvisor.sys, "argv", ["in_gvisor.py", "--build", "trixie", "tests"])
    assert in_gvisor.main() == status
    assert f"gVisor of trixie: exit {status}," in capsys.readouterr().out
    program.write_text("#!/bin/sh\necho ptrace: Operation not permitted >&2\nexit 1\n")
    assert in_gvisor.main() == 0
    assert "not run: no sandbox starts on this machine: ptrace: Operation not" in capsys.readouterr().out
