"""``weightcache pin --check-upstream``: find pinned files that mirrors no longer have or that changed on the Hub."""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from weightcache._transfer.mirror_stream import SourceError
from weightcache.errors import DownloadError, redacted

from .content_check import content_problem
from .hash_remote import Reader
from .hub_client import snapshot
from .unpinned_entries import HubUrl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .hub_client import HubFile
    from .unpinned_entries import Draft


def changes(draft: Draft) -> list[str]:
    """Ask every mirror about every file of a checkpoint; return what changed, each as a sentence.

    Of a plain URL, only whether the file exists and its length are compared: nothing is downloaded. The Hub publishes
    digests, so they are compared. A commit on a branch that leaves the declared files as they are is not a change.
    """
    return [*draft.missing_pins(), *_changes(draft)]


def _changes(draft: Draft) -> Iterator[str]:
    with closing(Reader(draft.urls, draft.auth, draft.name)) as reader:
        for url in draft.urls:
            hub = HubUrl.parse(url)
            if hub is None:
                yield from _mirror_changes(draft, reader, url)
            elif hub.is_pinned:
                yield from _hub_changes(draft, hub)


def _mirror_changes(draft: Draft, reader: Reader, url: str) -> Iterator[str]:
    for path, pin in draft.pins.items():
        try:
            opening = reader.opening(url, path if draft.is_directory else "")
        except SourceError as error:
            yield f"{redacted(url)} does not deliver {path}: {error}"
            continue
        what = content_problem(path, opening, is_directory=draft.is_directory)
        if what and (opening.size != len(opening.head) or hashlib.sha256(opening.head).hexdigest() != pin.sha256):
            yield f"{redacted(url)} sends {what} instead of {path}"
        elif None not in (opening.size, pin.size) and opening.size != pin.size:
            yield f"{redacted(url)} has {path} with {opening.size} bytes, {pin.size} are pinned"


def _hub_changes(draft: Draft, hub: HubUrl) -> Iterator[str]:
    """Compare the pinned commit with the declared digests, and the main branch with the pinned commit."""
    try:
        pinned = {file.path: file for file in snapshot(hub, draft.auth, draft.name).files}
        head = snapshot(replace(hub, revision="main"), draft.auth, draft.name)
    except DownloadError as error:
        yield str(error.args[0])
        return
    newest = {file.path: file for file in head.files}
    for path, pin in draft.pins.items():
        inner = hub.inside(path, is_directory=draft.is_directory)
        there = pinned.get(inner)
        if there is None:
            yield f"{hub.repository} has no {inner} at {hub.revision[:12]}"
        elif there.sha256 and pin.sha256 and there.sha256 != pin.sha256:
            yield f"{hub.repository} has other bytes of {inner} at {hub.revision[:12]}"
        elif _bytes(newest.get(inner)) != _bytes(there):
            what = "other bytes of" if inner in newest else "no"
            yield f"{hub.repository} has {what} {inner} at main ({head.commit})"


def _bytes(file: HubFile | None) -> str | None:
    return None if file is None else file.sha256 or file.git_id
