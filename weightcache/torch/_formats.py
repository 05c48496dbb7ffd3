"""What kind of file it is, by its first bytes, and whether its directory can be believed.

PyTorch maps a zip file and then believes it: a compressed record would be taken for numbers, and a size that the
pickle claims is not compared with the record's. So the directory is checked here, before PyTorch sees the file.

Not by Python's zipfile: it forgives bytes in front of an archive, and then reads the directory that lies before the
end, where PyTorch reads the one that the end names. Two readers that see two directories are what a forger wants.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Literal

from weightcache.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind = Literal["zip", "legacy", "safetensors"]

# protocol 2, then the integer 0x1950a86a20f9469cfc6c: how torch.save began its files before version 1.6
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format, and ours for the directory of a zip file

_STRANGERS = (
    (b"version https://git-lfs", "is a pointer of Git LFS", "fetch the real file (`git lfs pull`)"),
    (b"<", "is a page of HTML or XML", "it was downloaded from a wrong or expired address"),
    (b"\x80", "is a pickle, and not one of torch.save", "weights are never read from it; save them with torch.save"),
    (b"\x1f\x8b", "is compressed with gzip", "decompress it first"),
    (b"GGUF", "is a GGUF file", "convert it to .safetensors"),
    (b"\x89HDF", "is an HDF5 file", "convert it to .safetensors"),
)

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LONGEST_COMMENT = 0xFFFF
_LOCAL_HEADER = 30  # bytes before the name
_FULL = 0xFFFFFFFF  # the value is in the zip64 field
_ENCRYPTED = 0x1

_AGAIN = "the file is damaged or incomplete: fetch it again, or save it again with torch.save"


def kind_of(descriptor: int, size: int, path: str) -> Kind:
    """Return what the open file is, by its first bytes; its suffix says nothing.

    Raises:
        LoadError: It is none of the three kinds.
    """
    head = os.pread(descriptor, 32, 0)
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(_LEGACY):
        return "legacy"
    if head[8:9] == b"{":
        length = int.from_bytes(head[:8], "little")
        if length <= min(size - 8, _LONGEST_HEADER):
            return "safetensors"
        problem = f"says that its header has {length} bytes; it has {size} in all, and {_LONGEST_HEADER} are the limit"
        raise LoadError(path, [problem], hint=_AGAIN)
    if size == 0:
        raise LoadError(path, ["is empty"], hint=_AGAIN)
    for beginning, what, hint in _STRANGERS:
        if head.startswith(beginning):
            raise LoadError(path, [what], hint=hint)
    problem = f"begins with {head[:8]!r}, which is neither a zip file nor an older file of torch.save nor safetensors"
    raise LoadError(path, [problem], hint="give a file that torch.save or safetensors wrote")


def check_zip(descriptor: int, size: int, path: str) -> frozenset[int]:
    """Return the sizes of all records, in bytes, of a zip file that torch.save can have written.

    Raises:
        LoadError: The file is cut off, its directory lies, or it is a zip file of another kind.
    """
    try:
        start, entries = _directory(descriptor, size)
        names, spans = [], []
        for name, flags, method, stored, length, offset in entries:
            if flags & _ENCRYPTED or method != 0 or stored != length:
                raise LoadError(path, [f"{name} is compressed or encrypted"], hint="save it again with torch.save")
            names.append(name)
            spans.append((offset, offset + _LOCAL_HEADER + len(name) + length, length))
    except (struct.error, UnicodeDecodeError) as error:
        raise LoadError(path, [f"the directory of the zip file cannot be read ({error})"], hint=_AGAIN) from error
    except _BadDirectoryError as error:
        raise LoadError(path, [str(error)], hint=_AGAIN) from error
    spans.sort()
    ends = [0, *(end for _, end, _ in spans)]
    if ends[-1] > start or any(begin < end for (begin, _, _), end in zip(spans, ends, strict=False)):
        raise LoadError(path, ["the directory of the zip file lies: records overlap"], hint=_AGAIN)
    if len(set(names)) != len(names):
        raise LoadError(path, ["the directory of the zip file lies: a name is there twice"], hint=_AGAIN)
    top = names[0].partition("/")[0] if names else ""
    if f"{top}/constants.pkl" in names:
        hint = "a program can only be run on purpose: torch.jit.load, if you trust who made it"
        raise LoadError(path, ["is a TorchScript archive, which is a program and not weights"], hint=hint)
    if f"{top}/data.pkl" not in names:
        raise LoadError(path, ["is a zip file, and not one of torch.save"], hint="save it with torch.save")
    return frozenset(length for _, _, length in spans)


class _BadDirectoryError(Exception):
    pass


def _directory(descriptor: int, size: int) -> tuple[int, Iterator[tuple[str, int, int, int, int, int]]]:
    """Return where the directory begins, and its entries: name, flags, method, stored and true size, offset."""
    tail_at = max(0, size - _END.size - _LONGEST_COMMENT)
    tail = os.pread(descriptor, size - tail_at, tail_at)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise _BadDirectoryError(f"the zip file is cut off after {size} bytes: its directory is missing")
    *_, count, length, start, _ = _END.unpack_from(tail, at)
    end = tail_at + at
    locator_at = at - _LOCATOR64.size
    if locator_at >= 0 and tail.startswith(b"PK\x06\x07", locator_at):
        _, _, end, _ = _LOCATOR64.unpack_from(tail, locator_at)
        if end > size - _END64.size:
            raise _BadDirectoryError("the directory of the zip file lies: it is said to lie beyond the end")
        signature, *_, count, length, start = _END64.unpack(os.pread(descriptor, _END64.size, end))
        if signature != b"PK\x06\x06":
            raise _BadDirectoryError("the directory of the zip file lies: it is not where it is said to be")
    if start + length > end or count * _ENTRY.size > length:
        raise _BadDirectoryError("the directory of the zip file lies: it is said to lie beyond the end")
    if length > _LONGEST_HEADER:  # before it is read: a file with holes is as long as it likes
        problem = f"the directory of the zip file is said to have {length} bytes, and {_LONGEST_HEADER} are the limit"
        raise _BadDirectoryError(problem)
    return start, _entries(os.pread(descriptor, length, start), count)


def _entries(directory: bytes, count: int) -> Iterator[tuple[str, int, int, int, int, int]]:
    at = 0
    for _ in range(count):
        fields = _ENTRY.unpack_from(directory, at)
        signature, flags, method, stored, length = fields[0], fields[3], fields[4], fields[8], fields[9]
        name_size, extra_size, comment_size, offset = *fields[10:13], fields[16]
        if signature != b"PK\x01\x02":
            raise _BadDirectoryError("the directory of the zip file lies: it holds something else")
        at += _ENTRY.size
        name = directory[at : at + name_size].decode()
        if _FULL in (stored, length, offset):
            extra = directory[at + name_size : at + name_size + extra_size]
            length, stored, offset = _wide(extra, length, stored, offset)
        at += name_size + extra_size + comment_size
        yield name, flags, method, stored, length, offset


def _wide(extra: bytes, *values: int) -> Iterator[int]:
    """Yield each value, from the zip64 field where it did not fit into 32 bits."""
    at = 0
    while extra[at : at + 2] != b"\x01\x00":
        at += 4 + struct.unpack_from("<H", extra, at + 2)[0]
    at += 4
    for value in values:
        if value == _FULL:
            (wide,) = struct.unpack_from("<Q", extra, at)
            at += 8
            yield wide
        else:
            yield value
