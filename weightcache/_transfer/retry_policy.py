"""Which refusals are worth another try, and for how long a server asks to wait."""

from __future__ import annotations

import email.utils
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# 202: the file is still being prepared. 508, 529: overload, of hosts with shared resources and of Cloudflare's
# customers. 520 to 525, 527 and 530: Cloudflare cannot reach the origin
# (https://developers.cloudflare.com/support/troubleshooting/http-status-codes/cloudflare-5xx-errors/); not 526, a
# certificate that stays invalid until it is replaced. 598, 599: a timeout behind a proxy.
RETRYABLE = frozenset({202, 408, 425, 429, 500, 502, 503, 504, *range(520, 526), 508, 527, 529, 530, 598, 599})
THROTTLED = frozenset({403, 429, 503})  # fewer requests at once may help

SECONDARY = 60.0  # seconds that GitHub wants where a refusal for too many requests names none
# A quoted text, also one that does not end: else a header of 60,000 quotes would be searched once from each of them.
_QUOTED = r'"(?:[^"\\]|\\.)*(?:"|\\?$)'
_EPOCH = 1e9  # a Reset at or above it is a time, and not a number of seconds
_MILLISECONDS = 1e11  # and at or above this one, a time in milliseconds


def seconds_to_wait(headers: Mapping[str, str]) -> float | None:
    """Return for how many seconds a server asks to wait; ``None`` if it does not ask.

    Only Retry-After counts if it is given (RFC 9110, 10.2.3; draft-ietf-httpapi-ratelimit-headers, section 5).
    Else the exhausted limits count, and of several the one that lasts longest. They are written in three
    ways: ``RateLimit: "name";r=0;t=55`` (that draft from version 08 on, and the Hugging Face Hub:
    https://huggingface.co/docs/hub/rate-limits), ``RateLimit: limit=9, remaining=0, reset=55`` (its version 07), and
    pairs of headers, with seconds as in older versions of the draft, or with a time, as GitHub does
    (https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api).
    """
    if (after := _seconds(headers.get("Retry-After"), is_time=False)) is not None:
        return after
    return max((*_quotas(headers.get("RateLimit") or ""), *_pairs(headers)), default=None)


def _quotas(value: str) -> Iterator[float]:
    for item in re.findall(rf'(?:{_QUOTED}|[^",])+', value):
        parameters = dict(re.findall(r";\s*([a-z]+)\s*=\s*(-?[0-9.]+)", re.sub(_QUOTED, "", item)))
        if _is_exhausted(parameters.get("r")):
            yield _seconds(parameters.get("t"), is_time=False) or 0.0
    members = dict(re.findall(r"(?:^|,)\s*([a-z]+)\s*=\s*(-?[0-9.]+)", value))
    if _is_exhausted(members.get("remaining")):
        yield _seconds(members.get("reset"), is_time=False) or 0.0


def _pairs(headers: Mapping[str, str]) -> Iterator[float]:
    for name in ("RateLimit", "X-RateLimit", "X-Rate-Limit"):
        if _is_exhausted(headers.get(f"{name}-Remaining")):
            yield _seconds(headers.get(f"{name}-Reset"), is_time=True) or 0.0


def _is_exhausted(remaining: str | None) -> bool:
    return re.match(r"\s*(-[0-9]+|0+(\.0*)?)\s*($|[,;])", remaining or "") is not None


def _seconds(value: str | None, *, is_time: bool) -> float | None:
    """Return the seconds that a header asks for, as a number or as a date; ``None`` if it is neither.

    Args:
        value: What the header says.
        is_time: Whether a large number is a time, in seconds or milliseconds since the epoch.
    """
    text = (value or "").strip()
    if match := re.match(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*($|[,;])", text):
        number = float(match[1])
        if is_time and number >= _EPOCH:
            return max(0.0, number / (1000 if number >= _MILLISECONDS else 1) - time.time())
        return number
    with suppress(ValueError, TypeError, OverflowError, IndexError, OSError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None
