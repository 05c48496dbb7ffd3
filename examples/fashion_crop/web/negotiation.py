"""Choose the media type of an answer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request


def negotiate(request: Request, *offers: str) -> str:
    """Choose the media type that the client likes best (RFC 9110, 12.5.1); of equals the first one offered.

    Raises:
        ServiceError: It takes none of them.
    """
    accept = ",".join(request.headers.getlist("accept"))
    ranges = [_media_range(each) for each in accept.split(",") if each.strip()] or [("*/*", 1.0)]
    best = max(offers, key=lambda offer: _quality(offer, ranges))
    if _quality(best, ranges) <= 0:
        raise ServiceError(406, "type-not-offered", f"the answer is {' or '.join(offers)}: let Accept have it")
    return best


def _media_range(text: str) -> tuple[str, float]:
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    for parameter in parameters:
        if match := re.fullmatch(r"q=([01](?:\.\d{0,3})?)", parameter):
            return name, min(float(match[1]), 1.0)
    return name, 1.0


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Return how much an offer is liked: what names it counts more than what has a star."""
    for name in (offer, offer.partition("/")[0] + "/*", "*/*"):
        for given, quality in ranges:
            if given == name:
                return quality
    return 0.0
