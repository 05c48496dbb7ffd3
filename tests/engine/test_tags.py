"""Tags between containers: which one publishes, which one serves, and in which order."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from noting_volume import Volume
from support import sha256
from tagging import ONE, TAG, THREE, TWO, Make
from trained import FILES, kinds, write
from volume_model import Switches
from volume_model import Volume as Shared
from weightcache import (
    Manifest,
    NotCachedError,
    Tag,
    VolumeError,
    aensure,
    ensure,
    prefetch,
    publish,
    set_tag,
    status,
    tags,
    verify,
)
from weightcache._coordination.lock import root_lock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the clock of the container that acts next: seconds since the epoch."""

    def set_to(seconds: float) -> None:
        fake = SimpleNamespace(time_ns=lambda: int(seconds * 1e9), time=lambda: seconds)
        monkeypatch.setattr("weightcache._store.tags.time", fake)

    return set_to


# training here, serving there ----------------------------------------------------------------------------------


def test_another_container_serves_what_was_published_last(container: Make) -> None:
    training, serving = container(), container()
    for data in (ONE, TWO, TWO, ONE, THREE):
        training.publish(data)
        assert serving.serve() == data
        assert container().serve() == data
    assert [len(each.checkpoint.files) for each in tags(root=serving.root)] == [1, 1, 1, 1]  # the same again: none


def test_a_directory(root: Path, tmp_path: Path) -> None:
    made = write(tmp_path / "run", FILES)
    checkpoint = publish(made, name="tagger", root=root, tag="stable")
    weights = ensure(Tag("tagger", "stable"), root=root)
    assert {path: (weights["tagger"] / path).read_bytes() for path in FILES} == FILES
    assert set_tag(TAG, checkpoint.version, root=root) == checkpoint
    assert [each.checkpoint for each in tags(root=root)] == [checkpoint] * 2


@pytest.mark.parametrize(("poll", "reloads"), [(0, 3), (1000, 1)])
def test_one_reload_a_poll(poll: float, reloads: int, container: Make) -> None:
    container().publish(ONE)
    serving = container()
    for _ in range(3):
        serving.serve(Tag("tagger", poll=poll))
    assert serving.calls == reloads


def test_what_came_after_the_last_reload_is_seen_with_the_next(container: Make) -> None:
    training, serving = container(), container()
    training.publish(ONE)
    assert serving.serve(Tag("tagger", poll=1000)) == ONE
    training.publish(TWO)
    assert serving.serve(Tag("tagger", poll=1000)) == ONE
    assert serving.serve(Tag("tagger", poll=0)) == TWO


def test_every_function_that_takes_a_manifest(container: Make) -> None:
    here = container()
    checkpoint = here.publish(ONE)
    path = ensure(TAG, root=here.root)["tagger"]
    assert asyncio.run(aensure(TAG, root=here.root, volume=here))["tagger"] == path
    assert [each.state for each in [*status(TAG, root=here.root), *verify(TAG, root=here.root)]] == ["ready"] * 2
    assert ensure(TAG, root=here.root, dry_run=True)["tagger"].action == "keep"
    with prefetch(TAG, root=here.root) as begun:
        assert begun.wait(60)
        assert (begun.stats.bytes, begun.stats.skipped) == (len(ONE), ())
    with prefetch(Tag("tagger", "stable"), root=here.root) as begun:
        assert begun.stats.skipped == (f"the tag stable of tagger has no publication in {here.root}",)
    with pytest.raises(TypeError, match="a Tag belongs to a root"):
        Manifest.load(TAG)  # type: ignore[arg-type]
    with pytest.raises(LookupError):
        ensure(TAG, root=here.root, only=["other"])
    path.write_bytes(b"tHe first")
    assert verify(TAG, root=here.root)[0].state == "damaged"
    with pytest.raises(NotCachedError, match="tagger"):  # the same bytes come from nowhere else
        ensure(TAG, root=here.root, rehash=True)
    assert here.publish(ONE) == checkpoint
    assert ensure(TAG, root=here.root)["tagger"].read_bytes() == ONE


def test_a_dry_run_and_a_status_reload_nothing(container: Make) -> None:
    here = container()
    here.publish(ONE)
    here.before = {here.calls + 1: lambda: pytest.fail("it called the volume")}
    status(TAG, root=here.root)
    ensure(TAG, root=here.root, volume=here, dry_run=True)


def test_a_reload_that_fails_is_a_warning_until_the_next_poll(
    container: Make, caplog: pytest.LogCaptureFixture
) -> None:
    training, serving = container(), container()
    training.publish(ONE)
    assert serving.serve() == ONE
    training.publish(TWO)
    with (serving.root / "log.txt").open("w"):
        found = ensure(Tag("tagger", poll=0), root=serving.root, volume=serving)
        again = ensure(Tag("tagger", poll=1000), root=serving.root, volume=serving)
    assert [each["tagger"].read_bytes() for each in (found, again)] == [ONE, ONE]
    [warning] = found.report.warnings
    assert "reload of the volume failed: BusyError: there are open files" in warning
    assert again.report.warnings == found.report.warnings
    assert caplog.text.count("reload of the volume failed") == 1  # it was tried once in this poll
    assert serving.serve() == TWO


def test_what_this_container_wrote_is_committed_before_a_reload(container: Make, shared: Shared) -> None:
    shared.switches = replace(shared.switches, reload_over="discard")
    training, serving = container(), container()
    training.publish(ONE)
    (serving.folder / "own.bin").write_bytes(TWO)
    failing = Volume(serving.root, commit=3)
    with pytest.raises(VolumeError):
        publish(serving.folder / "own.bin", name="own", root=serving.root, volume=failing)
    assert serving.serve() == ONE
    assert shared.read(f"own/{sha256(TWO)[:16]}/own.bin") == TWO


def test_a_volume_that_was_forgotten(container: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    here = container()
    here.publish(ONE)
    assert ensure(TAG, root=here.root).report.warnings == ()  # a plain disk
    monkeypatch.setattr("weightcache._engine.tags.MODAL_VOLUMES", f"{here.root.resolve().parent}/")
    [warning] = ensure(TAG, root=here.root).report.warnings
    assert "no volume= was given: the tag newest of tagger is read as it was" in warning


def test_a_tag_without_a_publication(container: Make) -> None:
    here = container()
    with pytest.raises(NotCachedError, match=r"has no publication in .*; published there: nothing") as caught:
        here.serve()
    assert "weightcache publish PATH tagger --tag newest" in caught.value.hint
    here.publish(ONE)
    with pytest.raises(NotCachedError, match="published there: tag newest of tagger"):
        here.serve(Tag("other"))


def test_a_tag_that_is_seen_before_its_weights(container: Make, shared: Shared) -> None:
    """Modal does not promise in which order the files of several commits become visible."""
    training, serving = container(), container()
    training.publish(ONE)
    hidden = {path: shared.files.pop(path) for path in list(shared.files) if "/tags/" not in path}
    with pytest.raises(
        NotCachedError, match=rf"newest of tagger stands for version {sha256(ONE)[:16]}, .* is not there"
    ):
        serving.serve()
    # The reload of the next call still shows the tag alone, and that of its miss shows everything.
    serving.before = {serving.calls + 2: lambda: shared.files.update(hidden)}
    assert serving.serve() == ONE


def test_a_version_that_was_pruned_while_it_was_looked_for(container: Make) -> None:
    training, serving = container(), container()
    training.publish(ONE, keep=1)

    def move() -> None:
        training.publish(TWO)
        training.prune(dry_run=False)

    assert serving.serve() == ONE
    (serving.root / ".weightcache/receipts/tagger" / f"{sha256(ONE)}.json").unlink()
    (serving.root / "tagger" / sha256(ONE)[:16] / "model.bin").unlink()
    serving.before = {serving.calls + 1: move}  # after the tag was read, before the miss reloads
    assert serving.serve(Tag("tagger", poll=1000)) == TWO


def test_a_download_in_this_container_does_not_stop_serving(container: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightcache._engine.tags.PATIENCE", 0.05)
    here = container()
    here.publish(ONE)
    before, held, over = here.calls, threading.Event(), threading.Event()

    def fill() -> None:
        with root_lock(str(here.root), wait=60, say=lambda _: None, check=lambda: None):
            held.set()
            over.wait(60)

    filling = threading.Thread(target=fill)
    filling.start()
    assert held.wait(60)
    found = ensure(TAG, root=here.root, volume=here)
    over.set()
    filling.join()
    assert found["tagger"].read_bytes() == ONE
    assert found.report.warnings == (
        f"{here.root} was not reloaded: another process or thread of this container is filling it",
    )
    assert here.calls == before
    assert ensure(TAG, root=here.root, volume=here).report.warnings == ()
    assert here.calls == before + 1


# two publishers ------------------------------------------------------------------------------------------------

SWITCHES = {
    "as the guide has it": Switches(),
    "a reload discards": Switches(reload_over="discard"),
    "no times are kept, any order": Switches(keeps_mtime=False, shuffle=random.Random(7)),
}


MOMENTS = 7  # commits and reloads of one `publish` with a tag, and one moment after the last


@pytest.mark.parametrize("moment", range(1, MOMENTS + 1))
@pytest.mark.parametrize("case", range(3), ids=[*SWITCHES])
def test_two_publishers_of_one_tag_lose_nothing(
    case: int, moment: int, container: Make, shared: Shared, clock: Callable[[float], None]
) -> None:
    """The second one publishes whole at one moment of the first one, with a clock that is an hour off."""
    shared.switches, skew = [*SWITCHES.values()][case], [-3600, 0, 3600][case]
    first, second = container(), container()

    def interrupt() -> None:
        clock(1e9 + skew)
        second.publish(TWO, keep=2)
        clock(1e9)

    clock(1e9)
    first.before = {moment: interrupt}
    first.publish(ONE, keep=2)
    if moment == MOMENTS:
        assert first.calls == MOMENTS - 1
        interrupt()
    views = [first, second, container()]
    served = {each.serve() for each in views}
    assert len(served) == 1  # every container sees the same one
    for view in views:
        assert {each.checkpoint.digest for each in tags(root=view.root)} == {sha256(ONE), sha256(TWO)}
    assert views[2].prune(dry_run=False) == []  # both are kept
    if moment == MOMENTS:
        assert served == {TWO}  # it began after the first one was committed: its clock decides nothing
    if moment <= 3:
        assert served == {ONE}  # the first one chose its order after it saw the second one


def test_clocks_decide_only_what_nothing_else_does(
    container: Make, clock: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = container(), container()
    for number, ahead in enumerate([3600, 0, -3600, 7200, 0]):
        clock(1e9 + ahead)
        publisher = (first, second)[number % 2]
        publisher.publish(b"version %d" % number)
        assert container().serve() == b"version %d" % number
    assert "at the same time" not in caplog.text


def test_the_publisher_that_lost_the_race_is_told(
    container: Make, clock: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = container(), container()

    def interrupt() -> None:
        clock(2e9)
        second.publish(TWO)

    clock(1e9)
    first.before = {5: interrupt}  # its publication is written and not committed
    with caplog.at_level(logging.WARNING, "weightcache"):
        first.publish(ONE)
    assert f"stands for version {sha256(TWO)[:16]}, which another container published at the same time" in caplog.text
    assert container().serve() == TWO


# the volume ----------------------------------------------------------------------------------------------------


def test_the_order_of_commits(root: Path, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(ONE)
    seen: list[int] = []

    class Watching(Volume):
        def commit(self) -> None:
            super().commit()
            seen.append(len(list(root.glob(".weightcache/tags/*/*/*.json"))))

    volume = Watching(root)
    publish(tmp_path / "model.bin", name="tagger", root=root, volume=volume, tag="newest")
    assert kinds(volume) == ["commit", "commit", "commit", "reload", "commit", "reload"]
    assert seen == [0, 0, 0, 1]  # data, receipt, what else this container wrote, the publication


@pytest.mark.parametrize("good", [2, 3])
def test_a_tag_that_no_commit_took(good: int, root: Path, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(ONE)

    class Failing(Volume):
        def commit(self) -> None:
            super().commit()
            if kinds(self).count("commit") > good:
                raise RuntimeError("no quorum")

    with pytest.raises(VolumeError, match=r"perhaps the tag newest of tagger stands for it .*no quorum") as caught:
        publish(tmp_path / "model.bin", name="tagger", root=root, volume=Failing(root), tag="newest")
    assert "call it again" in caught.value.hint
    volume = Volume(root)
    publish(tmp_path / "model.bin", name="tagger", root=root, volume=volume, tag="newest")
    assert "commit" in kinds(volume)
    assert len(tags(root=root)) == 1


def test_a_publication_is_not_looked_at_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size is known. If it was asked for, a file system that fails then let an OSError out of `publish`."""
    real = os.stat

    def fails(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if "/.weightcache/tags/" in str(path):
            raise OSError(errno.EOPNOTSUPP, "Operation not supported", path)
        return real(path, *args, **options)

    (tmp_path / "model.bin").write_bytes(ONE)
    monkeypatch.setattr(os, "stat", fails)
    publish(tmp_path / "model.bin", name="tagger", root=root, tag="newest")
    assert len(tags(root=root)) == 1


def test_a_version_that_is_deleted_again_and_again(root: Path, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(ONE)

    class Losing(Volume):
        def reload(self) -> None:
            for path in root.glob("tagger/*/*"):
                path.unlink()

    with pytest.raises(VolumeError, match=r"was deleted from .* 3 times after it was published"):
        publish(tmp_path / "model.bin", name="tagger", root=root, volume=Losing(root), tag="newest")


def test_wrong_arguments(root: Path, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(ONE)
    give: dict[str, Any] = {"name": "tagger", "root": root}
    with pytest.raises(ValueError, match="give tag= too"):
        publish(tmp_path / "model.bin", keep=2, **give)
    for keep in (0, -1, True, 1.5, "2"):
        with pytest.raises(ValueError, match="keep must be a number of versions"):
            publish(tmp_path / "model.bin", tag="newest", keep=keep, **give)
    with pytest.raises(TypeError, match="tag must be a Tag"):
        set_tag("newest", "0" * 16, root=root)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="version must be a string"):
        set_tag(TAG, 3, root=root)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must have commit"):
        ensure(TAG, root=root, volume=object())  # type: ignore[arg-type]
    assert tags(root=root) == []
    assert not root.exists()


def test_a_rollback_to_a_version_that_another_container_published(tmp_path: Path, root: Path) -> None:
    (tmp_path / "a").write_bytes(ONE)
    version = publish(tmp_path / "a", name="tagger", root=tmp_path / "theirs").version

    class Reloading(Volume):
        def reload(self) -> None:
            super().reload()
            shutil.copytree(tmp_path / "theirs", root, dirs_exist_ok=True)

    root.mkdir()
    assert set_tag(TAG, version, root=root, volume=Reloading(root)).version == version


def test_a_tag_that_stands_for_nothing_is_named(root: Path) -> None:
    root.mkdir()
    with pytest.raises(NotCachedError) as caught:
        ensure(Tag("tagger", "stable"), root=root, progress=False)
    assert f"has no publication in {root}; published there: nothing" in str(caught.value)
