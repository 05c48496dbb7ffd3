"""What the service knows of the models that it runs, and a way to load them without Modal.

``app.py`` loads the models on its own; `start` does the same for ``make fashion``, the benchmarks and the tests.
"""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import weightcache
from fashion_crop.models.pipeline import Pipeline
from weightcache import Manifest, prefetch
from weightcache.torch import skip_init

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from weightcache import Prefetch, Timeline

SEGMENTERS = ("large", "base-plus", "small", "tiny")  # as in `models.sam`, which takes seconds to import
PACKAGES = ("weightcache", "torch", "torchvision", "transformers", "groundingdino-py", "sam2")


@dataclass
class Backend:
    """The loaded models and facts about them.

    Attributes:
        pipeline: Turns a photo into garments.
        weights: The sha256 of each checkpoint (of a directory: its digest), by name.
        phases: Seconds of each phase of the cold start, as `weightcache.timeline` names them. ``prefetch`` runs in
            parallel with the others; ``ready`` is the total. In a container that was restored from a memory snapshot
            they are about the time after it, and ``before snapshot`` is the total of the time before.
        versions: Versions of the packages that affect results.
        device: Device of the models, as torch names it.
        segmenter: The size of SAM 2, one of `SEGMENTERS`.
        stand_ins: Whether the weights are random numbers.
    """

    pipeline: Pipeline
    weights: Mapping[str, str] = field(default_factory=dict)
    phases: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    segmenter: str = "large"
    stand_ins: bool = False


def checkpoints(segmenter: str) -> list[str]:
    """Return the names of the checkpoints that a size of SAM 2 needs."""
    return ["groundingdino", "bert-base-uncased", f"sam2-{segmenter}"]


def describe(
    pipeline: Pipeline,
    manifest: Manifest,
    timeline: Timeline,
    segmenter: str = "large",
    device: str = "cpu",
    *,
    stand_ins: bool = False,
) -> Backend:
    """Return loaded models with the facts about them.

    Args:
        pipeline: The loaded models.
        manifest: It declares their weights, and may declare others.
        timeline: Of their start.
        segmenter: The size of SAM 2, one of `SEGMENTERS`.
        device: Device of the models, such as ``"cuda"``.
        stand_ins: Whether the weights are random numbers.
    """
    return Backend(
        pipeline=pipeline,
        weights={name: manifest[name].digest for name in checkpoints(segmenter)},
        phases=_seconds(timeline),
        versions=_versions(),
        device=device,
        segmenter=segmenter,
        stand_ins=stand_ins,
    )


def start(
    manifest: Manifest | str | os.PathLike[str],
    *,
    root: str | os.PathLike[str],
    reading: Prefetch | None = None,
    device: str = "cpu",
    segmenter: str = "large",
    stand_ins: bool = False,
) -> Backend:
    """Load the two models.

    Args:
        manifest: As for `weightcache.ensure`, with the `checkpoints` of the segmenter.
        root: Directory of the weights.
        reading: A running prefetch ``into="memory"`` of the manifest; by default one starts here. It is closed here.
        device: Device of the models, such as ``"cuda"``.
        segmenter: The size of SAM 2, one of `SEGMENTERS`.
        stand_ins: Whether the checkpoints are those of `fashion_crop.benchmarks.stand_ins`.

    Raises:
        WeightCacheError: The weights are not available, or belong to other models.
        ImportError: A package of the models is not installed.
    """
    timeline = weightcache.timeline()  # that of the program, if it began one
    manifest = Manifest.load(manifest)
    only = checkpoints(segmenter)
    size = "stand-in" if stand_ins else "full"
    reading = reading or prefetch(manifest, root=root, only=only, into="memory")
    with reading, _gc_paused():
        weights = weightcache.ensure(manifest, root=root, only=only)
        grounding_dino, sam = _import_models()
        with skip_init():
            detector = grounding_dino.build(weights["bert-base-uncased"], size)
            model = sam.build(segmenter, size)
        with timeline.phase("load"):
            grounding_dino.load(detector, weights["groundingdino"], prefetched=reading)
            sam.load(model, weights[f"sam2-{segmenter}"], prefetched=reading)
        pipeline = Pipeline(grounding_dino.GroundingDino(detector, size=size), sam.Sam2(model))
    with timeline.phase("to device"):
        pipeline.to(device)
    return describe(pipeline, manifest, timeline.ready(), segmenter, device, stand_ins=stand_ins)


def _seconds(timeline: Timeline) -> dict[str, float]:
    measured = timeline.as_dict()
    phases = measured["phases"]
    seconds = {name: phase["seconds"] for name, phase in phases.items() if phase["seconds"]}
    prefetched = phases.get("prefetch", {"parallel_seconds": 0.0})
    before = {"before snapshot": measured["before_snapshot"]["ready"]} if "before_snapshot" in measured else {}
    return {
        **seconds,
        **before,
        "other": measured["other"],
        "prefetch": prefetched["parallel_seconds"],
        "ready": measured["ready"],
    }


@contextmanager
def _gc_paused() -> Iterator[None]:
    """Pause garbage collection: it would scan a million live objects, which takes over a second of a start.

    At the end the live objects are frozen, so that later collections skip them.
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
    # Without it transformers asks the Hub for more files. It reads the variable once, at its import.
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from fashion_crop.models import grounding_dino, sam  # noqa: PLC0415 (takes seconds; the prefetch must start first)
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
