"""One round of the protocol on a miss. tests/simulation/test_simulation.py runs it among many containers."""

from __future__ import annotations

from typing import Any

from lease_dict import FakeDict, Time, lease
from weightcache._engine.miss_protocol import reconcile, run_sync

X = "a" * 64


class Served:
    """A container that misses one checkpoint until it reloads its Volume. What it is asked to do is noted."""

    def __init__(self) -> None:
        self.left, self.asked = [X], list[str]()

    def __getattr__(self, name: str) -> Any:
        async def step(*arguments: Any) -> bool:
            self.asked.append(name)
            return name == "can_write"

        return step

    async def missing(self) -> list[str]:
        return self.left

    async def reload(self) -> None:
        self.left = []


def test_what_a_reload_shows_is_neither_installed_nor_waited_for() -> None:
    host: Any = Served()
    found = FakeDict()
    assert run_sync(reconcile(host, lease(found, Time(), "a"), Time())) == []
    assert host.asked == ["is_dirty", "can_write"]
    assert found == {}
