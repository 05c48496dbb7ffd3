"""Asking the Hugging Face Hub about a repository. Only pinning needs it."""

from __future__ import annotations

import os
import re
import shlex
import sys
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote

from weightcache._transfer.auth import TRUE, declared_token, hub_token
from weightcache._transfer.mirror_stream import SourceError, TransientError
from weightcache.errors import DownloadError, redacted
from weightcache.manifest.urls import hub_endpoint, url_problem

from .bounds import UNBOUNDED
from .hub_requests import CutOffError, HubRequests, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from weightcache._transfer.auth import Token

    from .bounds import Bounds
    from .unpinned_entries import HubUrl


class HubFile(NamedTuple):
    """One file of a repository at a commit.

    Attributes:
        path: In the repository.
        size: Bytes.
        sha256: The digest that the Hub publishes for files stored outside of Git; empty for other files.
        git_id: Git's id of the file; for a file outside of Git, that of its pointer.
    """

    path: str
    size: int
    sha256: str
    git_id: str


class Snapshot(NamedTuple):
    """A repository at a commit."""

    commit: str
    files: tuple[HubFile, ...]

    def has(self, path: str) -> bool:
        """Whether there is a file or a directory at ``path``."""
        return any(file.path == path or file.path.startswith(f"{path}/") for file in self.files)


def snapshot(url: HubUrl, auth: str | None, name: str, bounds: Bounds = UNBOUNDED) -> Snapshot:
    """Ask the Hub for the commit of a revision and for its files.

    Args:
        url: The repository and revision.
        auth: Name of the environment variable with the token; ``None`` for the user's own.
        name: Name of the checkpoint, for messages.
        bounds: How many entries of it may be listed.

    Raises:
        DownloadError: The Hub does not answer, or its answers exceed a bound; the message has the cause.
        ManifestError: It has more entries.
        ValueError: The URL is invalid.
    """
    if problem := url_problem(url.at("0" * 40), directory=True):
        raise ValueError(f"{url.at(url.revision)}: {problem}")
    try:
        token = declared_token(auth) if auth else hub_token()
    except SourceError as error:
        raise _error(name, url, str(error), error.hint) from None
    if _is_offline():
        why = f"{redacted(hub_endpoint())} was not asked: HF_HUB_OFFLINE is set"
        raise _error(name, url, why, "unset HF_HUB_OFFLINE to pin from the Hub")
    api, count, files = f"/api/models/{quote(url.repository)}", 0, list[HubFile]()
    with _translated(name, url, token), HubRequests(token) as hub:
        commit = str(hub.get(f"{api}/revision/{quote(url.revision, safe='')}")["sha"])
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise ValueError(f"{commit!r} is no commit")
        for page in hub.pages(f"{api}/tree/{commit}?recursive=true&expand=false"):
            files += [_file(each) for each in page if each["type"] == "file"]
            count += len(page)
            if bounds.max_listed is not None and count > bounds.max_listed:
                break
    bounds.check_listed(url.at(url.revision), count)
    return Snapshot(commit, tuple(files))


def _is_offline() -> bool:
    """Whether the user forbids requests to the Hub, by a variable or by what huggingface_hub has read of it."""
    known = sys.modules.get("huggingface_hub.constants")
    named = (os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return bool(getattr(known, "HF_HUB_OFFLINE", False)) or any(each in TRUE for each in named)


def _file(entry: Any) -> HubFile:
    """Return a file of a listing.

    Raises:
        TypeError, KeyError: It lacks a part, or has one of another type.
    """
    lfs = entry.get("lfs")
    found = HubFile(entry["path"], entry["size"], lfs["oid"] if lfs is not None else "", entry["oid"])
    if type(found.size) is not int or not all(
        isinstance(each, str) for each in (found.path, found.sha256, found.git_id)
    ):
        raise TypeError("an entry of the listing has a part of another type")
    return found


def path_not_found(url: HubUrl, found: Snapshot, name: str) -> DownloadError:
    """Return the error of a path at which a repository has neither a file nor a directory."""
    page = f"{redacted(hub_endpoint())}/{url.repository}"
    why = f"{page} has no {url.path or 'files'} at {found.commit[:12]}"
    plain = unquote(url.path)
    if plain != url.path and found.has(plain):
        right = replace(url, path=plain)
        why += f"; it has {plain}"
        return _error(name, url, why, f"write {shlex.quote(right.at(url.revision))}, without percent-encoding")
    return _error(name, url, why, f"see {page}/tree/{found.commit}")


def select_files(paths: list[str], include: Sequence[str], exclude: Sequence[str], where: str) -> list[str]:
    """Return the paths that ``hf download --include --exclude`` would select, by the same function.

    Args:
        paths: To select from.
        include: Globs of wanted files; empty for all.
        exclude: Globs of unwanted files.
        where: What lists the paths, for messages.

    Raises:
        ValueError: No path matches, or huggingface_hub is not installed and needed.
    """
    if not include and not exclude:
        return paths
    try:
        from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined,unused-ignore]
    except ImportError:
        raise ValueError("--include and --exclude need huggingface_hub: pip install 'weightcache[hf]'") from None
    taken = filter_repo_objects(paths, allow_patterns=list(include) or None, ignore_patterns=list(exclude) or None)
    if not (found := list(taken)):
        globs = " ".join([*(f"--include {each!r}" for each in include), *(f"--exclude {each!r}" for each in exclude)])
        raise ValueError(f"none of the {len(paths)} file(s) {where} is selected by {globs}")
    return found


@contextmanager
def _translated(name: str, url: HubUrl, token: Token | None) -> Iterator[None]:
    endpoint = redacted(hub_endpoint())  # of a mirror it may hold a password
    try:
        yield
        return
    except RefusedError as error:
        why, hint = _refusal(error, endpoint, url, token)
    except SourceError as error:
        is_away = isinstance(error, TransientError) and not isinstance(error, CutOffError)
        why = f"{endpoint} cannot be reached: {error}" if is_away else f"{endpoint}: {error}"
        hint = f"{error.hint or 'check the network and HF_ENDPOINT'}; nothing was changed"
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        # No answer is checked before it is used: the page of a proxy or a login portal ends in one of these.
        why = f"{endpoint} sent a response that is not from the Hub ({type(error).__name__})"
        hint = "check HF_ENDPOINT, and proxies on the way; nothing was changed"
    raise _error(name, url, why, hint)


def _refusal(error: RefusedError, endpoint: str, url: HubUrl, token: Token | None) -> tuple[str, str]:
    """Return why the Hub refuses, and what to do."""
    page = f"{endpoint}/{url.repository}"
    sent = f"the token from {token.origin} was sent" if token else "no token was sent"
    where = token.origin if token else "HF_TOKEN (or run `hf auth login`)"
    if error.code == "GatedRepo":
        hint = f"accept its licence at {page}, and use the token of that account in {where}"
        return f"{page} is gated, and {sent}", hint
    if error.code == "RevisionNotFound":
        return f"{page} has no revision {url.revision!r}", f"see {page}/tree/main for its branches and tags"
    # The Hub answers 401 for a repository that does not exist, too, if no token was sent.
    is_invalid = error.message.startswith("Invalid credentials")
    if error.code == "RepoNotFound" or (error.status == 401 and not token and not is_invalid):
        hint = f"check the name; if it is private, use a token that may read it in {where}"
        return f"{page} does not exist, or is private, and {sent}", hint
    why = f"{page}: HTTP {error.status}"
    if error.status in (401, 403):
        return f"{why}; {sent}", f"check that the token in {where} is valid and may read it"
    if error.wait:
        return why, f"nothing was changed; try again in {error.wait:.0f} seconds"
    return why, "nothing was changed; try again"


def _error(name: str, url: HubUrl, why: str, hint: str) -> DownloadError:
    return DownloadError(
        f"checkpoint {name}: {why}", hint=hint, checkpoint=name, file=os.path.basename(url.path), attempts=()
    )
