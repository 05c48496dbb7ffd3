"""Warning about shards that an index lists and that are not pinned."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from weightcache._store.shard_index import MAX_INDEX_BYTES, is_index, missing_shards
from weightcache._transfer.mirror_stream import SourceError

if TYPE_CHECKING:
    from collections.abc import Collection

    from .hash_remote import Reader
    from .unpinned_entries import Draft, Pin


def warn_of_missing_shards(draft: Draft, reader: Reader, listed: Collection[str] | None) -> None:
    """Warn about each index in a draft that lists shards which the draft does not have.

    Args:
        draft: With its digests.
        reader: Reads from its mirrors.
        listed: Paths of all files in the repository that could be selected, or ``None`` if they are not known.
    """
    for path, pin in draft.pins.items():
        data = _read(draft, reader, path, pin) if is_index(path) else None
        if data is not None and (text := missing_shards(path, data, draft.pins, listed)):
            draft.warn(text)


def _read(draft: Draft, reader: Reader, path: str, pin: Pin) -> bytes | None:
    """Return the pinned bytes of a file, or ``None`` if no mirror delivers them: `ensure` will report that."""
    for url in draft.urls:
        try:
            data = reader.read_small(url, path if draft.is_directory else "", MAX_INDEX_BYTES)
        except SourceError:
            continue
        if hashlib.sha256(data).hexdigest() == pin.sha256:
            return data
    return None
