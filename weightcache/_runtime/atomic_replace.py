"""Replace a file at once: a reader sees the old content or the new content, and never a part of it."""

from __future__ import annotations

import os
from contextlib import suppress

from .owned_descriptors import opened


def replace_file(path: str, data: bytes, temporary: str, *, durable: bool) -> None:
    """Write ``data`` to ``temporary``, and rename it to ``path``.

    Args:
        path: The file to replace or create.
        data: The new content.
        temporary: A path on the same file system that no other writer uses. It is removed if anything fails.
        durable: Whether the data must be on the disk before the rename. Without it, a crash may leave an empty file.

    Raises:
        OSError: It could not be written or renamed. ``path`` is as it was.
    """
    try:
        with opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as stream:
            stream.write(data)
            if durable:
                os.fsync(stream.number)
            stream.close()  # some file systems report here that they did not keep what was written
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise
