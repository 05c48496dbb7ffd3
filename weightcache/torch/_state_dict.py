"""`load_state_dict` and `iter_tensors`: the weights of a file or of a directory of shards."""

from __future__ import annotations

import os
from contextlib import closing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from weightcache._prefetch.prefetched_file import ChangedMeanwhileError
from weightcache._prefetch.range_reader import RangeReader
from weightcache._spans import in_phase, span
from weightcache.errors import LoadError, StorageError

from . import _load
from ._lazy_imports import import_torch
from ._model import stream
from ._safetensors_shards import Loading
from ._tensor_selection import Selection
from ._to_device import PinnedCopies

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._load import Prefetched
    from ._tensor_selection import Names, Slices

# Bytes that `iter_tensors` reads ahead of its caller: all reads at once, twice.
READ_AHEAD = 256 << 20


@in_phase("load")
def load_state_dict(
    path: str | os.PathLike[str],
    *,
    prefetched: Prefetched | None = None,
    device: Any = "cpu",
    names: Names | None = None,
    slices: Slices | None = None,
) -> dict[str, Any]:
    """Load the weights in a file that ``torch.save`` or safetensors wrote, or in a directory of such files.

    Supported formats, detected from the first bytes: the zip format (PyTorch 1.6 or newer) and the legacy format
    (PyTorch 0.1.10 to 1.5), both with the default pickle protocol, and safetensors. The error for any other format,
    such as a TorchScript archive, names the format and what to do.

    Of a directory it loads the ``.safetensors`` files that ``*.safetensors.index.json`` names, or without an index all
    of them, or the files that ``*.bin.index.json`` names. Each file must exist, and each tensor that the index lists
    must be in the file that it names, once. The result equals that of loading one file after the other. Of tied
    weights it has the names that the files have.

    Nothing but weights is loaded. A file that needs another import is refused; the error names the import and how to
    allow it. Tensors with a size or index outside their storage are refused with every version of PyTorch.

    A single zip or safetensors file is mapped from memory without a copy: from ``prefetched``, else from memory that
    this call fills with parallel reads. ``torch.load`` and safetensors read legacy files, files up to 8 MiB and files
    that do not fit into memory. Tensors of a directory, or of a safetensors file with ``names`` or ``slices``, are read
    in parallel straight into memory of their own: their size, and 2 MiB. No file on the Volume stays open or mapped.

    Writing to a tensor changes neither the file nor the result of another call. A single file, and what was
    prefetched, stays in memory until all its tensors are deleted; otherwise a tensor of over 8 MiB goes alone.

    Args:
        path: The file, or the directory.
        prefetched: What `weightcache.prefetch` returned, with ``into="memory"``.
        device: Device of the tensors, as for ``torch.device``. Tensors that share memory in the file share it there.
        names: Load only these tensors: prefixes, as in ``["model.layers.0."]``, or a function that takes a name and
            returns whether to load it. Of safetensors, only their bytes are read; a file of torch.save is read whole.
        slices: Name → ``(dim, index, count)``: load only part ``index`` of ``count`` equal parts along dimension
            ``dim``. Of safetensors, at most 1.05 times the bytes of what is wanted are read, and the headers.

    Returns:
        The saved dict. The weights are often one level below: ``load_state_dict(path)["model"]``. Tensors of
        safetensors files come in the order of their bytes, files in the order of their names.

    Raises:
        LoadError: A file is damaged, has an unsupported format, needs other imports, contains no dict or changed while
            it was read; the index is malformed, or files or tensors do not match it; a prefix or a slice does not
            exist, or the parts are not equal; the device is not available; or memory is full. ``problems`` has all.
        StorageError: The file does not exist or cannot be read, or the directory holds no weights.
        ImportError: PyTorch or safetensors is not installed, or PyTorch is older than 2.10, which is not safe.
        ValueError: ``device`` is invalid, or a slice does not have ``0 <= index < count``.
        TypeError: ``path``, ``names`` or ``slices`` has a wrong type.

    Example:
        >>> state_dict = load_state_dict(weights["sam2"], prefetched=reading)["model"]  # doctest: +SKIP
        >>> quarter = load_state_dict(directory, slices={"lm_head.weight": (0, rank, 4)})  # doctest: +SKIP
    """
    name = _checked_path(path)
    selection = Selection(names, slices)
    torch = import_torch()
    where = _load.checked_device(torch, device, name)
    if not selection and not os.path.isdir(name):
        return _load.load_file(torch, path, name, prefetched, where)
    ahead = float("inf") if where.type == "cpu" else READ_AHEAD
    loading = Loading(torch, selection, where, prefetched, ahead)
    with _translating_errors(torch, name):
        try:
            return _load_all(name, loading)
        except ChangedMeanwhileError:  # a reload of the Volume may have set another time of modification
            return _load_all(name, loading)


def _load_all(path: str, loading: Loading) -> dict[str, Any]:
    with RangeReader(_load.READ_THREADS) as reader:
        return dict(stream(reader, path, loading))


def iter_tensors(
    path: str | os.PathLike[str],
    *,
    prefetched: Prefetched | None = None,
    device: Any = "cpu",
    names: Names | None = None,
    slices: Slices | None = None,
    pinned: bool = False,
) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each tensor, while the tensors after it are still being read.

    So that a program copies a tensor to a device, or converts it, while the Volume is busy. Tensors of safetensors
    files come in the order of their bytes, files in the order of their names. The headers of all safetensors files
    are checked by this call, before it returns; reading starts with the first tensor that is taken.

    Memory: at most 256 MiB are read ahead of the caller (or the next tensor, if it is larger), besides what the caller
    keeps. Small tensors share pieces of memory of up to 8 MiB. Files of torch.save are loaded one by one, while the
    next one is read, so two of them are in memory. What was prefetched is mapped, and not read again.

    Closing the iterator ends the reads, closes the files and frees the memory; so does dropping it. No file stays open
    while `ensure` commits or reloads.

    Args:
        path: As in `load_state_dict`.
        prefetched: As in `load_state_dict`.
        device: As in `load_state_dict`. Tensors are copied to it one after the other.
        names: As in `load_state_dict`.
        slices: As in `load_state_dict`.
        pinned: For a CUDA device: copy tensors of safetensors files through 64 MiB of pinned memory, and read on
            meanwhile. Not run on a GPU: only tested with a stand-in for CUDA.

    Yields:
        Name and tensor.

    Raises:
        LoadError: As in `load_state_dict`. This call raises it for what the index or a header of a safetensors file
            says; the iterator raises it for a file of torch.save, for a value in it that is not a tensor, for a file
            that changes meanwhile, and for a lack of memory.
        StorageError: As in `load_state_dict`; the iterator raises it for a read that fails.
        ImportError: As in `load_state_dict`.
        ValueError: As in `load_state_dict`.
        TypeError: As in `load_state_dict`.

    Example:
        >>> for name, tensor in iter_tensors(weights["llama"]):  # doctest: +SKIP
        ...     parameters[name].data.copy_(tensor)
    """
    name = _checked_path(path)
    selection = Selection(names, slices)
    torch = import_torch()
    where = _load.checked_device(torch, device, name)
    reader = RangeReader(_load.READ_THREADS)
    with _translating_errors(torch, name):
        copies = PinnedCopies(torch, where) if pinned and where.type == "cuda" else None
        tensors = stream(reader, name, Loading(torch, selection, where, prefetched, READ_AHEAD, copies))
    return _iterate(torch, name, reader, tensors, copies)


def _iterate(
    torch: Any, name: str, reader: RangeReader, tensors: Iterator[tuple[str, Any]], copies: PinnedCopies | None
) -> Iterator[tuple[str, Any]]:
    with reader, closing(copies) if copies else nullcontext(), _translating_errors(torch, name):
        while True:
            with span("load"):  # without what the caller does between two tensors
                found = next(tensors, None)
            if found is None:
                return
            each, value = found
            if not torch.is_tensor(value):
                problem = f"holds {each!r:.200}, which is a {type(value).__name__} and not a tensor"
                raise LoadError(name, [problem], hint="use load_state_dict, or leave it out with names=")
            yield each, value


def _checked_path(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError(f"path must be a str or a path of str, not {type(name).__name__}")
    return name


@contextmanager
def _translating_errors(torch: Any, name: str) -> Iterator[None]:
    """Raise `LoadError` or `StorageError` for what a read or an allocation raises."""
    try:
        yield
    except ChangedMeanwhileError as error:
        raise LoadError(name, ["changed while it was read"], hint="load it again when it is complete") from error
    except StorageError:
        raise
    except OSError as error:
        raise StorageError.of(error, "read", error.filename or name) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        said = str(error).strip().partition("\n")[0]
        hint = "free memory, or load less at once with names=, slices= or iter_tensors"
        raise LoadError(name, [f"does not fit into memory: {said}"], hint=hint) from error
