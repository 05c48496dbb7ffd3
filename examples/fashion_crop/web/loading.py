"""Load the models in a thread, while the server already answers."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from weightcache import WeightCacheError

from .errors import ServiceError
from .metrics import Metrics
from .work import Workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from .backend import Backend
    from .settings import Settings

LOADING = 2  # seconds after which to ask again

_log = logging.getLogger(__name__)


class Service:
    """The models, once they are loaded, the worker threads and the metrics."""

    def __init__(self, load: Backend | Callable[[], Backend], settings: Settings) -> None:
        self.settings, self.workers = settings, Workers(settings.workers)
        self._load = load if callable(load) else None
        self._backend = None if callable(load) else load
        self._failure = ""
        self.metrics = Metrics(self.workers.statistics, self.phases)

    def begin(self) -> None:
        """Start to load the models, unless they are there."""
        if self._load is not None:
            # A daemon, so that a server that is ended while it loads does end.
            threading.Thread(target=self.load, args=(self._load,), name="fashion-load", daemon=True).start()

    def load(self, load: Callable[[], Backend]) -> None:
        """Load the models, or store the reason of the failure."""
        try:
            self._backend = load()
        except (WeightCacheError, ImportError) as error:  # which are written for people
            _log.error("the models cannot be loaded: %s", error)
            self._failure = str(error)
        except Exception as error:  # noqa: BLE001 (the server keeps running and reports it)
            _log.exception("the models cannot be loaded")
            self._failure = f"{type(error).__name__}, of which the server's log says more"

    def backend(self) -> Backend:
        """Return the models.

        Raises:
            ServiceError: They are not loaded yet, or loading failed.
        """
        if self._failure:
            raise ServiceError(503, "loading-failed", f"the models cannot be loaded: {self._failure}")
        if self._backend is None:
            text = f"the models are being loaded: try again in {LOADING} seconds"
            raise ServiceError(503, "loading", text, headers={"Retry-After": str(LOADING)})
        return self._backend

    def phases(self) -> dict[str, float] | None:
        """Return the seconds of each phase of the cold start; ``None`` while the models are not loaded."""
        return None if self._backend is None else dict(self._backend.phases)
