"""The lease between containers: its steps on a Dict that may fail, and what `ensure` makes of it."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

import weightcache
from origin import Origin, hang_up
from origin import status as answer
from support import blob, change_settings, one
from weightcache import DownloadError, NotCachedError, ensure
from weightcache._coordination import kv
from weightcache._coordination.lease import Lease
from weightcache._coordination.lease_state import Head
from weightcache._engine import host
from weightcache._engine.reconcile import run_sync
from weightcache._runtime.identity import Writer
from weightcache._runtime.settings import DEFAULT
from weightcache._store.partials import BLOCK

BEAT, EXPIRY = DEFAULT.lease_beat, DEFAULT.lease_expiry

DATA = blob(2 * BLOCK + 5)
X, Y = "a" * 64, "b" * 64


class FakeDict(dict[str, Any]):
    """A `modal.Dict` in memory. ``faults`` are raised one after the other, before or after the operation."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.log: list[str] = []

    def _do(self, name: str, key: str, operation: Callable[[], Any]) -> Any:
        self.log.append(f"{name} {key.rpartition('/')[2]}")
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "before":
            raise ConnectionError("the Dict is away")
        result = operation()
        if fault == "after":
            raise ConnectionError("the answer is lost")
        return result

    def put(self, key: str, value: object, *, skip_if_exists: bool = False) -> bool:
        def put() -> bool:
            if skip_if_exists and key in self:
                return False
            self[key] = value
            return True

        return bool(self._do("put", key, put))

    def get(self, key: str) -> Any:  # type: ignore[override]
        return self._do("get", key, lambda: super(FakeDict, self).get(key))

    def pop(self, key: str) -> Any:  # type: ignore[override]
        def pop() -> Any:
            if key not in self:
                raise KeyError(key)
            return super(FakeDict, self).pop(key)

        return self._do("pop", key, pop)


class Time:
    """A clock that goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def found() -> FakeDict:
    return FakeDict()


@pytest.fixture
def clock() -> Time:
    return Time()


def lease(found: FakeDict, clock: Time, me: str, wait: float = 300.0, **more: Any) -> Lease:
    store = kv.open_store(found, object())  # type: ignore[arg-type]
    assert store is not None
    return Lease(store, clock, me, wait=wait, **more)


def take(who: Lease, *digests: str) -> list[str]:
    return run_sync(who.claim(run_sync(who.claimable(digests))))


def beat(who: Lease, times: int) -> None:
    left = iter([True] * times)

    async def pause(seconds: float) -> bool:
        assert seconds == BEAT
        return next(left, False)

    run_sync(who.beat(pause))


def head(found: FakeDict, digest: str = X) -> tuple[int, str, str]:
    return found[f"{digest}/head"][:3]


def test_one_holds_and_the_other_waits_until_it_is_done(
    found: FakeDict, clock: Time, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "weightcache")
    a, b = lease(found, clock, "a"), lease(found, clock, "b")
    assert take(a, X) == [X]
    assert (found[f"{X}/1"], head(found)) == ("a", (1, "a", "held"))
    assert take(b, X) == []
    run_sync(b.wait([X]))
    assert (b.waited_for, b.waited > 0) == ("a", True)
    run_sync(a.release([X], "done"))
    assert head(found) == (1, "a", "done")
    assert take(b, X) == [X]
    run_sync(b.release([X], "done"))
    assert dict(found) == {f"{X}/2": "b", f"{X}/head": (2, "b", "done", 0, 0)}  # the claim before it is removed
    assert take(a, X) == [X]
    run_sync(a.release([X], "done"))
    assert sorted(found) == [f"{X}/3", f"{X}/head"]
    assert caplog.records == []


def test_who_holds_one_does_not_keep_the_other(found: FakeDict, clock: Time) -> None:
    a, b = lease(found, clock, "a"), lease(found, clock, "b")
    assert take(a, X) == [X]
    assert take(b, X, Y) == [Y]
    assert b.held_by_others([X, Y]) == [X]


def test_a_failed_one_is_followed_at_once(found: FakeDict, clock: Time) -> None:
    a, b = lease(found, clock, "a"), lease(found, clock, "b")
    take(a, X)
    run_sync(a.release([X], "failed", tidy=False))
    assert take(b, X) == [X]
    assert head(found) == (2, "b", "held")


def test_a_dead_one_is_followed_when_its_beat_has_stopped(found: FakeDict, clock: Time) -> None:
    a, b = lease(found, clock, "a"), lease(found, clock, "b")
    take(a, X)
    assert take(b, X) == []
    for _ in range(3):
        clock.time += EXPIRY - 1
        beat(a, 1)
        assert take(b, X) == []
    clock.time += EXPIRY
    assert take(b, X) == []
    clock.time += 1
    assert take(b, X) == [X]
    beat(a, 2)  # it was only asleep
    assert head(found) == (2, "b", "held")
    run_sync(a.release([X], "done"))
    assert head(found) == (2, "b", "held")


@pytest.mark.parametrize("asleep", [X, Y])
def test_a_sleep_of_the_waiters_is_not_the_holders_silence(asleep: str, found: FakeDict, clock: Time) -> None:
    a, b = lease(found, clock, "a"), lease(found, clock, "b")
    take(a, X, Y)
    assert take(b, X, Y) == []
    get, naps = found.get, [f"{asleep}/head"]

    def falls_asleep_with_the_answer(key: str) -> Any:
        value = get(key)
        if key in naps:
            naps.remove(key)
            clock.time += 2 * EXPIRY
            beat(a, 1)  # which this answer cannot show
        return value

    found.get = falls_asleep_with_the_answer  # type: ignore[method-assign,assignment]
    assert take(b, X, Y) == []


def test_what_went_missing_since_the_heads_were_read_may_be_held(found: FakeDict, clock: Time) -> None:
    a, b = lease(found, clock, "a"), lease(found, clock, "b")
    take(a, Y)
    assert run_sync(b.claimable([X])) == [X]
    assert b.held_by_others([X, Y]) == [Y]
    run_sync(b.claimable([X, Y]))
    run_sync(a.release([Y], "done"))
    run_sync(b.claimable([X, Y]))
    assert b.held_by_others([X, Y]) == []


def test_one_that_slept_through_its_lease_leaves_the_next_alone(found: FakeDict, clock: Time) -> None:
    a, b = lease(found, clock, "a"), lease(found, clock, "b")
    take(a, X)
    take(b, X)
    clock.time += EXPIRY + 1
    assert take(b, X) == [X]
    run_sync(a.release([X], "done"))
    assert head(found) == (2, "b", "held")


def test_what_was_released_is_not_kept_alive(found: FakeDict, clock: Time) -> None:
    a = lease(found, clock, "a")
    take(a, X)
    run_sync(a.release([X], "done"))
    take(a, Y)
    beat(a, 2)
    assert (head(found, X)[2], head(found, Y)[2]) == ("done", "held")


def test_a_lost_claim_gives_the_winner_time_to_speak(found: FakeDict, clock: Time) -> None:
    b = lease(found, clock, "b")
    free = run_sync(b.claimable([X]))
    found[f"{X}/1"] = "a"  # it won, and is about to write its head
    clock.time += EXPIRY - 1
    assert (free, run_sync(b.claim(free))) == ([X], [])
    clock.time += EXPIRY
    assert take(b, X) == []
    clock.time += 1
    assert take(b, X) == [X]
    assert head(found) == (2, "b", "held")


def test_an_old_number_is_not_claimed(found: FakeDict, clock: Time) -> None:
    b = lease(found, clock, "b")
    free = run_sync(b.claimable([X]))
    found[f"{X}/head"] = (3, "a", "held", 1, 0)  # meanwhile; and a has removed the claims before its own
    assert run_sync(b.claim(free)) == []
    assert f"{X}/1" not in found
    assert head(found) == (3, "a", "held")


def test_a_claim_whose_answer_was_lost_is_known_again(found: FakeDict, clock: Time) -> None:
    a = lease(found, clock, "a")
    free = run_sync(a.claimable([X]))
    found.faults = ["after"]
    assert run_sync(a.claim(free)) == [X]
    assert (head(found), a.failure) == ((1, "a", "held"), "")


@pytest.mark.parametrize("after", range(5))
def test_a_dict_that_fails_is_done_without(after: int, found: FakeDict, clock: Time) -> None:
    a = lease(found, clock, "a")
    found.faults = [""] * after + ["before"] * 100
    assert take(a, X, Y) == [X, Y]
    assert (a.failure == "ConnectionError: the Dict is away") is (after < 5)
    beat(a, 2)
    run_sync(a.release([X, Y], "done"))


def test_a_beat_that_fails_is_followed_by_the_next(found: FakeDict, clock: Time) -> None:
    a = lease(found, clock, "a")
    take(a, X)
    found.faults = ["before", "", "after"]
    beat(a, 3)
    assert found[f"{X}/head"][3] == 2


def test_one_that_beats_and_moves_nothing_is_not_waited_for(found: FakeDict, clock: Time) -> None:
    done = iter([*range(1, 22), *[7] * 100])
    a = lease(found, clock, "a", bytes_done=lambda: next(done))
    b = lease(found, clock, "b", wait=60.0)
    take(a, X)
    assert take(b, X) == []
    for _ in range(20):
        clock.time += 10
        beat(a, 1)
        assert take(b, X) == []
    beat(a, 1)
    assert take(b, X) == []
    assert b.progress([X]) == 7
    for _ in range(7):
        clock.time += 10
        beat(a, 1)
        taken = take(b, X)
    assert taken == [X]
    assert head(found) == (1, "a", "held")  # it keeps its lease


@pytest.mark.parametrize(
    "value",
    [None, "x", 7, (), (1, "a", "held", 0), (1, "a", "gone", 0, 0), (-1, "a", "held", 0, 0), (True, "a", "held", 0, 0)],
)
def test_what_is_no_head_is_as_good_as_none(value: object, found: FakeDict, clock: Time) -> None:
    found[f"{X}/head"] = value
    assert Head.parse(value) is None
    assert take(lease(found, clock, "a"), X) == [X]


def test_ones_own_head_does_not_keep_one_waiting(found: FakeDict, clock: Time) -> None:
    a = lease(found, clock, "a")
    take(a, X)
    found.faults = ["before"]
    run_sync(a.release([X], "done"))
    assert head(found)[2] == "held"
    assert take(a, X) == [X]


def test_a_dict_that_hangs_has_an_end(monkeypatch: pytest.MonkeyPatch, found: FakeDict) -> None:
    change_settings(monkeypatch, dict_timeout=0.05)
    answered = threading.Event()
    monkeypatch.setattr(found, "get", lambda key: answered.wait(30.0))
    store = kv.open_store(found, object())  # type: ignore[arg-type]
    assert store is not None
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        run_sync(store.get("x"))
    answered.set()


# What `ensure` makes of it.


class Volume:
    def commit(self) -> None:
        pass

    def reload(self) -> None:
        pass


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = {"lease_poll": (0.01, 0.01), "reload_interval": 0.02, "lease_retry_delays": (0.001,) * 3}
    change_settings(monkeypatch, **waits)


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

    class Publishing(Volume):
        def reload(self) -> None:
            if len(found.log) > 3:
                found[key] = (4, "ta-123 0123456789ab-7-8-01234567", "done", 0, 17)
                os.rename(theirs, root)

    weights = quiet(manifest, root, lease=found, volume=Publishing())
    assert origin.requests == []
    assert weights.report["sam2"].outcome == "waited"
    assert weights.report.waited_for == "container ta-123 (process 7)"
    assert weights.report.waited > 0


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
    root_lock = host.root_lock

    @contextmanager
    def late(*args: Any, **options: Any) -> Iterator[Any]:
        with root_lock(*args, **options) as held:
            os.rename(theirs, root)  # what the last holder of the lock did
            yield held

    monkeypatch.setattr(host, "root_lock", late)
    monkeypatch.setattr(kv, "open_store", lambda *_: pytest.fail("a Dict was looked for"))
    quiet(manifest, root, lease=found)


def test_no_beat_comes_after_the_release(
    origin: Origin, root: Path, found: FakeDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_settings(monkeypatch, lease_beat=0.01)
    monkeypatch.setattr(host, "JOIN", 60.0)  # however late this machine lets the beat go on
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
    monkeypatch.setattr("weightcache._store.root.is_read_only", lambda layout: True)
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

    monkeypatch.setattr("weightcache._engine.install.download", interrupted)
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
    monkeypatch.setattr("weightcache._engine.install.download", interrupted)
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
    assert len(commits) > 2  # it was brought twice
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
