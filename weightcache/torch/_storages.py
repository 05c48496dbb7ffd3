"""Tensors in what was loaded, and the memory that they lie in.

A file says how large its tensors are and where they lie. PyTorch believes part of that, and which part depends on its
version: a tensor that reaches beyond its memory shows what else is in the process, or ends it. So every tensor is
checked here, by rules that rest on no version.
"""

from __future__ import annotations

import gc
from collections import Counter
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from weightcache.errors import LoadError

from ._layouts import fault_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_HINT = "the file is damaged or forged: fetch it again from its source"
_ENDS = (str, bytes, int, float, type(None), type, ModuleType, FunctionType, BuiltinFunctionType)  # nothing is below


def check_tensors(torch: Any, loaded: object, sizes: Counter[int] | None, path: str) -> None:
    """Raise `LoadError` unless every tensor lies within its memory, and that is as long as the file says.

    Args:
        torch: The module.
        loaded: What was loaded; its tensors are found in containers, attributes and other tensors.
        sizes: How long the records of the file are, in bytes, each as often as there are records of that length; or
            None if the loader has compared the storages with the file.
        path: The file.
    """
    spans = {}
    for value, in_containers in _tensors(torch, loaded):
        if isinstance(value, torch.Tensor) and (fault := fault_of(torch, value)):
            raise LoadError(path, [fault], hint=_HINT)
        # What an object computes of itself when it is made has memory of its own.
        for storage in _storages(torch, value) if in_containers else ():
            if storage.nbytes() and storage.data_ptr():
                spans[storage.device, storage.data_ptr()] = storage.nbytes()
    if sizes is not None:
        _compare(spans, sizes, path)


def _compare(spans: dict[tuple[Any, int], int], sizes: Counter[int], path: str) -> None:
    """Raise unless each storage has a record of its own, and none reaches into another.

    A pickle says how long its storages are. Where a file is mapped torch takes that length as it is, and a tensor could
    hold what lies behind its record.
    """
    end, where = 0, None
    left = Counter(sizes)
    for (device, begin), size in sorted(spans.items(), key=lambda item: (str(item[0][0]), item[0][1])):
        if device != where:
            end, where = 0, device
        left[size] -= 1
        if left[size] < 0 or begin < end:
            problem = f"a storage is said to have {size} bytes, which is not what the file has for it"
            raise LoadError(path, [problem], hint=_HINT)
        end = begin + size


def _storages(torch: Any, value: Any) -> list[Any]:
    """Return the memory that holds the data of a tensor, if it is that which the file says; of a storage, itself."""
    if isinstance(value, torch.UntypedStorage):
        return [value]
    if value.layout is torch.sparse_coo:
        parts = [value.detach()._indices(), value.detach()._values()]  # noqa: SLF001 (of one that is not coalesced)
        return [part.untyped_storage() for part in parts if part.layout is torch.strided]
    if type(value) in {torch.Tensor, torch.nn.Parameter} and value.layout is torch.strided:
        return [value.untyped_storage()]
    return []  # compressed ones may have copied what was not contiguous; subclasses hold tensors as attributes


def _tensors(torch: Any, loaded: object) -> Iterator[tuple[Any, bool]]:
    """Yield every tensor and storage below ``loaded``, and whether only containers and tensors are above it."""
    containers = (dict, list, tuple, set, frozenset, torch.storage.TypedStorage)
    waiting: list[tuple[Any, bool]] = [(loaded, True)]
    seen: dict[int, Any] = {}
    while waiting:
        value, in_containers = waiting.pop()
        if id(value) in seen or isinstance(value, _ENDS):
            continue
        seen[id(value)] = value  # a pickle can hold a list that holds itself; kept, so that no other gets its id
        if isinstance(value, torch.Tensor):
            yield value, in_containers
            below = [vars(value), value._backward_hooks, value.grad if value.is_leaf else None]  # noqa: SLF001
        elif isinstance(value, torch.UntypedStorage):
            yield value, in_containers
            below = []
        else:
            in_containers = in_containers and isinstance(value, containers)
            # An array of objects in numpy does not show them to the garbage collector.
            has_objects = getattr(getattr(value, "dtype", None), "hasobject", False)
            below = value.ravel().tolist() if has_objects else gc.get_referents(value)
        waiting.extend((each, in_containers) for each in below)
