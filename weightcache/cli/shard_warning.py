"""Reading the indexes of shards among what is pinned, to say which shards are not."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from weightcache._store.shard_index import MAX_INDEX_BYTES, is_index, missing_shards
from weightcache._transfer.stream import SourceError

if TYPE_CHECKING:
    from collections.abc import Collection

    from .draft import Draft, Pin
    from .hash_remote import Reader


def warn_of_lacking_shards(draft: Draft, reader: Reader, listed: Collection[str] | None) -> None:
    """Warn of each index in a draft that names shards which are not in it.

    Args:
        draft: With its digests.
        reader: For its mirrors.
        listed: Paths in the draft's directory of all files that could be chosen, if that is known.
    """
    for path, pin in draft.pins.items():
        data = _read(draft, reader, path, pin) if is_index(path) else None
        if data is not None and (text := missing_shards(path, data, draft.pins, listed)):
            draft.warn(text)


def _read(draft: Draft, reader: Reader, path: str, pin: Pin) -> bytes | None:
    """Return the pinned bytes of a file. ``None`` if they cannot be had: `ensure` will say so."""
    for url in draft.urls:
        try:
            data = reader.small(url, path if draft.is_directory else "", MAX_INDEX_BYTES)
        except SourceError:
            continue
        if hashlib.sha256(data).hexdigest() == pin.sha256:
            return data
    return None
