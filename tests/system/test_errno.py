"""Every call fails once, in all that the library does: only our errors come out, and nothing is left behind (G5)."""

from __future__ import annotations

import errno
import importlib
import os
import random
import resource
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from errno_injection import CALLS, ERRORS, SCENARIOS, BrokenError, Case, Done, World, attempt, drawn, world_here
from errno_strace import Traced
from support import blob, forbidden, lacking, one, sha256, visible
from weightcache import StorageError, ensure, publish

FEW = 6  # calls of each kind that fail in turn, in each scenario; the command tries more of them
DATA = blob((2 << 20) + 5)


@pytest.fixture
def world() -> Iterator[World]:
    with world_here() as found:
        yield found


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_only_our_errors_come_out(scenario: str, world: World) -> None:
    dice = random.Random(scenario)
    for call in CALLS:
        for when in range(1, FEW):
            error = dice.choice(ERRORS)
            case = Case(scenario, call, error, when, lasting=dice.random() < 0.2 and error != "EINTR" != call)
            try:
                outcome = attempt(world, case)
            except BrokenError as broken:
                pytest.fail(f"{case}: {broken}")
            if outcome.calls < when:
                break


def test_only_our_errors_come_out_where_the_kernel_fails(world: World) -> None:
    if not shutil.which("strace"):
        lacking("strace is not installed")
    cases = [
        *(
            "cold fsync EIO 1",
            "cold openat ENOSPC 7",
            "cold clone3 EAGAIN 1+",
            "cold clone3 EAGAIN 2",
            "cold write EDQUOT 3",
        ),
        *("resume pread64 ESTALE 1", "adopt clone3 EAGAIN 1", "heal rename EACCES 1", "publish close EIO 12"),
        *("prune unlink EROFS 1", "hf_cache symlink EPERM 2", "verify getdents64 EIO 1", "link readlink ENOTDIR 1"),
        *("cold flock ENOMEM 1", "publish openat EMFILE 4+"),
    ]
    with Traced(world) as traced:
        for case in map(Case.parse, cases):
            try:
                traced.attempt(world, case)
            except PermissionError as error:
                forbidden(str(error))


def test_a_case_can_be_written_down_and_read_again() -> None:
    case = drawn(random.Random(3))
    assert Case.parse(str(case)) == case


def test_a_broken_promise_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness itself: it finds a raw error, an open file and a partial that stays."""

    def act(scenario: str, root: str) -> Done:
        os.makedirs(root)
        kept.append(os.open(f"{root}/file", os.O_CREAT))
        if scenario == "raw":
            raise ValueError
        return Done(None, [])

    kept: list[int] = []
    monkeypatch.setattr(world, "prepared", lambda scenario: f"{world.folder}/{scenario}")
    monkeypatch.setattr(world, "act", act)
    for scenario, what in (("raw", "not ours"), ("open", "open: ")):
        with pytest.raises(BrokenError, match=what):
            attempt(world, Case(scenario, "fsync", "EIO", 1))
    for number in kept:
        os.close(number)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_success_that_is_none_is_found(scenario: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness itself: what a call promises is looked at before another call heals it."""
    act = world.act

    def lose_files(scenario: str, root: str) -> Done:
        if scenario == "prune":
            return Done([Path(root)], [])
        done = act(scenario, root)
        if scenario in ("status", "verify"):
            return Done([replace(each, state="missing", detail="is not there") for each in done.result], [])
        for name in visible(Path(root)):
            os.unlink(f"{root}/{name}")
        return done

    monkeypatch.setattr(world, "act", lose_files)
    with pytest.raises(BrokenError, match=r"there is no |and left|and not missing|is not there"):
        attempt(world, Case(scenario, "fsync", "EIO", 1 << 30))


def test_an_error_that_does_not_say_what_to_do_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(scenario: str, root: str) -> Done:
        raise StorageError("cannot read it", hint="", path=root)

    monkeypatch.setattr(world, "act", act)
    with pytest.raises(BrokenError, match="does not say what to do"):
        attempt(world, Case("cold", "fsync", "EIO", 1))


def test_a_socket_that_stays_open_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, act = list[socket.socket](), world.act

    def leaking(scenario: str, root: str) -> Done:
        kept.append(socket.socket())
        return act(scenario, root)

    monkeypatch.setattr(world, "act", leaking)
    with pytest.raises(BrokenError, match=r"open: .*socket"):
        attempt(world, Case("cold", "fsync", "EIO", 1 << 30))
    kept.pop().close()


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_what_was_written_and_is_lost_when_it_is_closed(
    error: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FUSE and NFS report it there. The number is free then, and another thread may have it already."""
    (tmp_path / "source").write_bytes(DATA)
    close, users = os.close, list[int]()

    def failing(number: int) -> None:
        target = os.readlink(f"/proc/self/fd/{number}")
        close(number)
        if not users and "/partial/" in target and target.endswith(sha256(DATA)):
            users.append(os.open(tmp_path / "users", os.O_CREAT | os.O_RDWR))
            assert users == [number]
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "close", failing)
    manifest = one(DATA, f"file://{tmp_path}/source")
    with pytest.raises(StorageError) as caught:
        ensure(manifest, root=root, progress=False)
    assert caught.value.errno == error
    os.write(users[0], b"still open")
    monkeypatch.undo()
    close(users[0])
    assert visible(root) == []


def test_an_error_from_closing_what_was_only_read_is_none(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").write_bytes(DATA)
    close, failed = os.close, list[str]()

    def failing(number: int) -> None:
        target = os.readlink(f"/proc/self/fd/{number}")
        close(number)
        if target == f"{tmp_path}/source":
            failed.append(target)
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "close", failing)
    assert ensure(one(DATA, f"file://{tmp_path}/source"), root=root, progress=False)["sam2"].read_bytes() == DATA
    publish(tmp_path / "source", name="made", root=root)
    assert len(failed) >= 2


def test_no_more_open_files(root: Path, tmp_path: Path) -> None:
    importlib.import_module(
        "weightcache._engine.publish_local_weights"
    )  # Python could not import it without a descriptor
    (tmp_path / "source").write_bytes(DATA)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    manifest = one(DATA, f"file://{tmp_path}/source")
    lowest = os.dup(0)
    os.close(lowest)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        with pytest.raises(StorageError, match="Too many open files") as caught:
            publish(tmp_path / "source", name="made", root=root)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "ulimit -n" in caught.value.hint
    assert ensure(manifest, root=root, progress=False)["sam2"].read_bytes() == DATA


@pytest.mark.parametrize("call", ["pwrite", "fsync", "ftruncate"])
def test_a_file_that_a_reload_replaced_is_brought_again(
    call: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").write_bytes(DATA)
    real, failed = getattr(os, call), list[str]()

    def stale(*args: Any) -> Any:
        if not failed:
            failed.append(call)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(*args)

    monkeypatch.setattr(os, call, stale)
    assert ensure(one(DATA, f"file://{tmp_path}/source"), root=root, progress=False)["sam2"].read_bytes() == DATA
    assert failed


def test_a_file_that_a_reload_replaced_is_hashed_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").write_bytes(DATA)
    manifest = one(DATA, f"file://{tmp_path}/source")
    ensure(manifest, root=root, progress=False)
    real, failed = os.readv, list[int]()

    def stale(*args: Any) -> int:
        failed.append(1)
        if len(failed) == 1:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(*args)

    monkeypatch.setattr(os, "readv", stale)
    assert ensure(manifest, root=root, progress=False, rehash=True, offline=True).report["sam2"].outcome == "hit"
    assert len(failed) > 1
