"""Tensors in what was loaded, and the memory that they lie in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weightcache.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Iterator


def check_storages(torch: Any, loaded: object, sizes: frozenset[int], path: str) -> None:
    """Raise `LoadError` unless every storage is as long as a record of the file, and none reaches into another.

    A pickle says how long its storages are. Where a file is mapped torch takes that length as it is, and a tensor
    could hold what lies behind its record.
    """
    spans = {}
    for tensor in _tensors(torch, loaded):
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            spans[storage.data_ptr()] = storage.nbytes()
    spans.pop(0, None)  # empty, or on the meta device
    end = 0
    for begin in sorted(spans):
        if spans[begin] not in sizes or begin < end:
            problem = f"a storage is said to have {spans[begin]} bytes, which is not what the file has for it"
            raise LoadError(path, [problem], hint="the file is damaged or forged: fetch it again from its source")
        end = begin + spans[begin]


def _tensors(torch: Any, loaded: object) -> Iterator[Any]:
    waiting, seen = [loaded], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple, set)) and id(value) not in seen:
            seen.add(id(value))  # a pickle can hold a list that holds itself
            waiting.extend(value.values() if isinstance(value, dict) else value)
