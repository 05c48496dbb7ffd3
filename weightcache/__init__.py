"""Pinned, verified model weights on a Modal Volume: downloaded once, there at once.

::

    from weightcache import ensure

    weights = ensure("weights.toml", root="/root/data/weights", volume=volume)
    weights["sam2"]        # a pathlib.Path whose bytes are those that the manifest names

The first container downloads, verifies while it writes, publishes by rename and commits. Every later container reads
one receipt for each checkpoint and stats each file: no network, no lock and no hashing.
`status`, `verify` and `prune` inspect and clean a root; `aensure` is `ensure` for async code; `publish` adds
weights that you trained; `pin` makes a checkpoint of a URL at run time. Every environmental failure is raised as one
of the errors in `weightcache.errors`.
"""

from __future__ import annotations

from ._api import aensure, ensure, publish, status, verify
from ._views.weights import Weights
from .errors import (
    Attempt,
    DownloadError,
    IntegrityError,
    LoadError,
    LockTimeoutError,
    ManifestError,
    NotCachedError,
    StorageError,
    UnknownCheckpointError,
    VolumeError,
    WeightCacheError,
    lazy_imports,
)
from .manifest import Checkpoint, File, Manifest, Tag

__all__ = [
    "Attempt",
    "Checkpoint",
    "CheckpointPlan",
    "CheckpointReport",
    "DownloadError",
    "File",
    "FilePlan",
    "IntegrityError",
    "LoadError",
    "LockTimeoutError",
    "Manifest",
    "ManifestError",
    "NotCachedError",
    "Plan",
    "Prefetch",
    "Publication",
    "Report",
    "Status",
    "StorageError",
    "Tag",
    "Timeline",
    "UnknownCheckpointError",
    "VolumeError",
    "WeightCacheError",
    "Weights",
    "aensure",
    "delete_tag",
    "ensure",
    "pin",
    "prefetch",
    "prefetch_files",
    "prune",
    "publish",
    "set_tag",
    "status",
    "tags",
    "timeline",
    "verify",
]


TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from ._engine.delete_tag import delete_tag
    from ._engine.prune import prune
    from ._engine.tags import Publication, set_tag, tags
    from ._pinning.api import pin
    from ._prefetch.api import Prefetch, prefetch, prefetch_files
    from ._timeline import Timeline, timeline
    from .reports import CheckpointPlan, CheckpointReport, FilePlan, Plan, Report, Status


# The module of each name that a hit does not need: dataclasses, threads and memory maps cost more than a hit.
_LAZY = {
    **dict.fromkeys(("CheckpointPlan", "CheckpointReport", "FilePlan", "Plan", "Report", "Status"), "reports"),
    **dict.fromkeys(("Prefetch", "prefetch", "prefetch_files"), "_prefetch.api"),
    **dict.fromkeys(("Timeline", "timeline"), "_timeline"),
    **dict.fromkeys(("Publication", "set_tag", "tags"), "_engine.tags"),
    "delete_tag": "_engine.delete_tag",
    "pin": "_pinning.api",
    "prune": "_engine.prune",
}


def __getattr__(name: str) -> object:
    if module := _LAZY.get(name):
        from importlib import import_module

        with lazy_imports:
            return getattr(import_module(f".{module}", __name__), name)
    if name == "__version__":  # lazily: importlib.metadata costs more than a hit
        from importlib.metadata import version

        return version("weightcache")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _accept_pickles_of_0_1() -> None:
    """Let pickles of weightcache 0.1 load: they name the private modules in which these classes were defined."""
    import sys

    for name in ("_checkpoint", "_results", "_weights"):
        moved = type(sys)(f"{__name__}.{name}", "Moved to `weightcache`.")
        moved.__dict__["__getattr__"] = lambda attribute: getattr(sys.modules[__name__], attribute)
        sys.modules.setdefault(moved.__name__, moved)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # the lazy ones too


_accept_pickles_of_0_1()
