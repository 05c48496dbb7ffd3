"""Best-effort removal of files and directories. What cannot be removed stays and only takes up space."""

from __future__ import annotations

import os
from contextlib import suppress

from weightcache._runtime.owned_descriptors import opened


def remove_tree(path: str) -> None:
    """Remove a file or a directory with everything in it. A link is removed and not followed.

    Not by shutil.rmtree, which lets an error from closing a directory out, and then closes the number again.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError:  # a directory, most likely
        # A tree that is planted may be deeper than Python can go.
        with suppress(OSError, RecursionError), opened(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) as folder:
            for name in os.listdir(folder.number):
                try:
                    os.unlink(name, dir_fd=folder.number)  # of this directory, also if a link takes its place now
                except OSError:
                    remove_tree(f"{path}/{name}")
        with suppress(OSError):
            os.rmdir(path)
