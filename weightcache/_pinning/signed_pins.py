"""Pins of files that a key signed.

The signature decides which files a checkpoint has. Their digests are found as those of any other checkpoint are, from
the Hub or by hashing a download, and must be the digests that were signed.
"""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from weightcache._transfer.mirror_stream import SourceError
from weightcache.errors import Attempt, DownloadError, IntegrityError, redacted
from weightcache.manifest.urls import has_ending, hub_endpoint, name_from_url, resolved_url, url_problem

from .bounds import UNBOUNDED, refusal
from .hash_remote import Reader
from .hub_client import select_files, snapshot
from .model_signature import MAX_BYTES, ONE_FILE, check_signer, read_local, signed_files
from .new_entry import find_kind
from .resolve_pins import paths_of, resolve_revisions
from .unpinned_entries import Draft, HubUrl, Pin

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from weightcache.manifest import Checkpoint

    from .model_signature import PublicKey, SignedFiles

BUNDLE_NAME = "model.sig"  # as `model_signing sign` calls it
_OF_GIT = (".gitattributes", ".gitignore")  # which `model_signing sign` leaves out
_SHOWN = 5  # files that a message names


def use_signed_files(
    draft: Draft,
    key: PublicKey,
    place: str | None,
    *,
    file: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> SignedFiles:
    """Let a new draft have the files that a key signed, without pins; return what it signed.

    Args:
        draft: Its ``hf://`` URLs get the commits that they have now, so that the signature and the files are of one.
        key: The only key that may have signed.
        place: Where the signature is: see `read_signature`.
        file: What the file of a checkpoint that is one file is called, if the user says so.
        include: Globs of the wanted files of a directory; empty for all that were signed.
        exclude: Globs of unwanted files.

    Raises:
        WeightCacheError: The signature is invalid, or cannot be read; or the Hub does not answer.
        ValueError: No file is selected, or ``place`` is an invalid URL.
    """
    found = resolve_revisions(draft, UNBOUNDED)
    hub, name = HubUrl.parse(draft.urls[0]), name_from_url(draft.urls[0])
    if hub:
        find_kind(draft)
    else:
        draft.is_directory = not (file or has_ending(name))  # a guess, which says where a signature may be
    signed = read_signature(draft, key, place)
    if not hub:
        draft.is_directory = not (file or ONE_FILE in signed.digests or _matching(signed.digests, draft.urls[0]))
    draft.knows_files = True
    if draft.is_directory:
        selected = select_files(sorted(signed.digests), include, exclude, f"in {signed.source}")
        draft.pins = {path: Pin() for path in selected}
        _warn_of_unsigned_files(draft, signed, paths_of(*found) if found else ())
    else:
        draft.pins = {file or name or draft.name: Pin()}
        _digest(signed, draft, "")  # now: the download that follows may take an hour
    draft.check(signed.source)
    return signed


def read_signature(draft: Draft, key: PublicKey, place: str | None) -> SignedFiles:
    """Return what a key signed.

    Args:
        draft: The checkpoint. Its ``hf://`` URLs name commits.
        key: The only key that may have signed.
        place: The URL or the path of the signature; ``None`` for `BUNDLE_NAME` beside the files of a mirror.

    Raises:
        DownloadError: No mirror has it.
        IntegrityError: Another key signed it, or it was changed since.
        ManifestError: It is not a signature of Model Signing, or lists what a manifest may not have.
        StorageError: It cannot be read.
        ValueError: ``place`` is an invalid URL.
    """
    data, source = _read_beside(draft) if place is None else _read_at(draft, place)
    return signed_files(data, key, name=draft.name, source=source)


def check_signed(draft: Draft, signed: SignedFiles) -> None:
    """Refuse a pinned draft if its digests are not those that were signed; note the signer in it.

    Raises:
        IntegrityError: A digest differs.
        ManifestError: A file was not signed.
    """
    for path, pin in draft.pins.items():
        digest = _digest(signed, draft, path)
        if pin.sha256 != digest:
            foreign = f"\n  it is {pin.foreign}" if pin.foreign else ""
            raise IntegrityError(
                f"checkpoint {draft.name}: {path} is not the file that {signed.source} signs"
                f"\n  expected {digest}\n  actual   {pin.sha256} ({pin.evidence}){foreign}",
                hint="nothing was changed; the file and the signature may be of two versions: ask the publisher",
                checkpoint=draft.name,
                file=path,
                attempts=(),
                expected=digest,
                actual=pin.sha256,
                url=redacted(draft.urls[0]) if draft.urls else "",
            )
        pin.evidence += "; signed"
    draft.signed_by = signed.signer


def leave_out_unsigned(draft: Draft, signed: SignedFiles, declared: Collection[str]) -> None:
    """Leave files out of an upgrade that are new and not signed. A file that is declared must be signed.

    Raises:
        ManifestError: A declared file is not signed.
    """
    if draft.is_directory:
        _warn_of_unsigned_files(draft, signed, [path for path in draft.pins if path not in declared])
        draft.pins = {path: pin for path, pin in draft.pins.items() if path in declared or path in signed.digests}
    for path in draft.pins:
        _digest(signed, draft, path)  # now: the download that follows may take an hour


def check_declared(checkpoint: Checkpoint, key: PublicKey, place: str | None) -> None:
    """Refuse a checkpoint of a manifest if a key did not sign its digests.

    Args:
        checkpoint: As it is declared. It may have fewer files than were signed.
        key: The only key that may have signed.
        place: Where the signature is: see `read_signature`.

    Raises:
        WeightCacheError: The signature is invalid or cannot be read, or the entry names another key or other digests.
        ValueError: ``place`` is an invalid URL.
    """
    pins = {file.path: Pin(file.sha256, file.size) for file in checkpoint.files}
    urls, auth = list(checkpoint.urls), checkpoint.auth
    draft = Draft(checkpoint.name, urls, auth, checkpoint.is_directory, pins, signed_by=checkpoint.signed_by)
    check_signer(draft.signed_by or key.signer, key, draft.name, "the entry in the manifest")
    check_signed(draft, read_signature(draft, key, place))


def _digest(signed: SignedFiles, draft: Draft, path: str) -> str:
    """Return the digest that was signed for a file of a draft.

    Raises:
        ManifestError: None was signed for it, or it is not clear which.
    """
    digests = signed.digests
    if draft.is_directory:
        where, found = path, [path] if path in digests else []
    else:
        where = draft.urls[0] if draft.urls else path
        found = [ONE_FILE] if ONE_FILE in digests else _matching(digests, where)
    if len(found) == 1:
        return digests[found[0]]
    listed = sorted(found or digests)
    why = "signs several files that it may be" if found else "does not sign it, but"
    raise refusal(
        where,
        [f"{signed.source} {why}: {_some_of(listed)}"],
        "add the directory that was signed, with --include and the path of the file",
    )


def _matching(digests: Mapping[str, str], where: str) -> list[str]:
    """Return the signed paths that a URL or a path ends in."""
    hub = HubUrl.parse(where)
    path = hub.path if hub else unquote(where.partition("?")[0])
    return [each for each in digests if path == each or path.endswith(f"/{each}")]


def _warn_of_unsigned_files(draft: Draft, signed: SignedFiles, listed: Sequence[str]) -> None:
    """Warn of files of a repository that are left out because they were not signed."""
    spared = {*signed.digests, *_OF_GIT, BUNDLE_NAME}
    if unsigned := [path for path in listed if path not in spared]:
        # No rule was applied to these names: one may hold what a terminal would obey.
        shown = [path if path.isprintable() else repr(path) for path in unsigned]
        draft.warn(f"files that are not signed are left out: {_some_of(shown)}")


def _some_of(paths: Sequence[str]) -> str:
    """Return the first paths, for a message."""
    return f"{', '.join(paths[:_SHOWN])}{f' and {len(paths) - _SHOWN:,} more' if len(paths) > _SHOWN else ''}"


def _read_beside(draft: Draft) -> tuple[bytes, str]:
    """Return the signature that a mirror has beside the files, and where it was."""
    attempts, hint = [], ""
    with closing(Reader(draft.urls, draft.auth, draft.name)) as reader:
        for url in draft.urls:
            folder = url if draft.is_directory else _folder(url)
            shown = redacted(resolved_url(folder, BUNDLE_NAME))
            try:
                data = reader.read_small(folder, BUNDLE_NAME, MAX_BYTES)
                if data.lstrip().startswith(b"{"):
                    return data, shown
                raise SourceError("it is not JSON, as a signature is")  # a page for a login, perhaps
            except SourceError as error:
                attempts.append(Attempt(shown, str(error), 1))
                hint = hint or error.hint
    lines = "".join(f"\n  {each.url}: {each.reason}" for each in attempts) or "\n  it declares no URL"
    raise DownloadError(
        f"checkpoint {draft.name}: no mirror has a signature{lines}",
        hint=f"nothing was changed; {hint or 'give the URL or the path of the signature with --signature'}",
        checkpoint=draft.name,
        file=BUNDLE_NAME,
        attempts=tuple(attempts),
    )


def _folder(url: str) -> str:
    """Return the URL of the directory that holds the file at ``url``."""
    base, question, query = url.partition("?") if url.startswith("http") else (url, "", "")
    return f"{base.rpartition('/')[0]}{question}{query}"


def _read_at(draft: Draft, place: str) -> tuple[bytes, str]:
    """Return the signature at a URL or a path, and where it was."""
    if not re.match("[a-z][a-z0-9+.-]*:", place):
        return read_local(place, MAX_BYTES), place
    # A token of the checkpoint is for the hosts of its URLs alone.
    auth = draft.auth if _host(place) in map(_host, draft.urls) else None
    hub = HubUrl.parse(place)
    if hub and not hub.is_pinned:
        place = hub.at(snapshot(hub, auth, draft.name).commit)
    if problem := url_problem(place, directory=False):
        raise ValueError(f"--signature {redacted(place)}: {problem}")
    with closing(Reader([place], auth, draft.name)) as reader:
        try:
            return reader.read_small(place, "", MAX_BYTES), redacted(place)
        except SourceError as error:
            attempt, hint = Attempt(redacted(resolved_url(place, "")), str(error), 1), error.hint
    raise DownloadError(
        f"checkpoint {draft.name}: there is no signature at {attempt.url}: {attempt.reason}",
        hint=f"nothing was changed; {hint or 'check the URL, or try again'}",
        checkpoint=draft.name,
        file=BUNDLE_NAME,
        attempts=(attempt,),
    )


def _host(url: str) -> tuple[str, str]:
    scheme, host = urlsplit(hub_endpoint() if HubUrl.parse(url) else url)[:2]
    return scheme, host
