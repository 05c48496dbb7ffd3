"""The manifest: which checkpoints there are, where their bytes come from, and which bytes they are.

Everything here is plain data and imports only the standard library: it is read on every hit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

from ._rules import (
    MOVES,
    auth_problem,
    clashes,
    digest_problem,
    name_from_url,
    name_problem,
    path_problem,
    url_problem,
    variables,
)
from ._value import Value
from .errors import ManifestError, UnknownCheckpointError

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from typing import Any, TypeAlias

    ManifestSource: TypeAlias = "Manifest | Mapping[str, Any] | str | os.PathLike[str]"

__all__ = ["Checkpoint", "File", "Manifest"]


class File(Value):
    """One file of a checkpoint.

    Attributes:
        path: Relative POSIX path inside the checkpoint's place.
        sha256: Digest of its bytes, 64 lower-case hex digits.
        size: Its length in bytes, or ``None`` where the manifest does not say.
    """

    __slots__ = ("path", "sha256", "size")

    path: str
    sha256: str
    size: int | None

    def __init__(self, path: str, sha256: str, size: int | None = None) -> None:
        self._set(path=path, sha256=sha256, size=size)


class Checkpoint(Value):
    """One named thing to have: a file, or a directory of files. Made by `Manifest.load`.

    Attributes:
        name: Its name in the manifest.
        urls: Mirrors in order of preference: of the file, or of the directory that holds the files.
        files: The files, sorted by path. A single-file checkpoint has one.
        is_directory: Whether it was declared with ``files``.
        auth: Name of the environment variable that holds its bearer token, or ``None``.
        digest: What the bytes are, 64 hex digits: the file's sha256, or the sha256 of the directory's
            ``sha256sum`` listing (lines ``<hex>  <path>``, sorted by the path's bytes).
    """

    __slots__ = ("auth", "digest", "files", "is_directory", "name", "urls")

    name: str
    urls: tuple[str, ...]
    files: tuple[File, ...]
    is_directory: bool
    auth: str | None
    digest: str

    def __init__(
        self,
        name: str,
        urls: tuple[str, ...],
        files: tuple[File, ...],
        is_directory: bool = False,
        auth: str | None = None,
    ) -> None:
        digest = files[0].sha256
        if is_directory:
            ordered = sorted(files, key=lambda file: file.path.encode())
            listing = "".join(f"{file.sha256}  {file.path}\n" for file in ordered)
            digest = hashlib.sha256(listing.encode()).hexdigest()
        self._set(name=name, urls=urls, files=files, is_directory=is_directory, auth=auth, digest=digest)

    def __str__(self) -> str:
        """Its entry in a ``weights.toml``, as `Manifest.load` reads it, without a newline at the end."""
        key = f"checkpoints.{_quoted(self.name) if '.' in self.name else self.name}"
        lines = [f"[{key}]", f"urls = [{', '.join(map(_quoted, self.urls))}]"]
        if self.auth:
            lines.append(f"auth = {_quoted(self.auth)}")
        if self.is_directory:
            lines.append(f"[{key}.files]")
        for file in self.files:
            pins = [f'sha256 = "{file.sha256}"', *([] if file.size is None else [f"size = {file.size}"])]
            if self.is_directory:
                lines.append(f"{_quoted(file.path)} = {{ {', '.join(pins)} }}")
            else:
                lines += [f"file = {_quoted(file.path)}", *pins]
        return "\n".join(lines)

    @property
    def version(self) -> str:
        """The first 16 digits of `digest`: the directory of this version in the root."""
        return self.digest[:16]

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that its ``auth`` and its URLs name; a download needs them."""
        named = [variable for url in self.urls for variable in variables(url)]
        return tuple(dict.fromkeys([self.auth, *named] if self.auth else named))

    @property
    def size(self) -> int | None:
        """Declared bytes in all, or ``None`` if any file's size is not declared."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)


def _quoted(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON lets DEL stand, TOML does not


class Manifest(Value):
    """The declared checkpoints, in order. Made by `Manifest.load`, which is what checks them.

    Attributes:
        checkpoints: All checkpoints, in the order of declaration.
        source: The file it was read from, or ``"manifest"``.
    """

    __slots__ = ("checkpoints", "source")

    checkpoints: tuple[Checkpoint, ...]
    source: str

    def __init__(self, checkpoints: Iterable[Checkpoint], source: str = "manifest") -> None:
        self._set(checkpoints=tuple(checkpoints), source=source)

    @classmethod
    def load(cls, source: ManifestSource) -> Manifest:
        """Read a manifest from a TOML file or a mapping of the same shape; a `Manifest` is returned as it is.

        Raises:
            ManifestError: The file is missing, not UTF-8 or not TOML, or anything in it is wrong. All problems
                are listed, each with its place.
            TypeError: ``source`` is none of the accepted kinds.
        """
        if isinstance(source, cls):
            return source
        if isinstance(source, Mapping):
            return _parse(source, "manifest")
        path: object = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
        if not isinstance(path, str):
            raise TypeError(f"manifest must be a path, a mapping or a Manifest, not {type(source).__name__}")
        path = os.path.expanduser(path)
        return _parse(_read_toml(path), path)

    def select(self, only: Collection[str] | None) -> tuple[Checkpoint, ...]:
        """Return the checkpoints named in ``only`` in manifest order; all of them for ``None``.

        Raises:
            UnknownCheckpointError: A name is not declared.
            TypeError: ``only`` is a string; it would be read as its letters.
        """
        if only is None:
            return self.checkpoints
        if isinstance(only, (str, bytes)):
            raise TypeError(f"only must be a collection of names, as in only=[{only!r}], not a string")
        known = {checkpoint.name: checkpoint for checkpoint in self.checkpoints}
        wanted = set(only)
        for name in only:
            if name not in known:
                raise UnknownCheckpointError(name, known)
        return tuple(checkpoint for name, checkpoint in known.items() if name in wanted)

    def __getitem__(self, name: str) -> Checkpoint:
        return self.select([name])[0]

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self.checkpoints)

    def __len__(self) -> int:
        return len(self.checkpoints)


def _read_toml(path: str) -> Mapping[str, Any]:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib
    try:
        with open(path, "rb") as stream:
            return tomllib.load(stream)  # type: ignore[no-any-return,unused-ignore]
    except FileNotFoundError:
        raise ManifestError(path, ["there is no such file"]) from None
    except UnicodeDecodeError as error:
        raise ManifestError(path, [f"is not UTF-8: byte {error.start} ({error.reason})"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(path, [f"is not TOML: {error}{_of_a_mark(path)}"]) from None
    except RecursionError:
        raise ManifestError(path, ["is nested too deeply to be a manifest"]) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ManifestError(path, [f"cannot be read: {getattr(error, 'strerror', None) or error}"]) from None


def _of_a_mark(path: str) -> str:
    """Say so if the first thing in the file is a byte order mark, which no editor shows."""
    with open(path, "rb") as stream:
        return "; it begins with a byte order mark: save it without" if stream.read(3) == b"\xef\xbb\xbf" else ""


class _Problems(list[str]):
    """All problems found so far; each call reads one value and notes what is wrong with it.

    Attributes:
        entry: Name of the checkpoint that is being read.
        unpinned: For each checkpoint that `weightcache pin` could complete, how many problems that would solve.
    """

    def __init__(self) -> None:
        super().__init__()
        self.entry = ""
        self.unpinned: dict[str, int] = {}

    def add_unpinned(self, where: str, what: str) -> None:
        self.add(where, what)
        self.unpinned[self.entry] = self.unpinned.get(self.entry, 0) + 1

    def add(self, where: str, what: str) -> None:
        self.append(f"{where}: {what}" if where else what)

    def table(self, value: object, where: str, keys: Collection[str] | None) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            self.add(where, f"want a table, got {_kind(value)}")
            return {}
        for key in value:
            if not isinstance(key, str):
                self.add(where, f"want strings as keys, got {_kind(key)}")
            elif keys is not None and key not in keys:
                shown = key if name_problem(key) is None else f"{key!r:.120}"
                self.add(f"{where}.{shown}" if where else shown, f"unknown key; known are {', '.join(keys)}")
        return {key: item for key, item in value.items() if isinstance(key, str)}

    def string(self, value: object, where: str) -> str | None:
        if isinstance(value, str):
            return value
        self.add(where, f"want a string, got {_kind(value)}")
        return None

    def sha256(self, value: object, where: str) -> str:
        if value is None:
            self.add_unpinned(where, "is missing: a checkpoint is pinned; `weightcache pin` or `sha256sum` computes it")
        elif (text := self.string(value, where)) is not None:
            if not (problem := digest_problem(text)):
                return text
            self.add(where, f"{problem}; got {len(text)} characters {text[:80]!r}")
        return "0" * 64  # never leaves: a problem was noted

    def size(self, value: object, where: str) -> int | None:
        if value is None or (type(value) is int and value >= 0):
            return value
        self.add(where, f"want a number of bytes, 0 or more, got {value!r:.40}")
        return None

    def path(self, value: str, where: str) -> bool:
        if problem := path_problem(value):
            self.add(where, problem)
        return problem is None


def _kind(value: object) -> str:
    names: dict[type, str] = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
    }
    if isinstance(value, Mapping):
        return "a table"
    return names.get(type(value), type(value).__name__)


def _parse(data: Mapping[str, Any], source: str) -> Manifest:
    problems = _Problems()
    top = problems.table(data, "", ("version", "checkpoints"))
    version = top.get("version", 1)
    if type(version) is not int or version != 1:
        problems.add("version", f"this weightcache reads version 1, got {version!r:.40}")
    entries = problems.table(top.get("checkpoints", {}), "checkpoints", None)
    if not entries and not problems:
        problems.add("checkpoints", "is empty; declare at least one [checkpoints.NAME]")
    checkpoints = tuple(_checkpoint(name, entry, problems) for name, entry in entries.items())
    for first, second in clashes(list(entries)):
        problems.add(f"checkpoints.{second}", f"differs from checkpoints.{first} only in case: one place for two")
    if problems:
        raise _refusal(source, problems, isinstance(data, dict) and source != "manifest")
    return Manifest(checkpoints, source)


def _refusal(source: str, problems: _Problems, is_file: bool) -> ManifestError:
    error = ManifestError(source, problems)
    if problems.unpinned:
        import shlex

        names = " ".join(problems.unpinned)
        command = f"`weightcache pin {names} -m {shlex.quote(source) if is_file else 'FILE'}`"
        others = len(problems) > sum(problems.unpinned.values())
        error.hint = (
            f"{'mend the other lines named above, and then ' if others else ''}run {command}"
            f"{'' if is_file else ' on a weights.toml that says the same'}, which finds out and writes what lacks"
        )
    return error


def _checkpoint(name: str, entry: object, problems: _Problems) -> Checkpoint:
    where = f"checkpoints.{name!r:.120}" if (problem := name_problem(name)) else f"checkpoints.{name}"
    if problem:
        problems.add(where, problem)
    problems.entry = name
    table = problems.table(entry, where, ("urls", "sha256", "size", "file", "files", "auth"))
    is_directory = "files" in table
    urls = _urls(table.get("urls"), f"{where}.urls", problems, directory=is_directory)
    auth = _auth(table.get("auth"), f"{where}.auth", problems)
    if is_directory:
        for key in ("sha256", "size", "file"):
            if key in table:
                problems.add(f"{where}.{key}", "stands beside `files`; a checkpoint is one file or a directory")
        files = _files(table["files"], f"{where}.files", problems)
    elif isinstance(entry, Mapping):
        given = table.get("file")
        path = (
            ((urls and name_from_url(urls[0])) or name)
            if given is None
            else problems.string(given, f"{where}.file") or name
        )
        if (problem := path_problem(path)) or "/" in path:
            problem = problem or "is a path; want the name of one file"
            problems.add(
                f"{where}.file",
                problem if given is not None else f"{path!r} (from the URL) {problem}; set it",
            )
        digest = problems.sha256(table.get("sha256"), f"{where}.sha256")
        files = (File(path, digest, problems.size(table.get("size"), f"{where}.size")),)
    else:
        files = ()
    return Checkpoint(name, urls, files or (File("-", "0" * 64),), is_directory, auth)


def _urls(value: object, where: str, problems: _Problems, *, directory: bool) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        what = "is missing; give the mirrors, or [] for weights of your own" if value is None else None
        problems.add(where, what or f"want an array of strings, got {_kind(value)}")
        return ()
    urls: list[str] = []
    for index, item in enumerate(value):
        url = problems.string(item, f"{where}[{index}]")
        if url is None:
            continue
        if problem := url_problem(url, directory=directory):
            (problems.add_unpinned if problem == MOVES else problems.add)(f"{where}[{index}]", problem)
        elif url in urls:
            problems.add(f"{where}[{index}]", f"repeats {where}[{urls.index(url)}]")
        urls.append(url)
    return tuple(urls)


def _auth(value: object, where: str, problems: _Problems) -> str | None:
    if value is None or (auth := problems.string(value, where)) is None:
        return None
    if problem := auth_problem(auth):
        problems.add(where, problem)
    return auth


def _files(value: object, where: str, problems: _Problems) -> tuple[File, ...]:
    table = problems.table(value, where, None)
    if isinstance(value, Mapping) and not value:
        problems.add(where, "is empty; declare at least one file")
    files = []
    for path, entry in table.items():
        place = f"{where}.{path!r:.120}"
        sound = problems.path(path, place)
        pin = problems.table(entry, place, ("sha256", "size"))
        digest = problems.sha256(pin.get("sha256"), f"{place}.sha256") if isinstance(entry, Mapping) else "0" * 64
        size = problems.size(pin.get("size"), f"{place}.size")
        if sound:  # else its bytes may not even be encodable
            files.append(File(path, digest, size))
    for first, second in clashes([file.path for file in files]):
        problems.add(f"{where}.{second!r:.120}", f"differs from {first!r:.120} only in case or Unicode form")
    parents = {parent: path for path in table for parent in _parents(path)}
    for path in table:
        if path in parents:
            problems.add(f"{where}.{path!r:.120}", f"is a file and the parent of {parents[path]!r:.120}")
    return tuple(sorted(files, key=lambda file: file.path))


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
