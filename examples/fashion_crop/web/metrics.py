"""The numbers of `GET /metrics`, in the text format of Prometheus.

Each app has its own registry, so that two apps of a process do not mix. No label has a value that a client chooses:
every such value would be a new time series, and memory that is never freed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from anyio import CapacityLimiterStatistics
    from prometheus_client.core import Metric

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
STAGES = ("waiting", "decoding", "detection", "segmentation", "encoding")
OTHER = "other"  # the route of a request for a path that does not exist
CANCELLED = 499  # the status of a request whose client disconnects, or reads too slowly; nginx uses this number too
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80)  # of stages; a CPU takes 20 s a photo


class Metrics:
    """Counts requests and measures stages.

    Args:
        workers: Returns how many photos wait and how many are worked on.
        phases: Returns the seconds of each phase of the cold start, or ``None`` before its end.
    """

    def __init__(
        self, workers: Callable[[], CapacityLimiterStatistics], phases: Callable[[], Mapping[str, float] | None]
    ) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "fashion_crop_requests",
            f"Requests by route and status; {CANCELLED} if the client disconnects or reads too slowly.",
            ["route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "fashion_crop_stage_seconds",
            "Seconds of each stage of the work on a photo.",
            ["stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        for stage in STAGES:  # so that a rate is 0 before the first photo, not absent
            self._seconds.labels(stage)
        self._registry.register(_State(workers, phases))

    def count(self, route: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()

    def observe(self, stage: str, seconds: float) -> None:
        """Add the time of a stage, one of `STAGES`."""
        self._seconds.labels(stage).observe(seconds)

    def as_text(self) -> bytes:
        """Return all numbers. Call it on the event loop, on which the workers are counted."""
        return generate_latest(self._registry)


class _State(Collector):
    """Gauges whose values are read when they are asked for."""

    def __init__(
        self, workers: Callable[[], CapacityLimiterStatistics], phases: Callable[[], Mapping[str, float] | None]
    ) -> None:
        self._workers, self._phases = workers, phases

    def describe(self) -> list[Metric]:
        """Name nothing, so that registering asks for no value: there may be no event loop yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Return the gauges."""
        workers, phases = self._workers(), self._phases()
        yield GaugeMetricFamily(
            "fashion_crop_photos_waiting", "Photos that wait for a worker.", value=workers.tasks_waiting
        )
        yield GaugeMetricFamily(
            "fashion_crop_photos_running", "Photos that are worked on.", value=workers.borrowed_tokens
        )
        yield GaugeMetricFamily("fashion_crop_ready", "1 if the models are loaded, else 0.", value=phases is not None)
        start = GaugeMetricFamily(
            "fashion_crop_start_seconds",
            "Seconds of each phase of the cold start, or of the one that a snapshot was taken of; ready is the total.",
            labels=["phase"],
        )
        for phase, seconds in (phases or {}).items():
            start.add_metric([phase], seconds)
        yield start
