"""Where `add` and `pin` keep what they download until it is published in the root."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from weightcache._runtime.writer_identity import Writer
from weightcache._store.layout import Layout
from weightcache._store.partial_directory import STAGED
from weightcache._store.root_checks import refuse_links
from weightcache.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from weightcache.manifest import Checkpoint


class Staging:
    """A directory in a root for downloaded files whose digests are not known yet.

    Attributes:
        files: Path of each downloaded file, by its sha256.
    """

    def __init__(self, layout: Layout, path: str) -> None:
        self.files: dict[str, str] = {}
        self._layout, self._path = layout, path
        self._count = 0

    def new_path(self) -> str:
        """Return a path to download the next file to."""
        self._count += 1
        return f"{self._path}/{self._count}.kept"

    def publish(self, checkpoints: Sequence[Checkpoint], *, quiet: bool) -> None:
        """Publish checkpoints in the root: move the downloaded files there, and download the others."""
        from weightcache._engine.ensure_options import EnsureOptions
        from weightcache._engine.run_miss import ensure_on_miss
        from weightcache._views.weights import weights_if_ready

        with_urls = [checkpoint for checkpoint in checkpoints if checkpoint.urls]
        if weights_if_ready(self._layout, with_urls) is None:
            options = EnsureOptions(
                lease=None, progress=False if quiet else None, local_sources=self.files, may_link=True
            )
            ensure_on_miss(self._layout, with_urls, options)


@contextmanager
def open_staging(root: str | None) -> Iterator[Staging | None]:
    """Make a staging directory in ``root`` and remove it afterwards; ``None`` without a root."""
    if not root:
        yield None
        return
    layout = Layout(root)
    with Writer.new(layout.root) as writer:
        # Among the partials, where the next process removes it if this one is killed.
        path = f"{layout.partials}/{STAGED}.{writer}"
        refuse_links(layout, layout.partials)
        try:
            os.makedirs(path)
        except OSError as error:
            raise StorageError.of(error, "write to", path) from None
        try:
            yield Staging(layout, path)
        finally:
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):  # leave no empty directories if nothing was published
                os.rmdir(layout.partials)
                os.rmdir(layout.home)
