"""Tokens: which one a request may carry, and what a user is told whose token was refused. No token is ever shown."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from ._response import status_in_words
from ._rules import user_path
from ._source import SourceError

if TYPE_CHECKING:
    import requests

_TRUE = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads its variables


class Token(NamedTuple):
    """A bearer token, and where it was found, in words."""

    value: str
    origin: str


def declared_token(variable: str) -> Token:
    """Return the token of a checkpoint that declares ``auth``.

    Raises:
        SourceError: The variable is not set, or holds no token.
    """
    value = os.environ.get(variable, "").strip()  # a newline from `echo` would be an invalid header
    if not value:
        hint = f"set {variable} in the environment (on Modal: a Secret)"
        raise SourceError(f"environment variable {variable} (its `auth`) is not set", hint=hint, asked=False)
    return _checked(value, variable, f"environment variable {variable} (its `auth`)")


def hub_token() -> Token | None:
    """Return the token that huggingface_hub would send, or ``None``.

    In its order (``huggingface_hub.get_token``, 2.4): ``HF_TOKEN``, ``HUGGING_FACE_HUB_TOKEN``, then the file that
    ``hf auth login`` writes. What needs its own software (tokens of a CI, of a notebook, refreshed ones) is left to
    ``auth``; ``HF_HUB_DISABLE_IMPLICIT_TOKEN`` forbids all of them.
    """
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in _TRUE:
        return None
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if value := os.environ.get(variable, "").strip():
            return _checked(value, variable, f"environment variable {variable}")
    with suppress(OSError, UnicodeDecodeError):  # a StorageError is an OSError: without a home there is no such file
        path = _token_file()
        with open(path, encoding="utf-8") as stream:
            value = stream.read(1 << 16).strip()
        return _checked(value, path, path) if value else None
    return None


def _token_file() -> str:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    return os.path.expandvars(user_path(os.environ.get("HF_TOKEN_PATH") or f"{home}/token"))


def _checked(value: str, origin: str, where: str) -> Token:
    if not (value.isascii() and value.isprintable()):
        raise SourceError(f"{where} holds characters no token has", asked=False)
    return Token(value, origin)


def refusal(response: requests.Response, origin: str, auth: str | None, hub: str) -> SourceError:
    """Return what a 401 or 403 means: which token was tried, and what to do.

    Args:
        response: The answer.
        origin: Where the token was found that was sent; empty if none was.
        auth: What the checkpoint declares.
        hub: Page of the Hub's repository, or empty.
    """
    # requests itself sends what netrc has for the host, or what stands before an @ in the URL.
    basic = not origin and "Authorization" in response.request.headers
    sent = f"the token from {origin} was sent" if origin else "no token was sent"
    text = f"{status_in_words(response)}; {'a user name and password (netrc, or the URL) were sent' if basic else sent}"
    if not hub:
        lacking = "" if origin or basic else " (no `auth` is declared)"
        hint = f"look whether the token in {auth} is valid here" if auth else "declare `auth` if it needs a token"
        return SourceError(text + lacking, hint="look whether they are valid here" if basic else hint)
    # X-Error-Code is the Hub's own word for why (huggingface_hub's utils/_http.py reads it, too).
    code = re.sub("[^A-Za-z]", "", response.headers.get("X-Error-Code", ""))[:40]
    token = origin or "HF_TOKEN (or run `hf auth login`)"
    if code == "GatedRepo":
        return SourceError(
            f"{text}; {hub} is gated",
            hint=f"accept its licence at {hub}, and use the token of that account in {token}",
        )
    return SourceError(
        f"{text}{f'; {code}' if code else ''}",
        hint=f"look whether {hub} exists, and whether the token in {token} may read it"
        if origin
        else f"look whether {hub} exists; if it is private, set {token}",
    )
