"""A cold start: from weights on a Volume to two models in memory, and how long each part of it took.

The order is what makes it fast. First the reading begins, in the background. `ensure` tells whether what is there is
what the manifest names, and downloads what is missing. Then Python imports torch and the two packages, which takes
seconds and otherwise leaves the disk idle. The models are built without random numbers, and given their weights without
a copy.
"""

from __future__ import annotations

import gc
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import weightcache
from weightcache import Manifest, prefetch
from weightcache.torch import skip_init

from .pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from weightcache import Prefetch, Weights

PACKAGES = ("weightcache", "torch", "torchvision", "transformers", "groundingdino-py", "sam2")


@dataclass
class Backend:
    """What a service serves.

    Attributes:
        pipeline: From a photo to crops.
        weights: The sha256 of each checkpoint (of a directory: its digest), by name.
        phases: Seconds of each part of the cold start. ``prefetch`` is from its beginning until its last byte, beside
            the others; ``ready`` is all of it. After a snapshot of memory they are of the start that it was taken of.
        versions: Of the packages that decide what is found.
        device: What the models run on, as torch names it.
        stand_ins: Whether the weights are random numbers.
    """

    pipeline: Pipeline
    weights: Mapping[str, str] = field(default_factory=dict)
    phases: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    stand_ins: bool = False


def start(
    manifest: Manifest | str | os.PathLike[str],
    *,
    root: str | os.PathLike[str],
    volume: Any = None,
    reading: Prefetch | None = None,
    ensure: Callable[[], Weights] | None = None,
    device: str = "cpu",
    stand_ins: bool = False,
    began: float | None = None,
) -> Backend:
    """Make the two models ready.

    Args:
        manifest: What `weightcache.ensure` takes: ``groundingdino``, ``sam2`` and ``bert-base-uncased``.
        root: Where they are kept, such as the directory at which a Volume is mounted.
        volume: The Modal Volume mounted there, if it is one.
        reading: A prefetch ``into="memory"`` of the same manifest that was begun earlier; else it begins here. It is
            closed here.
        ensure: What brings the weights instead of `weightcache.ensure`, such as ``WeightVolume.ensure``.
        device: Where the models run, such as ``"cuda"``.
        stand_ins: Whether the checkpoints are those of `fashion_crop.models.stand_ins`.
        began: What `time.perf_counter` told when the start began, if that was before this call: what lies between were
            imports.

    Raises:
        WeightCacheError: The weights cannot be had, or are not those of these models.
        ImportError: What the models need is not installed.
    """
    phases = Phases(began)
    manifest = Manifest.load(manifest)
    reading = reading or prefetch(manifest, root=root, into="memory")
    with reading, _no_garbage():
        with phases.of("look"):
            weights = ensure() if ensure else weightcache.ensure(manifest, root=root, volume=volume)
        if any(report.outcome != "hit" for report in weights.report.values()):
            phases.rename("look", "download")
        with phases.of("imports"):
            grounding_dino, sam = _import_models()
        size = "stand-in" if stand_ins else "full"
        with phases.of("build"), skip_init():
            detector = grounding_dino.build(weights["bert-base-uncased"], size)
            segmenter = sam.build(size)
        with phases.of("load"):
            grounding_dino.load(detector, weights["groundingdino"], prefetched=reading)
            sam.load(segmenter, weights["sam2"], prefetched=reading)
            pipeline = Pipeline(
                grounding_dino.GroundingDino(detector, size=size, device=device), sam.Sam2(segmenter, device=device)
            )
        phases.seconds["prefetch"] = reading.stats.seconds
    return Backend(
        pipeline=pipeline,
        weights={checkpoint.name: checkpoint.digest for checkpoint in manifest},
        phases=phases.until_ready(),
        versions=_versions(),
        device=device,
        stand_ins=stand_ins,
    )


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Let Python not look for garbage among a million objects of which none is: that is a second and more of a start.

    Nor will it look through those that are there in the end when it collects between two photos.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def _import_models() -> tuple[Any, Any]:
    # transformers would look on the Hub for files beside those it was given. It reads this once, when it is imported.
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from .models import grounding_dino, sam  # noqa: PLC0415 (seconds, beside which the disk is read)
    except ImportError as error:
        raise ImportError(
            f"the models cannot be imported ({error}): install torch, then requirements.txt, then "
            "requirements-without-dependencies.txt, as the README of fashion_crop says",
            name=error.name,
        ) from error
    return grounding_dino, sam


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # a source checkout that was copied into an image has no metadata
            continue
    return versions


class Phases:
    """How long each part of a cold start takes, in seconds."""

    NAMES = ("look", "download", "prefetch", "imports", "build", "load")

    def __init__(self, began: float | None = None) -> None:
        now = time.perf_counter()
        self._began = now if began is None else began
        self.seconds = dict.fromkeys(self.NAMES, 0.0) | {"imports": now - self._began}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Time what is in the block."""
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began

    def rename(self, name: str, right: str) -> None:
        """Move the time of one phase to another."""
        self.seconds[right], self.seconds[name] = self.seconds[name], 0.0

    def until_ready(self) -> dict[str, float]:
        """Return all of them, and from the beginning until now as ``ready``."""
        return {**self.seconds, "ready": time.perf_counter() - self._began}
