"""``weightcache ensure --dry-run``: the plan of an `ensure`, as a table or as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import weightcache

from .output import print_json, print_lines
from .shared_flags import source_of

if TYPE_CHECKING:
    import argparse

    from weightcache import Plan


def dry_run(options: argparse.Namespace) -> int:
    """Print what `ensure` would do; return 1 if it would raise `NotCachedError`, else 0."""
    source, names = source_of(options)
    plan = weightcache.ensure(
        source,
        root=options.root,
        volume=options.mounted,
        only=names,
        offline=options.offline,
        rehash=options.rehash,
        dry_run=True,
    )
    if options.json:
        print_json(options, {"dry_run": True, **to_json(plan)})
    else:
        print_lines(str(plan))
    return 1 if any(each.blocked for each in plan.values()) else 0


def to_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON types, with what its properties add up."""
    rows = []
    for each in plan.values():
        totals = {"action": each.action, "bytes_to_fetch": each.bytes_to_fetch}
        rows.append({**asdict(each), **totals, "path": str(each.path)})
    return {"checkpoints": rows, "bytes_to_fetch": plan.bytes_to_fetch}
