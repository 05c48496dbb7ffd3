"""Drafts of checkpoints that no manifest has yet, from their URLs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from weightcache.manifest.urls import has_ending, variables

from .bounds import UNBOUNDED
from .unpinned_entries import HubUrl, drafts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .bounds import Bounds
    from .unpinned_entries import Draft

# Query parameters that hold secrets: of Azure, Amazon S3, Google Cloud Storage, and of CivitAI and GitLab.
_SIGNATURES = {"sig", "signature", "x-amz-signature", "x-goog-signature", "token", "access_token", "private_token"}


def declare(
    name: str, urls: Sequence[str], *, auth: str | None, file: str | None, source: str, say: Callable[[str], None]
) -> Draft:
    """Return the draft of a checkpoint, checked by the rules of a manifest.

    Args:
        name: Of the checkpoint.
        urls: Its mirrors.
        auth: Name of the environment variable that holds its token, if any.
        file: What the file is called; ``None`` for the end of the first URL.
        source: Where the URLs come from, for messages.
        say: Shows warnings.

    Raises:
        ManifestError: Something is invalid.
    """
    entry: dict[str, Any] = {"urls": list(urls)}
    if auth:
        entry["auth"] = auth
    hub = HubUrl.parse(urls[0])
    if file:
        entry["file"] = file
    elif hub and hub.path:
        entry["file"] = hub.path.rpartition("/")[2]
    [draft] = drafts({"checkpoints": {name: entry}}, source, say)
    return draft


def find_kind(draft: Draft, bounds: Bounds = UNBOUNDED) -> None:
    """Find out whether a new draft is one file or a directory.

    Raises:
        DownloadError: The Hub does not answer.
        ManifestError: The repository exceeds the bounds.
    """
    hub = HubUrl.parse(draft.urls[0])
    if hub and hub.path:
        from .hub_client import snapshot

        # Only the Hub knows whether a path in a repository is a file or a directory.
        found = snapshot(hub, draft.auth, draft.name, bounds)
        draft.is_directory = not any(file.path == hub.path for file in found.files)
        draft.knows_files = not draft.is_directory
    elif hub:
        draft.is_directory, draft.knows_files = True, False


def use_suggested_name(draft: Draft) -> str:
    """Use the name that the server sends if the end of the URL has no suffix; return a name that is not used."""
    if not draft.accepts_server_name:
        return ""
    [(path, pin)] = draft.pins.items()
    if pin.suggested_name in ("", path):
        return ""
    if has_ending(path):
        return pin.suggested_name
    draft.pins = {pin.suggested_name: pin}
    pin.evidence += "; the file name is the server's"
    return ""


def secret_problem(url: str) -> str:
    """Return what in a URL is a secret, and would be written into manifests; empty without one."""
    try:
        parts = urlsplit(url)
    except ValueError:  # such as http://[, which is refused for another reason
        return ""
    if parts.scheme not in ("http", "https"):
        return ""
    if "@" in parts.netloc:
        return (
            "the user and password before the @ would be written into the manifest; remove them, and "
            "use ~/.netrc or --auth"
        )
    for name, value in parse_qsl(parts.query):
        if name.lower() in _SIGNATURES and not variables(value):
            return (
                f"the query's {name} would be written into the manifest; "
                f"write '{name}=${{VARIABLE}}', and set that environment variable to its value"
            )
    return ""
