"""Containers that publish and serve weights by a tag, each with its own view of one Volume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from volume_model import View, Volume
from weightcache import Tag, ensure, prune, publish

TAG = Tag("tagger", poll=0)
ONE, TWO, THREE = b"the first", b"the second", b"the third"


class Container:
    """One container: its view of the Volume, and what it does before its n-th commit or reload."""

    def __init__(self, shared: Volume, folder: Path) -> None:
        self.view, self.folder = View(shared, folder / "view"), folder
        self.root = self.view.root
        self.calls = 0
        self.before: dict[int, Callable[[], object]] = {}

    def _call(self) -> None:
        self.calls += 1
        if act := self.before.pop(self.calls, None):
            act()

    def commit(self) -> None:
        """As the client does it: it commits, and then reloads."""
        self._call()
        self.view.commit()
        self.view.reload()

    def reload(self) -> None:
        self._call()
        self.view.reload()

    def publish(self, data: bytes, **options: Any) -> Any:
        (self.folder / "model.bin").write_bytes(data)
        return publish(self.folder / "model.bin", name="tagger", root=self.root, volume=self, tag="newest", **options)

    def serve(self, tag: Tag = TAG) -> bytes:
        return ensure(tag, root=self.root, volume=self, lease=None)["tagger"].read_bytes()

    def prune(self, **options: Any) -> list[str]:
        paths = prune(TAG, root=self.root, volume=self, older_than=0, **options)
        return [str(path.relative_to(self.root)) for path in paths]


Make = Callable[[], Container]
