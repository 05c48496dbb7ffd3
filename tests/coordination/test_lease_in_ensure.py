"""What `ensure` makes of the lease between containers."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

import weightcache
from lease_dict import FakeDict
from origin import Origin, hang_up
from origin import status as answer
from support import blob, change_settings, one
from weightcache import DownloadError, NotCachedError, ensure
from weightcache._coordination import kv
from weightcache._engine import run_miss, time_check
from weightcache._engine.miss_protocol import run_sync
from weightcache._runtime.tuning_constants import DEFAULT
from weightcache._runtime.writer_identity import Writer, note_path
from weightcache._store.partial_directory import BLOCK

BEAT, EXPIRY = DEFAULT.lease_beat, DEFAULT.lease_expiry

DATA = blob(2 * BLOCK + 5)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = {"lease_poll": (0.01, 0.01), "reload_interval": 0.02, "lease_retry_delays": (0.001,) * 3}
    change_settings(monkeypatch, **waits)


class Volume:
    def commit(self) -> None:
        pass

    def reload(self) -> None:
        pass


def quiet(manifest: Any, root: Path, **options: Any) -> weightcache.Weights:
    return ensure(manifest, root=root, progress=False, **{"volume": Volume(), **options})


def digest(manifest: dict[str, Any]) -> str:
    return str(manifest["checkpoints"]["sam2"]["sha256"])


def test_a_cold_ensure_takes_the_lease_and_a_hit_does_not(origin: Origin, root: Path, found: FakeDict) -> None:
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"))
    weights = quiet(manifest, root, lease=found)
    assert found.log == ["get head", "put 1", "get head", "put head", "get head", "put head"]
    number, who, state, _, done = found[f"{digest(manifest)}/head"]
    assert (number, state, done) == (1, "done", len(DATA))
    writer = Writer.parse(who)
    assert writer is not None
    assert writer.pid == os.getpid()
    assert (weights.report.waited, weights.report.waited_for, weights.report.warnings) == (0.0, "", ())
    found.log.clear()
    assert quiet(manifest, root, lease=found).report["sam2"].outcome == "hit"
    assert found.log == []


@pytest.mark.parametrize("options", [{"lease": None}, {"offline": True}, {"volume": None}])
def test_without_a_lease(options: dict[str, Any], origin: Origin, root: Path, found: FakeDict) -> None:
    origin.put("/a", DATA)
    with pytest.raises(NotCachedError) if "offline" in options else nullcontext():
        quiet(one(DATA, origin.url("/a")), root, **{"lease": found, **options})
    assert found.log == []


def test_another_container_is_waited_for(origin: Origin, root: Path, tmp_path: Path, found: FakeDict) -> None:
    origin.put("/a", DATA)
    manifest, theirs = one(DATA, origin.url("/a")), tmp_path / "theirs"
    quiet(manifest, theirs)
    origin.requests.clear()
    key = f"{digest(manifest)}/head"
    found[key] = (4, "ta-123 0123456789ab-7-8-01234567", "held", 0, 17)
    notes = []  # what a process of this container that waits for the lock reads

    class Publishing(Volume):
        def reload(self) -> None:
            notes.append(json.loads(Path(note_path(str(root), "holder")).read_text()))
            if len(found.log) > 3:
                found[key] = (4, "ta-123 0123456789ab-7-8-01234567", "done", 0, 17)
                os.rename(theirs, root)

    weights = quiet(manifest, root, lease=found, volume=Publishing())
    assert origin.requests == []
    assert (weights.report["sam2"].outcome, weights.report["sam2"].bytes_fetched) == ("waited", 0)
    assert weights.report.waited_for == "container ta-123 (process 7)"
    assert weights.report.waited > 0
    assert (notes[-1]["doing"], notes[-1]["done"]) == ("waiting for container ta-123 (process 7)", 17)


def test_a_wait_that_takes_too_long_is_a_warning(
    origin: Origin, root: Path, tmp_path: Path, found: FakeDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.put("/a", DATA)
    manifest, theirs = one(DATA, origin.url("/a")), tmp_path / "theirs"
    quiet(manifest, theirs)
    key = f"{digest(manifest)}/head"
    found[key] = (4, "ta-123 0123456789ab-7-8-01234567", "held", 0, 2 * BLOCK)

    class Publishing(Volume):
        def reload(self) -> None:
            if len(found.log) > 3:
                found[key] = (4, "ta-123 0123456789ab-7-8-01234567", "done", 0, len(DATA))
                os.rename(theirs, root)

    monkeypatch.setattr(time_check, "ASSUMED", 0.01)
    report = quiet(manifest, root, lease=found, volume=Publishing(), time_limit=99.0).report
    assert report["sam2"].outcome == "waited"
    [warning] = report.warnings
    assert "5 bytes are still to be downloaded by container ta-123 (process 7), which takes 500 s" in warning


def test_what_is_there_after_the_reload_is_not_claimed(
    origin: Origin, root: Path, tmp_path: Path, found: FakeDict
) -> None:
    origin.put("/a", DATA)
    manifest, theirs = one(DATA, origin.url("/a")), tmp_path / "theirs"
    quiet(manifest, theirs)

    class Publishing(Volume):
        def reload(self) -> None:
            os.rename(theirs, root)

    quiet(manifest, root, lease=found, volume=Publishing())
    assert found.log == ["get head"]


def test_what_another_process_brought_needs_no_lease(
    origin: Origin, root: Path, tmp_path: Path, found: FakeDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.put("/a", DATA)
    manifest, theirs = one(DATA, origin.url("/a")), tmp_path / "theirs"
    quiet(manifest, theirs)
    root_lock = run_miss.root_lock

    @contextmanager
    def late(*args: Any, **options: Any) -> Iterator[Any]:
        with root_lock(*args, **options) as held:
            os.rename(theirs, root)  # what the last holder of the lock did
            yield held

    monkeypatch.setattr(run_miss, "root_lock", late)
    monkeypatch.setattr(kv, "open_store", lambda *_: pytest.fail("a Dict was looked for"))
    quiet(manifest, root, lease=found)


def test_no_beat_comes_after_the_release(
    origin: Origin, root: Path, found: FakeDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_settings(monkeypatch, lease_beat=0.01)
    monkeypatch.setattr(run_miss, "JOIN", 60.0)  # however late this machine lets the beat go on
    manifest = one(DATA, origin.url("/a"))
    key, beating, released = f"{digest(manifest)}/head", threading.Event(), threading.Event()
    put = found.put

    def slow(name: str, value: Any, *, skip_if_exists: bool = False) -> bool:
        if name == key and value[3] == 1 and value[2] == "held":
            beating.set()
            released.wait(0.2)  # a beat on its way when the download ends
        made = put(name, value, skip_if_exists=skip_if_exists)
        if name == key and value[2] == "done":
            released.set()
        return made

    monkeypatch.setattr(found, "put", slow)
    origin.put("/a", DATA, on_sent=lambda sent: beating.wait(10.0))
    quiet(manifest, root, lease=found)
    assert found[key][2] == "done"


def test_a_read_only_root_waits_for_who_fills_the_volume(
    origin: Origin, root: Path, tmp_path: Path, found: FakeDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.put("/a", DATA)
    manifest, theirs = one(DATA, origin.url("/a")), tmp_path / "theirs"
    quiet(manifest, theirs)
    root.mkdir()
    monkeypatch.setattr("weightcache._store.root_checks.is_read_only", lambda layout: True)
    key = f"{digest(manifest)}/head"
    found[key] = (1, "ta-123", "held", 0, 17)

    class Publishing(Volume):
        def reload(self) -> None:
            if len(found.log) > 3 and theirs.exists():
                root.rmdir()
                os.rename(theirs, root)

    assert quiet(manifest, root, lease=found, volume=Publishing()).report["sam2"].outcome == "waited"
    assert found[key][2] == "held"
    shutil.rmtree(root)
    root.mkdir()
    found[key] = (1, "ta-123", "failed", 0, 17)
    with pytest.raises(NotCachedError, match="the root is read-only here"):
        quiet(manifest, root, lease=found, volume=Publishing())
    assert {name.rpartition(" ")[0] for name in found.log} == {"get"}


def test_a_download_that_fails_says_so(origin: Origin, root: Path, found: FakeDict) -> None:
    origin.put("/a", DATA, always=answer(404))
    manifest = one(DATA, origin.url("/a"))
    with pytest.raises(DownloadError):
        quiet(manifest, root, lease=found)
    assert found[f"{digest(manifest)}/head"][2] == "failed"


def test_a_keyboard_interrupt_says_so_too(
    origin: Origin, root: Path, found: FakeDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("weightcache._engine.execute_plan.download", interrupted)
    manifest = one(DATA, origin.url("/a"))
    with pytest.raises(KeyboardInterrupt):
        quiet(manifest, root, lease=found)
    assert found[f"{digest(manifest)}/head"][2] == "failed"


def test_a_keyboard_interrupt_does_not_wait_for_a_dict_that_hangs(
    origin: Origin, root: Path, found: FakeDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_settings(monkeypatch, lease_beat=0.01)
    hangs, over, put = threading.Event(), threading.Event(), found.put
    answers: list[bool] = []

    def hanging(name: str, value: Any, *, skip_if_exists: bool = False) -> bool:
        if value[2:3] in (("held",), ("failed",)) and value[3:4] != (0,):
            hangs.set()
            answers.append(over.wait(60.0))
        return put(name, value, skip_if_exists=skip_if_exists)

    def interrupted(*_: object, **__: object) -> None:
        assert hangs.wait(10.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(found, "put", hanging)
    monkeypatch.setattr("weightcache._engine.execute_plan.download", interrupted)
    change_settings(monkeypatch, dict_timeout=60.0)
    with pytest.raises(KeyboardInterrupt):
        quiet(one(DATA, origin.url("/a")), root, lease=found)
    assert answers == []  # it did not wait for the Dict, which answers only now
    over.set()


def test_without_another_thread_there_is_no_beat(
    origin: Origin, root: Path, found: FakeDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.put("/a", DATA)
    start = threading.Thread.start

    def refused(self: threading.Thread) -> None:
        if self.name == "weightcache-lease":
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert quiet(one(DATA, origin.url("/a")), root, lease=found)["sam2"].read_bytes() == DATA


def test_a_dict_that_is_away_is_a_warning(origin: Origin, root: Path, found: FakeDict) -> None:
    origin.put("/a", DATA, faults=[hang_up, None])
    found.faults = ["before"] * 100
    weights = quiet(one(DATA, origin.url("/a")), root, lease=found)
    assert weights["sam2"].read_bytes() == DATA
    [warning] = weights.report.warnings
    assert warning == (
        "no lease between containers (ConnectionError: the Dict is away): each that starts at the same time may "
        "download for itself. If that lasts, pass lease=None"
    )


def test_a_volume_that_is_gone_is_a_warning_with_what_to_do(origin: Origin, root: Path) -> None:
    class NotFoundError(Exception):
        """As Modal has it; its client raises another error while it handles it."""

    class Deleted(Volume):
        def commit(self) -> None:
            try:
                raise NotFoundError("vo-1 not found")
            except NotFoundError as error:
                raise RuntimeError(str(error))  # noqa: B904 (as the client does)

    class Failing(Volume):
        def commit(self) -> None:
            raise RuntimeError("try again")

    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"))
    warnings = [
        quiet(manifest, root / type(volume).__name__, volume=volume, lease=None).report.warnings
        for volume in (Deleted(), Failing())
    ]
    advice = ". If the Volume was deleted, deploy the app again: a new Volume has another id"
    assert warnings == [
        (f"commit of the volume failed: RuntimeError: vo-1 not found{advice}",),
        ("commit of the volume failed: RuntimeError: try again",),
    ]


def test_a_place_that_vanishes_is_warned_of_once(
    origin: Origin, root: Path, found: FakeDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[int] = []

    class LosingOnce(Volume):
        def commit(self) -> None:
            commits.append(1)
            if len(commits) == 2:
                shutil.rmtree(root / "sam2")

    origin.put("/a", DATA)
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    weights = quiet(one(DATA, origin.url("/a")), root, lease=found, volume=LosingOnce())
    assert len(commits) > 2  # it was downloaded twice
    [warning] = weights.report.warnings
    assert "lost when the container stops" in warning


def test_the_holder_beats_while_it_downloads(
    origin: Origin, root: Path, found: FakeDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_settings(monkeypatch, lease_beat=0.01)
    manifest = one(DATA, origin.url("/a"))
    key, beaten = f"{digest(manifest)}/head", threading.Event()
    put = found.put

    def noted(name: str, value: Any, *, skip_if_exists: bool = False) -> bool:
        if name == key and value[3] >= 3:
            beaten.set()
        return put(name, value, skip_if_exists=skip_if_exists)

    monkeypatch.setattr(found, "put", noted)
    origin.put("/a", DATA, on_sent=lambda sent: beaten.wait(10.0))
    quiet(manifest, root, lease=found)
    assert beaten.is_set()
    assert [each.name for each in threading.enumerate() if each.name == "weightcache-lease"] == []


@pytest.mark.parametrize("wrong", ["always", 7, object()])
def test_what_is_no_lease(wrong: Any, root: Path) -> None:
    with pytest.raises(TypeError, match="lease must be 'auto', None or have put"):
        quiet(one(DATA, "https://h/a"), root, lease=wrong)


def test_coroutines_of_the_story_never_suspend() -> None:
    class Suspends:
        def __await__(self) -> Any:
            yield

    async def waits() -> None:
        await Suspends()

    work: Coroutine[Any, Any, None] = waits()
    with pytest.raises(AssertionError):
        run_sync(work)
    work.close()
