"""Which files of a directory hold the weights of a model: those that an index names, or all shards."""

from __future__ import annotations

import os
import re
import stat
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from weightcache._message_text import listed
from weightcache._store.shard_index import MAX_INDEX_BYTES, is_index
from weightcache._strict_json import InvalidJsonError, parse_json_object
from weightcache.errors import LoadError, StorageError
from weightcache.manifest.validate import path_problem

from ._unsupported_formats import directory_hint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

INCOMPLETE = "the directory is incomplete, or its files are of different versions: download all of it again"

_NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_SHOWN = 3


class Shards(NamedTuple):
    """The files of a model.

    Attributes:
        source: The directory or file, for messages.
        kind: What the files are to be: safetensors, or files of torch.save.
        paths: Name of a file in the directory → its path, sorted by name.
        weight_map: Name of a tensor → name of its file, as the index says; ``None`` without an index.
    """

    source: str
    kind: Literal["safetensors", "pickle"]
    paths: dict[str, str]
    weight_map: dict[str, str] | None

    def mismatches(self, tensors: Mapping[str, Iterable[str]], tied: Iterable[tuple[str, str]] = ()) -> list[str]:
        """Return where the files do not have the tensors that the index lists, each once.

        Args:
            tensors: Name of a file → names of the tensors in it.
            tied: Name and file of tensors that the files say were left out, as another has the same memory.
        """
        problems = []
        files: dict[str, str] = {}
        twice: dict[tuple[str, str], list[str]] = {}
        for file, names in tensors.items():
            for name in names:
                if files.setdefault(name, file) != file:
                    twice.setdefault((files[name], file), []).append(name)
        for (one, other), names in twice.items():
            problems.append(f"{one} and {other} both have {_listed(names)}")
        left_out = set(tied)
        lacking: dict[tuple[str, str], list[str]] = {}
        for name, file in (self.weight_map or {}).items():
            if files.get(name) == file or (name, file) in left_out:
                continue
            where = f"but it is in {files[name]}" if name in files else "which does not have it"
            lacking.setdefault((file, where), []).append(name)
        for (file, where), absent in lacking.items():
            problems.append(f"the index lists {_listed(absent)} in {file}, {where}")
        return problems


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"{name!r:.200}" for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{len(names)} tensors ({shown} and others)"


def find_shards(directory: str, read: Callable[[str, int], bytes]) -> Shards:
    """Return the files of the model in a directory.

    An index of ``.safetensors`` files comes first, then ``.safetensors`` files without an index, then an index of
    ``.bin`` files. ``model.*`` and ``pytorch_model.*`` come before indexes of other names.

    Args:
        directory: Its path.
        read: Returns the bytes of a file, up to a limit.

    Raises:
        LoadError: The index is malformed, several files could be the index, or files are missing. ``problems`` has all.
        StorageError: The directory cannot be read, or holds no weights.
    """
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise StorageError.of(error, "read", directory) from error
    for suffix, kind, usual in ((".safetensors", "safetensors", "model"), (".bin", "pickle", "pytorch_model")):
        if index := _index(directory, names, suffix, usual):
            return _indexed(directory, index, kind, read)
        if suffix == ".safetensors" and (found := [name for name in names if name.endswith(suffix)]):
            _refuse(directory, _missing_numbers(found))
            return Shards(directory, "safetensors", _existing(directory, found, "is no file"), None)
    problem = f"cannot read {directory}: it is a directory without an index of shards and without .safetensors files"
    raise StorageError(problem, hint=directory_hint(directory), path=directory)


def _index(directory: str, names: list[str], suffix: str, usual: str) -> str | None:
    found = [name for name in names if f"{suffix}.index" in name and is_index(name)]
    plain = [name for name in found if name.endswith(f"{suffix}.index.json")]  # others are of a variant, such as fp16
    for several in ([name for name in plain if name == f"{usual}{suffix}.index.json"], plain, found):
        if len(several) == 1:
            return several[0]
        if several:
            hint = "keep the index of one model in the directory, or load its files one by one"
            raise LoadError(directory, [f"has several indexes: {listed(several)}"], hint=hint)
    return None


def _indexed(directory: str, index: str, kind: Any, read: Callable[[str, int], bytes]) -> Shards:
    data = read(os.path.join(directory, index), MAX_INDEX_BYTES + 1)
    if len(data) > MAX_INDEX_BYTES:
        raise LoadError(directory, [f"{index} has over {MAX_INDEX_BYTES} bytes"], hint=INCOMPLETE)
    try:
        weight_map = parse_json_object(data).get("weight_map")
    except InvalidJsonError as error:
        raise LoadError(directory, [f"{index} {error}"], hint=INCOMPLETE) from error
    if not isinstance(weight_map, dict) or not weight_map:
        problem = f"{index} has no weight_map that maps the names of tensors to files"
        raise LoadError(directory, [problem], hint=INCOMPLETE)
    files: dict[Any, str] = {}
    problems = []
    for name, file in weight_map.items():
        if not isinstance(file, str):
            problems.append(f"{index} maps {name!r:.200} to {file!r:.200}, which is not the name of a file")
        elif file not in files:
            files[file] = name
            if (why := path_problem(file)) is not None:
                problems.append(f"{index} maps {name!r:.200} to {file!r:.200}: {why}")
    _refuse(directory, problems)
    return Shards(
        directory, kind, _existing(directory, sorted(files), f"is named by {index} and is no file"), weight_map
    )


def _existing(directory: str, files: list[str], why: str) -> dict[str, str]:
    """Return the paths of files that must exist."""
    paths, problems = {}, []
    for file in files:
        path = paths[file] = os.path.join(directory, file)
        try:
            # Symlinks are followed, as in a cache of the Hub. An index can only name paths below its directory.
            if not stat.S_ISREG(os.stat(path).st_mode):
                problems.append(f"{file} {why}, but something else")
        except (FileNotFoundError, NotADirectoryError):
            problems.append(f"{file} {why.removesuffix(' and is no file')}, and is not there")
        except OSError as error:
            raise StorageError.of(error, "read", path) from error
    _refuse(directory, problems)
    return paths


def _missing_numbers(files: list[str]) -> list[str]:
    """Return which numbers are missing between shards that are numbered, as in ``model-00001-of-00004``."""
    there: dict[tuple[str, str], set[int]] = {}
    for found in filter(None, map(_NUMBERED.fullmatch, files)):
        there.setdefault((found[1], found[3]), set()).add(int(found[2]))
    problems = list[str]()
    for (stem, total), numbers in there.items():
        wanted = range(1, int(total) + 1)
        missing = list(islice((number for number in wanted if number not in numbers), _SHOWN))
        problems += [f"{stem}-{number:05}-of-{total}.safetensors is not there" for number in missing]
        there_of_them = sum(number in wanted for number in numbers)  # not the other way: a name may claim 99,999 shards
        if more := len(wanted) - there_of_them - len(missing):
            problems.append(f"{more} others of {total} are not there")
    return problems


def _refuse(directory: str, problems: list[str]) -> None:
    if problems:
        raise LoadError(directory, problems, hint=INCOMPLETE)
