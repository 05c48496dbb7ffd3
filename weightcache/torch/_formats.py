"""What kind of file it is, by its first bytes, and whether its directory can be believed.

PyTorch maps a zip file and then believes it: a compressed record would be taken for numbers, and a size that the
pickle claims is not compared with the record's. So the directory is checked here, before PyTorch sees the file.

Not by Python's zipfile: it forgives bytes in front of an archive, and then reads the directory that lies before the
end, where PyTorch reads the one that the end names. Two readers that see two directories are what a forger wants.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from typing import TYPE_CHECKING, Literal, NamedTuple

from weightcache._store.file_kind import HEAD, foreign_content
from weightcache.errors import LoadError

from ._strangers import FETCH_AGAIN, foreign_zip, old_protocol, protocol_error, stranger

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind = Literal["zip", "legacy", "safetensors"]

_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format, and ours for the directory of a zip file

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LONGEST_COMMENT = 0xFFFF
_LOCAL_HEADER = 30  # bytes before the name
_FULL = 0xFFFFFFFF  # the value is in the zip64 field
_ENCRYPTED = 0x1


class Archive(NamedTuple):
    """A zip file that torch.save can have written.

    Attributes:
        sizes: How long its records are, in bytes, each as often as there are records of that length.
        pickled: Where its pickle is: the offset of the record's header, and the length of its data in bytes.
    """

    sizes: Counter[int]
    pickled: tuple[int, int]


def kind_of(descriptor: int, size: int, path: str) -> Kind:
    """Return what the open file is, by its first bytes; its suffix says nothing.

    Raises:
        LoadError: It is none of the three kinds.
    """
    head = os.pread(descriptor, HEAD, 0)
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if (protocol := old_protocol(head)) is not None:
        if protocol not in {2, 3}:  # 3 has more, but nothing more that a state dict needs
            raise protocol_error(path, protocol)
        return "legacy"
    if head[8:9] != b"{":
        raise stranger(descriptor, head, path)
    length = int.from_bytes(head[:8], "little")
    if length <= min(size - 8, _LONGEST_HEADER):
        return "safetensors"
    if foreign_content(head, name=""):  # text in which the ninth character is a brace
        raise stranger(descriptor, head, path)
    says = f"says that its header has {length} bytes"
    if length > size - 8:
        problem = f"{says}; it has {size} in all, and {_LONGEST_HEADER} are the limit"
        raise LoadError(path, [problem], hint=FETCH_AGAIN)
    problem = f"{says}, and {_LONGEST_HEADER} are the limit of the format, which every reader of it has"
    raise LoadError(path, [problem], hint="save the tensors to several files, or with less metadata")


def check_zip(descriptor: int, size: int, path: str) -> Archive:
    """Return what is in a zip file that torch.save can have written.

    Raises:
        LoadError: The file is cut off, its directory lies, or it is a zip file of another kind.
    """
    try:
        start, entries = _directory(descriptor, size)
        records = list(entries)
    except (struct.error, UnicodeDecodeError) as error:
        problem = f"the directory of the zip file cannot be read ({error})"
        raise LoadError(path, [problem], hint=FETCH_AGAIN) from error
    except _BadDirectoryError as error:
        raise LoadError(path, [str(error)], hint=FETCH_AGAIN) from error
    for name, flags, method, stored, length, _ in records:
        if flags & _ENCRYPTED or method != 0 or stored != length:
            hint = "save it again with torch.save; packing an unpacked one with another program compresses it"
            found = foreign_zip([record[0] for record in records], path)
            raise found or LoadError(path, [f"{name} is compressed or encrypted"], hint=hint)
    spans = sorted((offset, offset + _LOCAL_HEADER + len(name) + length) for name, *_, length, offset in records)
    ends = [0, *(end for _, end in spans)]
    if ends[-1] > start or any(begin < end for (begin, _), end in zip(spans, ends, strict=False)):
        raise LoadError(path, ["the directory of the zip file lies: records overlap"], hint=FETCH_AGAIN)
    names = [name for name, *_ in records]
    if len(set(names)) != len(names):
        raise LoadError(path, ["the directory of the zip file lies: a name is there twice"], hint=FETCH_AGAIN)
    if found := foreign_zip(names, path):
        raise found
    pickle = f"{names[0].partition('/')[0]}/data.pkl"
    where = next((offset, length) for name, *_, length, offset in records if name == pickle)
    return Archive(Counter(length for *_, length, _ in records), where)


def read_pickle(descriptor: int, archive: Archive) -> bytes:
    """Return the pickle in the archive; less of it, or something else, if a record's own header lies."""
    header, length = archive.pickled
    sizes = os.pread(descriptor, 4, header + 26)  # of the name and of what follows it
    begin = header + _LOCAL_HEADER + sum(struct.unpack("<2H", sizes)) if len(sizes) == 4 else header
    return os.pread(descriptor, min(length, _LONGEST_HEADER), begin)


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
