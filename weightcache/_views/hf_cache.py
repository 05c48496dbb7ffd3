"""The cache of the Hugging Face Hub as huggingface_hub reads it, made of links to what is published."""

from __future__ import annotations

import os
import re
from _thread import get_native_id
from contextlib import suppress

from weightcache._runtime.atomic_replace import replace_file
from weightcache.errors import ManifestError, StorageError
from weightcache.manifest import Manifest
from weightcache.manifest.urls import hub_parts

from .symlinks import absolute, is_ours, link_text, make_link, refuse_volume, replace_by, storage_error

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path
    from typing import TypeAlias

    from weightcache.manifest import Checkpoint

    Snapshots: TypeAlias = dict[tuple[str, str], dict[str, tuple[str, str]]]

_COMMIT = re.compile(rb"[0-9a-f]{40}")
_WRITTEN = re.compile(r"\.weightcache-[0-9a-f]{8}\.[0-9]+")  # what `_write` makes first


def hub_cache(
    directory: str | os.PathLike[str],
    checkpoints: Sequence[Checkpoint],
    published: Mapping[str, str],
    root: str,
    only: Collection[str] | None,
) -> Path:
    """Lay out ``directory`` as huggingface_hub's cache; see `Weights.hf_cache`.

    The layout is the one that huggingface_hub 2.4 reads::

        models--ORG--NAME/refs/main                        the commit, without a newline
        models--ORG--NAME/snapshots/<commit>/config.json   -> ../../blobs/<sha256>
        models--ORG--NAME/blobs/<sha256>                   -> the published file

    It would also read snapshots that link to the published files themselves. But it deletes a revision by unlinking
    what the snapshot's links say: with a blob between, that is a link, and not one on the Volume. (0.36 follows both.)
    """
    from pathlib import Path

    folder = absolute(directory, "directory")
    snapshots, commits = _snapshots(Manifest(tuple(checkpoints)).select(only), published, asked=only is not None)
    homes = {repo: f"{folder}/models--{repo.replace('/', '--')}" for repo in commits}
    for repo, commit in commits.items():  # all of them, before the first link is made
        refuse_volume(_reference(homes[repo]), root)
        _is_current(homes[repo], commit)
    blobs: dict[str, str] = {}
    for (repo, commit), files in snapshots.items():
        for path, (sha256, target) in files.items():
            blob = f"{homes[repo]}/blobs/{sha256}"
            # The first one of equal files: else each call would turn the link from one to the other and back.
            make_link(blobs.setdefault(blob, target), blob, root, _may_replace_blob)
            up = "../" * (path.count("/") + 2)
            make_link(f"{up}blobs/{sha256}", f"{homes[repo]}/snapshots/{commit}/{path}", root, _may_replace_pointer)
    for repo, commit in commits.items():  # last: what a reference names must be there
        if not _is_current(homes[repo], commit):
            _write_reference(homes[repo], commit, root)
    return Path(folder)


def _snapshots(
    checkpoints: Iterable[Checkpoint], published: Mapping[str, str], *, asked: bool
) -> tuple[Snapshots, dict[str, str]]:
    """Return (repository, commit) → path → (sha256, published file), and which commit of each is called main.

    Every ``hf://`` URL of a checkpoint counts, whatever its rank: each says that the Hub has these bytes there.
    """
    snapshots: Snapshots = {}
    main: dict[str, tuple[str, str]] = {}
    problems = []
    for checkpoint in checkpoints:
        where, own = f"checkpoints.{checkpoint.name}", dict[str, str]()
        for repo, commit, inner in filter(None, map(hub_parts, checkpoint.urls)):
            own.setdefault(repo, commit)
            snapshot = snapshots.setdefault((repo, commit), {})
            for file in checkpoint.files:
                path, target = inner, published[checkpoint.name]
                if checkpoint.is_directory:
                    path, target = "/".join(filter(None, (inner, file.path))), f"{target}/{file.path}"
                if snapshot.setdefault(path, (file.sha256, target))[0] != file.sha256:
                    problems.append(f"{where}: another checkpoint gives {repo}@{commit}/{path} another sha256")
        for repo, commit in own.items():
            first, name = main.setdefault(repo, (commit, checkpoint.name))
            if first != commit:
                problems.append(
                    f"{where}.urls: {repo}@{commit}, and checkpoints.{name} has {repo}@{first}: {repo} can mean "
                    "one of them; choose with only=, and give each a directory of its own"
                )
        if asked and not own:
            problems.append(f"{where}.urls: no hf://REPO@COMMIT, which says by what name a program asks for it")
    if not snapshots and not problems:
        problems.append(
            "checkpoints: none has hf://REPO@COMMIT among its urls, which says by what name it is asked for"
        )
    if problems:
        raise ManifestError("manifest", problems)
    return snapshots, {repo: commit for repo, (commit, _) in main.items()}


def _may_replace_blob(path: str, _: str) -> bool:
    return is_ours(path) or not os.path.exists(path)


def _may_replace_pointer(path: str, _: str) -> bool:
    return _is_pointer_of_ours(path) or not os.path.exists(path)


def _is_pointer_of_ours(path: str) -> bool:
    says = link_text(path)
    return says is not None and is_ours(os.path.join(os.path.dirname(path), says))


def _reference(home: str) -> str:
    return f"{home}/refs/main"


def _is_current(home: str, commit: str) -> bool:
    """Whether ``main`` names ``commit``; refuse to change it from what huggingface_hub itself downloaded."""
    path = _reference(home)
    try:
        with open(path, "rb") as stream:
            found = stream.read(100)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(error, "read", path) from error
    if found == commit.encode():
        return True
    if not _COMMIT.fullmatch(found):
        return False  # torn: it names nothing
    for folder, _, names in os.walk(f"{home}/snapshots/{found.decode()}"):
        if not all(_is_pointer_of_ours(f"{folder}/{name}") for name in names):
            raise StorageError(
                f"cannot let {path} name {commit}: it names {found.decode()}, whose files are not links to weights",
                hint="give a directory that huggingface_hub has not downloaded to, such as /tmp/hub",
                path=path,
            )
    return False


def _write_reference(home: str, commit: str, root: str) -> None:
    path = _reference(home)
    refuse_volume(path, root)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # Not made in refs: it would be a reference.
        while not replace_by(lambda fresh: _write(fresh, commit), lambda fresh: _says(fresh, commit), home, path):
            pass
        for name in filter(_WRITTEN.fullmatch, os.listdir(home)):
            with suppress(OSError):  # of a process that was killed, or of one that then tries again
                os.unlink(f"{home}/{name}")
    except OSError as error:
        raise storage_error(error, "write", path) from error


def _says(path: str, text: str) -> bool:
    with open(path, "rb") as stream:
        return stream.read(len(text) + 1) == text.encode()


def _write(path: str, text: str) -> None:
    """Make ``path`` whole: another process may rename it to its place between any two calls of this one."""
    replace_file(path, text.encode(), f"{path}.{get_native_id()}", durable=False)
