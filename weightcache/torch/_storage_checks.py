"""Check every tensor that was loaded from a file against its storage and the size of its record.

A file declares the shape and offset of its tensors. PyTorch checks only some of that, depending on its version. A
tensor that reaches beyond its storage exposes other memory of the process, or crashes it. These checks do not depend
on the version of PyTorch.
"""

from __future__ import annotations

import gc
from collections import Counter
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from weightcache.errors import LoadError

from ._storage_bounds import bounds_problem, fits, is_simple

if TYPE_CHECKING:
    from collections.abc import Iterator

_HINT = "the file is damaged or crafted: download it again from its source"
_LEAVES = (
    str,
    bytes,
    int,
    float,
    type(None),
    type,
    ModuleType,
    FunctionType,
    BuiltinFunctionType,
)  # without tensors


def check_tensors(torch: Any, loaded: object, sizes: Counter[int] | None, path: str) -> None:
    """Raise `LoadError` unless every tensor stays within its storage, and every storage matches a record.

    Args:
        torch: The module.
        loaded: The result of the loader. Tensors are found in containers, attributes and other tensors.
        sizes: Length of a record in bytes → number of such records; None if the loader compares storages itself.
        path: The file, for the message.
    """
    spans = {}
    for value, in_containers in _tensors(torch, loaded):
        if is_simple(torch, value):
            storage = value.untyped_storage()
            size = storage.nbytes()
            if not fits(value, size):
                raise LoadError(path, [bounds_problem(torch, value)], hint=_HINT)
            if size and in_containers and (begin := storage.data_ptr()):
                spans[storage.device, begin] = size
            continue
        if isinstance(value, torch.Tensor) and (fault := bounds_problem(torch, value)):
            raise LoadError(path, [fault], hint=_HINT)
        # Objects may compute tensors when they are created: these have no record in the file.
        for storage in _storages(torch, value) if in_containers else ():
            if (size := storage.nbytes()) and (begin := storage.data_ptr()):
                spans[storage.device, begin] = size
    if sizes is not None:
        _compare_storages(spans, sizes, path)


def _compare_storages(spans: dict[tuple[Any, int], int], sizes: Counter[int], path: str) -> None:
    """Raise unless each storage has its own record and storages do not overlap.

    A pickle declares the length of its storages. For a mapped file torch does not check it, and a tensor could expose
    bytes after its record.
    """
    end, where = 0, None
    left = Counter(sizes)
    names = {device: str(device) for device, _ in spans}
    for (device, begin), size in sorted(spans.items(), key=lambda item: (names[item[0][0]], item[0][1])):
        if device != where:
            end, where = 0, device
        left[size] -= 1
        if left[size] < 0 or begin < end:
            problem = f"declares a storage of {size} bytes, but has no record of that size for it"
            raise LoadError(path, [problem], hint=_HINT)
        end = begin + size


def _storages(torch: Any, value: Any) -> list[Any]:
    """Return the storages of ``value`` whose data come from records of the file."""
    if isinstance(value, torch.UntypedStorage):
        return [value]
    if value.layout is torch.sparse_coo:
        parts = [value.detach()._indices(), value.detach()._values()]  # noqa: SLF001 (the public methods need a coalesced tensor)
        return [part.untyped_storage() for part in parts if part.layout is torch.strided]
    if (type(value) is torch.Tensor or type(value) is torch.nn.Parameter) and value.layout is torch.strided:
        return [value.untyped_storage()]
    return []  # compressed layouts may copy; the tensors inside subclasses are checked as attributes


def _tensors(torch: Any, loaded: object) -> Iterator[tuple[Any, bool]]:
    """Yield every tensor and storage in ``loaded``, and whether only containers and tensors enclose it."""
    containers = (dict, list, tuple, set, frozenset, torch.storage.TypedStorage)
    waiting: list[tuple[Any, bool]] = [(loaded, True)]
    seen: dict[int, Any] = {}
    while waiting:
        value, in_containers = waiting.pop()
        if id(value) in seen or isinstance(value, _LEAVES):
            continue
        seen[id(value)] = value  # lists may contain themselves; a reference keeps the id in use
        if isinstance(value, torch.Tensor):
            yield value, in_containers
            below = _attributes(value)
        elif isinstance(value, torch.UntypedStorage):
            yield value, in_containers
            below = []
        else:
            in_containers = in_containers and isinstance(value, containers)
            # numpy does not report the objects of an array to the garbage collector.
            has_objects = getattr(getattr(value, "dtype", None), "hasobject", False)
            below = value.ravel().tolist() if has_objects else gc.get_referents(value)
        for each in below:
            kind = type(each)
            if kind is torch.Tensor and not _attributes(each):
                yield each, in_containers  # most of a state dict: twice, if it is there twice
            elif kind is not str:
                waiting.append((each, in_containers))


def _attributes(tensor: Any) -> list[Any]:
    """Return what a tensor holds besides its numbers. Most hold nothing."""
    found = [vars(tensor) or None, tensor._backward_hooks, tensor.grad if tensor.is_leaf else None]  # noqa: SLF001
    return [each for each in found if each is not None]
