"""Which tensors a caller asks for with ``names=`` and ``slices=``, and which bytes of a file they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from weightcache._prefetch.blocks import Block, Extent
from weightcache._prefetch.prefetched_file import READ_CHUNK

from ._lazy_imports import import_torch

if TYPE_CHECKING:
    from weightcache._prefetch.prefetched_file import PrefetchedFile

    from ._safetensors_header import TensorEntry

Names = Callable[[str], bool] | Collection[str]
Slices = Mapping[str, tuple[int, int, int]]

_ALIGNMENT = 64  # bytes
_EXTRA_SHARE = 0.05  # of the bytes that are wanted: how many more may be read to save many small reads
_SHOWN = 3


class Slice(NamedTuple):
    """A part of a tensor along one dimension, in elements."""

    dim: int
    start: int
    length: int

    def of(self, tensor: Any) -> Any:
        """Return the part of ``tensor``, in memory of its own."""
        # As integers of that size: not every dtype can be copied in parts.
        torch = import_torch()
        integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.itemsize)
        whole = tensor.detach().view(integers) if integers else tensor.detach()
        return whole.narrow(*self).clone(memory_format=torch.contiguous_format).view(tensor.dtype)


class Selection:
    """What ``names`` and ``slices`` ask for."""

    def __init__(self, names: Names | None, slices: Slices | None) -> None:
        """Check the arguments.

        Raises:
            TypeError: One has the wrong type.
            ValueError: A slice is not (dim, index, count) with 0 ≤ index < count.
        """
        if isinstance(names, str) or not (names is None or callable(names) or isinstance(names, Collection)):
            raise TypeError(f"names must be a function or a list of prefixes, as in ['model.layers.'], not {names!r}")
        if isinstance(names, Collection) and not all(isinstance(each, str) for each in names):
            raise TypeError("names must hold prefixes of type str")
        if not (slices is None or isinstance(slices, Mapping)):
            raise TypeError(f"slices must map names to (dim, index, count), not {type(slices).__name__}")
        self._predicate = names if callable(names) else None
        self._prefixes = None if names is None or callable(names) else tuple(names)
        self._slices = dict(slices or {})
        for name, numbers in self._slices.items():
            _check_slice(name, numbers)

    def __bool__(self) -> bool:
        return bool(self._slices) or self._predicate is not None or self._prefixes is not None

    def wants(self, name: str) -> bool:
        """Whether a tensor is asked for."""
        if self._predicate is not None:
            return bool(self._predicate(name))
        return self._prefixes is None or name.startswith(self._prefixes)

    def slice_of(self, name: str, shape: tuple[int, ...]) -> Slice | None:
        """Return the part of a tensor that is wanted; ``None`` for all of it. `impossible` has nothing for it."""
        if name not in self._slices or self._slices[name][2] == 1:
            return None
        dim, index, count = self._slices[name]
        length = shape[dim] // count
        return Slice(dim % len(shape), index * length, length)

    def absent(self, names: Collection[str]) -> list[str]:
        """Return what was asked for and is not among the names of all tensors."""
        problems = [
            f"names: no tensor begins with {prefix!r}{_examples(names)}"
            for prefix in self._prefixes or ()
            if not any(name.startswith(prefix) for name in names)
        ]
        lacking = [name for name in self._slices if name not in names]
        return problems + [f"slices: no tensor is called {name!r}{_examples(names)}" for name in lacking]

    def impossible(self, shapes: Mapping[str, tuple[int, ...] | None]) -> list[str]:
        """Return which slices these tensors do not have.

        Args:
            shapes: Name → shape; ``None`` for what is not a tensor.
        """
        problems = []
        for name, (dim, _, count) in self._slices.items():
            if name not in shapes:
                continue
            shape = shapes[name]
            if shape is None:
                problems.append(f"slices: {name!r} is not a tensor")
            elif not -len(shape) <= dim < len(shape):
                problems.append(f"slices: {name!r} has the shape {shape} and no dimension {dim}")
            elif shape[dim] % count:
                problems.append(
                    f"slices: dimension {dim} of {name!r} has {shape[dim]} elements: no {count} equal parts"
                )
        return problems

    def pick(self, loaded: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is asked for of values that are in memory. A part gets memory of its own."""
        picked = {}
        for name, value in loaded.items():
            if self.wants(name):
                part = self.slice_of(name, tuple(value.shape)) if name in self._slices else None
                picked[name] = part.of(value) if part else value
        return picked


def _check_slice(name: object, numbers: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"slices must have names of tensors as keys, not {name!r}")
    if not isinstance(numbers, (tuple, list)) or len(numbers) != 3 or not all(type(each) is int for each in numbers):
        raise TypeError(f"slices[{name!r}] must be (dim, index, count), three integers, not {numbers!r}")
    _, index, count = numbers
    if not 0 <= index < count:
        raise ValueError(f"slices[{name!r}] must have 0 <= index < count, not index {index} of {count}")


def _examples(names: Collection[str]) -> str:
    shown = [f"{name!r:.200}" for name, _ in zip(names, range(_SHOWN), strict=False)]
    return f"; there are {', '.join(shown)}{' and others' if len(names) > _SHOWN else ''}" if shown else ""


class PlannedTensor(NamedTuple):
    """A tensor in the memory of a block.

    Attributes:
        entry: The tensor in the file.
        shape: Its shape in memory.
        at: Offset of its first byte in the memory.
        part: What to take of it after the read; ``None`` for all of it.
    """

    entry: TensorEntry
    shape: tuple[int, ...]
    at: int
    part: Slice | None


class PlannedBlock(NamedTuple):
    """A block to read, and the tensors in it."""

    block: Block
    tensors: tuple[PlannedTensor, ...]


def read_whole(entries: Iterable[TensorEntry], selection: Selection) -> frozenset[str]:
    """Return which sliced tensors are better read whole, as their slice takes many small reads.

    Those with the shortest runs come first. All that is read too much stays below a twentieth of what is wanted.
    """
    wanted, sliced = 0, []
    for entry in entries:
        if not selection.wants(entry.name):
            continue
        size, part = entry.end - entry.start, selection.slice_of(entry.name, entry.shape)
        if part is not None and size:
            size = size * part.length // entry.shape[part.dim]
            if prod(entry.shape[: part.dim]) > 1:
                run = part.length * prod(entry.shape[part.dim + 1 :]) * entry.item
                sliced.append((run, entry.end - entry.start - size, entry.name))
        wanted += size
    left, whole = _EXTRA_SHARE * wanted, set()
    for _, extra, name in sorted(sliced):
        if extra > left:
            break
        left -= extra
        whole.add(name)
    return frozenset(whole)


def plan_blocks(
    file: PrefetchedFile, entries: Iterable[TensorEntry], selection: Selection, whole: frozenset[str]
) -> list[PlannedBlock]:
    """Return what to read of a file, in its order. Small tensors share a block; a large one has its own.

    Args:
        file: The file.
        entries: Its tensors, in the order of their bytes.
        selection: Which are wanted.
        whole: Names of those to read whole before their slice is taken.
    """
    plan: list[PlannedBlock] = []
    draft = _Draft(file)
    for entry in entries:
        if not selection.wants(entry.name):
            continue
        part = selection.slice_of(entry.name, entry.shape)
        later = part if entry.name in whole else None
        now = None if later else part
        shape = entry.shape if now is None else (*entry.shape[: now.dim], now.length, *entry.shape[now.dim + 1 :])
        if draft.tensors and draft.size + prod(shape) * entry.item > READ_CHUNK:
            plan.append(draft.finish())
            draft = _Draft(file)
        draft.add(entry, shape, now, later)
    return [*plan, draft.finish()] if draft.tensors else plan


class _Draft:
    """A block that is being planned."""

    def __init__(self, file: PrefetchedFile) -> None:
        self.file, self.size = file, 0
        self.tensors: list[PlannedTensor] = []
        self.extents: list[Extent] = []

    def add(self, entry: TensorEntry, shape: tuple[int, ...], now: Slice | None, later: Slice | None) -> None:
        size = prod(shape) * entry.item
        last = self.extents[-1] if self.extents else None
        if last and now is None and last.runs == 1 and last.start + last.length == entry.start and self._fits(entry):
            self.extents[-1] = last._replace(length=last.length + size, stride=last.stride + size)
        elif size:
            self.size = -(-self.size // _ALIGNMENT) * _ALIGNMENT
            self.extents.append(_extent(entry, now, self.size))
        self.tensors.append(PlannedTensor(entry, shape, self.size, later))
        self.size += size

    def _fits(self, entry: TensorEntry) -> bool:
        """Whether the end of the block so far is an address at which such elements may begin."""
        return self.size % entry.item == 0

    def finish(self) -> PlannedBlock:
        return PlannedBlock(Block(self.file, self.size, self.extents), tuple(self.tensors))


def _extent(entry: TensorEntry, part: Slice | None, at: int) -> Extent:
    size = entry.end - entry.start
    if part is None:
        return Extent(entry.start, size, size, 1, at)
    rows = prod(entry.shape[: part.dim])
    stride = size // rows
    run = stride * part.length // entry.shape[part.dim]
    return Extent(entry.start + stride * part.start // entry.shape[part.dim], run, stride, rows, at)
