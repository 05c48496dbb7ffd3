"""Tokens: which one a request may send. No token is ever shown."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

from weightcache._environment import set_variable
from weightcache.manifest.validate import user_path

from .mirror_stream import SourceError

TRUE = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads its variables


class Token(NamedTuple):
    """A bearer token, and in words where it was found."""

    value: str
    origin: str


def declared_token(variable: str) -> Token:
    """Return the token of a checkpoint that declares ``auth``.

    Raises:
        SourceError: The variable is not set, or holds no token.
    """
    value = os.environ.get(variable, "").strip()  # a newline from `echo` would be an invalid header
    if not value:
        problem = f"environment variable {variable} (its `auth`) is not set"
        raise SourceError(problem, hint=set_variable(variable), request_sent=False)
    return _checked(value, variable, f"environment variable {variable} (its `auth`)")


def hub_token() -> Token | None:
    """Return the token that huggingface_hub would send, or ``None``.

    The order is that of ``huggingface_hub.get_token`` (2.4): ``HF_TOKEN``, ``HUGGING_FACE_HUB_TOKEN``, then the file
    that ``hf auth login`` writes. Tokens that need its software (of a CI, of a notebook, refreshed ones) can be given
    with ``auth``. ``HF_HUB_DISABLE_IMPLICIT_TOKEN`` turns all of them off.
    """
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in TRUE:
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
        raise SourceError(f"{where} holds characters no token has", request_sent=False)
    return Token(value, origin)


def is_signed(url: str) -> bool:
    """Whether the query of a URL has a signature. Its host then accepts no other permission.

    S3 and compatible stores (X-Amz-Signature, older: Signature), Google (X-Goog-Signature), Azure (sig),
    CloudFront and the Hub's storage (Signature). S3 refuses a signed request that also has a user name.
    """
    keys = {each.partition("=")[0].lower() for each in urlsplit(url).query.split("&")}
    return "sig" in keys or any(key.endswith("signature") for key in keys)
