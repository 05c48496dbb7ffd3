"""Read the tensors of safetensors files: all, or those that are asked for, while later ones are still being read."""

from __future__ import annotations

import os
import stat
import threading
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from weightcache._prefetch.prefetched_file import ChangedMeanwhileError, PrefetchedFile
from weightcache._runtime.owned_descriptors import opened
from weightcache._runtime.start_threads import run_in_threads
from weightcache._spans import add_bytes
from weightcache.errors import LoadError, StorageError

from ._format_detection import detect_format
from ._lazy_imports import import_safetensors
from ._model_directory import INCOMPLETE, Shards
from ._safetensors_header import Header, parse_header
from ._tensor_selection import PlannedBlock, PlannedTensor, Selection, plan_blocks, read_whole

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator

    from weightcache._prefetch.range_reader import RangeReader

    from ._tensor_selection import Slice
    from ._to_device import PinnedCopies

DOWNLOAD_AGAIN = "the file is damaged: download it again, or save it again"
NOT_THERE = "ask for tensors, dimensions and equal parts that the weights have"
_HEADERS_AT_ONCE = 16


class Shard(NamedTuple):
    """One safetensors file whose header is checked."""

    name: str
    path: str
    file: PrefetchedFile
    raw: bytes  # the header
    header: Header


def check_shards(torch: Any, reader: RangeReader, shards: Shards, selection: Selection) -> list[Shard]:
    """Read and check the headers of all files, several at once.

    Raises:
        LoadError: A header is malformed, the files do not have what the index lists, or not what is asked for.
        StorageError: A file cannot be read.
    """
    checked, problems = _read_headers(reader, shards)
    alone = len(shards.paths) == 1
    for shard in checked:
        problems[shard.name] += shard.header.problems
        problems[shard.name] += [
            f"tensor {entry.name!r:.200} has a dtype that PyTorch {torch.__version__} does not have: {entry.dtype}"
            for entry in shard.header.tensors
            if not hasattr(torch, entry.dtype)
        ]
    texts = [text if alone else f"{name}: {text}" for name, found in problems.items() for text in found]
    if texts := texts or _mismatches(shards, checked):
        raise LoadError(shards.source, texts, hint=DOWNLOAD_AGAIN if alone else INCOMPLETE)
    shapes = {entry.name: entry.shape for shard in checked for entry in shard.header.tensors}
    if texts := selection.absent(shapes) + selection.impossible(shapes):
        raise LoadError(shards.source, texts, hint=NOT_THERE)
    return checked


def _read_headers(reader: RangeReader, shards: Shards) -> tuple[list[Shard], dict[str, list[str]]]:
    """Return the files whose header could be read, and why others could not."""
    read: dict[str, Shard] = {}
    problems: dict[str, list[str]] = {name: [] for name in shards.paths}
    failed: list[BaseException] = []
    waiting = iter(shards.paths.items())
    taking = threading.Lock()

    def work() -> None:
        while not failed:
            with taking:
                name, path = next(waiting, ("", ""))
            if not path:
                return
            try:
                read[name] = _read_header(reader, name, path)
            except LoadError as error:
                if len(shards.paths) == 1:
                    failed.append(error)  # with its own hint
                problems[name] += error.problems
            except Exception as error:  # noqa: BLE001 (raised in the caller's thread)
                failed.append(error)

    run_in_threads(work, min(_HEADERS_AT_ONCE, len(shards.paths)) - 1, "weightcache-headers", failed)
    if failed:
        raise failed[0]
    return [read[name] for name in shards.paths if name in read], problems


def _read_header(reader: RangeReader, name: str, path: str) -> Shard:
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise LoadError(path, ["is not a regular file"], hint="use the path of a file")
        file = PrefetchedFile(path, found.st_size, found.st_mtime_ns)
        with reader.using(file) as descriptor:
            if detect_format(descriptor, file.size, path) != "safetensors":
                hint = "load the file alone, or have the index name safetensors files"
                raise LoadError(path, ["is not a safetensors file, but one of torch.save"], hint=hint)
            raw = _read_fully(descriptor, 8, int.from_bytes(_read_fully(descriptor, 0, 8), "little"))
    except OSError as error:
        if isinstance(error, (ChangedMeanwhileError, StorageError)):
            raise
        raise StorageError.of(error, "read", path) from error
    return Shard(name, path, file, raw, parse_header(raw, file.size))


def _read_fully(descriptor: int, start: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.pread(descriptor, size - len(data), start + len(data))
        if not more:
            raise ChangedMeanwhileError(f"it ends after {start + len(data)} bytes")
        data += more
    return data


def _mismatches(shards: Shards, checked: list[Shard]) -> list[str]:
    names = {shard.name: {entry.name: None for entry in shard.header.tensors} for shard in checked}
    # Converters leave out one of two tied tensors, note it in the metadata, and keep both in the index.
    tied = [
        (name, shard.name)
        for shard in checked
        for name, kept in shard.header.metadata.items()
        if kept in names[shard.name]
    ]
    return shards.mismatches(names, tied)


class Loading(NamedTuple):
    """How tensors are loaded.

    Attributes:
        torch: The module.
        selection: Which tensors.
        device: Where to put them.
        prefetched: Has the path of a copy in memory, or ``None``.
        ahead: Bytes that may be read ahead of the caller.
        copies: Copies to the device; ``None`` to let PyTorch do it.
    """

    torch: Any
    selection: Selection
    device: Any
    prefetched: Any
    ahead: float
    copies: PinnedCopies | None = None


def tensors_of(reader: RangeReader, checked: list[Shard], loading: Loading) -> Iterator[tuple[str, Any]]:
    """Yield name and tensor, in the order of the files and of their bytes.

    Raises:
        OSError: A read failed; `ChangedMeanwhileError` if a file is not what it was.
        MemoryError: There is no memory for a tensor.
    """
    entries = [entry for shard in checked for entry in shard.header.tensors]
    whole = read_whole(entries, loading.selection)
    plans = [plan_blocks(shard.file, shard.header.tensors, loading.selection, whole) for shard in checked]
    if loading.prefetched is None:
        yield from _read_blocks(reader, [block for plan in plans for block in plan], loading)
        return
    for shard, plan in zip(checked, plans, strict=True):
        mapped = _map_prefetched(shard, loading.prefetched)
        if mapped is None:
            yield from _read_blocks(reader, plan, loading)
        else:
            yield from _mapped(mapped, shard, loading)


def _read_blocks(reader: RangeReader, plan: list[PlannedBlock], loading: Loading) -> Iterator[tuple[str, Any]]:
    memories = reader.fill([planned.block for planned in plan], loading.ahead)
    for planned in plan:
        memory = next(memories)
        add_bytes(planned.block.size)
        for each in planned.tensors:
            yield each.entry.name, _tensor(memory, each, loading)
        del memory  # before the wait for the next block: the caller may have dropped its tensors


def _map_prefetched(shard: Shard, prefetched: Any) -> dict[str, Any] | None:
    """Map the copy of a file in memory, copy-on-write; ``None`` if there is no copy of what was checked."""
    held = os.fspath(prefetched.path(shard.path))
    if held == shard.path:
        return None
    try:
        with opened(held, os.O_RDONLY) as copy:
            # Another thread may have closed the handle, and its number be another file's.
            if os.fspath(prefetched.path(shard.path)) != held or os.fstat(copy.number).st_size != shard.file.size:
                return None
            if os.pread(copy.number, len(shard.raw), 8) != shard.raw:
                return None
            return dict(import_safetensors().load_file(f"/proc/self/fd/{copy.number}"))
    except OSError:  # closed meanwhile
        return None


def _mapped(tensors: dict[str, Any], shard: Shard, loading: Loading) -> Iterator[tuple[str, Any]]:
    for entry in shard.header.tensors:
        tensor = tensors.pop(entry.name)
        if loading.selection.wants(entry.name):
            part = loading.selection.slice_of(entry.name, entry.shape)
            tensor = part.of(tensor) if part else tensor
            yield entry.name, _placed(tensor, loading)


def _tensor(memory: mmap.mmap, planned: PlannedTensor, loading: Loading) -> Any:
    """Return a tensor whose storage is its own part of ``memory``."""
    torch, entry, count = loading.torch, planned.entry, prod(planned.shape)
    dtype = getattr(torch, entry.dtype)
    if not count:
        shape = _shape_of(planned.shape, planned.part)
        return torch.empty(shape, dtype=dtype, device=loading.device)
    tensor = torch.frombuffer(memory, dtype=dtype, count=count, offset=planned.at).view(planned.shape)
    if planned.part:
        tensor = planned.part.of(tensor)
    return _placed(tensor, loading)


def _placed(tensor: Any, loading: Loading) -> Any:
    if loading.device.type == "cpu":
        return tensor
    return loading.copies.copy(tensor) if loading.copies else tensor.to(loading.device)


def _shape_of(shape: tuple[int, ...], part: Slice | None) -> tuple[int, ...]:
    return tuple(
        part.length if part and part.dim == dim else size for dim, size in zip(range(len(shape)), shape, strict=True)
    )
