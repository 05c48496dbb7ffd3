"""Which classes and functions a pickle names, read without running any of it."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Iterable

_DTYPE = re.compile(r"[|<>=]?[?a-zA-Z]\d{0,10}")
LONGEST = 64 << 20  # bytes of a pickle that are read: a minute


class Pickled(NamedTuple):
    """What a pickle says.

    Attributes:
        protocol: Its protocol.
        names: Module and name of each class and function, in their order.
        dtypes: What it makes dtypes of numpy of, as in ``"f8"``.
    """

    protocol: int
    names: tuple[tuple[str, str], ...]
    dtypes: tuple[str, ...]


def scan(data: bytes, *, before: int = 0) -> Pickled:
    """Read a pickle; what cannot be read ends it early.

    Args:
        data: The pickle, or the beginning of a file.
        before: How many pickles are before it.
    """
    file = io.BytesIO(data[:LONGEST])
    protocol, names, dtypes = 0, dict[tuple[str, str], None](), dict[str, None]()
    memo: dict[Any, Any] = {}
    last: Any = None  # what the last operation pushed, as far as it matters here
    in_dtype = False
    with suppress(Exception):  # cut off, no pickle, or crafted
        for _ in range(before):
            for _ in pickletools.genops(file):
                pass
        for operation, argument, _ in pickletools.genops(file):
            code, value = operation.name, cast("Any", argument)
            if code == "PROTO":
                protocol = value
            elif code in {"GLOBAL", "INST"}:
                module, _, name = value.partition(" ")
                names[module, name] = None
                last = module, name
            elif code in {"BINPUT", "LONG_BINPUT", "PUT"}:
                memo[value] = last
                continue
            elif code in {"BINGET", "LONG_BINGET", "GET"}:
                last = memo.get(value)
            else:
                last = value
            if in_dtype and isinstance(last, str) and _DTYPE.fullmatch(last):
                dtypes[last] = None
            in_dtype = last == ("numpy", "dtype")
    return Pickled(protocol, tuple(names), tuple(dtypes))


def refused(torch: Any, names: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return those of ``names`` that PyTorch does not allow, nor the program.

    PyTorch is asked with a pickle that names them and does nothing with them.
    """
    every = list(names)
    pickle = b"\x80\x02" + b"".join(f"c{module}\n{name}\n".encode() for module, name in every) + b"N."
    asked = io.BytesIO()
    with zipfile.ZipFile(asked, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/version", "3\n")
    asked.seek(0)
    unsafe = set(torch.serialization.get_unsafe_globals_in_checkpoint(asked))
    known = [pair for pair in every if ".".join(pair) in unsafe]
    # PyTorch calls by its present name what Python 2 called otherwise, as in __builtin__.
    renamed = unsafe - {".".join(pair) for pair in known}
    return known + [(module, name) for module, _, name in (each.rpartition(".") for each in sorted(renamed))]
