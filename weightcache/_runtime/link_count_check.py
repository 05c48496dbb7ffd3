"""Whether a file system counts the names of an open file.

gVisor keeps the count of a file that another process serves (a mount without an overlay) as it was when the file was
opened: a file whose last name was removed still has one link there. Code that takes a count of zero for "removed" asks
here first.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from functools import cache

from .owned_descriptors import opened


@cache
def link_counts_are_right(folder: str) -> bool:
    """Whether an open file in ``folder`` has no link any more when its name is removed. One small file is made."""
    path = f"{folder}/container.{secrets.token_hex(8)}"  # a name that `remove_old_notes` removes if this is killed
    with suppress(OSError), opened(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o600) as file:
        os.unlink(path)
        return os.fstat(file.number).st_nlink == 0
    return False
