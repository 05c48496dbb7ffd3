"""Refusing to pin content that is not weights: a web page, an API's response, a Git LFS pointer, an empty file.

If one of them were pinned, `ensure` would verify its digest and report it as correct.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from weightcache._store.content_sniffing import EMPTY, POINTER, foreign_content, holds_weights, lfs_pointer_target
from weightcache.errors import Attempt, DownloadError, redacted
from weightcache.manifest.urls import has_ending, hub_endpoint, local_path, resolved_url

if TYPE_CHECKING:
    from .hash_remote import Opening
    from .unpinned_entries import Draft

_HUB_FILE = re.compile(r"/([^/]+/[^/]+)/(?:raw|blob)/([^/]+)/(.+)")
_HUB_PAGE = re.compile(r"/([^/]+/[^/]+?)/?(?:/tree/([^/]+)(/.+)?)?")
_GITHUB_FILE = re.compile(r"/([^/]+/[^/]+)/(?:raw|blob)/(.+)")
_GITLAB_PAGE = re.compile(r"(/.+/-)/blob/(.+)")


def content_problem(name: str, opening: Opening, *, is_directory: bool, matches_git_id: bool = False) -> str:
    """Return what a mirror sent instead of a file; an empty string if the content is acceptable.

    Args:
        name: Path of the file.
        opening: The beginning of the response.
        is_directory: Whether it is one file of a directory, where files such as ``__init__.py`` may be empty.
        matches_git_id: Whether the bytes have the id that Git has for the file. Then a text file is right, and only
            files of weights and pointers are checked.
    """
    name = name if has_ending(name) else opening.suggested_name or name
    what = foreign_content(opening.head, opening.content_type, name=name)
    spared = matches_git_id if what != EMPTY else is_directory or matches_git_id
    return "" if spared and what != POINTER and not holds_weights(name) else what


def content_error(draft: Draft, path: str, url: str, what: str, opening: Opening, sha256: str = "") -> DownloadError:
    """Return the error of a file that must not be pinned.

    Args:
        draft: The checkpoint.
        path: The file.
        url: The mirror that sent it, as declared.
        what: What it sent, from `content_problem`.
        opening: The beginning of the response.
        sha256: The digest of what it sent, if it was read completely.
    """
    asked = redacted(resolved_url(url, path if draft.is_directory else ""))
    size = "" if opening.size is None else f" of {opening.size:,} bytes"
    why = f"sent {what}{size}" if what != EMPTY else "sent an empty file"
    if draft.is_directory:
        anyway = (
            f"leave the file out (`add`: --exclude {shlex.quote(path)}), or give its checkpoint's digest to --expect"
        )
    else:
        anyway = f"if this is the file, add --expect {sha256 or 'SHA256'}"
    return DownloadError(
        f"checkpoint {draft.name}: {asked} {why} instead of {path}",
        hint=f"nothing was changed; {advice(url, what, opening.head)}; {anyway}",
        checkpoint=draft.name,
        file=path,
        attempts=(Attempt(asked, why, 1),),
    )


def advice(url: str, what: str, head: bytes) -> str:
    """Return where to find the file itself, for a URL that sent something else."""
    better = _better(url, what)
    if what == POINTER:
        points = f" to the file with sha256 {digest}" if (digest := lfs_pointer_target(head)) else ""
        if local_path(url) is not None:
            return f"it points{points or ' to another file'}: run `git lfs pull` in that clone"
        otherwise = "https://media.githubusercontent.com/media/OWNER/REPO/REVISION/PATH of GitHub, or hf:// of the Hub"
        return f"it points{points or ' to another file'}: use {better or otherwise}"
    if better:
        return f"use {better}"
    if what == EMPTY:
        return "check the URL"
    return "open the URL in a browser and use the address of the file itself; if it needs a login, give --auth"


def _better(url: str, what: str) -> str:
    """Return the address of the file itself for a page or a pointer of a well-known host; empty if none is known."""
    parts = urlsplit(url if url.startswith(("http://", "https://")) else "")
    host = parts.hostname or ""
    if host in ("huggingface.co", "www.huggingface.co", "hf.co", urlsplit(hub_endpoint()).hostname):
        if match := _HUB_FILE.fullmatch(parts.path):
            hub = f"hf://{match[1]}@{match[2]}/{unquote(match[3])}"
            return f"{shlex.quote(hub)}, or /resolve/ in place of /raw/ or /blob/"
        if match := _HUB_PAGE.fullmatch(parts.path):
            return shlex.quote(f"hf://{match[1]}@{match[2] or 'main'}{unquote(match[3] or '')}")
    elif host in ("github.com", "www.github.com"):
        if match := _GITHUB_FILE.fullmatch(parts.path):
            if what == POINTER:
                return f"https://media.githubusercontent.com/media/{match[1]}/{match[2]}"
            return f"https://github.com/{match[1]}/raw/{match[2]}"
    elif host == "raw.githubusercontent.com":
        return f"https://media.githubusercontent.com/media{parts.path}" if what == POINTER else ""
    elif match := _GITLAB_PAGE.fullmatch(parts.path):
        return f"https://{host}{match[1]}/raw/{match[2]}"
    return ""
