"""What a download of a manifest asks of which host, and what it sends there, so that a person can review it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from weightcache._transfer.refused_addresses import address_of, is_refused
from weightcache.errors import redacted
from weightcache.manifest.urls import local_path, resolved_url, variables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from weightcache.manifest import Checkpoint

_SHOWN = 5  # names; the number of the others is given
_OF_THE_HUB = "the user's token of the Hub"
_LOCAL_NAMES = (".internal", ".local", ".localhost")


class RequestCheck(NamedTuple):
    """What one host is asked for; not ``ok`` if it is refused, or a secret would be sent there without encryption."""

    ok: bool
    text: str


def check_requests(checkpoints: Sequence[Checkpoint]) -> Iterator[RequestCheck]:
    """Yield what is asked of each host, in the order of the manifests; then what has no declared size."""
    names, secrets = dict[str, dict[str, None]](), dict[str, dict[str, None]]()
    for checkpoint in checkpoints:
        for url in checkpoint.urls:
            address = resolved_url(url, "")
            place = "/".join(redacted(address).split("/")[:3]) if local_path(url) is None else ""
            names.setdefault(place, {})[checkpoint.name] = None
            implied = _OF_THE_HUB if url.startswith("hf://") else None
            login = None if checkpoint.auth or not place.startswith("http") else _login(place)
            sent = [checkpoint.auth or implied, *variables(url), login] if place else []
            secrets.setdefault(place, {}).update(dict.fromkeys(name for name in sent if name))
    for place, asking in names.items():
        yield _check(place, _listed([*asking]), _listed([*secrets[place]]))
    if unsized := [each.name for each in checkpoints if each.size is None and each.urls]:
        yield RequestCheck(True, f"{_listed(unsized)}: without `size`, a mirror decides how many bytes are written")


def _check(place: str, asking: str, secrets: str) -> RequestCheck:
    if not place:
        return RequestCheck(True, f"files of this machine are read for {asking}")
    try:
        host = urlsplit(place).hostname or ""
    except ValueError as error:  # of HF_ENDPOINT: a manifest has valid URLs
        return RequestCheck(False, f"{place} is named by {asking}, and is not a URL: {error}")
    if is_refused(host):
        return RequestCheck(False, f"{place} is named by {asking}; no request is sent to such an address")
    nearby = ", in your own network," if _is_nearby(place) else ""
    text = f"{place}{nearby} is asked for {asking}{f', and gets {secrets}' if secrets else ''}"
    if secrets and place.startswith("http://") and not nearby:
        return RequestCheck(False, f"{text}, which everybody on the way can read: use https")
    return RequestCheck(True, text)


def _login(place: str) -> str | None:
    """Name what netrc has for a host, which is sent where an entry has no ``auth``."""
    from requests.utils import get_netrc_auth

    with suppress(ValueError):
        return "what netrc has for it" if get_netrc_auth(place) else None
    return None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _is_nearby(place: str) -> bool:
    """Whether a host is in a private network, by its address or name; a name that leads there is not found out."""
    host = urlsplit(place).hostname or ""
    if address := address_of(host):
        return not address.is_global
    return bool(host) and ("." not in host or host.endswith(_LOCAL_NAMES))
