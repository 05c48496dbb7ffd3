"""``doctor --volume NAME --probe``: try out on the user's account what Modal does not document.

Three small containers mount the Volume. They write to ``.weightcache/probe-<nonce>/``, which is removed at the end.
The result contains neither the account, the Volume nor a path of the app, so that it can be shared.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import platform
import secrets
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import weightcache

from . import modal_app
from .probe_sandbox import sandbox

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    import modal

FILES_IN_COMMIT = 200  # in one commit, while another container counts the files that it sees
CLOCK = "clock"  # name of the file beside them that has the writer's time
CLOCK_BOUND = "ahead_of_the_other_clock_at_most"  # a key of the answers of both containers
KEEP_FOR = 5.0  # seconds until they are removed
WAIT_FOR = 90.0  # seconds for the other container to start, and for a commit to be seen


def probe(options: argparse.Namespace) -> dict[str, Any]:
    """Run the probes and return their answers by question.

    Raises:
        VolumeError: The Volume cannot be opened, or no container could be started.
    """
    volume = modal_app.connect(options)
    import modal  # only now: connect raises an error with a hint if it is not installed

    folder = f".weightcache/probe-{secrets.token_hex(4)}"

    def call(start: Callable[..., modal.Function[..., Any, Any]]) -> dict[str, Any]:
        print(f"weightcache: probing in {folder}, which is removed afterwards", file=sys.stderr)
        watching = start(watch).spawn(volume, f"{folder}/seen")
        found: dict[str, Any] = start(write).remote(volume, folder)
        found["visibility_of_one_commit"] = watching.get()
        found["read_only"] = start(read_only).remote(volume, folder)
        return found

    try:
        found = modal_app.in_app(
            options,
            call,
            {write: volume, watch: volume, read_only: volume.with_mount_options(read_only=True)},
        )
        found["commit_outside_a_container"] = _outcome(volume.commit)
        found = json.loads(json.dumps(found).replace(volume.object_id, "vo-…"))  # Modal's messages may contain the id
    finally:
        with suppress(modal.exception.Error, OSError):  # the container has removed it, unless it died
            volume.remove_file(folder, recursive=True)
    return {
        "weightcache": weightcache.__version__,
        "modal": modal.__version__,
        "volume_version": modal_app.version_of(options),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "answers": found,
    }


def write(volume: modal.Volume, folder: str) -> dict[str, Any]:
    """Answer the questions of a container with a writable Volume; remove what it wrote."""
    home = Path(modal_app.MOUNT, folder)
    home.mkdir(parents=True)
    try:
        return {
            # First, so that the bounds of the clocks do not contain the time of the other questions.
            CLOCK_BOUND: None,
            **_answers(lambda: {CLOCK_BOUND: _publish_at_once(volume, home / "seen")}),
            "mount": _answers(_mount),
            "flock_within_one_container": _answers(lambda: _flock(home)),
            "hard_link": _answers(lambda: _hard_link(volume, home)),
            "mtime_and_inode": _answers(lambda: _mtime(volume, home)),
            "reload_with": _answers(lambda: _reloads(volume, home)),
            "open_writer": _answers(lambda: _open_writer(volume, home, folder)),
            "empty_directory": _answers(lambda: _empty_directory(volume, home, folder)),
            "sandbox": _answers(lambda: sandbox(home)),
        }
    finally:
        os.chdir("/")
        shutil.rmtree(home, ignore_errors=True)
        _outcome(volume.commit)


def watch(volume: modal.Volume, folder: str) -> dict[str, Any]:
    """Return how many files of one commit another container sees while they appear."""
    home, end = Path(modal_app.MOUNT, folder), time.monotonic() + WAIT_FOR
    seen: list[int] = []
    ahead: float | None = None
    failed = "ok"
    ready = Path(modal_app.MOUNT, f"{folder}.ready")
    while time.monotonic() < end and (not seen or seen[-1] < FILES_IN_COMMIT):
        failed = _outcome(volume.reload)
        with suppress(OSError):
            if not ready.exists() and home.parent.exists():
                ready.write_text(repr(time.time()), encoding="utf-8")
                _outcome(volume.commit)
                end = time.monotonic() + WAIT_FOR
        with suppress(OSError, ValueError):
            ahead = _since(home / CLOCK) if ahead is None else ahead
            count = sum(1 for path in home.iterdir() if path.name != CLOCK and path.stat().st_size)
            if not seen or seen[-1] != count:
                seen.append(count)
    return {
        "files": FILES_IN_COMMIT,
        "counts_seen": seen,
        "seen_in_part": any(0 < count < FILES_IN_COMMIT for count in seen),
        "last_reload": failed,
        CLOCK_BOUND: ahead,
    }


def read_only(volume: modal.Volume, folder: str) -> dict[str, Any]:
    """Answer the questions of a container with a read-only Volume."""
    path = Path(modal_app.MOUNT, f"{Path(folder).name}.written")  # the only directory that certainly exists
    found = {
        "commit": _outcome(volume.commit),
        "reload": _outcome(volume.reload),
        "write": _outcome(lambda: path.write_bytes(b"x")),
        "access_says_writable": os.access(modal_app.MOUNT, os.W_OK),
    }
    with suppress(OSError):
        path.unlink()
    return found


def _outcome(act: Callable[[], object]) -> str:
    """Return "ok", or the error that ``act`` raised."""
    try:
        act()
    except OSError as error:
        return f"{type(error).__name__} {errno.errorcode.get(error.errno or 0, '')}: {error.strerror or error}"
    except Exception as error:  # noqa: BLE001 (any error is an answer)
        return f"{type(error).__name__}: {error}"
    return "ok"


def _answers(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the answers; an error of one question is its answer, so that the others are still asked."""
    answers: dict[str, Any] = {}
    raised = _outcome(lambda: answers.update(ask()))
    return answers if raised == "ok" else {"broke": raised}


def _mount() -> dict[str, Any]:
    found = os.statvfs(modal_app.MOUNT)
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "is_symlink": os.path.islink(modal_app.MOUNT),
        "statfs_total": found.f_blocks * found.f_frsize,
        "statfs_free": found.f_bavail * found.f_frsize,
        "statfs_inodes": found.f_files,
    }


def _flock(home: Path) -> dict[str, str]:
    """Lock a file, and try to lock it from a second process of this container."""
    import fcntl

    path = home / "lock"
    script = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with path.open("w") as held:
        first = _outcome(lambda: fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB))
        command = [sys.executable, "-c", script, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (fixed arguments)
    second = "ok" if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2]
    return {"first": first, "second": second, "excludes": str(first == "ok" and second != "ok")}


def _hard_link(volume: modal.Volume, home: Path) -> dict[str, Any]:
    (home / "one").write_bytes(b"linked")
    made = _outcome(lambda: os.link(home / "one", home / "two"))
    if made != "ok":
        return {"link": made}
    before = (home / "two").stat().st_nlink
    committed = _outcome(volume.commit)
    kept = (home / "two").read_bytes() == b"linked"
    after = (home / "two").stat().st_nlink
    return {"link": made, "commit": committed, "links_before": before, "links_after": after, "kept": kept}


def _mtime(volume: modal.Volume, home: Path) -> dict[str, Any]:
    path = home / "dated"
    path.write_bytes(b"dated")
    os.utime(path, ns=(1_000_000_000_123_456_789,) * 2)
    before = path.stat()
    done = {"commit": _outcome(volume.commit), "reload": _outcome(volume.reload)}
    after = path.stat()
    return {
        **done,
        "mtime_before": before.st_mtime_ns,
        "mtime_after": after.st_mtime_ns,
        "inode_kept": before.st_ino == after.st_ino,
    }


def _reloads(volume: modal.Volume, home: Path) -> dict[str, str]:
    """Reload while this container uses the Volume in ways that may prevent a reload."""
    path = home / "used"
    path.write_bytes(b"used" * 4096)
    _outcome(volume.commit)
    found = {"nothing_open": _outcome(volume.reload)}
    with path.open("rb"):
        found["open_reader"] = _outcome(volume.reload)
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    with mapped:  # the descriptor is closed, the mapping is not
        found["mapping"] = _outcome(volume.reload)
    os.chdir(home)
    found["working_directory"] = _outcome(volume.reload)
    os.chdir("/")
    with path.open("ab"):
        found["open_writer"] = _outcome(volume.reload)
    (home / "uncommitted").write_bytes(b"new")
    found["uncommitted_file"] = _outcome(volume.reload)
    found["uncommitted_file_is_kept"] = str((home / "uncommitted").exists())
    return found


def _open_writer(volume: modal.Volume, home: Path, folder: str) -> dict[str, Any]:
    """Commit while a file is being written; the server's listing shows what was committed."""
    found: dict[str, Any] = {}
    for name, synced in (("flushed", False), ("fsynced", True)):
        with (home / name).open("wb") as stream:
            stream.write(b"x" * 100_000)
            stream.flush()
            if synced:
                os.fsync(stream.fileno())
            found[name] = {"commit": _outcome(volume.commit)}
            try:
                sizes = {Path(each.path).name: each.size for each in volume.listdir(folder)}
                found[name]["bytes_committed"] = sizes.get(name)
            except Exception as error:  # noqa: BLE001 (any error is an answer)
                found[name]["bytes_committed"] = f"{type(error).__name__}: {error}"
    return found


def _empty_directory(volume: modal.Volume, home: Path, folder: str) -> dict[str, Any]:
    """Whether an empty directory survives a commit and a reload here, and whether the server lists it."""
    (home / "empty").mkdir()
    found: dict[str, Any] = {"commit": _outcome(volume.commit), "reload": _outcome(volume.reload)}
    found["kept_here"] = (home / "empty").is_dir()
    names: list[str] = []
    found["listing"] = _outcome(lambda: names.extend(Path(each.path).name for each in volume.listdir(folder)))
    return {**found, "listed": "empty" in names}


def _since(path: Path) -> float:
    """Return the seconds between the time in a file, by the clock of the other container, and now by this one.

    They contain the time that the file took to get here. So this clock is ahead of the other one by that much at most.
    """
    return round(time.time() - float(path.read_text(encoding="utf-8")), 3)


def _publish_at_once(volume: modal.Volume, home: Path) -> float | None:
    """When the other container is ready, commit many files at once, and keep them until it has counted them.

    The other one writes its time when it sees the first commit. This one looks for it all the time, and does nothing
    else, so that the bound has only the time of a commit and a reload in it.

    Returns:
        How many seconds this clock is ahead of the other container's at most; ``None`` if the other did not start.
    """
    ready, end = home.with_name(f"{home.name}.ready"), time.monotonic() + WAIT_FOR
    home.with_name(f"{home.name}.started").write_bytes(b"x")  # a commit may drop an empty directory
    _outcome(volume.commit)
    ahead: float | None = None
    while ahead is None and time.monotonic() < end:
        time.sleep(0.2)
        _outcome(volume.reload)
        with suppress(OSError, ValueError):  # not there, or not written yet
            ahead = _since(ready)
    home.mkdir()
    (home / CLOCK).write_text(repr(time.time()), encoding="utf-8")
    for number in range(FILES_IN_COMMIT):
        (home / f"{number:04}").write_bytes(b"%d" % number)
    _outcome(volume.commit)
    time.sleep(KEEP_FOR)
    return ahead
