"""Functions of packages that leave no other way in, replaced for a moment."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_replacing = threading.RLock()  # another thread would take what is not meant for it for the original


@contextmanager
def replaced(replacements: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """Replace functions of a package that leaves no other way in, and put them back."""
    with _replacing:
        before = [(module, name, getattr(module, name)) for module, name, _ in replacements]
        try:
            for module, name, function in replacements:
                setattr(module, name, function)
            yield
        finally:
            for module, name, function in before:
                setattr(module, name, function)
