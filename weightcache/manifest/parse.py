"""Reading a manifest: TOML or a mapping in, checkpoints out, or one error with all that is wrong."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from weightcache.errors import ManifestError

from .model import Checkpoint, File
from .urls import MOVES, name_from_url, url_problem
from .validate import auth_problem, clashes, digest_problem, is_size, name_problem, path_problem, signer_problem

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


_FOLDS = "leave one of them out, because some file systems (of macOS, of Windows, exFAT) give both one place"
_NAMED = 10  # checkpoints in a hint
_READ = 1 << 16  # bytes; nearly all manifests are shorter
_MANIFEST_BYTES = 64 << 20  # about 300,000 files; a path may name /dev/zero


def read_toml(path: str) -> Mapping[str, Any]:
    """Return what a TOML file says.

    Raises:
        ManifestError: It is not there, or cannot be read, or is not TOML.
    """
    try:
        data = read_manifest(path)
    except ManifestError:
        raise
    except FileNotFoundError:
        raise ManifestError(path, ["there is no such file"]) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ManifestError(path, [f"cannot be read: {getattr(error, 'strerror', None) or error}"]) from None
    return parse_toml(data, path)


def read_manifest(path: str) -> bytes:
    """Return the bytes of a manifest's file.

    Raises:
        ManifestError: It is too long.
        OSError, ValueError: It cannot be read.
    """
    with open(path, "rb") as stream:
        data = stream.read(_READ)
        if len(data) == _READ:  # a read allocates as much as it may return, which a hit would pay for
            data += stream.read(_MANIFEST_BYTES + 1 - _READ)
    if len(data) > _MANIFEST_BYTES:
        raise ManifestError(path, [f"has more than {_MANIFEST_BYTES:,} bytes, the most that is read of a manifest"])
    return data


def parse_toml(data: bytes, source: str, otherwise: str = "is not TOML") -> Mapping[str, Any]:
    """Return what TOML in UTF-8 says.

    Raises:
        ManifestError: It has another type; ``otherwise`` is the message.
    """
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib
    if data.count(b".") >= 64:  # most manifests have fewer, and a hit compiles no pattern for them
        from .long_keys import MOST_PARTS, has_long_key

        if has_long_key(data):
            raise ManifestError(source, [f"has a key of more than {MOST_PARTS} parts"])
    try:
        return tomllib.loads(data.decode())  # type: ignore[no-any-return,unused-ignore]
    except UnicodeDecodeError as error:
        raise ManifestError(source, [f"is not UTF-8: byte {error.start} ({error.reason})"]) from None
    except ValueError as error:  # not only TOMLDecodeError: a number may have more digits than int() takes
        mark = data.startswith(b"\xef\xbb\xbf")  # which no editor shows
        why = f"{error}{'; it begins with a byte order mark: save it without' if mark else ''}"
        raise ManifestError(source, [f"{otherwise}: {why}"]) from None
    except RecursionError:
        raise ManifestError(source, ["is nested too deeply to be a manifest"]) from None


def parse(data: Mapping[str, Any], source: str, *, is_file: bool) -> tuple[Checkpoint, ...]:
    """Return the checkpoints that a mapping declares, in order.

    Raises:
        ManifestError: Anything in it is wrong; all problems are listed, each with its place.
    """
    problems = _Problems()
    top = problems.table(data, "", ("version", "checkpoints"))
    version = top.get("version", 1)
    if type(version) is not int or version != 1:
        problems.add("version", f"this weightcache reads version 1, got {_shown(version)}")
    entries = problems.table(top.get("checkpoints", {}), "checkpoints", None)
    if not entries and not problems:
        problems.add("checkpoints", "is empty; declare at least one [checkpoints.NAME]")
    checkpoints = tuple(_checkpoint(name, entry, problems) for name, entry in entries.items())
    for first, second in clashes(list(entries)):
        problems.add(_place(second), f"differs from {_place(first)} only in case; rename one of them")
    if problems:
        raise _refusal(source, problems, is_file)
    return checkpoints


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
        items = [(key, item) for key, item in value.items() if isinstance(key, str)]
        found = dict(items)
        if len(found) != len(items):  # some mappings of other libraries give a key twice; a dict would keep the last
            self.add(where, "has a key twice")
        return found

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
        if value is None or is_size(value):
            return value
        self.add(where, f"want a number of bytes, 0 or more, got {_shown(value)}")
        return None

    def checked(self, value: object, where: str, problem_of: Callable[[str], str | None]) -> str | None:
        if value is None or (text := self.string(value, where)) is None:
            return None
        if problem := problem_of(text):
            self.add(where, problem)
        return text

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


def _shown(value: object) -> str:
    if isinstance(value, Mapping | Collection) and not isinstance(value, str | bytes):
        return _kind(value)  # its text may take minutes: a list in a program can contain another one many times
    try:
        return f"{value!r:.40}"
    except (ValueError, RecursionError):  # an int with more digits than str() writes, or a value that is nested deeply
        return _kind(value)


def _refusal(source: str, problems: _Problems, is_file: bool) -> ManifestError:
    error = ManifestError(source, problems)
    if problems.unpinned:
        import shlex

        from weightcache._environment import in_modal_container

        names = list(problems.unpinned)
        if len(names) > _NAMED or any(map(name_problem, names)):  # then the command is that for all of the manifest
            names = []  # what is no name could be a command of its own, or a line that looks like ours
        in_container = in_modal_container()  # its file is a copy: the one to complete is where the app is deployed
        file = shlex.quote(source) if is_file and not in_container and source.isprintable() else "FILE"
        command = f"`weightcache {' '.join(['pin', *names])} -m {file}`"
        others = len(problems) > sum(problems.unpinned.values())
        error.hint = (
            f"{'mend the other lines named above, and then ' if others else ''}run {command}"
            f"{'' if is_file else ' on a weights.toml that says the same'}, which finds out and writes what lacks"
            f"{'; then deploy the app again' if in_container else ''}"
        )
    return error


def _place(name: str) -> str:
    return f"checkpoints.{name!r:.120}" if name_problem(name) else f"checkpoints.{name}"


def _checkpoint(name: str, entry: object, problems: _Problems) -> Checkpoint:
    where = _place(name)
    if problem := name_problem(name):
        problems.add(where, problem)
    if isinstance(entry, Checkpoint):  # of `pin` or `publish`, or from another manifest
        if entry.name != name:
            problems.add(where, f"is the checkpoint {entry.name:.120}; declare it by that name")
        return entry
    problems.entry = name
    table = problems.table(entry, where, ("urls", "sha256", "size", "file", "files", "auth", "signed_by"))
    is_directory = "files" in table
    urls = _urls(table.get("urls"), f"{where}.urls", problems, directory=is_directory)
    auth = problems.checked(table.get("auth"), f"{where}.auth", auth_problem)
    signer = problems.checked(table.get("signed_by"), f"{where}.signed_by", signer_problem)
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
                problem if given is not None else f"{path!r:.120} (from the URL) {problem}; set it",
            )
        digest = problems.sha256(table.get("sha256"), f"{where}.sha256")
        files = (File(path, digest, problems.size(table.get("size"), f"{where}.size")),)
    else:
        files = ()
    return Checkpoint(name, urls, files or (File("-", "0" * 64),), is_directory, auth, signer)


def _urls(value: object, where: str, problems: _Problems, *, directory: bool) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        what = "is missing; give the mirrors, or [] for weights of your own" if value is None else None
        problems.add(where, what or f"want an array of strings, got {_kind(value)}")
        return ()
    urls: list[str] = []
    places: dict[str, int] = {}
    for index, item in enumerate(value):
        url = problems.string(item, f"{where}[{index}]")
        if url is None:
            continue
        if problem := url_problem(url, directory=directory):
            (problems.add_unpinned if problem == MOVES else problems.add)(f"{where}[{index}]", problem)
        elif (first := places.setdefault(url, index)) != index:
            problems.add(f"{where}[{index}]", f"repeats {where}[{first}]")
        urls.append(url)
    return tuple(urls)


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
        problems.add(f"{where}.{second!r:.120}", f"differs from {first!r:.120} only in case or Unicode form; {_FOLDS}")
    # Only those that are files: all parents of many deep paths would fill the memory.
    parents = {parent: file.path for file in files for parent in _parents(file.path) if parent in table}
    for path in table:
        if path in parents:
            problems.add(f"{where}.{path!r:.120}", f"is a file and the parent of {parents[path]!r:.120}")
    return tuple(sorted(files, key=lambda file: file.path))


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
