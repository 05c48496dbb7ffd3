"""The entries of a Modal Dict for a `Lease`, which may fail; and a clock that tests move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from weightcache._coordination import kv
from weightcache._coordination.lease import Lease


class FakeDict(dict[str, Any]):
    """A `modal.Dict` in memory. ``faults`` are raised one after the other, before or after the operation."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.log: list[str] = []

    def _do(self, name: str, key: str, operation: Callable[[], Any]) -> Any:
        self.log.append(f"{name} {key.rpartition('/')[2]}")
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "before":
            raise ConnectionError("the Dict is away")
        result = operation()
        if fault == "after":
            raise ConnectionError("the answer is lost")
        return result

    def put(self, key: str, value: object, *, skip_if_exists: bool = False) -> bool:
        def put() -> bool:
            if skip_if_exists and key in self:
                return False
            self[key] = value
            return True

        return bool(self._do("put", key, put))

    def get(self, key: str) -> Any:  # type: ignore[override]
        return self._do("get", key, lambda: super(FakeDict, self).get(key))

    def pop(self, key: str) -> Any:  # type: ignore[override]
        def pop() -> Any:
            if key not in self:
                raise KeyError(key)
            return super(FakeDict, self).pop(key)

        return self._do("pop", key, pop)


class Time:
    """A clock that goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


def lease(found: FakeDict, clock: Time, me: str, wait: float = 300.0, **more: Any) -> Lease:
    store = kv.open_store(found, object())  # type: ignore[arg-type]
    assert store is not None
    return Lease(store, clock, me, wait=wait, **more)
