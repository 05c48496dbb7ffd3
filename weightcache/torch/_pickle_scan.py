"""Find which classes and functions a pickle names, without running it."""

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
MAX_PICKLE_BYTES = 64 << 20  # scanning more would take over a minute


class PickleSummary(NamedTuple):
    """What a pickle would import.

    Attributes:
        protocol: The pickle protocol.
        names: Module and name of each class and function, in their order.
        dtypes: The codes from which it creates numpy dtypes, such as ``"f8"``.
    """

    protocol: int
    names: tuple[tuple[str, str], ...]
    dtypes: tuple[str, ...]


def scan_pickle(data: bytes, *, before: int = 0) -> PickleSummary:
    """Scan a pickle up to its end or to the first operation that cannot be read.

    Args:
        data: The pickle, or the start of a file with several.
        before: Number of pickles to skip.
    """
    file = io.BytesIO(data[:MAX_PICKLE_BYTES])
    protocol, names, dtypes = 0, dict[tuple[str, str], None](), dict[str, None]()
    memo: dict[Any, Any] = {}
    last: Any = None  # what the last operation pushed: a global, or a string
    in_dtype = False
    with suppress(Exception):  # truncated, no pickle, or crafted
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
    return PickleSummary(protocol, tuple(names), tuple(dtypes))


def disallowed(torch: Any, names: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return those of ``names`` that neither PyTorch nor ``safe_globals`` allows.

    PyTorch checks a pickle that only names them.
    """
    every = list(names)
    pickle = b"\x80\x02" + b"".join(f"c{module}\n{name}\n".encode() for module, name in every) + b"N."
    probe = io.BytesIO()
    with zipfile.ZipFile(probe, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/version", "3\n")
    probe.seek(0)
    unsafe = set(torch.serialization.get_unsafe_globals_in_checkpoint(probe))
    known = [pair for pair in every if ".".join(pair) in unsafe]
    # PyTorch reports names of Python 2, such as __builtin__, by their names in Python 3.
    renamed = unsafe - {".".join(pair) for pair in known}
    return known + [(module, name) for module, _, name in (each.rpartition(".") for each in sorted(renamed))]
