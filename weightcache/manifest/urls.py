"""URLs of mirrors: which are valid (``*_problem`` returns what is wrong, or ``None``), and what they resolve to."""

from __future__ import annotations

import os
import re

from weightcache.errors import redacted

from .validate import path_problem

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing


_REFERENCE = r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}"
_LOCAL = r"file:(?://(?:localhost)?)?(/(?!/).*)"

# A revision is a branch, a tag or a commit; a slash in it is written %2F, since the path begins at the next slash.
# Nothing in the path is decoded.
_HUB = r"hf://([A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)?)(?:@([^/@]+))?(?:/(.+))?"
MOVES = "names no commit: want hf://REPO@COMMIT[/PATH] with its 40 hex digits, since a branch or tag moves"


def url_problem(url: str, *, directory: bool) -> str | None:
    """Say why ``url`` cannot be a mirror of a file (or of a ``directory``), or ``None``."""
    if url.startswith("hf:"):
        return _hub_problem(url, directory)
    if "${" in url and (problem := _reference_problem(url)):
        return problem
    if not url.isprintable() or any(mark in url for mark in " \\#"):
        return "holds a space, control character, backslash or fragment; percent-encode it"
    if url.startswith("file:"):
        if not re.fullmatch(_LOCAL, url):
            return "want an absolute file:///path on this machine"
        return "holds an encoded NUL" if "%00" in url else None
    if not url.startswith(("http://", "https://")):
        return "want https, http, file or hf"
    authority = url.partition("://")[2].partition("/")[0].partition("?")[0]
    host, colon, port = authority.rpartition("@")[2].rpartition("]")[2].partition(":")
    named = host or authority.rpartition("@")[2].startswith("[")
    right = named and (not colon or (port.isdecimal() and len(port) <= 5))
    if right and ("[" in authority or "]" in authority or not authority.isascii()):
        right = _is_unusual_host(authority)
    return None if right else "is not a URL with a host"


def _is_unusual_host(authority: str) -> bool:
    """Whether what is between ``//`` and the path has an IPv6 address in brackets, or a name that is not ASCII."""
    from ipaddress import IPv6Address  # here, because nearly no manifest needs it
    from urllib.parse import urlsplit

    host = authority.rpartition("@")[2]
    try:
        name = urlsplit(f"//{authority}").hostname  # refuses characters that stand for one of /?#@:
        if "[" in authority or "]" in authority:
            IPv6Address(name or "")
            return re.fullmatch(r"\[[^\[\]]+\](:[0-9]+)?", host) is not None
    except ValueError:
        return False
    return True


def _hub_problem(url: str, directory: bool) -> str | None:
    """The path is that of the file in its repository, with whatever characters it has: nothing in it is decoded."""
    if not (found := parse_hub_url(url)):
        return "want hf://REPO@COMMIT[/PATH]"
    repository, revision, path = found
    if not {".", ".."}.isdisjoint(repository.split("/")):  # the request would be for another page of the Hub
        return f"{repository} is not the name of a repository"
    if not is_commit(revision):
        return MOVES
    if not path:
        return None if directory else "names a whole repository; add /PATH, or declare `files`"
    return path_problem(path)


def _reference_problem(url: str) -> str | None:
    before, _, query = url.partition("?")
    if "${" in before or not url.startswith(("http://", "https://")):
        return "${VARIABLE} may stand only in the query of an http or https URL: what is before it is shown in messages"
    if "${" in re.sub(_REFERENCE, "", query):
        return "want ${VARIABLE} with the name of an environment variable"
    return None


def variables(url: str) -> list[str]:
    """Return the environment variables that stand in a URL as ``${VARIABLE}``."""
    return re.findall(_REFERENCE, url) if "${" in url and not url.startswith("hf:") else []


def expanded(url: str) -> str:
    """Return a URL with its ``${VARIABLE}`` replaced by their values, as they are: what signs a URL is encoded already.

    Raises:
        KeyError: A variable is not set, or empty.
        ValueError: Its value cannot stand in a URL. The name is the argument; the value is never shown.
    """

    def value(match: re.Match[str]) -> str:
        text = os.environ.get(match[1], "").strip()  # a newline from `echo` is not a part of it
        if not text:
            raise KeyError(match[1])
        if not (text.isascii() and text.isprintable()) or " " in text or "#" in text:
            raise ValueError(match[1])
        return text

    return re.sub(_REFERENCE, value, url) if "${" in url else url


def local_path(url: str) -> str | None:
    """Return the path that a ``file:`` URL names, or ``None`` for any other URL."""
    # A hit asks for every URL, and compiling the pattern would cost more than importing a module.
    match = re.fullmatch(_LOCAL, url) if url.startswith("file:") else None
    if match is None:
        return None
    from urllib.parse import unquote

    return unquote(match[1])


def parse_hub_url(url: str) -> tuple[str, str, str] | None:
    """Return repository, revision (as written) and path of an ``hf://`` URL; ``None`` for any other URL.

    Revision and path may be empty.
    """
    match = re.fullmatch(_HUB, url, re.DOTALL) if url.startswith("hf:") else None
    return (match[1], match[2] or "", match[3] or "") if match else None


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit, and not a branch or tag."""
    return len(revision) == 40 and not revision.strip("0123456789abcdef")


def hub_parts(url: str) -> tuple[str, str, str] | None:
    """Return repository, commit and path (perhaps empty) of a pinned ``hf://`` URL; ``None`` for any other URL."""
    found = parse_hub_url(url)
    return found if found and is_commit(found[1]) else None


def hub_page(url: str) -> str:
    """Return the address of the repository that an ``hf://`` URL names, for a person; empty for any other URL."""
    found = hub_parts(url)
    return f"{redacted(hub_endpoint())}/{found[0]}" if found else ""


def hub_endpoint() -> str:
    """Return the Hub's address: ``HF_ENDPOINT``, or https://huggingface.co."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def resolved_url(url: str, inner: str) -> str:
    """Return the URL to request for a mirror ``url``: of the file ``inner`` below it, or of itself if that is empty.

    ``hf://`` becomes https. The Hub's address is ``HF_ENDPOINT``, by default https://huggingface.co, and a file is
    at ``/REPO/resolve/COMMIT/PATH`` (huggingface_hub's ``hf_hub_url``), whose PATH is percent-encoded here.
    """
    from urllib.parse import quote

    if found := hub_parts(url):
        repository, commit, base = found
        path = "/".join(quote(part) for part in (base, inner) if part)
        return f"{hub_endpoint()}/{repository}/resolve/{commit}/{path}"
    if not inner:
        return url
    base, question, query = url.partition("?")  # a signed base keeps its query
    return f"{base.rstrip('/')}/{quote(inner)}{question}{query}"


def name_from_url(url: str) -> str:
    """Return the last path segment of ``url``, percent-decoded but for an ``hf://`` one; empty if it has none."""
    if found := hub_parts(url):
        return found[2].rpartition("/")[2]
    if url.startswith("file:"):  # without the pattern, whose compilation a hit would pay for; "?" is part of a path
        path = url.removeprefix("file:")
    else:
        path = url.partition("://")[2].partition("?")[0].partition("/")[2]
    segment = path.rpartition("/")[2]
    if "%" in segment:
        from urllib.parse import unquote

        segment = unquote(segment)
    return segment


def checkpoint_name(entry: str, *, is_directory: bool) -> str:
    """Return a checkpoint name made from the name of a file or directory: without its ending and invalid characters."""
    stem = entry if is_directory else os.path.splitext(entry)[0]
    return re.sub("[^A-Za-z0-9._-]+", "-", stem).lstrip("._-")[:100] or "weights"


def has_ending(name: str) -> bool:
    """Whether a file's name has an ending such as ``.pt``; ``138296`` and ``v1.5`` have none."""
    return re.fullmatch(r".+\.[0-9]*[A-Za-z][A-Za-z0-9_-]*", name) is not None
