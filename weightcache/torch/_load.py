"""Load the weights in one file without running code from it."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import stat
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from weightcache._message_text import printable_line
from weightcache._prefetch.api import prefetch_files
from weightcache._prefetch.prefetched_file import READ_CHUNK
from weightcache._runtime.owned_descriptors import opened
from weightcache._spans import add_bytes
from weightcache.errors import LoadError, StorageError

from ._format_detection import check_zip, detect_format, read_pickle
from ._lazy_imports import import_safetensors, require_safe_unpickling
from ._pickle_refusal import refusal
from ._pickle_scan import MAX_PICKLE_BYTES, PickleSummary, scan_pickle
from ._storage_checks import check_tensors
from ._unsupported_formats import directory_hint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._format_detection import Kind

READ_THREADS: int | None = None  # reads at once: as many as the storage rewards


class Prefetched(Protocol):
    """Holds files in memory, as what `weightcache.prefetch(..., into="memory")` returns does."""

    def path(self, path: str | os.PathLike[str], /) -> str | os.PathLike[str]:
        """Return the path of the copy of ``path`` in memory, or ``path`` itself if there is no copy."""
        ...


def load_file(
    torch: Any, path: str | os.PathLike[str], name: str, prefetched: Prefetched | None, where: Any
) -> dict[str, Any]:
    """Load a file from its prefetched copy, directly, or through a prefetch of its own, by its format and size."""
    held = name if prefetched is None else os.fspath(prefetched.path(path))
    try:
        with open_file(held, name) as file:
            # Check again: if another thread closed the handle first, its descriptor number may be another file's now.
            if prefetched is not None and os.fspath(prefetched.path(path)) != held:
                return load_file(torch, path, name, None, where)
            kind = detect(torch, file, name)
            # For a file of one chunk, threads and a copy in memory would cost more than they save.
            if held != name or kind == "legacy" or os.fstat(file).st_size <= READ_CHUNK:
                return _load(torch, kind, file, name, where, in_memory=held != name)
        # The file is closed here: a prefetch closes its files for a commit, an open descriptor of ours would block it.
        with prefetch_files(name, into="memory", threads=READ_THREADS) as reading:
            ahead = reading.path(name)
            with open_file(ahead, name) as file:
                kind = detect(torch, file, name)  # the path may name another file now
                return _load(torch, kind, file, name, where, in_memory=ahead != name)
    except OSError as error:
        if held != name and not os.path.exists(held):  # another thread closed the handle
            return load_file(torch, path, name, None, where)
        if isinstance(error, StorageError):
            raise
        raise StorageError.of(error, "read", name) from error


def checked_device(torch: Any, device: Any, name: str) -> Any:
    """Return the ``torch.device``; raise if it is invalid or not available."""
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be one that torch.device takes, got {device!r}") from error
    if where.type == "cpu":
        return where
    try:
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch without CUDA fails an assertion
        problem = f"cannot be loaded to {where}: {str(error).partition('.')[0]}"
        raise LoadError(name, [problem], hint='use a machine with that device, or load with device="cpu"') from error
    return where


@contextmanager
def open_file(path: str, name: str) -> Iterator[int]:
    """Open ``path``, which is the file ``name`` or its copy in memory. ``name`` is for messages."""
    # Non-blocking: opening a pipe would wait for a writer. The check below refuses it.
    with opened(path, os.O_RDONLY | os.O_NONBLOCK) as file:
        before = os.fstat(file.number)
        if stat.S_ISDIR(before.st_mode):
            problem = f"cannot read {printable_line(name)}: it is a directory"
            raise StorageError(problem, hint=directory_hint(path), path=name)
        if not stat.S_ISREG(before.st_mode):
            raise StorageError(
                f"cannot read {printable_line(name)}: not a regular file", hint="use the path of a file", path=name
            )
        yield file.number
        after = os.fstat(file.number)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise LoadError(name, ["changed while it was read"], hint="load it again when it is complete")


def detect(torch: Any, file: int, name: str) -> Kind:
    """Return the format of an open file; raise if it is not supported, or not safe with this version of PyTorch."""
    kind = detect_format(file, os.fstat(file).st_size, name)
    if kind != "safetensors":
        require_safe_unpickling(torch)
    return kind


def _load(torch: Any, kind: Kind, file: int, name: str, where: Any, *, in_memory: bool) -> dict[str, Any]:
    size = os.fstat(file).st_size
    add_bytes(size)
    # The loaders open this path: the descriptor cannot become another file, a path on disk could.
    opened = f"/proc/self/fd/{file}"
    if kind == "safetensors":
        load = import_safetensors().load_file
        with _raising_load_errors(torch, name):
            # Not mapped from a Volume: a mapping keeps the file open there, and reads page by page.
            return dict(load(opened, device=str(where)) if in_memory else load(opened, str(where), backend="pread"))
    with _raising_load_errors(torch, name):
        archive = check_zip(file, size, name) if kind == "zip" else None

    def pickled() -> PickleSummary:
        if archive:
            return scan_pickle(read_pickle(file, archive))
        return scan_pickle(os.pread(file, MAX_PICKLE_BYTES, 0), before=3)  # three pickles precede it

    with _raising_load_errors(torch, name, pickled):
        if archive and in_memory:
            with _copy_on_write(torch):
                loaded = torch.load(opened, map_location=str(where), weights_only=True, mmap=True)
        else:
            with open(opened, "rb") as stream:
                # One read for a small zip file: torch makes one for each record. It reads a legacy file sequentially.
                source = io.BytesIO(stream.read()) if archive and size <= READ_CHUNK else stream
                loaded = torch.load(source, map_location=str(where), weights_only=True, mmap=False)
        check_tensors(torch, loaded, archive and archive.sizes, name)
    if not isinstance(loaded, dict):
        problem = f"contains a {type(loaded).__name__}, not a dict"
        raise LoadError(name, [problem], hint="read it with torch.load(path, weights_only=True)")
    return loaded


def _copy_on_write(torch: Any) -> Any:
    """Make torch map files copy-on-write, whatever the program has configured: writes must not reach the file."""
    if torch.serialization.get_default_mmap_options() == mmap.MAP_PRIVATE:
        return nullcontext()
    return torch.serialization.set_default_mmap_options(mmap.MAP_PRIVATE)


@contextmanager
def _raising_load_errors(torch: Any, name: str, pickled: Callable[[], PickleSummary] | None = None) -> Iterator[None]:
    """Raise `LoadError` for every exception that a loader raises about the content of the file."""
    try:
        yield
    except pickle.UnpicklingError as error:
        found = PickleSummary(0, (), ()) if pickled is None else pickled()
        raise refusal(torch, name, str(error), found) from None  # its text advises weights_only=False
    except (OSError, LoadError):  # an I/O failure, or a more exact error
        raise
    except Exception as error:  # a crafted pickle can make torch raise any exception
        said = str(error).strip().partition("\n")[0]
        problem = f"cannot be loaded: {type(error).__name__}{': ' if said else ''}{said}"
        hint = "the file is damaged: download it again, or save it again"
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            hint = f"not enough memory for the size that the file declares: free memory, or check the file ({hint})"
        raise LoadError(name, [problem], hint=hint) from error
