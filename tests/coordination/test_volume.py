"""Commit and reload: the order of the story, what a failure costs, and that nothing unpushed is lost."""

from __future__ import annotations

import logging
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from noting_volume import Volume
from origin import Origin, broken
from origin import status as answer
from support import blob, change_settings, one, partials, quiet, visible
from weightcache import DownloadError, NotCachedError, VolumeError, prune, status
from weightcache._coordination.volume import VolumeSession
from weightcache._store import file_operations as store_files
from weightcache._store import receipts as store_receipts
from weightcache._store.layout import Layout
from weightcache._store.partial_directory import BLOCK
from weightcache.manifest import Manifest

DATA = blob(2 * BLOCK + 5)


def test_the_story(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    volume = Volume(root)
    weights = quiet(one(DATA, origin.url("/a")), root, volume=volume)
    assert volume.calls == [
        "reload: 0 published, 0 receipts",
        "commit: 1 published, 0 receipts",
        "commit: 1 published, 1 receipts",
    ]
    assert weights.report.committed is True
    assert weights.report.warnings == ()


def test_what_another_container_published_is_found_by_the_reload(origin: Origin, root: Path, tmp_path: Path) -> None:
    origin.put("/a", DATA)
    manifest, theirs = one(DATA, origin.url("/a")), tmp_path / "theirs"
    quiet(manifest, theirs)
    origin.requests.clear()

    class Reloading(Volume):
        def reload(self) -> None:
            super().reload()
            shutil.copytree(theirs, root, dirs_exist_ok=True)

    volume = Reloading(root)
    assert quiet(manifest, root, volume=volume, offline=True).report["sam2"].outcome == "hit"
    assert [call.partition(":")[0] for call in volume.calls] == ["reload"]
    assert origin.requests == []


def test_a_volume_that_drops_empty_directories(origin: Origin, root: Path) -> None:
    class Dropping(Volume):
        def commit(self) -> None:
            super().commit()
            for folder, _, _ in os.walk(root, topdown=False):
                if not os.listdir(folder) and folder != str(root):
                    os.rmdir(folder)

    origin.put("/a", DATA)
    assert quiet(one(DATA, origin.url("/a")), root, volume=Dropping(root)).report.committed is True
    assert status(one(DATA), root=root)[0].state == "ready"


def test_a_reload_that_fails_is_reported(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    weights = quiet(one(DATA, origin.url("/a")), root, volume=Volume(root, reload=3))
    assert weights["sam2"].read_bytes() == DATA
    [warning] = weights.report.warnings
    assert warning == "reload of the volume failed: RuntimeError: there are open files preventing the operation"


def test_calls_are_tried_again(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    volume = Volume(root, reload=2, commit=2)
    report = quiet(one(DATA, origin.url("/a")), root, volume=volume).report
    assert (report.committed, report.warnings) == (True, ())
    assert len(volume.calls) == 3 + 3 + 1


def test_without_a_commit_there_is_no_receipt(origin: Origin, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    origin.put("/a", DATA)
    with caplog.at_level(logging.WARNING, "weightcache"):
        weights = quiet(one(DATA, origin.url("/a")), root, volume=Volume(root, commit=3))
    assert weights["sam2"].read_bytes() == DATA
    assert weights.report.committed is False
    assert "commit of the volume failed" in weights.report.warnings[0]
    assert "commit of the volume failed" in caplog.text
    assert status(one(DATA), root=root)[0].state == "unverified"
    again = quiet(one(DATA, origin.url("/a")), root, volume=(volume := Volume(root)))
    assert again.report["sam2"].outcome == "adopted"
    # What no commit has taken is committed first, and only then reloaded.
    assert [call.partition(":")[0] for call in volume.calls] == ["commit", "reload", "commit", "commit"]


@pytest.mark.usefixtures("one_connection")
def test_a_partial_that_no_commit_has_taken_is_not_reloaded_over(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA, faults=[broken(BLOCK + 9)], always=answer(404))
    manifest = one(DATA, origin.url("/a"))
    with pytest.raises(DownloadError):
        quiet(manifest, root, volume=Volume(root))
    origin.files["/a"].always = None

    class Discarding(Volume):
        """A reload discards what was not committed; this one cannot commit either."""

        def reload(self) -> None:
            super().reload()
            shutil.rmtree(root)

    origin.requests.clear()
    volume = Discarding(root, commit=3)
    weights = quiet(manifest, root, volume=volume)
    assert weights.report["sam2"].outcome == "resumed"
    assert not any(call.startswith("reload") for call in volume.calls)
    assert origin.sent() == len(DATA) - BLOCK


def test_healing_withdraws_the_receipt_and_commits_first(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"))
    os.truncate(quiet(manifest, root, volume=Volume(root))["sam2"], 5)
    volume = Volume(root)
    assert quiet(manifest, root, volume=volume).report["sam2"].outcome == "healed"
    assert volume.calls == [
        "reload: 1 published, 1 receipts",
        "commit: 1 published, 0 receipts",
        "commit: 1 published, 0 receipts",
        "commit: 1 published, 1 receipts",
    ]


def test_a_volume_that_loses_what_was_committed(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)

    class Losing(Volume):
        def commit(self) -> None:
            super().commit()
            shutil.rmtree(root)
            root.mkdir()

    with pytest.raises(VolumeError, match="3 times: the volume does not keep") as caught:
        quiet(one(DATA, origin.url("/a")), root, volume=Losing(root))
    assert caught.value.operation == "commit"


def test_a_commit_that_loses_it_once(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    lost: list[int] = []

    class LosingOnce(Volume):
        def commit(self) -> None:
            super().commit()
            if len(self.calls) == 3 and not lost:
                lost.append(1)
                shutil.rmtree(root / "sam2")

    weights = quiet(one(DATA, origin.url("/a")), root, volume=LosingOnce(root))
    assert lost
    assert weights["sam2"].read_bytes() == DATA


def test_status_looks_again_when_the_reload_is_over(origin: Origin, root: Path) -> None:
    """During a reload a Volume looks empty; a `status` in that moment waits for its end and looks again."""
    import threading

    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"))
    quiet(manifest, root)
    hidden, empty, looked = root.with_name("hidden"), threading.Event(), threading.Event()

    class Empty(Volume):
        def reload(self) -> None:
            root.rename(hidden)
            root.mkdir()
            empty.set()
            looked.wait(60)
            root.rmdir()
            hidden.rename(root)

    from weightcache._coordination import volume as coordination_volume

    calls = coordination_volume.VolumeSession(str(root), Empty(root))
    os.unlink(next(Path(os.environ["TMPDIR"]).glob("*/*.unpushed")))  # as after a commit
    filler = threading.Thread(target=calls.sync)
    filler.start()
    assert empty.wait(60)
    states: list[str] = []
    from weightcache._coordination import lock

    real = lock._kernel_lock

    def noticed(path: str, tick: Any, poll: float) -> Any:
        looked.set()  # the first inspection, of an empty root, is over
        return real(path, tick, poll)

    lock._kernel_lock = noticed  # type: ignore[assignment]
    try:
        states = [seen.state for seen in status(manifest, root=root)]
    finally:
        lock._kernel_lock = real
    filler.join()
    assert states == ["ready"]


def test_prune_commits_the_receipts_before_the_files(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"))
    quiet(manifest, root, volume=Volume(root))
    volume = Volume(root)
    assert len(prune(one(b"other"), root=root, volume=volume, older_than=0, dry_run=False)) == 1
    assert volume.calls == [
        "reload: 1 published, 1 receipts",
        "commit: 1 published, 0 receipts",
        "reload: 1 published, 0 receipts",  # another container may have tagged the version meanwhile
        "commit: 0 published, 0 receipts",
    ]
    assert list(root.glob(".weightcache/receipts/*/*")) == []


@pytest.mark.parametrize("failures", [{"commit": 3}, {"reload": 3}])
def test_a_prune_that_fails_can_be_called_again(failures: dict[str, int], origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    quiet(one(DATA, origin.url("/a")), root, volume=Volume(root))
    with pytest.raises(VolumeError, match="prune stopped") as caught:
        prune(one(b"other"), root=root, volume=Volume(root, **failures), older_than=0, dry_run=False)
    assert caught.value.operation == next(iter(failures))
    assert len(visible(root)) == 1
    assert len(prune(one(b"other"), root=root, older_than=0)) == 1
    assert len(prune(one(b"other"), root=root, volume=Volume(root), older_than=0, dry_run=False)) == 1
    assert visible(root) == []


def test_a_prune_that_died_does_not_go_on_with_what_is_there_again(origin: Origin, root: Path) -> None:
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"))
    quiet(manifest, root)
    [receipt] = root.glob(".weightcache/receipts/sam2/*")
    receipt.rename(receipt.with_suffix(".pruning"))  # killed right after the first step
    assert quiet(manifest, root).report["sam2"].outcome == "adopted"
    assert prune(manifest, root=root, dry_run=False) == []
    assert status(manifest, root=root)[0].state == "ready"


def test_warnings_of_the_place(
    origin: Origin, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"))
    assert quiet(manifest, root / "plain").report.warnings == ()
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    [warning] = quiet(manifest, root / "vanishing").report.warnings
    assert "lost when the container stops" in warning
    (tmp_path / "volumes" / "vo-1").mkdir(parents=True)
    (tmp_path / "mount").symlink_to(tmp_path / "volumes" / "vo-1")
    monkeypatch.setattr("weightcache._coordination.mount_check.MODAL_VOLUMES", f"{tmp_path}/volumes/")
    [warning] = quiet(manifest, tmp_path / "mount").report.warnings
    assert "no volume= was given" in warning
    assert "Add volume=" in warning
    assert quiet(manifest, tmp_path / "mount" / "b", volume=Volume(tmp_path)).report.warnings == ()


@pytest.mark.parametrize("volume", [object(), "fashion-models", 3])
def test_what_is_no_volume(volume: Any, root: Path) -> None:
    with pytest.raises(TypeError, match=r"volume must have commit\(\) and reload\(\)"):
        quiet(one(DATA), root, volume=volume)


def test_offline_still_reloads(root: Path) -> None:
    volume = Volume(root)
    with pytest.raises(NotCachedError):
        quiet(one(DATA, "https://h/x"), root, volume=volume, offline=True)
    assert [call.partition(":")[0] for call in volume.calls] == ["reload"]
    assert partials(root) == []


# A write that nobody announced ------------------------------------------------------------------------------------


def test_a_write_that_is_not_announced_is_refused(origin: Origin, root: Path) -> None:
    """A reload would discard it: nothing would say that the root holds what no commit has taken."""
    origin.put("/a", DATA)
    manifest = one(DATA, origin.url("/a"))
    quiet(manifest, root)
    layout, [checkpoint] = Layout(root), Manifest.load(manifest)
    [file] = checkpoint.files
    spare = root.with_name("spare")
    spare.write_bytes(DATA)
    writes = [
        lambda: store_receipts.withdraw_receipt(layout, layout.receipt(checkpoint)),
        lambda: store_files.publish_file(layout, checkpoint, file, str(spare)),
        lambda: store_receipts.write_receipt(layout, checkpoint, {file.path: len(DATA)}, []),
    ]
    for write in writes:
        with pytest.raises(RuntimeError, match="outside `with VolumeSession"):
            write()
    assert status(manifest, root=root)[0].state == "ready"
    session = VolumeSession(layout.root, Volume(root))
    for write in writes:
        with session.writing():
            write()
    assert status(manifest, root=root)[0].state == "ready"


def test_writing_marks_the_root_until_a_commit(root: Path) -> None:
    session = VolumeSession(str(root), Volume(root, commit=3))
    assert not session.is_dirty()
    with suppress(KeyboardInterrupt), session.writing():
        assert session.is_dirty()
        raise KeyboardInterrupt
    assert session.is_dirty()
    assert not session.commit()
    assert session.is_dirty()
    with session.writing():
        assert session.commit()  # of another thread: it cannot have taken what is written next
        assert session.is_dirty()
    assert session.commit()
    assert not session.is_dirty()


def test_a_commit_and_reload(root: Path) -> None:
    volume = Volume(root, commit=1)
    session = VolumeSession(str(root), volume)
    assert session.commit_and_reload({})
    assert [call.partition(":")[0] for call in volume.calls] == ["commit", "commit", "reload"]
    assert session.committed is True
    volume = Volume(root, commit=3)
    assert not VolumeSession(str(root), volume).commit_and_reload({})
    assert [call.partition(":")[0] for call in volume.calls] == ["commit"] * 3
    session = VolumeSession(str(root), None)
    assert session.commit_and_reload({})
    assert session.committed is None


def test_a_call_is_tried_again_after_a_while(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_settings(monkeypatch, volume_backoff=(0.02, 0.03))
    session, began = VolumeSession(str(root), Volume(root, reload=2)), time.monotonic()
    session.reload()
    assert time.monotonic() - began >= 0.05
    assert session.warnings == []


def test_without_a_directory_for_notes_it_commits_before_it_reloads(root: Path) -> None:
    volume = Volume(root)
    session = VolumeSession("/", volume)  # every container-local directory is below it
    assert session.is_dirty()
    session.sync()
    assert [call.partition(":")[0] for call in volume.calls] == ["commit", "reload"]


def test_names_on_the_volume_reach_no_warning_with_control_characters(
    origin: Origin, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Modal names files of the Volume in its errors, and so do we."""

    class Refusing(Volume):
        def reload(self) -> None:
            raise RuntimeError("open: x\x1b[2J\n  hint: run it")

    origin.put("/a", DATA)
    root.mkdir()
    caplog.set_level(logging.INFO, "weightcache")
    with open(root / "x\x1b]0;owned\x07\n  hint: run it", "w", encoding="utf-8"):
        report = quiet(one(DATA, origin.url("/a")), root, volume=Refusing(root)).report
    said = [*report.warnings, *(record.getMessage() for record in caplog.records)]
    assert any("owned" in text for text in report.warnings)
    assert [text for text in said if not text.isprintable()] == []


def test_a_warning_has_no_control_characters(root: Path) -> None:
    session = VolumeSession(str(root), None)
    session.warn("a\x1b[2J")
    assert session.warnings == ["a\\x1b[2J"]


def test_a_root_whose_path_is_not_utf_8(origin: Origin, tmp_path: Path) -> None:
    origin.put("/a", DATA)
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xff"))
    volume = Volume(root)
    assert quiet(one(DATA, origin.url("/a")), root, volume=volume).report.committed is True
    with VolumeSession(str(root), volume).writing():
        assert VolumeSession(str(root), volume).is_dirty()
