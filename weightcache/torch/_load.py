"""`load_state_dict`: the weights in a file, and never anything that runs."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import stat
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from weightcache._prefetch.api import prefetch_files
from weightcache._prefetch.file import READ_CHUNK
from weightcache._runtime.descriptors import opened
from weightcache.errors import LoadError, StorageError

from ._formats import check_zip, kind_of, read_pickle
from ._globals import LONGEST, Pickled, scan
from ._hints import not_weights
from ._storages import check_tensors
from ._strangers import directory_hint
from ._torch import import_safetensors, import_torch, require_safe_unpickling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._formats import Kind

READS = 16  # at once: more than a prefetch makes, since nothing is imported beside them and all of it is waited for


class Prefetched(Protocol):
    """What holds files in memory already, as `weightcache.prefetch(..., into="memory")` returns it."""

    def path(self, path: str | os.PathLike[str], /) -> str | os.PathLike[str]:
        """Return under which path the bytes of ``path`` are in memory, or ``path`` itself if they are not."""
        ...


def load_state_dict(
    path: str | os.PathLike[str], *, prefetched: Prefetched | None = None, device: Any = "cpu"
) -> dict[str, Any]:
    """Load the weights in a file that ``torch.save`` or safetensors wrote.

    That is a zip file (PyTorch 1.6 or newer), the kind before it (0.1.10 or newer), both with the default pickle
    protocol, or a ``.safetensors`` file; the first bytes say which. Every other kind of file is refused by its name, a
    tar file of PyTorch before 0.1.10 and a TorchScript archive too, with what to do about it.

    Weights only: a file that needs anything else to be imported is refused, with what it needs and how to allow it. A
    tensor that reaches beyond its memory, or whose indices do not fit it, is refused in every layout, whatever the
    version of PyTorch lets pass.

    A zip file and a safetensors file are mapped from memory, without a copy: from the memory that ``prefetched`` has
    filled, else from memory that many reads at once fill here. The older kind is read in the plain way; so is a zip
    file of up to 8 MiB, and what has no room in memory. Nothing on the Volume stays open or mapped.

    The tensors can be written to: that changes neither the file nor what another call returned. As long as one of them
    lives, the whole file stays in memory, once; a page that is written to is there twice.

    Args:
        path: The file.
        prefetched: What `weightcache.prefetch` returned, with ``into="memory"``.
        device: Where the tensors shall be, as ``torch.device`` takes it. Tensors that share memory in the file share it
            there too.

    Returns:
        What was saved, which must be a dict; often the weights are one level below, as in
        ``load_state_dict(path)["model"]``.

    Raises:
        LoadError: The file is cut off or damaged or lies about itself, is of no such kind, needs something imported
            that is not weights (``problems`` names all of it), holds no dict, or was written to while it was read; or
            the device cannot be used.
        StorageError: The file is not there, cannot be read, or is a directory.
        ImportError: PyTorch or safetensors is not installed, or this PyTorch (before 2.10) is not safe.
        ValueError: ``device`` names no kind of device.

    Example:
        >>> state_dict = load_state_dict(weights["sam2"], prefetched=reading)["model"]  # doctest: +SKIP
    """
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError(f"path must be a str or a path of str, not {type(name).__name__}")
    torch = import_torch()
    where = _usable(torch, device, name)
    held = name if prefetched is None else os.fspath(prefetched.path(path))
    try:
        with _open(held, name) as file:
            # Asked again: a handle that another thread closed before this opened it has given its number away.
            if prefetched is not None and os.fspath(prefetched.path(path)) != held:
                return load_state_dict(path, device=device)
            kind = _kind(torch, file, name)
            if held != name or kind == "legacy" or (kind == "zip" and os.fstat(file).st_size <= READ_CHUNK):
                return _load(torch, kind, file, name, where, in_memory=held != name)
        # Closed by now: a prefetch lets go of the file for a commit, and a descriptor held here would not.
        with prefetch_files(name, into="memory", threads=READS) as reading:
            ahead = reading.path(name)
            with _open(ahead, name) as file:
                kind = _kind(torch, file, name)  # it may be another file than the one before
                return _load(torch, kind, file, name, where, in_memory=ahead != name)
    except OSError as error:
        if held != name and not os.path.exists(held):  # closed in between, too
            return load_state_dict(path, device=device)
        if isinstance(error, StorageError):
            raise
        raise StorageError.of(error, "read", name) from error


def _usable(torch: Any, device: Any, name: str) -> Any:
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be one that torch.device takes, got {device!r}") from error
    try:
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch without CUDA fails an assertion
        problem = f"cannot be loaded to {where}: {str(error).partition('.')[0]}"
        raise LoadError(name, [problem], hint='run it where that device is, or load with device="cpu"') from error
    return where


@contextmanager
def _open(path: str, name: str) -> Iterator[int]:
    """Open what lies at ``path``: the file ``name``, or a copy of it in memory."""
    # Non-blocking, so that a pipe in this place is refused below and not waited for.
    with opened(path, os.O_RDONLY | os.O_NONBLOCK) as file:
        before = os.fstat(file.number)
        if stat.S_ISDIR(before.st_mode):
            problem = f"cannot read {name}: it is a directory, and not a regular file"
            raise StorageError(problem, hint=directory_hint(path), path=name)
        if not stat.S_ISREG(before.st_mode):
            raise StorageError(f"cannot read {name}: not a regular file", hint="give the path of a file", path=name)
        yield file.number
        after = os.fstat(file.number)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise LoadError(name, ["was written to while it was read"], hint="load it again when it is complete")


def _kind(torch: Any, file: int, name: str) -> Kind:
    kind = kind_of(file, os.fstat(file).st_size, name)
    if kind != "safetensors":
        require_safe_unpickling(torch)
    return kind


def _load(torch: Any, kind: Kind, file: int, name: str, where: Any, *, in_memory: bool) -> dict[str, Any]:
    # The descriptor's own path, opened anew by the loaders: the file cannot be another one by then.
    opened = f"/proc/self/fd/{file}"
    if kind == "safetensors":
        load = import_safetensors().load_file
        with _refusing(torch, name):
            # Never mapped from a Volume: that would keep a file open there, and fault its pages in one by one.
            return dict(load(opened, device=str(where)) if in_memory else load(opened, str(where), backend="pread"))
    size = os.fstat(file).st_size
    with _refusing(torch, name):
        archive = check_zip(file, size, name) if kind == "zip" else None

    def pickled() -> Pickled:
        if archive:
            return scan(read_pickle(file, archive))
        return scan(os.pread(file, LONGEST, 0), before=3)  # a mark, the version and the machine come first

    with _refusing(torch, name, pickled):
        if archive and in_memory:
            with _private_mapping(torch):
                loaded = torch.load(opened, map_location=str(where), weights_only=True, mmap=True)
        else:
            with open(opened, "rb") as stream:
                # One read for a small file: torch would make one for each record. The older kind is read in one go.
                source = io.BytesIO(stream.read()) if archive and size <= READ_CHUNK else stream
                loaded = torch.load(source, map_location=str(where), weights_only=True, mmap=False)
        check_tensors(torch, loaded, archive and archive.sizes, name)
    if not isinstance(loaded, dict):
        problem = f"holds a {type(loaded).__name__} and not a dict"
        raise LoadError(name, [problem], hint="read it with torch.load(path, weights_only=True)")
    return loaded


def _private_mapping(torch: Any) -> Any:
    """Let torch map so that writing to a tensor changes nothing else, whatever the program has set."""
    if torch.serialization.get_default_mmap_options() == mmap.MAP_PRIVATE:
        return nullcontext()
    return torch.serialization.set_default_mmap_options(mmap.MAP_PRIVATE)


@contextmanager
def _refusing(torch: Any, name: str, pickled: Callable[[], Pickled] | None = None) -> Iterator[None]:
    """Turn whatever a loader raises for what is in the file into a `LoadError`."""
    try:
        yield
    except pickle.UnpicklingError as error:
        found = Pickled(0, (), ()) if pickled is None else pickled()
        raise not_weights(torch, name, str(error), found) from None  # its text advises weights_only=False
    except (OSError, LoadError):  # the disk, and not what is on it; what says it better
        raise
    except Exception as error:  # a crafted pickle can make torch raise anything
        said = str(error).strip().partition("\n")[0]
        problem = f"cannot be loaded: {type(error).__name__}{': ' if said else ''}{said}"
        hint = "the file is damaged: fetch it again, or save it again"
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            hint = f"there is less memory than it says that it needs: make room, or check the file ({hint})"
        raise LoadError(name, [problem], hint=hint) from error
