"""Detect the format of a file from its first bytes, and check the directory of a zip file.

PyTorch maps a zip file without checks: it would read a compressed record as numbers, and it does not compare the sizes
in the pickle with those of the records. So this module checks the directory before PyTorch opens the file.

Python's zipfile is not used: it accepts bytes in front of an archive and then reads the directory just before the end,
but PyTorch reads the directory at the offset that the end record states. A crafted file could show each a different
directory.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from typing import TYPE_CHECKING, Literal, NamedTuple

from weightcache._store.content_sniffing import HEAD, foreign_content
from weightcache.errors import LoadError

from ._unsupported_formats import DOWNLOAD_AGAIN, legacy_protocol, protocol_error, unsupported_file, unsupported_zip

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind = Literal["zip", "legacy", "safetensors"]

_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format, and ours for the directory of a zip file

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LONGEST_COMMENT = 0xFFFF
_LOCAL_HEADER = 30  # bytes before the name
_FULL = 0xFFFFFFFF  # the value is in the zip64 field
_ENCRYPTED = 0x1


class Archive(NamedTuple):
    """The contents of a zip file in the format of torch.save.

    Attributes:
        sizes: Length of a record in bytes → number of records of that length.
        pickled: Offset of the header of the record with the pickle, and length of its data, in bytes.
    """

    sizes: Counter[int]
    pickled: tuple[int, int]


def detect_format(descriptor: int, size: int, path: str) -> Kind:
    """Return the format of the open file, from its first bytes. Its suffix does not matter.

    Raises:
        LoadError: The format is not supported.
    """
    head = os.pread(descriptor, HEAD, 0)
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if (protocol := legacy_protocol(head)) is not None:
        if protocol not in {2, 3}:  # a state dict needs nothing of protocol 3 that PyTorch cannot read
            raise protocol_error(path, protocol)
        return "legacy"
    if head[8:9] != b"{":
        raise unsupported_file(descriptor, head, path)
    length = int.from_bytes(head[:8], "little")
    if length <= min(size - 8, _MAX_HEADER):
        return "safetensors"
    if foreign_content(head, name=""):  # text with a brace as its ninth character
        raise unsupported_file(descriptor, head, path)
    says = f"declares a header of {length} bytes"
    if length > size - 8:
        problem = f"{says}; the file has {size} bytes and the limit is {_MAX_HEADER}"
        raise LoadError(path, [problem], hint=DOWNLOAD_AGAIN)
    problem = f"{says}; the limit of the format is {_MAX_HEADER}"
    raise LoadError(path, [problem], hint="save the tensors to several files, or with less metadata")


def check_zip(descriptor: int, size: int, path: str) -> Archive:
    """Return the contents of a zip file in the format of torch.save.

    Raises:
        LoadError: The file is truncated, its directory is inconsistent, or it is another kind of zip file.
    """
    try:
        start, entries = _directory(descriptor, size)
        records = list(entries)
    except (struct.error, UnicodeDecodeError) as error:
        problem = f"the directory of the zip file cannot be read ({error})"
        raise LoadError(path, [problem], hint=DOWNLOAD_AGAIN) from error
    except _InvalidDirectoryError as error:
        raise LoadError(path, [str(error)], hint=DOWNLOAD_AGAIN) from error
    for name, flags, method, stored, length, _ in records:
        if flags & _ENCRYPTED or method != 0 or stored != length:
            hint = "save it again with torch.save; zip programs compress what they pack"
            found = unsupported_zip([record[0] for record in records], path)
            raise found or LoadError(path, [f"{name} is compressed or encrypted"], hint=hint)
    spans = sorted((offset, offset + _LOCAL_HEADER + len(name) + length) for name, *_, length, offset in records)
    ends = [0, *(end for _, end in spans)]
    if ends[-1] > start or any(begin < end for (begin, _), end in zip(spans, ends, strict=False)):
        raise LoadError(path, ["the directory of the zip file is invalid: records overlap"], hint=DOWNLOAD_AGAIN)
    names = [name for name, *_ in records]
    if len(set(names)) != len(names):
        raise LoadError(path, ["the directory of the zip file is invalid: duplicate name"], hint=DOWNLOAD_AGAIN)
    if found := unsupported_zip(names, path):
        raise found
    pickle = f"{names[0].partition('/')[0]}/data.pkl"
    where = next((offset, length) for name, *_, length, offset in records if name == pickle)
    return Archive(Counter(length for *_, length, _ in records), where)


def read_pickle(descriptor: int, archive: Archive) -> bytes:
    """Return the pickle in the archive; wrong bytes if the header of its record contradicts the directory."""
    header, length = archive.pickled
    sizes = os.pread(descriptor, 4, header + 26)  # of the name and of what follows it
    begin = header + _LOCAL_HEADER + sum(struct.unpack("<2H", sizes)) if len(sizes) == 4 else header
    return os.pread(descriptor, min(length, _MAX_HEADER), begin)


class _InvalidDirectoryError(Exception):
    """The directory of a zip file is missing or inconsistent."""


def _directory(descriptor: int, size: int) -> tuple[int, Iterator[tuple[str, int, int, int, int, int]]]:
    """Return the offset of the directory, and its entries: name, flags, method, stored size, size, offset."""
    tail_at = max(0, size - _END.size - _LONGEST_COMMENT)
    tail = os.pread(descriptor, size - tail_at, tail_at)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise _InvalidDirectoryError(f"the zip file is truncated to {size} bytes: its directory is missing")
    *_, count, length, start, _ = _END.unpack_from(tail, at)
    end = tail_at + at
    locator_at = at - _LOCATOR64.size
    if locator_at >= 0 and tail.startswith(b"PK\x06\x07", locator_at):
        _, _, end, _ = _LOCATOR64.unpack_from(tail, locator_at)
        if end > size - _END64.size:
            raise _InvalidDirectoryError("the directory of the zip file is invalid: it ends beyond the end of the file")
        signature, *_, count, length, start = _END64.unpack(os.pread(descriptor, _END64.size, end))
        if signature != b"PK\x06\x06":
            raise _InvalidDirectoryError("the directory of the zip file is invalid: it is not at the declared offset")
    if start + length > end or count * _ENTRY.size > length:
        raise _InvalidDirectoryError("the directory of the zip file is invalid: it ends beyond the end of the file")
    if length > _MAX_HEADER:  # check before the read: a sparse file can have any size
        problem = f"the zip file declares a directory of {length} bytes; the limit is {_MAX_HEADER}"
        raise _InvalidDirectoryError(problem)
    return start, _entries(os.pread(descriptor, length, start), count)


def _entries(directory: bytes, count: int) -> Iterator[tuple[str, int, int, int, int, int]]:
    at = 0
    for _ in range(count):
        fields = _ENTRY.unpack_from(directory, at)
        signature, flags, method, stored, length = fields[0], fields[3], fields[4], fields[8], fields[9]
        name_size, extra_size, comment_size, offset = *fields[10:13], fields[16]
        if signature != b"PK\x01\x02":
            raise _InvalidDirectoryError("the directory of the zip file is invalid: an entry has no signature")
        at += _ENTRY.size
        name = directory[at : at + name_size].decode()
        if _FULL in (stored, length, offset):
            extra = directory[at + name_size : at + name_size + extra_size]
            length, stored, offset = _zip64_values(extra, length, stored, offset)
        at += name_size + extra_size + comment_size
        yield name, flags, method, stored, length, offset


def _zip64_values(extra: bytes, *values: int) -> Iterator[int]:
    """Yield each value; those that do not fit into 32 bits come from the zip64 field."""
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
