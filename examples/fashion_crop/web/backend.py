"""A cold start: load two models from weights on a Volume, and measure each part.

The order makes it fast. First a background prefetch begins. `ensure` verifies the files and downloads missing ones.
Then Python imports torch and the two packages: this takes seconds, and the prefetch reads at the same time. The models
are built without random initialization, and get their weights without a copy.
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
    from collections.abc import Callable, Iterator, Mapping

    from weightcache import Prefetch, Timeline, Weights

PACKAGES = ("weightcache", "torch", "torchvision", "transformers", "groundingdino-py", "sam2")


@dataclass
class Backend:
    """The loaded models and facts about them.

    Attributes:
        pipeline: Turns a photo into crops.
        weights: The sha256 of each checkpoint (of a directory: its digest), by name.
        phases: Seconds of each phase of the cold start, as `weightcache.timeline` names them. ``prefetch`` runs in
            parallel with the others; ``ready`` is the total. After a restore from a memory snapshot they describe the
            start before the snapshot.
        versions: Versions of the packages that affect results.
        device: Device of the models, as torch names it.
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
    segmenter: str = "large",
    stand_ins: bool = False,
) -> Backend:
    """Load the two models.

    Args:
        manifest: As for `weightcache.ensure`, with the `checkpoints` of the segmenter; others are left alone.
        root: Directory of the weights, such as the mount path of a Volume.
        volume: The Modal Volume mounted at ``root``, if any.
        reading: A running prefetch ``into="memory"`` of the manifest; by default one starts here. It is closed here.
        ensure: Replaces `weightcache.ensure`, for example ``WeightVolume.ensure``.
        device: Device of the models, such as ``"cuda"``.
        segmenter: Variant of SAM 2: ``"large"``, ``"base-plus"``, ``"small"`` or ``"tiny"``.
        stand_ins: Whether the checkpoints are those of `fashion_crop.benchmarks.stand_ins`.

    Raises:
        WeightCacheError: The weights are not available, or belong to other models.
        ImportError: A package of the models is not installed.
    """
    timeline = weightcache.timeline()  # that of the program, if it began one
    declared = Manifest.load(manifest)
    manifest = Manifest(declared.select(checkpoints(segmenter)), declared.source)
    reading = reading or prefetch(manifest, root=root, into="memory")
    with reading, _gc_paused():
        weights = ensure() if ensure else weightcache.ensure(manifest, root=root, volume=volume)
        size = "stand-in" if stand_ins else "full"
        pipeline = _load_pipeline(timeline, weights, reading, variant=segmenter, size=size, device=device)
    timeline.ready()
    return Backend(
        pipeline=pipeline,
        weights={checkpoint.name: checkpoint.digest for checkpoint in manifest},
        phases=_seconds(timeline),
        versions=_versions(),
        device=device,
        stand_ins=stand_ins,
    )


def checkpoints(segmenter: str = "large") -> tuple[str, ...]:
    """Return the names of the checkpoints that are loaded with a variant of SAM 2."""
    return "groundingdino", f"sam2-{segmenter}", "bert-base-uncased"


def _load_pipeline(
    timeline: Timeline, weights: Weights, reading: Prefetch, *, variant: str, size: str, device: str
) -> Pipeline:
    grounding_dino, sam = _import_models()
    with skip_init():
        detector = grounding_dino.build(weights["bert-base-uncased"], size)
        segmenter = sam.build(variant, size)
    with timeline.phase("load"):
        grounding_dino.load(detector, weights["groundingdino"], prefetched=reading)
        sam.load(segmenter, weights[f"sam2-{variant}"], prefetched=reading)
    with timeline.phase("to device"):
        return Pipeline(
            grounding_dino.GroundingDino(detector, size=size, device=device), sam.Sam2(segmenter, device=device)
        )


def _seconds(timeline: Timeline) -> dict[str, float]:
    measured = timeline.as_dict()
    phases = measured["phases"]
    seconds = {name: phase["seconds"] for name, phase in phases.items() if phase["seconds"]}
    prefetched = phases.get("prefetch", {"parallel_seconds": 0.0})
    return {
        **seconds,
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
