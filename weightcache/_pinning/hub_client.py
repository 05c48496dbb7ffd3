"""Asking the Hugging Face Hub about a repository, with its own client (the extra ``hf``). Only pinning needs it."""

from __future__ import annotations

import os
import re
import shlex
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from weightcache._transfer.auth import declared_token, hub_token
from weightcache._transfer.mirror_stream import SourceError
from weightcache._transfer.retry_policy import seconds_to_wait
from weightcache.errors import DownloadError, redacted
from weightcache.manifest.urls import hub_endpoint

from .bounds import UNBOUNDED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoFile

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
        DownloadError: The Hub does not answer; the message has the cause.
        ManifestError: It has more entries.
        ValueError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile
    except ImportError:
        raise ValueError("pinning an hf:// URL needs huggingface_hub: pip install 'weightcache[hf]'") from None
    try:
        token = declared_token(auth) if auth else hub_token()
    except SourceError as error:
        raise _error(name, url, str(error), error.hint) from None
    with _translated(name, url, token):
        # token=False: send no token if we have none; otherwise the client would search for one of its own.
        api = HfApi(endpoint=hub_endpoint(), token=token.value if token else False)
        commit = str(api.model_info(url.repository, revision=url.revision).sha)
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise ValueError(f"{commit!r} is no commit")
        tree = api.list_repo_tree(url.repository, revision=commit, recursive=True)
        listed = list(islice(tree, None if bounds.max_listed is None else bounds.max_listed + 1))
        files = tuple(_file(each) for each in listed if isinstance(each, RepoFile))
    bounds.check_listed(url.at(url.revision), len(listed))
    return Snapshot(commit, files)


def _file(entry: RepoFile) -> HubFile:
    """Return a file of a listing. The client passes on what a server sends, of whatever type.

    Raises:
        TypeError: It has a part of another type.
    """
    found = HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else "", entry.blob_id)
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
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    endpoint = redacted(hub_endpoint())  # of a mirror it may hold a password
    page = f"{endpoint}/{url.repository}"
    sent = f"the token from {token.origin} was sent" if token else "no token was sent"
    where = token.origin if token else "HF_TOKEN (or run `hf auth login`)"
    try:
        yield
        return
    except GatedRepoError:
        why = f"{page} is gated, and {sent}"
        hint = f"accept its licence at {page}, and use the token of that account in {where}"
    except RevisionNotFoundError:
        why, hint = f"{page} has no revision {url.revision!r}", f"see {page}/tree/main for its branches and tags"
    except RepositoryNotFoundError:
        why = f"{page} does not exist, or is private, and {sent}"
        hint = f"check the name; if it is private, use a token that may read it in {where}"
    except LocalTokenNotFoundError:
        why, hint = "the Hub's client found no token", f"set {where}"
    except HfHubHTTPError as error:
        why, hint = _http_problem(error, page, sent, where)
    except HFValidationError:
        raise  # an invalid argument of the user
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        # The client does not check responses: the page of a proxy or a login portal ends in one of these.
        why = f"{endpoint} sent a response that is not from the Hub ({type(error).__name__})"
        hint = "check HF_ENDPOINT, and proxies on the way; nothing was changed"
    except Exception as error:
        if not _is_network(error):
            raise
        why = f"{endpoint} cannot be reached ({type(error).__name__})"
        hint = "check the network and HF_ENDPOINT; nothing was changed"
        if isinstance(error, OfflineModeIsEnabled):
            why, hint = f"{endpoint} was not asked: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE to pin from the Hub"
    raise _error(name, url, why, hint)


def _http_problem(error: HfHubHTTPError, page: str, sent: str, where: str) -> tuple[str, str]:
    status = getattr(error.response, "status_code", "")
    why = f"{page}: HTTP {status}".rstrip()
    if status in (401, 403):
        return f"{why}; {sent}", f"check that the token in {where} is valid and may read it"
    if seconds := seconds_to_wait(error.response.headers):
        return why, f"nothing was changed; try again in {seconds:.0f} seconds"
    return why, "nothing was changed; try again"


def _is_network(error: Exception) -> bool:
    """Whether it is a network error of the client's HTTP library."""
    return isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "httpcore", "requests"))


def _error(name: str, url: HubUrl, why: str, hint: str) -> DownloadError:
    return DownloadError(
        f"checkpoint {name}: {why}", hint=hint, checkpoint=name, file=os.path.basename(url.path), attempts=()
    )
