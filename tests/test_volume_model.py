"""The model of a Volume: each rule, and each switch in each of its positions."""

from __future__ import annotations

import errno
import mmap
import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from volume_model import BusyError, Switches, View, Volume

Mount = Callable[..., View]


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., tuple[Volume, Mount]]:
    def make(version: int = 1, **switches: Any) -> tuple[Volume, Mount]:
        volume = Volume(tmp_path / "server", "w", version, Switches(**switches))
        numbers = iter(range(99))
        return volume, lambda **options: View(volume, tmp_path / f"view-{next(numbers)}", **options)

    return make


def test_private_until_commit_and_unseen_until_reload(made: Any) -> None:
    _, mount = made()
    a, b = mount(), mount()
    (a.root / "d").mkdir()
    (a.root / "d/f").write_bytes(b"a")
    b.reload()
    assert not (b.root / "d").exists()
    a.commit()
    assert not (b.root / "d").exists()
    b.reload()
    assert (b.root / "d/f").read_bytes() == b"a"
    assert (mount().root / "d/f").read_bytes() == b"a"


def test_the_last_writer_of_a_file_wins_and_other_files_stay(made: Any) -> None:
    _, mount = made()
    a, b = mount(), mount()
    for view, name in ((a, "x"), (b, "y")):
        (view.root / "both").write_text(name)
        (view.root / name).write_text(name)
    a.commit()
    b.commit()
    a.reload()
    assert (a.root / "both").read_text() == "y"
    assert (a.root / "x").exists()
    assert (a.root / "y").exists()
    (a.root / "x").unlink()
    a.commit()
    b.reload()
    assert not (b.root / "x").exists()


@pytest.mark.parametrize("what", ["open", "cwd", "mapped"])
def test_busy(what: str, made: Any) -> None:
    _, mount = made()
    view = mount()
    path = view.root / "f"
    path.write_bytes(b"x" * 5000)
    view.commit()
    if what == "open":
        with open(path, "rb"), pytest.raises(BusyError, match=r"path .*f is open"):
            view.reload()
    elif what == "cwd":
        code = "print('there', flush=True); input()"
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=view.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout
            process.stdout.readline()
            with pytest.raises(BusyError, match="cwd is inside volume"):
                view.reload()
            process.communicate(b"\n")
    else:
        with open(path, "rb") as stream:
            mapping = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
        with mapping, pytest.raises(BusyError, match=r"is mapped|is open"):
            view.reload()
    view.reload()


@pytest.mark.parametrize(
    ("over", "seen", "others"), [("commit", "new", "new"), ("discard", "old", "old"), ("keep", "new", "old")]
)
def test_what_a_reload_does_to_what_was_not_committed(over: str, seen: str, others: str, made: Any) -> None:
    _, mount = made(reload_over=over)
    view = mount()
    (view.root / "f").write_text("old")
    view.commit()
    (view.root / "f").write_text("new")
    view.reload()
    assert (view.root / "f").read_text() == seen
    assert (mount().root / "f").read_text() == others


@pytest.mark.parametrize(("open_writers", "there"), [("exclude", False), ("include", True)])
def test_a_file_that_is_open_for_writing(open_writers: str, there: bool, made: Any) -> None:
    volume, mount = made(open_writers=open_writers)
    view = mount()
    with open(view.root / "f", "wb") as stream:
        stream.write(b"x")
        stream.flush()
        view.push()
        assert ("f" in volume.files) is there
    view.push()  # what a background commit finds after a crash: a leftover
    assert "f" in volume.files


@pytest.mark.parametrize("keeps", [True, False])
def test_modification_times(keeps: bool, made: Any) -> None:
    _, mount = made(keeps_mtime=keeps)
    view = mount()
    (view.root / "f").write_bytes(b"x")
    os.utime(view.root / "f", (1, 1))
    view.commit()
    assert (int((mount().root / "f").stat().st_mtime) == 1) is keeps


def test_files_of_one_commit_become_visible_in_any_order(tmp_path: Path) -> None:
    orders = set()
    for seed in range(8):
        volume = Volume(tmp_path / f"server-{seed}", "w", 1, Switches(shuffle=random.Random(seed)))
        view = View(volume, tmp_path / f"view-{seed}")
        for name in "abc":
            (view.root / name).write_text(name)
        view.commit()
        orders.add("".join(volume.files))
    assert len(orders) > 1


def test_hard_links_are_of_version_2(made: Any) -> None:
    _, mount = made(version=2)
    view = mount()
    (view.root / "f").write_bytes(b"x")
    view.link("f", "g")
    view.volume.version = 1
    with pytest.raises(OSError, match="Operation not permitted") as raised:
        view.link("f", "h")
    assert raised.value.errno == errno.EPERM


def test_read_only_and_sub_path(made: Any) -> None:
    volume, mount = made()
    volume.put("models/f", b"x")
    volume.put("other", b"y")
    view = mount(read_only=True, sub_path="models")
    assert [path.name for path in view.root.iterdir()] == ["f"]
    with suppress(OSError):
        (view.root / "g").write_bytes(b"z")
    view.commit()
    assert sorted(volume.files) == ["models/f", "other"]


def test_a_path_that_is_not_empty_cannot_be_mounted(made: Any, tmp_path: Path) -> None:
    volume, _ = made()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/.gitkeep").touch()
    with pytest.raises(BusyError, match="cannot mount volume on non-empty path"):
        View(volume, tmp_path / "full")


def test_symlinks_are_kept(made: Any) -> None:
    _, mount = made()
    view = mount()
    (view.root / "f").write_bytes(b"x")
    (view.root / "l").symlink_to("f")
    view.commit()
    assert os.readlink(mount().root / "l") == "f"
