"""Finding the pins that an entry lacks, from the Hub or from what a mirror delivers."""

from __future__ import annotations

import re
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from weightcache._store.content_sniffing import HEAD
from weightcache._transfer.mirror_stream import SourceError
from weightcache._transfer.progress import make_progress
from weightcache.errors import IntegrityError, redacted
from weightcache.manifest.urls import resolved_url

from .bounds import UNBOUNDED
from .content_check import content_error, content_problem
from .hash_remote import Reader
from .hub_client import path_not_found, select_files, snapshot
from .shard_check import warn_of_missing_shards
from .unpinned_entries import HubUrl, Pin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from weightcache._transfer.progress import ProgressCallback

    from .bounds import Bounds
    from .hash_remote import Measured
    from .hub_client import Snapshot
    from .unpinned_entries import Draft

# torch.hub's names end in the first digits of the file's sha256: resnet18-5c106cde.pth.
_DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[A-Za-z0-9.]+")


def complete(
    draft: Draft,
    *,
    new_path: Callable[[], str] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    expected: bool = False,
    progress: bool | ProgressCallback | None = None,
    bounds: Bounds = UNBOUNDED,
) -> dict[str, str]:
    """Find all pins that a draft lacks.

    Args:
        draft: Completed in place.
        new_path: Returns the path to write the next downloaded file to; ``None`` discards the bytes.
        include: Globs of the wanted files, in the syntax of ``hf download``; empty for all.
        exclude: Globs of unwanted files.
        expected: Whether the user gave the digest: then neither the name nor the content is checked.
        progress: As in `ensure`.
        bounds: What may be taken.

    Returns:
        Path of each downloaded file, by its sha256.

    Raises:
        DownloadError: No mirror delivers the file, or one delivers other content, or the Hub does not, or lacks it.
        IntegrityError: Two sources disagree.
        ManifestError: The Hub lists a file that a manifest may not contain, or the files exceed the bounds.
        ValueError: No file is selected, or the extra ``hf`` is needed and not installed.
    """
    found = resolve_revisions(draft, bounds)
    if not draft.knows_files:
        _list_files(draft, found, include, exclude)
    if found:
        _use_published_digests(draft, *found)
        draft.check(redacted(draft.urls[0]))
    bounds.check_files(draft)
    with closing(Reader(draft.urls, draft.auth, draft.name, bounds)) as reader:
        own = _measure(draft, reader, new_path, found, strict=not expected, progress=progress, bounds=bounds)
        _check_mirrors(draft, reader, strict=not expected)
        bounds.check_files(draft)  # with sizes that only a mirror announces
        warn_of_missing_shards(draft, reader, paths_of(*found) if found else None)
    for path, pin in draft.pins.items():
        _compare_with_name(draft.name, path, pin, strict=not expected)
    return own


def resolve_revisions(draft: Draft, bounds: Bounds) -> tuple[HubUrl, Snapshot] | None:
    """Replace branches by commits; return the first repository with its files, if the draft lacks pins."""
    first = None
    asks = not draft.knows_files or any(not pin.sha256 or pin.size is None for pin in draft.pins.values())
    for index, url in enumerate(draft.urls):
        hub = HubUrl.parse(url)
        if hub is None or (hub.is_pinned and (first or not asks)):
            continue
        listing = snapshot(hub, draft.auth, draft.name, bounds)
        draft.urls[index] = hub.at(listing.commit)
        first = first or (hub, listing)
    return first


def _list_files(
    draft: Draft, found: tuple[HubUrl, Snapshot] | None, include: Sequence[str], exclude: Sequence[str]
) -> None:
    assert found is not None  # a draft without a list has an hf:// URL
    hub, listing = found
    if not (paths := paths_of(hub, listing)):
        raise path_not_found(hub, listing, draft.name)
    selected = select_files(paths, include, exclude, f"of {draft.name} at {redacted(draft.urls[0])}")
    draft.pins, draft.knows_files = {path: Pin() for path in sorted(selected)}, True


def paths_of(hub: HubUrl, listing: Snapshot) -> list[str]:
    """Return the paths of the files below the path of a URL."""
    base = f"{hub.path}/" if hub.path else ""
    return [file.path[len(base) :] for file in listing.files if file.path.startswith(base)]


def _use_published_digests(draft: Draft, hub: HubUrl, listing: Snapshot) -> None:
    files = {file.path: file for file in listing.files}
    for path, pin in draft.pins.items():
        file = files.get(hub.inside(path, is_directory=draft.is_directory))
        if file is None and not draft.is_directory:
            raise path_not_found(hub, listing, draft.name)
        if file is None:
            raise _disagreement(draft, path, f"in {hub.repository} at {listing.commit[:12]}", "missing", draft.urls[0])
        if file.sha256 and pin.sha256 not in ("", file.sha256):
            raise _disagreement(draft, path, pin.sha256, file.sha256, draft.urls[0])
        if file.sha256 and not pin.sha256:
            pin.sha256, pin.evidence = file.sha256, f"published by the Hub ({hub.repository})"
            pin.is_published = True
        if pin.size is None and (file.sha256 or file.size):
            pin.size = file.size


def _measure(
    draft: Draft,
    reader: Reader,
    new_path: Callable[[], str] | None,
    found: tuple[HubUrl, Snapshot] | None,
    *,
    strict: bool,
    progress: bool | ProgressCallback | None,
    bounds: Bounds,
) -> dict[str, str]:
    checkpoint = draft.placeholder()
    unknown = [file for file in checkpoint.files if file.path in draft.pins and not draft.pins[file.path].sha256]
    git_ids = {file.path: file.git_id for file in found[1].files if not file.sha256} if found else {}
    shown, own = make_progress(progress, [(checkpoint, file) for file in unknown]), {}
    try:
        for file in unknown:
            track = shown.open(draft.name, file.path, file.size)
            target = new_path() if new_path else None
            inner = file.path if draft.is_directory else ""
            advance, limit = partial(shown.advance, track), bounds.limit(draft, file.path)
            measured, url = reader.measure(inner, file.size, target, advance, limit)
            shown.close(track)
            wanted = git_ids.get(found[0].inside(file.path, is_directory=draft.is_directory)) if found else None
            _take(draft, file.path, measured, url, matches_git_id=measured.git_id == wanted, strict=strict)
            if wanted and measured.git_id not in ("", wanted):
                raise _disagreement(draft, file.path, f"Git's {wanted}", f"Git's {measured.git_id}", url)
            if target:
                own[measured.sha256] = target
    finally:
        shown.end()
    return own


def _take(draft: Draft, path: str, measured: Measured, url: str, *, matches_git_id: bool, strict: bool) -> None:
    pin, opening = draft.pins[path], measured.opening
    pin.foreign = content_problem(path, opening, is_directory=draft.is_directory, matches_git_id=matches_git_id)
    if pin.foreign and strict:
        raise content_error(draft, path, url, pin.foreign, opening, measured.sha256)
    pin.sha256, pin.size = measured.sha256, measured.size
    pin.head, pin.suggested_name = opening.head, opening.suggested_name
    pin.evidence = f"computed here from {redacted(resolved_url(url, path if draft.is_directory else ''))}"
    if not measured.git_id:
        pin.evidence += "; the server announced no length: check that the file is complete"
    if pin.foreign:
        pin.evidence += f"; it is {pin.foreign}"


def _check_mirrors(draft: Draft, reader: Reader, *, strict: bool) -> None:
    """Take missing sizes from the first mirror that has them; refuse a mirror with another size or without weights."""
    for path, pin in draft.pins.items():
        for url in draft.urls if _needs_check(draft, pin) else ():
            try:
                opening = reader.opening(url, path if draft.is_directory else "")
            except SourceError as error:
                draft.warn(f"{redacted(url)} does not deliver {path}: {error}")
                continue
            what = content_problem(path, opening, is_directory=draft.is_directory) if opening.head != pin.head else ""
            if what and strict:
                raise content_error(draft, path, url, what, opening)
            pin.suggested_name = pin.suggested_name or opening.suggested_name
            if pin.size is None:
                pin.size = opening.size
            if opening.size not in (None, pin.size):
                raise _disagreement(draft, path, f"{pin.size} bytes", f"{opening.size} bytes", url)


def _needs_check(draft: Draft, pin: Pin) -> bool:
    """Whether mirrors must be asked about a file that was not downloaded from them.

    Files whose digest the Hub publishes are not downloaded. A very small one may be a pointer that was uploaded by
    mistake.
    """
    return pin.size is None or len(draft.urls) > 1 or (pin.is_published and pin.size <= HEAD)


def _compare_with_name(name: str, path: str, pin: Pin, *, strict: bool) -> None:
    """Compare a digest with the digits that torch.hub writes into a file name."""
    if not (match := _DIGEST_IN_NAME.search(path)):
        return
    if pin.sha256.startswith(match[1]):
        pin.evidence += f"; the name's {match[1]} agrees"
    elif strict and not match[1].isdecimal():  # decimal digits may be a date or a number of steps
        raise IntegrityError(
            f"checkpoint {name}: {path} has a name that says its sha256 begins with {match[1]}"
            f"\n  actual   {pin.sha256}",
            hint="torch.hub would refuse it, too; if the digits mean something else, give the full digest to --expect",
            checkpoint=name,
            file=path,
            attempts=(),
            expected=match[1],
            actual=pin.sha256,
            url="",
        )


def _disagreement(draft: Draft, path: str, expected: str, actual: str, url: str) -> IntegrityError:
    url = redacted(url)  # here, so that no caller can forget it: it may hold a password or a signature
    return IntegrityError(
        f"checkpoint {draft.name}: {path} at {url} is not the file that was expected"
        f"\n  expected {expected}\n  actual   {actual}",
        hint="nothing was changed; find out which one is right, and remove the other mirror",
        checkpoint=draft.name,
        file=path,
        attempts=(),
        expected=expected,
        actual=actual,
        url=url,
    )
