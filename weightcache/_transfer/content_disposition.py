"""The name that a server gives to a file: Content-Disposition (RFC 6266), also as a signed URL carries it.

The name comes from a server that is not trusted. This module returns one path segment that a manifest may have, or
nothing.
"""

from __future__ import annotations

import re
from contextlib import suppress
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

from weightcache.manifest.validate import path_problem

# The query parameter that makes a store send the header: Amazon S3 and Google Cloud Storage; Azure.
_IN_QUERY = ("response-content-disposition", "rscd")
_PARAMETER = re.compile(r""";\s*(filename\*?)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)""", re.IGNORECASE | re.DOTALL)
_EXTENDED = re.compile(r"(UTF-8|ISO-8859-1)'[^']*'(.*)", re.IGNORECASE | re.DOTALL)  # RFC 8187


def suggested_name(header: str, url: str) -> str:
    """Return the name that a response gives to its file; empty if it gives none.

    Args:
        header: The Content-Disposition of the response as `requests` has it, in ISO 8859-1; empty without one.
        url: Where the response came from.
    """
    if name := _name(header):
        return name
    for key, value in parse_qsl(urlsplit(url).query):
        if key.lower() in _IN_QUERY and (name := _name(value)):
            return name
    return ""


def _name(value: str) -> str:
    found: dict[str, str] = {}
    for key, text in _PARAMETER.findall(f";{value[:4096]}"):
        found.setdefault(key.lower(), text)
    return _safe(_extended(found.get("filename*", ""))) or _safe(_plain(found.get("filename", "")))


def _extended(text: str) -> str:
    match = _EXTENDED.fullmatch(text.strip().strip('"'))
    with suppress(UnicodeDecodeError):
        return unquote_to_bytes(match[2]).decode(match[1]) if match else ""
    return ""


def _plain(text: str) -> str:
    text = text.strip()
    if text.startswith('"'):
        text = re.sub(r"\\(.)", r"\1", text[1:].removesuffix('"'), flags=re.DOTALL)
    # Many servers send UTF-8 as it is, or percent-encoded, and browsers accept both.
    encoded = re.fullmatch("(?:[^%]|%[0-9A-Fa-f]{2})*", text)
    with suppress(UnicodeError):
        data = text.encode("latin-1")
        return (unquote_to_bytes(data) if encoded else data).decode()
    return text


def _safe(name: str) -> str:
    """Return the last path segment without characters that control a terminal or hide; empty if no name is left."""
    name = re.split(r"[/\\]", name)[-1]
    name = "".join(character for character in name if character.isprintable()).strip(" .")
    return "" if path_problem(name) else name
