"""What `ensure` and `aensure` do beyond a hit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightcache._coordination.mount_check import check_manifest
from weightcache._spans import in_phase
from weightcache._store.layout import Layout
from weightcache._views.weights import weights_if_ready
from weightcache.errors import NotCachedError
from weightcache.manifest import Tag
from weightcache.reports import Plan

from .dry_run import plan_only
from .run_miss import ensure_on_miss
from .tags import incomplete, load

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Sequence

    from weightcache._views.weights import Weights
    from weightcache.manifest import Checkpoint, WeightSource

    from .ensure_options import EnsureOptions


def on_miss(layout: Layout, checkpoints: Sequence[Checkpoint], options: EnsureOptions) -> Weights | Plan:
    """Make every checkpoint ready, or plan it."""
    return plan_only(layout, checkpoints, options) if options.dry_run else ensure_on_miss(layout, checkpoints, options)


@in_phase("inspect")
def ensure_with(
    source: WeightSource,
    root: str | os.PathLike[str],
    only: Collection[str] | None,
    options: EnsureOptions,
) -> Weights | Plan:
    """Do what `ensure` does, with options that are made and checked already."""
    layout = Layout(root)
    check_manifest(layout.root, source, options.volume)
    reloaded = None if options.dry_run else options.volume
    manifest, warnings = load(source, layout, reloaded, options.cancel.check)
    while True:
        checkpoints = manifest.select(only)
        if not (options.rehash or options.dry_run) and (weights := weights_if_ready(layout, checkpoints)) is not None:
            return weights.with_warnings(warnings)
        try:
            found = on_miss(layout, checkpoints, options)
        except NotCachedError as error:
            if not isinstance(source, Tag):
                raise
            # The miss reloaded. If a prune deleted this version, the tag stands for a later one.
            later, _ = load(source, layout, None)
            if later == manifest:
                raise incomplete(source, layout, checkpoints[0], error) from error
            manifest = later
        else:
            return found if isinstance(found, Plan) else found.with_warnings(warnings)
