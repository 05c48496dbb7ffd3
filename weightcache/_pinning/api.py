"""`pin`: from URLs to a pinned checkpoint, at run time, within bounds."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from weightcache._store.content_sniffing import runs_code
from weightcache.errors import redacted
from weightcache.manifest.urls import checkpoint_name, name_from_url
from weightcache.manifest.validate import auth_problem, name_problem

from .bounds import Bounds, refusal
from .new_entry import declare, find_kind, secret_problem, use_suggested_name
from .unpinned_entries import HubUrl

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from weightcache._transfer.progress import ProgressCallback
    from weightcache.manifest import Checkpoint

    from .unpinned_entries import Draft

_log = logging.getLogger("weightcache")

MAX_LISTED = 20_000  # entries of a repository: 20 requests, a few seconds
_SHOWN = 5  # files that a warning names


def pin(
    urls: str | Sequence[str],
    *,
    name: str | None = None,
    file: str | None = None,
    auth: str | None = None,
    max_bytes: int | None = 20_000_000_000,
    max_files: int | None = 1000,
    allow_code: bool = False,
    progress: bool | ProgressCallback | None = None,
    include: Collection[str] = (),
    exclude: Collection[str] = (),
    hosts: Collection[str] | None = (),
) -> Checkpoint:
    """Return a checkpoint with the commit, files, digests and sizes that its URLs have now, for `ensure`.

    It does what ``weightcache add`` does, but for an app that gets a repository or an adapter in a request. Nothing is
    kept on disk. Of the Hub, large files are not downloaded, because the Hub publishes their digests. All other
    files are downloaded once to be hashed. To pin is to trust what is there now: keep the result, or its entry
    (``str()`` of it), and do not pin the same thing for each request.

    Args:
        urls: A URL, or several mirrors of the same bytes: ``hf://REPO[@REVISION][/PATH]``, where a branch or tag
            becomes a commit, or ``https`` and ``http``. Never ``file:``, nor a URL with a secret or ``${VARIABLE}``.
        name: Name of the checkpoint; by default made from the repository, as in ``acme--lora``, or from the file.
        file: What the published file is called; by default the end of the URL, or the name that the server sends.
        auth: Name of the environment variable that holds a bearer token. Without it, the Hub gets the token that
            huggingface_hub would send, so a private repository that this token may read can be pinned.
        include: Globs of the wanted files of a repository, as in ``hf download``; empty for all.
        exclude: Globs of unwanted files.
        max_bytes: Most bytes of all files together; ``None`` for no bound. It is compared with the sizes that the
            Hub publishes before a file is downloaded, and with every byte that arrives.
        max_files: Most files; ``None`` for no bound.
        hosts: Hosts that ``http`` and ``https`` URLs may name, and redirects of them; with the port if it is not the
            usual one. Empty: the Hub alone. ``None``: any host, also in your own network. The Hub is always allowed,
            and may redirect to any host.
        allow_code: Do not warn about files that may run code when a program loads them: Python files and pickles.
        progress: As in `ensure`, for what is downloaded to be hashed.

    Raises:
        ManifestError: A URL, the name or a file that the Hub lists is invalid, a host is not allowed, or a bound is
            exceeded. Such a URL is the mistake of its sender. Nothing was kept.
        DownloadError: The Hub or a mirror does not answer, has no such repository, revision or file, or delivers
            something that is not weights.
        IntegrityError: Two mirrors deliver different files.
        TypeError, ValueError: Another argument is of the wrong kind, no file is selected, or globs are given and
            huggingface_hub is not installed (``pip install 'weightcache[hf]'``).
    """
    _check_arguments(include, exclude, max_bytes, max_files, hosts)
    if auth is not None and (problem := auth_problem(auth)):
        raise ValueError(f"auth: {problem}")
    mirrors = _mirrors(urls)
    allowed = None if hosts is None else frozenset(host.lower() for host in hosts)
    bounds = Bounds(max_bytes, max_files, MAX_LISTED, allowed)
    for url in mirrors:
        _check_url(url, bounds)
    name = _name(mirrors[0]) if name is None else name
    draft = declare(name, mirrors, auth=auth, file=file, source=redacted(mirrors[0]), say=_log.warning)
    find_kind(draft, bounds)
    if not draft.is_directory and (include or exclude):
        raise ValueError(f"include and exclude select files of a repository, and {redacted(mirrors[0])} is one file")
    _complete(draft, bounds, include, exclude, progress)
    if file is None and not draft.is_directory:
        use_suggested_name(draft)
    if not allow_code:
        _warn_of_code(draft)
    return draft.checkpoint()


def _complete(
    draft: Draft,
    bounds: Bounds,
    include: Collection[str],
    exclude: Collection[str],
    progress: bool | ProgressCallback | None,
) -> None:
    from .resolve_pins import complete  # not at the top: it imports requests, which a refusal does not need

    complete(draft, include=list(include), exclude=list(exclude), progress=progress, bounds=bounds)


def _mirrors(urls: str | Sequence[str]) -> list[str]:
    mirrors = [urls] if isinstance(urls, str) else list(urls)
    if not mirrors:
        raise ValueError("want at least one URL")
    for url in mirrors:
        if not isinstance(url, str):
            raise TypeError(f"want a URL or several, got {type(url).__name__}")
    return mirrors


def _check_arguments(
    include: Collection[str],
    exclude: Collection[str],
    max_bytes: int | None,
    max_files: int | None,
    hosts: Collection[str] | None,
) -> None:
    for name, words in (("include", include), ("exclude", exclude), ("hosts", hosts)):
        if isinstance(words, (str, bytes)):
            raise TypeError(f"{name} must be a collection of strings, as in {name}=[{words!r}], not a string")
    for name, most in (("max_bytes", max_bytes), ("max_files", max_files)):
        if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 0):
            raise ValueError(f"{name} must be a number, 0 or more, or None, not {most!r}")


def _check_url(url: str, bounds: Bounds) -> None:
    """Refuse a URL that may lead elsewhere than to the Hub and the allowed hosts.

    Raises:
        ManifestError: It is refused.
    """
    if hub := HubUrl.parse(url):
        if problem := _repository_problem(hub):
            raise refusal(url, [problem], "want hf://OWNER/NAME[@REVISION][/PATH]")
        return
    if not url.startswith(("http://", "https://")):
        raise refusal(url, ["want hf, https or http"], "publish files of this machine with `publish`")
    if "${" in url:
        # Of a URL from a request, it would send any variable of the environment to its host.
        raise refusal(url, ["${VARIABLE} is not allowed here"], "name the variable of a token with auth=")
    if problem := secret_problem(url):
        raise refusal(url, [problem.replace("--auth", "auth=")], "a checkpoint must not hold a secret")
    if not bounds.allows(url):
        known = ", ".join(sorted(bounds.hosts or ())) or "empty, which allows hf:// URLs alone"
        raise refusal(url, [f"its host is not allowed: hosts is {known}"], "add the host to hosts=, if you trust it")


def _repository_problem(hub: HubUrl) -> str:
    """Return what is wrong with the name of a repository: with `..` it would lead to another page of the Hub."""
    for part in hub.repository.split("/"):
        if not re.fullmatch(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?", part) or ".." in part or "--" in part:
            return f"{hub.repository!r:.120} is not the name of a repository"
    return f"{hub.revision!r:.120} is not a revision" if not hub.revision.strip("./ ") else ""


def _name(url: str) -> str:
    hub = HubUrl.parse(url)
    if hub is None:
        return checkpoint_name(name_from_url(url), is_directory=False)
    name = "--".join(
        [*hub.repository.split("/"), *([checkpoint_name(hub.path, is_directory=False)] if hub.path else [])]
    )
    if name_problem(name):
        raise refusal(url, ["no name can be made from it"], "give a name with name=")
    return name


def _warn_of_code(draft: Draft) -> None:
    paths = [path for path in draft.pins if runs_code(path)]
    if paths:
        more = f" and {len(paths) - _SHOWN:,} more" if len(paths) > _SHOWN else ""
        draft.warn(
            f"may run code when a program loads it: {', '.join(paths[:_SHOWN])}{more}; leave these out with exclude=, "
            "load pickles with weights_only=True, or pass allow_code=True"
        )
