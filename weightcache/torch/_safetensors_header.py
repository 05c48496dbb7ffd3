"""The header of a safetensors file: which tensors it has, and where.

The package safetensors reads headers too, but gives no offsets, which reading in parallel and reading a slice need.
The rules are those of its format, and no file is accepted that it refuses.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from weightcache._strict_json import InvalidJsonError, parse_json_object

MAX_HEADER = 100_000_000  # bytes; the limit of the format
_MAX_ELEMENTS = 1 << 60  # torch computes bytes and strides with 64 bits
_MAX_DIMENSIONS = 64

# Name in the file → name in torch, bits of an element.
DTYPES = {
    "BOOL": ("bool", 8),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "F4": ("float4_e2m1fn_x2", 4),  # two of them are one element in torch
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "U16": ("uint16", 16),
    "I16": ("int16", 16),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "U32": ("uint32", 32),
    "I32": ("int32", 32),
    "F32": ("float32", 32),
    "U64": ("uint64", 64),
    "I64": ("int64", 64),
    "F64": ("float64", 64),
    "C64": ("complex64", 64),
}


class TensorEntry(NamedTuple):
    """One tensor in a file.

    Attributes:
        name: Its name.
        dtype: The name of its dtype in torch, such as ``"bfloat16"``.
        item: Bytes of an element.
        shape: Its shape in torch.
        start: Offset of its first byte in the file.
        end: Offset after its last byte.
    """

    name: str
    dtype: str
    item: int
    shape: tuple[int, ...]
    start: int
    end: int


class Header(NamedTuple):
    """What a header says.

    Attributes:
        tensors: In the order of their bytes in the file.
        metadata: The texts under ``__metadata__``.
        problems: Why the file is refused; empty for a valid file.
    """

    tensors: tuple[TensorEntry, ...]
    metadata: dict[str, str]
    problems: tuple[str, ...]


def parse_header(data: bytes, size: int) -> Header:
    """Return what the header ``data`` of a file of ``size`` bytes says.

    Every tensor has a known dtype and as many bytes as its shape takes; the tensors follow each other without gaps,
    overlaps and bytes after them.
    """
    try:
        found = parse_json_object(data)
    except InvalidJsonError as error:
        return Header((), {}, (f"the header {error}",))
    problems = []
    metadata = found.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    elif not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        problems.append("the header's __metadata__ is not an object of texts")
        metadata = {}
    begin, tensors = 8 + len(data), []
    for name, entry in found.items():
        parsed = _entry(name, entry, begin)
        if isinstance(parsed, str):
            problems.append(f"tensor {name!r:.200}: {parsed}")
        else:
            tensors.append(parsed)
    tensors.sort(key=lambda each: (each.start, each.end))
    if not problems:  # else there are gaps where the others are
        problems = _layout_problems(tensors, begin, size)
    return Header(tuple(tensors), metadata, tuple(problems))


def _entry(name: str, entry: Any, begin: int) -> TensorEntry | str:
    """Return one tensor, or what is wrong with its entry."""
    if not isinstance(entry, dict):
        return f"its entry is a {type(entry).__name__}, not an object"
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"its dtype {dtype!r:.100} is not supported; known are {', '.join(DTYPES)}"
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(_is_count(each) for each in shape):
        return f"its shape {shape!r:.100} is not a list of at most {_MAX_DIMENSIONS} sizes"
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(each) for each in offsets):
        return f"its data_offsets {offsets!r:.100} are not two offsets"
    torch_name, bits = DTYPES[dtype]
    elements = prod(shape)
    if prod(max(each, 1) for each in shape) >= _MAX_ELEMENTS:
        return f"its shape {shape!r:.100} has too many elements"
    start, end = offsets
    if (wanted := elements * bits) != 8 * (end - start):
        return f"its shape {shape!r:.100} of {dtype} takes {-(-wanted // 8)} bytes, but has {end - start}"
    if bits < 8:
        if not shape or shape[-1] % 2:
            return f"its shape {shape!r:.100} of {dtype} has half bytes in its last dimension"
        shape = [*shape[:-1], shape[-1] // 2]
    return TensorEntry(name, torch_name, max(1, bits // 8), tuple(shape), begin + start, begin + end)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_ELEMENTS


def _layout_problems(tensors: list[TensorEntry], begin: int, size: int) -> list[str]:
    """Return where tensors overlap, leave gaps, or reach beyond the file."""
    problems, end, before = [], begin, "the header"
    for each in tensors:
        if each.start != end:
            kind = "overlaps" if each.start < end else "does not follow"
            problems.append(
                f"tensor {each.name!r:.200} {kind} {before}: it begins at byte {each.start} of the file, not at {end}"
            )
        end, before = max(end, each.end), f"{each.name!r:.200}"
    if end > size:
        problems.append(f"the file is truncated: it has {size} bytes, and its tensors end at byte {end}")
    elif end < size:
        problems.append(f"the file has {size - end} bytes after its last tensor, which ends at byte {end} of {size}")
    return problems
