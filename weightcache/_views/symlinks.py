"""Links to what is published, from where a program looks for it.

A link belongs to one container. In a Volume it would be committed, and lead every other container to a path that it
need not have; so none is ever made there. What is no link of ours is never replaced, and nothing is ever deleted.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from weightcache.errors import StorageError, UnknownCheckpointError
from weightcache.manifest.validate import MODAL_VOLUMES, name_problem, user_path

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_ROOM = (
    "links need a folder on the container's own disk that this user may write to and that has room: give another path"
)


def link(paths: Mapping[str, str | os.PathLike[str]], published: Mapping[str, str], root: str) -> dict[str, Path]:
    """Make a symlink at each of ``paths`` to what is ``published`` under the same name; see `Weights.link`."""
    from pathlib import Path

    if not isinstance(paths, Mapping):
        raise TypeError(f"paths must map names to paths, as in {{'sam2': 'models/sam2.pt'}}, not {paths!r:.80}")
    for name in paths:
        if name not in published:
            raise UnknownCheckpointError(name, published)
    links = {name: absolute(path, f"the path of {name}") for name, path in paths.items()}
    _refuse_overlap(links)
    for name, path in links.items():  # all of them, before the first one is made
        refuse_volume(path, root)
        if os.path.lexists(path):
            _is_older(path, published[name])
    for name, path in links.items():
        make_link(published[name], path, root, _is_older)
    return {name: Path(path) for name, path in links.items()}


def absolute(path: object, what: str) -> str:
    """Return ``path`` with ``~`` expanded, from the working directory on; an error calls it ``what``."""
    text: object = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a path, not {type(path).__name__}")
    if not text or "\0" in text:
        raise ValueError(f"{what} must be a path, got {text!r}")
    return os.path.abspath(user_path(text))


def _real(path: str) -> str:
    """Return where a link at ``path`` would really lie: its parents are followed, and itself is not."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def _refuse_overlap(links: Mapping[str, str]) -> None:
    real = {name: _real(path) for name, path in links.items()}
    for name, path in real.items():
        for other, outer in real.items():
            if name != other and f"{path}/".startswith(f"{outer}/"):
                where = "the same path as" if path == outer else "a path below that of"
                raise ValueError(f"{name} is to be linked at {links[name]}, {where} {other}: give each its own")


def refuse_volume(path: str, root: str) -> None:
    """Refuse to make ``path`` in ``root`` or on any Modal Volume, also by way of its parents' links."""
    real = _real(path)
    if f"{real}/".startswith(MODAL_VOLUMES):
        where = "on a Modal Volume"
    elif root and f"{real}/".startswith(f"{os.path.realpath(root).rstrip('/')}/"):
        where = f"inside the root {root}"
    else:
        return
    raise StorageError(
        f"cannot link {path}: it lies {where}, where a link would reach every other container",
        hint="mount the Volume elsewhere, such as at /vol/weights, and let this folder be the container's own",
        path=path,
    )


def link_text(path: str) -> str | None:
    """Return what the link at ``path`` says, or ``None`` if there is no link."""
    try:
        return os.readlink(path)
    except OSError:
        return None


def is_ours(path: str) -> bool:
    """Whether a link to a version directory is there: of any version, in any root, or in a root that was removed.

    A link to a directory of that form that is not below a root is the user's.
    """
    says = link_text(path) or ""
    roots = list(_roots(says)) if says.startswith("/") else []
    return any(os.path.isdir(f"{root}/.weightcache") or not os.path.lexists(root or "/") for root in roots)


def _roots(target: str) -> Iterator[str]:
    """Yield each root of which ``target`` may be a place, ``<root>/<name>/<16 digits>``, or a path below one."""
    parts = target.split("/")
    for index, part in enumerate(parts[2:], 2):
        if len(part) == 16 and not part.strip("0123456789abcdef") and name_problem(parts[index - 1]) is None:
            yield "/".join(parts[: index - 1])


def _is_older(path: str, target: str) -> bool:
    """Return ``True`` for a link of ours, and refuse anything else: it is somebody's."""
    if is_ours(path):
        return True
    if (text := link_text(path)) is not None:
        what, hint = f"a link to {text}", "remove it, or give another path"
    elif os.path.isdir(path):
        inside = os.path.join(path, os.path.basename(target))
        what, hint = "a directory", f"name the link itself, as in {inside}, or move the directory away"
    else:
        what, hint = "a file", "remove it (weights that are baked into an image are not needed), or give another path"
    raise StorageError(f"cannot link {path}: {what} is there, and not a link to weights", hint=hint, path=path)


def make_link(target: str, path: str, root: str, may_replace: Callable[[str, str], bool]) -> None:
    """Let the link at ``path`` say ``target``, at once: a reader sees what was there or this, and never nothing."""
    refuse_volume(path, root)
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
        while link_text(path) != target:
            if not os.path.lexists(path):
                # Not by rename, which would take the place of a file that came meanwhile.
                with suppress(FileExistsError):
                    os.symlink(target, path)
            elif may_replace(path, target):
                if replace_by(partial(os.symlink, target), lambda fresh: link_text(fresh) == target, folder, path):
                    return
            else:
                return
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(error, "link", path) from error


def replace_by(make: Callable[[str], object], is_made: Callable[[str], bool], folder: str, path: str) -> bool:
    """Put at ``path``, by rename, what ``make`` makes of a path in ``folder``; ``False`` if it is to be tried again.

    The path in ``folder`` is the same for each call, so that the next one finds what a killed process left there, and
    renames it if ``is_made`` says that it is what is wanted. Another process may be at the same.
    """
    fresh = f"{folder}/.weightcache-{zlib.crc32(os.fsencode(path)):08x}"
    try:
        with suppress(FileExistsError):
            make(fresh)
        if is_made(fresh):
            os.replace(fresh, path)
            return True
        os.unlink(fresh)
    except FileNotFoundError:
        if not os.path.isdir(folder):
            raise
    except OSError:
        with suppress(OSError):
            os.unlink(fresh)
        raise
    return False


def storage_error(error: OSError, doing: str, path: str) -> StorageError:
    """Wrap the operating system's ``error`` with what to do about it where links lie."""
    wrapped = StorageError.of(error, doing, path)
    wrapped.hint = _ROOM
    return wrapped
