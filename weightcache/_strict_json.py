"""JSON as weights and signatures have it, read strictly: each key once, UTF-8, no numbers beyond it."""

from __future__ import annotations

import json
from typing import Any


class InvalidJsonError(ValueError):
    """The bytes are not such a JSON document. Its text says why; callers put it into an error of their own."""


def parse_json_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in ``data``.

    Raises:
        InvalidJsonError: It is no JSON object, a key occurs twice, or a text is not Unicode.
    """
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InvalidJsonError(f"is not UTF-8: byte {error.start}") from error
    except RecursionError as error:
        raise InvalidJsonError("is nested too deeply") from error
    except InvalidJsonError:
        raise
    except ValueError as error:
        raise InvalidJsonError(f"is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidJsonError(f"is not a JSON object, but a {type(found).__name__}")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set[str]()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InvalidJsonError(f"has the key {twice!r:.200} twice")
    for name in found:
        if not name.isascii() and any("\ud800" <= char <= "\udfff" for char in name):
            raise InvalidJsonError(f"has the key {name!r:.200}, which is not Unicode text")
    return found


def _no_constant(name: str) -> Any:
    raise InvalidJsonError(f"has {name}, which JSON does not have")
