"""The weights of a model at a path, be it a file or a directory: opened, checked, and yielded tensor by tensor."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from weightcache._prefetch.api import prefetch_files
from weightcache._prefetch.prefetched_file import PrefetchedFile
from weightcache.errors import LoadError

from . import _load
from ._model_directory import INCOMPLETE, Shards, find_shards
from ._safetensors_shards import NOT_THERE, check_shards, tensors_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from weightcache._prefetch.prefetcher import Prefetch
    from weightcache._prefetch.range_reader import RangeReader

    from ._safetensors_shards import Loading


def stream(reader: RangeReader, path: str, loading: Loading) -> Iterator[tuple[str, Any]]:
    """Check the weights at ``path``, and return what yields each name and tensor.

    Args:
        reader: Open until the last tensor is yielded.
        path: A file or a directory.
        loading: How, and which.

    Raises:
        LoadError: As in `load_state_dict`; a damaged part of a file may be found by the iterator.
        StorageError: A file cannot be read.
        OSError: The same; `ChangedMeanwhileError` if a file is not what it was.
    """
    shards = _find(reader, path, loading.torch)
    if shards.kind == "safetensors":
        return tensors_of(reader, check_shards(loading.torch, reader, shards, loading.selection), loading)
    return _pickled_tensors(shards, loading)


def _find(reader: RangeReader, path: str, torch: Any) -> Shards:
    if not os.path.isdir(path):
        with _load.open_file(path, path) as file:
            kind = _load.detect(torch, file, path)
        return Shards(path, "safetensors" if kind == "safetensors" else "pickle", {os.path.basename(path): path}, None)

    def read(path: str, limit: int) -> bytes:
        found = os.stat(path)
        with reader.using(PrefetchedFile(path, found.st_size, found.st_mtime_ns)) as descriptor:
            return os.pread(descriptor, limit, 0)

    return find_shards(path, read)


def _pickled_tensors(shards: Shards, loading: Loading) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of files of torch.save. Each file is loaded whole, before anything of it is left out."""
    names: dict[str, list[str]] = {}
    problems: list[str] = []
    indexed: dict[str, dict[str, str]] = {}  # by file: once for all of them
    for name, where in (shards.weight_map or {}).items():
        indexed.setdefault(where, {})[name] = where
    for file, loaded in _pickled_files(shards, loading):
        names[file] = list(loaded)
        problems += shards._replace(weight_map=indexed.get(file, {})).mismatches(names)
        shapes = {name: _shape(loading.torch, value) for name, value in loaded.items()}
        problems += loading.selection.impossible(shapes)
        if file == next(reversed(shards.paths)):
            problems += loading.selection.absent(set().union(*names.values()))
        if problems and (loading.ahead < float("inf") or len(names) == len(shards.paths)):
            raise LoadError(shards.source, dict.fromkeys(problems), hint=INCOMPLETE if len(names) > 1 else NOT_THERE)
        if not problems:
            yield from loading.selection.pick(loaded).items()


def _shape(torch: Any, value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if torch.is_tensor(value) else None


def _pickled_files(shards: Shards, loading: Loading) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what each file holds, while the next one is read; all are read at once if any number of bytes may be."""
    paths = list(shards.paths.items())
    if loading.prefetched is not None:
        for file, path in paths:
            yield file, _load.load_file(loading.torch, path, path, loading.prefetched, loading.device)
        return
    together = len(paths) if loading.ahead == float("inf") else 1
    groups = [paths[at : at + together] for at in range(0, len(paths), together)]
    coming = _prefetch(groups[0])
    try:
        for group, following in zip(groups, [*groups[1:], []], strict=True):
            reading, coming = coming, _prefetch(following)
            with reading:
                for file, path in group:
                    yield file, _load.load_file(loading.torch, path, path, reading, loading.device)
    finally:
        coming.close()


def _prefetch(group: Iterable[tuple[str, str]]) -> Prefetch:
    return prefetch_files(*(path for _, path in group), into="memory", threads=_load.READ_THREADS)
