"""URLs of mirrors: which are valid (``*_problem`` returns what is wrong, or ``None``), and what they resolve to."""

from __future__ import annotations

import os
import re

from weightcache.errors import redacted

from .validate import path_problem

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing


_REFERENCE = r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}"


_LOCAL = r"file:(?://(?:localhost)?)?(/(?!/).*)"


_HUB_BRANCH = r"hf://[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)?(?:@[^/@]+)?(?:/.+)?"


MOVES = "names no commit: want hf://REPO@COMMIT[/PATH] with its 40 hex digits, since a branch or tag moves"


_HUB = r"hf://([A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)?)@([0-9a-f]{40})(?:/(.+))?"


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
    return None if right else "is not a URL with a host"


def _hub_problem(url: str, directory: bool) -> str | None:
    """The path is that of the file in its repository, with whatever characters it has: nothing in it is decoded."""
    if not (match := re.fullmatch(_HUB, url, re.DOTALL)):
        return MOVES if re.fullmatch(_HUB_BRANCH, url, re.DOTALL) else "want hf://REPO@COMMIT[/PATH]"
    if match[3] is None:
        return None if directory else "names a whole repository; add /PATH, or declare `files`"
    return path_problem(match[3])


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
    if not (match := re.fullmatch(_LOCAL, url)):
        return None
    from urllib.parse import unquote

    return unquote(match[1])


def hub_parts(url: str) -> tuple[str, str, str] | None:
    """Return repository, commit and path (perhaps empty) of an ``hf://`` URL; ``None`` for any other."""
    match = re.fullmatch(_HUB, url)
    return (match[1], match[2], match[3] or "") if match else None


def hub_page(url: str) -> str:
    """Return the address of the repository that an ``hf://`` URL names, for a person; empty for any other URL."""
    match = re.fullmatch(_HUB, url)
    return f"{redacted(hub_endpoint())}/{match[1]}" if match else ""


def hub_endpoint() -> str:
    """Return the Hub's address: ``HF_ENDPOINT``, or https://huggingface.co."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def resolved_url(url: str, inner: str) -> str:
    """Return the URL to request for a mirror ``url``: of the file ``inner`` below it, or of itself if that is empty.

    ``hf://`` becomes https. The Hub's address is ``HF_ENDPOINT``, by default https://huggingface.co, and a file is
    at ``/REPO/resolve/COMMIT/PATH`` (huggingface_hub's ``hf_hub_url``), whose PATH is percent-encoded here.
    """
    from urllib.parse import quote

    if match := re.fullmatch(_HUB, url):
        path = "/".join(quote(part) for part in (match[3], inner) if part)
        return f"{hub_endpoint()}/{match[1]}/resolve/{match[2]}/{path}"
    if not inner:
        return url
    base, question, query = url.partition("?")  # a signed base keeps its query
    return f"{base.rstrip('/')}/{quote(inner)}{question}{query}"


def name_from_url(url: str) -> str:
    """Return the last path segment of ``url``, percent-decoded but for an ``hf://`` one; empty if it has none."""
    if match := re.fullmatch(_HUB, url):
        return (match[3] or "").rpartition("/")[2]
    if match := re.fullmatch(_LOCAL, url):
        path = match[1]
    else:
        path = url.partition("://")[2].partition("?")[0].partition("/")[2]
    segment = path.rpartition("/")[2]
    if "%" in segment:
        from urllib.parse import unquote

        segment = unquote(segment)
    return segment


def has_ending(name: str) -> bool:
    """Whether a file's name has an ending such as ``.pt``; ``138296`` and ``v1.5`` have none."""
    return re.fullmatch(r".+\.[0-9]*[A-Za-z][A-Za-z0-9_-]*", name) is not None
