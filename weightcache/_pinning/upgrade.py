"""Drafts of what the mirrors of a pinned checkpoint have now."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from weightcache.errors import DownloadError

from .hub_client import path_not_found, snapshot
from .unpinned_entries import Draft, HubUrl, Pin

if TYPE_CHECKING:
    from .hub_client import HubFile, Snapshot


_BRANCH = "main"  # of the Hub


def newest(draft: Draft, revision: str | None) -> Draft:
    """Return the draft of the same checkpoint at another revision, for `complete`.

    Its ``hf://`` URLs name the commit of ``revision``. A file that the Hub has with the same bytes at both commits
    keeps its pins; every other file has none. A directory has the files that it declares and that still exist. It also
    has the files that are new in the repository and belong to it: any file if it declares all files of its commit,
    otherwise one with the ending of a declared file in the same folder, such as one more shard.

    Args:
        draft: The checkpoint as it is declared.
        revision: A branch, a tag or a commit; ``None`` for the main branch, or the branch of a URL without a commit.

    Raises:
        DownloadError: The Hub does not answer, or has none of the files there.
    """
    listed: list[tuple[HubUrl, Snapshot]] = []
    urls = []
    for url in draft.urls:
        if (hub := HubUrl.parse(url)) is not None:
            there = replace(hub, revision=revision or (_BRANCH if hub.is_pinned else hub.revision))
            found = snapshot(there, draft.auth, draft.name)
            listed.append((hub, found))
            url = there.at(found.commit)  # noqa: PLW2901 (the same mirror)
        urls.append(url)
    made = replace(draft, urls=urls, pins={path: Pin() for path in draft.pins})
    if listed and draft.knows_files:
        made.pins = _pins(draft, *listed[0])
    return made


def is_change(draft: Draft, made: Draft, *, moves: bool) -> bool:
    """Whether an upgrade changes an entry.

    Args:
        draft: The checkpoint as it is declared.
        made: From `newest`, pinned.
        moves: Whether another commit with the same bytes is a change. It is not one for a scheduled job: most commits
            change a README.
    """
    if draft.missing_pins() or draft.signed_by != made.signed_by or (moves and draft.urls != made.urls):
        return True
    return {path: (pin.sha256, pin.size) for path, pin in draft.pins.items()} != {
        path: (pin.sha256, pin.size) for path, pin in made.pins.items()
    }


def _pins(draft: Draft, hub: HubUrl, there: Snapshot) -> dict[str, Pin]:
    """Return the files at the new commit, with the pins of those that have the same bytes at the old one."""
    before, after = _files(draft, hub, _before(draft, hub)), _files(draft, hub, there)
    if not draft.is_directory:
        chosen = list(draft.pins)
    else:
        chosen = [path for path in draft.pins if path in after]
        chosen += _new(draft, before, after)
        if not chosen:
            raise path_not_found(hub, there, draft.name)
    return {
        path: replace(draft.pins[path])
        if path in draft.pins and path in before and path in after and _same(before[path], after[path])
        else Pin()
        for path in sorted(chosen)
    }


def _before(draft: Draft, hub: HubUrl) -> Snapshot | None:
    """Return the repository at the pinned commit; ``None`` if it is not pinned, or the Hub no longer has the commit."""
    if not hub.is_pinned:
        return None
    try:
        return snapshot(hub, draft.auth, draft.name)
    except DownloadError as error:
        draft.warn(f"{error.args[0]}; so files that are new in the repository are not added")
        return None


def _files(draft: Draft, hub: HubUrl, found: Snapshot | None) -> dict[str, HubFile]:
    """Return the files of a repository by their path in the checkpoint."""
    if found is None:
        return {}
    if not draft.is_directory:
        return {path: file for path in draft.pins for file in found.files if file.path == hub.path}
    base = f"{hub.path}/" if hub.path else ""
    return {file.path[len(base) :]: file for file in found.files if file.path.startswith(base)}


def _new(draft: Draft, before: dict[str, HubFile], after: dict[str, HubFile]) -> list[str]:
    added = [path for path in after if path not in before and path not in draft.pins] if before else []
    if set(before) <= set(draft.pins):
        return added
    kinds = {_kind(path) for path in draft.pins}
    return [path for path in added if _kind(path) in kinds]


def _kind(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name.rpartition(".")[2]


def _same(one: HubFile, other: HubFile) -> bool:
    return (one.sha256 or one.git_id) == (other.sha256 or other.git_id)
