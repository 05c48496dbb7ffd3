"""A Modal Volume on real directories: what is committed, and one view of it for each container.

Each rule names what it rests on: *guide* is https://modal.com/docs/guide/volumes, *client* is modal/volume.py 1.6.4.
Where both are silent there is a switch, and the library must be right in every position (docs/volumes.md).
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class BusyError(Exception):
    """ "there are open files preventing the operation" (client, docstring of reload)."""


@dataclass
class Switches:
    """What Modal does not document."""

    open_writers: str = "exclude"  # from a commit; or "include". In 2023 they were excluded (modal-client#1089)
    reload_over: str = "commit"  # of what was not committed; or "discard", "keep". Client: it "may" be committed
    keeps_mtime: bool = True  # through commit and reload
    mmap_blocks: bool = True  # a reload
    shuffle: random.Random | None = None  # the order in which the files of a commit become visible


class Volume:
    """What is committed: a tree of files, each a copy of its own."""

    def __init__(self, folder: Path, name: str = "", version: int = 1, switches: Switches | None = None) -> None:
        self.folder, self.name, self.version = folder, name, version
        self.switches = switches or Switches()
        self.files: dict[str, Path | str] = {}  # path → where the content lies, or the target of a symlink
        self.lock = threading.Lock()
        self._count = 0
        folder.mkdir(parents=True)

    def put(self, path: str, source: Path | bytes) -> None:
        """Replace one file, at once (guide: "any data the last writer didn't have will be lost")."""
        with self.lock:
            self._count += 1
            content = self.folder / str(self._count)
            if isinstance(source, bytes):
                content.write_bytes(source)
            else:
                shutil.copy2(source, content)
            self.files[path] = content

    def read(self, path: str) -> bytes:
        found = self.files[path]
        assert isinstance(found, Path)
        return found.read_bytes()


class View:
    """One container's mount."""

    def __init__(self, volume: Volume, root: Path, *, read_only: bool = False, sub_path: str = "") -> None:
        self.volume, self.root, self.read_only = volume, root, read_only
        self._prefix = f"{sub_path.strip('/')}/" if sub_path.strip("/") else ""
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):  # Modal's own words, seen in some ten public repositories
            raise BusyError(f'cannot mount volume on non-empty path: "{root}"')
        self._base: dict[str, object] = {}
        self._lock = threading.RLock()  # a background commit comes at any moment, but not into a reload
        self._show()  # guide: a new container sees the latest commit

    def _show(self, keep: frozenset[str] = frozenset()) -> None:
        """Replace what is seen by what is committed. Meanwhile it looks empty (guide, on reload)."""
        aside = self.root.with_name(f"{self.root.name}.kept")
        for path, _ in list(_walk(self.root)):
            if path in keep:
                (aside / path).parent.mkdir(parents=True, exist_ok=True)
                (self.root / path).rename(aside / path)
            else:
                (self.root / path).unlink()
        for folder, _, _ in os.walk(self.root, topdown=False):
            if Path(folder) != self.root:
                with suppress(OSError):  # somebody writes there meanwhile
                    os.rmdir(folder)
        with self.volume.lock:
            committed = dict(self.volume.files)
        for path, content in committed.items():
            inner = path.removeprefix(self._prefix)
            if not path.startswith(self._prefix) or inner in keep:
                continue
            target = self.root / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                target.symlink_to(content)
            elif self.volume.switches.keeps_mtime:
                shutil.copy2(content, target)
            else:
                shutil.copy(content, target)
        for path in keep:
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (aside / path).rename(self.root / path)
        self._base = {path: seen for path, seen in _walk(self.root) if path not in keep}

    def _changes(self) -> tuple[set[str], set[str]]:
        now = dict(_walk(self.root))
        return {path for path in now if self._base.get(path) != now[path]}, set(self._base) - set(now)

    def push(self) -> None:
        """Make the changes visible: a background commit, which never reloads and never fails (guide)."""
        if self.read_only:
            return
        with self._lock:
            self._push()

    def _push(self) -> None:
        changed, gone = self._changes()
        if self.volume.switches.open_writers == "exclude":
            changed -= {path for path in changed if _has_writer(self.root / path)}
        order = sorted(changed | gone)
        if self.volume.switches.shuffle:
            self.volume.switches.shuffle.shuffle(order)
        for path in order:
            inner = self.root / path
            if path in gone:
                self.volume.files.pop(self._prefix + path, None)
                self._base.pop(path)
                continue
            with suppress(FileNotFoundError):  # it was renamed meanwhile: the next commit takes it
                seen = _seen(inner)  # before the copy: what is written meanwhile is a change again
                if inner.is_symlink():
                    self.volume.files[self._prefix + path] = os.readlink(inner)
                else:
                    self.volume.put(self._prefix + path, inner)
                self._base[path] = seen

    def commit(self) -> None:
        """VolumeCommit. The client calls VolumeReload after it (client), and fails if that fails."""
        if self.read_only:
            return  # the runtime sends it for read-only mounts too; what the server does is not documented
        self.push()

    def reload(self) -> None:
        """VolumeReload.

        Raises:
            BusyError: A file is open, a directory is somebody's working directory, or a file is mapped.
        """
        if user := next(_users(self.root, mapped=self.volume.switches.mmap_blocks), None):
            raise BusyError(f"there are open files preventing the operation: {user}")
        keep: frozenset[str] = frozenset()
        with self._lock:
            if not self.read_only:
                if self.volume.switches.reload_over == "commit":
                    self.push()
                elif self.volume.switches.reload_over == "keep":
                    keep = frozenset(self._changes()[0])
            self._show(keep)


def play_links(root: str | Path, version: int) -> list[str]:
    """Let `os.link` of this process do below ``root`` what link(2) does on a Volume of that version.

    Version 2 "additionally supports hard-linking" (guide), so version 1 does not. With which errno is unknown; EPERM is
    what link(2) has for it.

    Returns:
        What came of each call below ``root`` so far, ``made`` or ``refused``; it grows.
    """
    link, calls = os.link, list[str]()

    def played(source: str, target: str, **options: Any) -> None:
        if not os.path.realpath(target).startswith(f"{os.path.realpath(root)}/"):
            return link(source, target, **options)
        calls.append("refused" if version == 1 else "made")
        if version == 1:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)
        return link(source, target, **options)

    os.link = played  # type: ignore[assignment]
    return calls


def _walk(root: Path) -> Iterator[tuple[str, object]]:
    for folder, folders, names in os.walk(root):
        for name in [*names, *(each for each in folders if os.path.islink(os.path.join(folder, each)))]:
            path = Path(folder, name)
            with suppress(FileNotFoundError):
                yield str(path.relative_to(root)), _seen(path)


def _seen(path: Path) -> object:
    found = path.lstat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _processes() -> Iterator[str]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield f"/proc/{name}"


def _users(root: Path, *, mapped: bool) -> Iterator[str]:
    """Yield the processes with an open file of a view. By inode: in another mount namespace the paths are others."""
    inside = {}
    for folder, _, names in os.walk(root):
        for path in [folder, *(os.path.join(folder, name) for name in names)]:
            with suppress(OSError):
                found = os.lstat(path)
                inside[found.st_dev, found.st_ino] = path
    for process in _processes():
        with suppress(OSError):
            candidates = [f"{process}/cwd", *(f"{process}/fd/{each}" for each in os.listdir(f"{process}/fd"))]
            for each in candidates:
                with suppress(OSError):
                    found = os.stat(each)
                    if path := inside.get((found.st_dev, found.st_ino)):
                        what = "cwd is inside volume" if each.endswith("cwd") else f"path {path} is open"
                        yield f"{what} (process {process[6:]})"
            for line in Path(f"{process}/maps").read_text().splitlines() if mapped else ():
                _, _, _, device, number, *named = line.split(maxsplit=5)
                major, minor = (int(each, 16) for each in device.split(":"))
                # On an overlay this device differs from that of stat(2): compare the path, valid in our own namespace.
                known = [path for path in named if path in inside.values()]
                if path := inside.get((os.makedev(major, minor), int(number)), *known):
                    yield f"path {path} is mapped (process {process[6:]})"


def _has_writer(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:  # it was renamed since the directory was listed
        return False
    for process in _processes():
        with suppress(OSError):
            for each in os.listdir(f"{process}/fd"):
                with suppress(OSError):
                    other = os.stat(f"{process}/fd/{each}")
                    if (other.st_dev, other.st_ino) == (found.st_dev, found.st_ino):
                        text = Path(f"{process}/fdinfo/{each}").read_text()
                        flags = int(text.partition("flags:")[2].split()[0], 8)
                        if flags & (os.O_WRONLY | os.O_RDWR):
                            return True
    return False
