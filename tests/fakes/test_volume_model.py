"""The model of a Volume: each rule, and each switch in each of its positions."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from support import until
from volume_model import BusyError, Switches, View, Volume, play_links

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


@pytest.fixture
def filled(made: Any) -> View:
    _, mount = made()
    view: View = mount()
    (view.root / "f").write_bytes(b"x" * 5000)
    view.commit()
    return view


@contextmanager
def child(*command: str | Path, **options: Any) -> Iterator[None]:
    """Run a child from when it has said a word until it has heard one."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options) as process:
        assert process.stdout
        assert process.stdout.readline() == "there\n"
        yield
        process.communicate("\n")


WAITS = "print('there', flush=True); input()"
# By mmap(2) itself: what Python's module maps keeps a descriptor of its own open, which blocks a reload as well.
MAPS = """
import ctypes, mmap, os, sys
library = ctypes.CDLL(None, use_errno=True)
library.mmap.restype = ctypes.c_void_p
library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
number = os.open(sys.argv[1], os.O_RDONLY)
assert library.mmap(None, 5000, mmap.PROT_READ, mmap.MAP_PRIVATE, number, 0) != ctypes.c_void_p(-1).value
os.close(number)
"""


def test_an_open_file_blocks_a_reload(filled: View) -> None:
    with open(filled.root / "f", "rb"), pytest.raises(BusyError, match=r"path .*/f is open"):
        filled.reload()
    filled.reload()


def test_a_working_directory_blocks_a_reload(filled: View) -> None:
    with (
        child(sys.executable, "-c", WAITS, cwd=filled.root),
        pytest.raises(BusyError, match="cwd is inside volume"),
    ):
        filled.reload()
    filled.reload()


def test_a_mapping_blocks_a_reload_or_does_not(filled: View) -> None:
    with child(sys.executable, "-c", MAPS + WAITS, filled.root / "f"):
        with pytest.raises(BusyError, match=r"path .*/f is mapped"):
            filled.reload()
        filled.volume.switches.mmap_blocks = False
        filled.reload()
    filled.volume.switches.mmap_blocks = True
    filled.reload()


@pytest.mark.parametrize(
    "code", [f"import sys; held = open(sys.argv[1]); {WAITS}", MAPS + WAITS], ids=["open", "mapped"]
)
def test_who_sees_it_at_another_path_blocks_a_reload_too(code: str, filled: View, tmp_path: Path) -> None:
    """As a container does, in a mount namespace of its own."""
    from control_plane import needs_namespaces

    needs_namespaces()
    inside = tmp_path / "inside"
    inside.mkdir()
    mounts = 'mount --bind "$1" "$2"; mount -t tmpfs tmpfs "$1"; shift 2; exec "$@"'
    command = ["unshare", "-m", "sh", "-ec", mounts, "sh", filled.root, inside, sys.executable, "-c", code]
    with child(*command, inside / "f"), pytest.raises(BusyError, match=f"path {filled.root}/f is"):
        filled.reload()
    filled.reload()


@pytest.mark.parametrize("over", ["commit", "discard", "keep"])
def test_it_looks_empty_while_it_reloads(over: str, made: Any) -> None:
    volume, mount = made(reload_over=over)
    view = mount()
    (view.root / "d").mkdir()
    (view.root / "d/f").write_bytes(b"x")
    view.commit()
    (view.root / "d/new").write_bytes(b"y")
    if over == "commit":
        view.push()  # else the reload does it, for which it needs the lock that it is held up by here
    reload = threading.Thread(target=view.reload)
    with volume.lock:  # it is asked for what is committed when all that was seen is gone
        reload.start()
        until(lambda: not os.path.lexists(view.root / "d"))  # to list a directory is to open it, and to make it busy
        assert not os.listdir(view.root)
        assert reload.is_alive()
    reload.join()
    assert (view.root / "d/f").read_bytes() == b"x"
    assert (view.root / "d/new").exists() is (over != "discard")


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


@pytest.mark.parametrize(("version", "came"), [(1, "refused"), (2, "made")])
def test_hard_links_are_of_version_2(version: int, came: str, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, mount = made(version)
    view = mount()
    (view.root / "f").write_bytes(b"x")
    monkeypatch.setattr(os, "link", os.link)  # put back afterwards
    calls = play_links(view.root, version)
    os.link(view.root / "f", view.root.parent / "outside")
    with nullcontext() if version == 2 else pytest.raises(PermissionError) as raised:
        os.link(view.root / "f", view.root / "g")
    assert calls == [came]
    assert (view.root / "g").exists() is (version == 2)
    assert raised is None or raised.value.errno == errno.EPERM


def test_read_only_and_sub_path(made: Any) -> None:
    """Nothing that is written there is committed; that it cannot be written is the mount's doing (test_containers)."""
    volume, mount = made()
    volume.put("models/f", b"x")
    volume.put("other", b"y")
    view = mount(read_only=True, sub_path="models")
    assert [path.name for path in view.root.iterdir()] == ["f"]
    (view.root / "g").write_bytes(b"z")
    view.push()
    view.commit()
    assert sorted(volume.files) == ["models/f", "other"]
    view.reload()
    assert [path.name for path in view.root.iterdir()] == ["f"]


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
