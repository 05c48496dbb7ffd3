"""The Dict of a Volume as the store of leases. Each operation has a timeout: a slow Dict must not stop a download."""

from __future__ import annotations

import queue
import sys
import threading
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from weightcache._runtime import tuning_constants as runtime_settings
from weightcache._runtime.start_threads import daemon_threads_allowed

if TYPE_CHECKING:
    from collections.abc import Callable

    from weightcache._runtime.tuning_constants import Settings

    from .lease import Store
    from .volume import Volume


class DictLike(Protocol):
    """What `ensure` needs for a lease; ``modal.Dict`` has it."""

    def put(self, key: str, value: object, *, skip_if_exists: bool = False) -> bool:
        """Write, and say whether the key was written."""
        ...

    def get(self, key: str) -> object:
        """Return the value, or ``None``."""
        ...

    def pop(self, key: str) -> object:
        """Remove the key, or raise ``KeyError``."""
        ...


LeaseSource: TypeAlias = "Literal['auto'] | DictLike | None"


def open_store(source: LeaseSource, volume: Volume, settings: Settings | None = None) -> Store | None:
    """Return the store for leases on ``volume``; ``None`` if leases are off or the Volume is not Modal's.

    Raises:
        Exception: Any error of Modal if the Dict cannot be opened.
    """
    if source is None:
        return None
    limit = (settings or runtime_settings.DEFAULT).dict_timeout
    if source != "auto":
        return _DictStore(source, limit)
    modal: Any = sys.modules.get("modal")  # a program with a modal.Volume has imported it
    if modal is None or not isinstance(volume, modal.Volume):
        return None

    def find() -> DictLike:
        # The id, not the name: a Volume that was deleted and made again is another one.
        volume.hydrate()
        found: DictLike = modal.Dict.from_name(f"weightcache-{volume.object_id}", create_if_missing=True)
        found.get("")  # fails here, not during a download, if this container may not use it
        return found

    return _DictStore(_with_timeout(find, limit), limit)


class _DictStore:
    """A `Store` on a Dict."""

    def __init__(self, found: DictLike, limit: float) -> None:
        self._dict, self._limit = found, limit

    async def get(self, key: str) -> object:
        return _with_timeout(lambda: self._dict.get(key), self._limit)

    async def put(self, key: str, value: object, *, new: bool = False, timeout: float | None = None) -> bool:
        made: bool = _with_timeout(lambda: self._dict.put(key, value, skip_if_exists=new), timeout or self._limit)
        return made

    async def pop(self, key: str) -> object:
        try:
            return _with_timeout(lambda: self._dict.pop(key), self._limit)
        except KeyError:
            return None


def _with_timeout(operation: Callable[[], Any], timeout: float) -> Any:
    """Run ``operation`` in a separate thread, and raise ``TimeoutError`` after ``timeout`` seconds."""
    results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put((operation(), None))
        except BaseException as error:  # noqa: BLE001 (raised again in the caller's thread)
            results.put((None, error))

    threading.Thread(target=work, name="weightcache-dict", daemon=daemon_threads_allowed()).start()
    try:
        result, error = results.get(timeout=timeout)
    except queue.Empty:
        raise TimeoutError(f"no answer within {timeout:g} s") from None
    if error is not None:
        raise error
    return result
