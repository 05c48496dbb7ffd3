"""Finding weights that other programs downloaded: caches of the Hugging Face Hub, its ``local_dir``, plain files."""

from __future__ import annotations

import os
import re
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from weightcache._runtime.owned_descriptors import opened
from weightcache._store.inspect import read_bytes
from weightcache.errors import ManifestError, StorageError, WeightCacheError
from weightcache.manifest.urls import checkpoint_name, is_commit, parse_hub_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from weightcache._store.layout import Layout

_REPOSITORY = re.compile(r"models--([A-Za-z0-9_.-]+)")
_COMMIT = re.compile("[0-9a-f]{40}")
_METADATA = ".cache/huggingface"  # what `hf download --local-dir` adds to the files
_COMMIT_BYTES, _RECORD_BYTES = 41, 1000  # the most that is read of a reference, and of a record
_RECORD = ".metadata"  # ending of the file with commit, ETag and time that it writes for each, below ``download``


class Found(NamedTuple):
    """Weights that can be adopted.

    Attributes:
        name: What their checkpoint is called.
        path: A file, or the directory of the files.
        urls: Where they came from, as far as their place says; empty otherwise.
        skip: A directory in it with other files; empty for none.
        note: What the user should know; empty for nothing.
        recorded: By path, what the Hub calls the content of a file: its sha256, or its id in Git. ``None``: the name
            of the blob that the file is a link to says it.
    """

    name: str
    path: str
    urls: tuple[str, ...] = ()
    skip: str = ""
    note: str = ""
    recorded: Mapping[str, str] | None = None


@contextmanager
def as_storage_errors(path: str) -> Iterator[None]:
    """Raise a plain ``OSError`` as a `StorageError` that names what could not be read, by default ``path``."""
    try:
        yield
    except WeightCacheError:
        raise
    except OSError as error:
        raise StorageError.of(error, "read", error.filename or path) from error


def find_weights(path: str, name: str | None, layout: Layout, repository: str | None = None) -> list[Found]:
    """Return what can be adopted at a path.

    Args:
        path: A Hub cache, one repository or snapshot in it, a directory of files, or a file.
        name: The name of the only checkpoint; ``None`` for names made from repositories and files.
        layout: The root.
        repository: For a ``local_dir``, the repository that it is of: ``ORG/NAME`` or ``ORG/NAME@COMMIT``.

    Raises:
        ManifestError: Nothing can be adopted there, or it is several checkpoints and a name is given; or the
            repository is given for what is no ``local_dir``, or with another commit than that of its files.
        StorageError: Something there cannot be read.
        ValueError: ``repository`` is not of this form.
    """
    top = os.path.abspath(path)
    with as_storage_errors(top):
        return _found(top, name, layout, repository)


def _found(top: str, name: str | None, layout: Layout, repository: str | None) -> list[Found]:
    found = list(_in_hub_cache(top))
    if not found and os.path.realpath(top) == os.path.realpath(layout.root):
        raise _error(top, "is the root; give the path of a Hub cache, a directory or a file in it")
    if not found and not os.path.exists(top):
        raise _error(top, "does not exist")
    if not found:
        found = [_plain(top) if repository is None else _local_dir(top, repository)]
    elif repository is not None:
        raise _error(top, "is of a Hub cache, which names its repositories: leave out --repo")
    if name is not None and len(found) > 1:
        raise _error(top, f"holds {len(found)} repositories; give the path of one of them, or no name")
    return [each._replace(name=name or each.name) for each in found]


def _in_hub_cache(top: str) -> Iterator[Found]:
    repository, commit = os.path.dirname(os.path.dirname(top)), os.path.basename(top)
    if _COMMIT.fullmatch(commit) and os.path.dirname(top) == f"{repository}/snapshots" and is_repository(repository):
        yield _snapshot(repository, commit)
    elif is_repository(top):
        yield _current(top)
    elif os.path.isdir(top):
        for cache in (top, f"{top}/hub"):  # HF_HUB_CACHE, and HF_HOME
            if os.path.isdir(cache):
                inner = [f"{cache}/{each}" for each in sorted(os.listdir(cache))]
                yield from (_current(each) for each in inner if is_repository(each))


def is_repository(path: str) -> bool:
    """Whether a directory is that of one repository in a Hub cache."""
    return _REPOSITORY.fullmatch(os.path.basename(path)) is not None and os.path.isdir(f"{path}/snapshots")


def _current(repository: str) -> Found:
    """Return the snapshot that ``refs/main`` names, or the only one."""
    commits = [each for each in sorted(os.listdir(f"{repository}/snapshots")) if _COMMIT.fullmatch(each)]
    main = (read_bytes(f"{repository}/refs/main", _COMMIT_BYTES) or b"").decode("ascii", "replace").strip()
    chosen = main if main in commits else commits[0] if len(commits) == 1 else ""
    if not chosen:
        listed = ", ".join(f"snapshots/{each}" for each in commits[:5]) or "none"
        raise _error(repository, f"refs/main names no snapshot; give the path of one of them ({listed})")
    others = [f"{repository}/snapshots/{each}" for each in commits if each != chosen]
    note = f"{len(others)} other snapshot(s) are not adopted: {', '.join(others[:3])}" if others else ""
    return _snapshot(repository, chosen)._replace(note=note)


def _snapshot(repository: str, commit: str) -> Found:
    name = os.path.basename(repository).removeprefix("models--")
    url = f"hf://{name.replace('--', '/', 1)}@{commit}"
    return Found(name, f"{repository}/snapshots/{commit}", (url,))


def _plain(top: str) -> Found:
    is_directory = os.path.isdir(top)
    name = checkpoint_name(os.path.basename(top), is_directory=is_directory)
    skip = f"{top}/{_METADATA}"
    if not (is_directory and os.path.isdir(skip)):
        return Found(name, top)
    commits = _commits(skip)
    note = f"hf download took it from commit {commits.pop()}; " if len(commits) == 1 else ""
    note += "no file names the repository: give it with --repo OWNER/NAME, and the entry gets its URL"
    return Found(name, top, (), skip, note)


def _local_dir(top: str, repository: str) -> Found:
    """Return a ``local_dir`` with the URL of its repository at the commit that its records name."""
    if not (asked := parse_hub_url(f"hf://{repository}")) or asked[2] or (asked[1] and not is_commit(asked[1])):
        raise ValueError(f"--repo must be ORG/NAME or ORG/NAME@COMMIT with the 40 hex digits, not {repository!r:.200}")
    name, wanted, _ = asked
    records = _records(f"{top}/{_METADATA}/download")
    commits = sorted({commit for commit, _ in records.values()})
    if not commits:
        raise _error(top, "holds no records of `hf download --local-dir`, so its commit is not known: leave out --repo")
    if wanted and wanted not in commits:
        raise _error(top, f"has no file of commit {wanted}; its files are of {', '.join(commits[:5])}")
    if not wanted and len(commits) > 1:
        raise _error(top, f"has files of several commits, {', '.join(commits[:5])}: download it again, or name one")
    commit = wanted or commits[0]
    recorded = {path: etag for path, (of, etag) in records.items() if of == commit}
    url = f"hf://{name}@{commit}"
    return Found(name.replace("/", "--"), top, (url,), f"{top}/{_METADATA}", recorded=recorded)


def _commits(metadata: str) -> set[str]:
    """Return the commits that a ``local_dir`` records."""
    return {commit for commit, _ in _records(f"{metadata}/download").values()}


def _records(top: str) -> dict[str, tuple[str, str]]:
    """Return, by path, the commit and the ETag that huggingface_hub wrote down for each file of a ``local_dir``."""
    found = {}
    for folder, _, names in os.walk(top):
        for name in names:
            if not name.endswith(_RECORD):
                continue
            path = f"{folder}/{name}"
            if not stat.S_ISREG(os.lstat(path).st_mode):  # a pipe that nobody writes to, or a link out of the directory
                continue
            if (data := read_bytes(path, _RECORD_BYTES)) is None:
                with opened(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW):  # raises the reason
                    continue
            lines = data.decode("ascii", "replace").split("\n")
            commit, etag = (each.strip() for each in [*lines, ""][:2])
            if _COMMIT.fullmatch(commit):
                found[os.path.relpath(path, top).removesuffix(_RECORD)] = (commit, etag)
    return found


def _error(path: str, problem: str) -> ManifestError:
    error = ManifestError(path, [problem])
    error.hint = "nothing was changed; `weightcache adopt --help` lists what can be adopted"
    return error
