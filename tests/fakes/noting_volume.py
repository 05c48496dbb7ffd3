"""A Volume that notes each commit and reload, with what the root holds at that moment."""

from __future__ import annotations

from pathlib import Path

from support import visible


class Volume:
    """Notes each call with what the root holds at that moment; may fail."""

    def __init__(self, root: Path, **failures: int) -> None:
        self.root, self.failures = root, failures
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        receipts = list(self.root.glob(".weightcache/receipts/*/*.json"))
        self.calls.append(f"{name}: {len(visible(self.root))} published, {len(receipts)} receipts")
        if self.failures.get(name, 0):
            self.failures[name] -= 1
            raise RuntimeError("there are open files preventing the operation")

    def commit(self) -> None:
        self._call("commit")

    def reload(self) -> None:
        self._call("reload")
