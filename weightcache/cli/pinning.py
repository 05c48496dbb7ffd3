"""What `add` and `pin` share: completing a draft, comparing it with ``--expect``, and printing the pins."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from weightcache.errors import IntegrityError, redacted
from weightcache.manifest.validate import digest_problem

from .output import MOST_ON_TERMINAL, counted, print_json, print_lines
from .terminal import terminal_columns

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from weightcache._pinning.unpinned_entries import Draft

    from .pin_staging import Staging


def complete_draft(draft: Draft, staging: Staging | None, options: argparse.Namespace) -> None:
    """Find out what a draft lacks, with the options of a command."""
    from weightcache._pinning.resolve_pins import (
        complete,
    )  # not at the top: it imports requests, which `status` does not need

    files = complete(
        draft,
        new_path=staging.new_path if staging else None,
        include=getattr(options, "include", None) or (),
        exclude=getattr(options, "exclude", None) or (),
        expected=options.expect is not None or getattr(options, "signed_by", None) is not None,
        progress=False if options.quiet else None,
    )
    if staging:
        staging.files.update(files)


def check_digest_argument(sha256: str | None) -> None:
    """Refuse an ``--expect`` that is not a digest, before anything is downloaded.

    Raises:
        ValueError: It is not a sha256.
    """
    if sha256 is not None and (problem := digest_problem(sha256.lower())):
        raise ValueError(f"--expect: {problem}")


def require_one(wanted: Sequence[Draft], options: argparse.Namespace) -> None:
    """Refuse ``--expect`` for several checkpoints.

    Raises:
        ValueError: It is given, and not one checkpoint is named.
    """
    if options.expect and len(wanted) != 1:
        raise ValueError("--expect is the digest of one checkpoint: name that checkpoint")


def check_expected(draft: Draft, sha256: str | None) -> None:
    """Refuse a checkpoint that is not the expected one.

    Args:
        draft: The checkpoint, pinned.
        sha256: The digest that the user gave to ``--expect``; ``None`` accepts any checkpoint.

    Raises:
        IntegrityError: It has another digest.
    """
    actual = draft.checkpoint().digest
    if sha256 is not None and actual != sha256.lower():
        foreign = "".join(f"\n  {path} is {pin.foreign}" for path, pin in draft.pins.items() if pin.foreign)
        raise IntegrityError(
            f"checkpoint {draft.name} is not what was expected\n  expected {sha256}\n  actual   {actual}{foreign}",
            hint="nothing was changed; ask the publisher, or another mirror",
            checkpoint=draft.name,
            file="",
            attempts=(),
            expected=sha256,
            actual=actual,
            url=redacted(draft.urls[0]) if draft.urls else "",
        )


def to_json(draft: Draft, *, changed: bool) -> dict[str, Any]:
    """Return the JSON object of a pinned checkpoint.

    Args:
        draft: The checkpoint, pinned.
        changed: Whether the command pinned anything of it.
    """
    checkpoint = draft.checkpoint()
    return {
        "name": draft.name,
        "changed": changed,
        "digest": checkpoint.digest,
        "signed_by": draft.signed_by,
        "urls": [redacted(url) for url in draft.urls],
        "files": {path: {"sha256": p.sha256, "size": p.size, "from": p.evidence} for path, p in draft.pins.items()},
        "warnings": draft.warnings,
        "entry": f"{checkpoint}\n",
    }


def print_pins(rows: Sequence[dict[str, Any]], options: argparse.Namespace, *, added: bool) -> None:
    """Print pinned checkpoints, each file with where its digest comes from.

    Args:
        rows: From `to_json`.
        options: With ``--json``, ``--print`` and the manifest.
        added: Whether the entries are new in the manifest.
    """
    if options.json:
        print_json(options, {"checkpoints": rows})
        return
    if options.print:
        print("\n".join(row["entry"] for row in rows if row["changed"] or added), end="")
    stream = sys.stderr if options.print else sys.stdout
    done = "pinned" if options.print else f"{'added to' if added else 'pinned in'} {options.manifest}"
    known = [row for row in rows if not row["changed"]]
    if len(known) > MOST_ON_TERMINAL and terminal_columns(stream) is not None:
        rows = [row for row in rows if row["changed"]]
        print_lines(f"{counted(len(known), 'entry', 'entries')} pinned already", stream)
    for row in rows:
        print_lines(f"{row['name']}: {done if row['changed'] else 'was pinned already'}", stream)
        if row["signed_by"]:
            print_lines(f"  signed by {row['signed_by']}", stream)
        for path, file in row["files"].items():
            size = "unknown length" if file["size"] is None else f"{file['size']:,} bytes"
            print_lines(f"  {path}  {size}\n    sha256 {file['sha256']}\n    {file['from']}", stream)
