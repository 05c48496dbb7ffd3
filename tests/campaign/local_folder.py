"""A folder of a campaign's own, in memory where that is possible, and in it the container's own disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def local_folder(prefix: str) -> Iterator[Path]:
    """Make a folder, and let temporary files lie in it: the notes of no other process are seen."""
    kept = os.environ.get("TMPDIR")
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where fsync costs nothing
    with tempfile.TemporaryDirectory(prefix=prefix, dir=in_memory) as folder:
        local = Path(folder, "local")
        local.mkdir()
        os.environ["TMPDIR"], tempfile.tempdir = str(local), None
        try:
            yield Path(folder)
        finally:
            os.environ.pop("TMPDIR")
            if kept is not None:
                os.environ["TMPDIR"] = kept
            tempfile.tempdir = None
