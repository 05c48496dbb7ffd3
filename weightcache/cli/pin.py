"""``weightcache pin``: complete the entries of a manifest that lack pins.

To pin a file is to trust it. So every digest is shown with its source: the Hub publishes it, or it was computed here
from what a mirror delivered.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from weightcache._pinning.unpinned_entries import drafts, select
from weightcache.errors import ManifestError
from weightcache.manifest.urls import has_ending
from weightcache.manifest.validate import user_path

from .command_spec import Command, Flag
from .output import echo, print_json, print_table
from .pin_staging import open_staging
from .pinning import check_digest_argument, check_expected, complete_draft, print_pins, require_one, to_json
from .shared_flags import EXPECT, JSON, MANIFEST, NAMES, PRINT, QUIET, ROOT, SIGNATURE, SIGNED_BY
from .terminal import Cell
from .toml_edit import ManifestFile, require_tomlkit

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from weightcache._pinning.unpinned_entries import Draft


def run(options: argparse.Namespace) -> int:
    """Complete what is not pinned, or check the pins; print the result.

    Raises:
        WeightCacheError: The manifest is invalid, or a mirror does not deliver. Nothing was changed.
        ValueError: The options cannot be combined.
    """
    check_digest_argument(options.expect)
    path = user_path(options.manifest)
    file = ManifestFile(path, writes=not (options.check or options.check_upstream or options.print))
    if not file.exists:
        raise ManifestError(path, ["there is no such file"])
    _check_usage(options)
    wanted = select(drafts(file.raw, path, echo), options.names)
    if options.upgrade:
        from .pin_upgrade import upgrade  # not at the top: it imports requests, which `status` does not need

        return upgrade(file, wanted, options)
    if options.check or options.check_upstream:
        return _check(wanted, options)
    print_pins(_pin(file, wanted, options), options, added=False)
    return 0


def _check_usage(options: argparse.Namespace) -> None:
    for name in ("to", "signed_by", "signature"):
        if getattr(options, name) is not None and not options.upgrade:
            raise ValueError(f"--{name.replace('_', '-')} needs --upgrade")
    if options.upgrade and options.check_upstream:
        raise ValueError("--upgrade cannot be combined with --check-upstream; --upgrade --check changes nothing either")
    if not (options.check or options.check_upstream):
        return
    for name in ("expect", "print"):
        if getattr(options, name):
            flag = "--check" if options.check else "--check-upstream"
            raise ValueError(f"--{name} cannot be combined with {flag}: nothing is pinned")


def _check(wanted: Sequence[Draft], options: argparse.Namespace) -> int:
    if options.check:
        key, all_well = "unpinned", "everything is pinned"
        rows: list[dict[str, Any]] = [{"name": draft.name, key: draft.missing_pins()} for draft in wanted]
    else:
        from weightcache._pinning.check_upstream import (
            changes,
        )  # not at the top: it imports requests, which `status` does not need

        key, all_well = "moved", "nothing moved"
        rows = [{"name": draft.name, key: changes(draft)} for draft in wanted]
    findings = [["WARN", row["name"], text] for row in rows for text in row[key]]
    if options.json:
        print_json(options, {"checkpoints": rows})
    else:
        print_table(findings, (Cell.WORD, Cell.NAME, Cell.TEXT))
        print_table([] if findings else [["ok", all_well]], (Cell.WORD, Cell.TEXT))
    return 1 if findings else 0


def _pin(file: ManifestFile, wanted: Sequence[Draft], options: argparse.Namespace) -> list[dict[str, Any]]:
    require_one(wanted, options)
    todo = [draft for draft in wanted if draft.missing_pins() or (draft.has_missing_sizes() and draft.urls)]
    for draft in todo:
        if draft.signed_by and (missing := draft.missing_pins()):  # another pin would be called signed
            raise ValueError(
                f"{draft.name}: {draft.signed_by} signed it, and its entry lacks {missing[0]}; "
                f"remove the entry, and `weightcache add {draft.name} URL --signed-by KEY` again"
            )
    changed = {draft.name for draft in todo}
    if todo and not options.print:
        require_tomlkit()  # now: the downloads that follow may take an hour
    with open_staging(options.root) as staging:
        for draft in todo:
            complete_draft(draft, staging, options)
            _warn_of_server_name(draft)
        for draft in wanted:
            check_expected(draft, options.expect)
        pinned = [draft.checkpoint() for draft in todo]
        if pinned and not options.print:
            file.complete(pinned)
        if staging is not None:
            staging.publish([draft.checkpoint() for draft in wanted], quiet=options.quiet)
    return [to_json(draft, changed=draft.name in changed) for draft in wanted]


def _warn_of_server_name(draft: Draft) -> None:
    """Warn if the server has a name for a file that is called by the end of its URL, such as a number."""
    for path, pin in draft.pins.items():
        if draft.accepts_server_name and pin.suggested_name not in ("", path) and not has_ending(path):
            draft.warn(f"the server calls it {pin.suggested_name}; to use that name, set `file` in its entry")


COMMAND = Command(
    "pin",
    "add the digests, sizes, commits and file lists that entries of the manifest lack, or update them",
    (
        NAMES,
        MANIFEST,
        ROOT,
        JSON,
        Flag(("--check",), "change nothing; exit with 1 if an entry is not fully pinned"),
        Flag(
            ("--check-upstream",),
            "change nothing; exit with 1 if a mirror no longer has a pinned file, or the Hub's main branch has "
            "another one",
        ),
        Flag(
            ("--upgrade",),
            "pin again what is pinned: the newest commit of the Hub's main branch, or what a URL delivers now; with "
            "--check, exit with 1 if that would change an entry",
        ),
        Flag(("--to",), "with --upgrade: this branch, tag or commit", metavar="REVISION"),
        replace(SIGNED_BY, help="with --upgrade: take only files that this key signed (PEM); signed entries need it"),
        SIGNATURE,
        EXPECT,
        PRINT,
        QUIET,
    ),
    run,
    needs_root=False,
)
