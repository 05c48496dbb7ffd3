"""Check the tokens that `ensure` would send to the Hugging Face Hub: form, and whether the Hub accepts them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from weightcache._environment import set_variable
from weightcache._transfer.auth import TRUE, Token, declared_token, hub_token
from weightcache._transfer.mirror_stream import SourceError
from weightcache.errors import redacted
from weightcache.manifest.urls import hub_endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from weightcache.manifest import Manifest

TIMEOUT = 5.0  # seconds to connect, and between two bytes of the answer
_PREFIXES = ("hf_", "api_org_")  # of the Hub's tokens


class TokenCheck(NamedTuple):
    """What is known of one token; ``text`` never has the token itself."""

    ok: bool
    text: str


def check_hub_tokens(manifests: Sequence[Manifest]) -> Iterator[TokenCheck]:
    """Check each token that goes to the Hub for a checkpoint of ``manifests``. Offline is no problem."""
    on_hub = [each for manifest in manifests for each in manifest if any(url.startswith("hf://") for url in each.urls)]
    for variable in dict.fromkeys(each.auth for each in on_hub):
        if variable and not os.environ.get(variable, "").strip():
            continue  # that it is not set is a finding of its own
        try:
            token = declared_token(variable) if variable else hub_token()
        except SourceError as error:
            place = variable or "HF_TOKEN"
            yield TokenCheck(False, f"{error}; {set_variable(place)} again, with the token as the Hub shows it")
            continue
        yield (
            TokenCheck(True, "there is no token of the Hub: public repositories need none")
            if token is None
            else (_ask(token))
        )


def _ask(token: Token) -> TokenCheck:
    hub = redacted(hub_endpoint())  # of a mirror it may hold a password
    form = "" if token.value.startswith(_PREFIXES) else f" (it does not begin with {' or '.join(_PREFIXES)})"
    what = f"the token from {token.origin}"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in TRUE:
        return TokenCheck(not form, f"{what} has {'no ' if form else 'a '}valid form{form}; not sent: HF_HUB_OFFLINE")
    status = _status(token, f"{hub_endpoint()}/api/whoami-v2")
    if status == 200:
        return TokenCheck(True, f"{hub} accepts {what}")
    if status in (401, 403):
        return TokenCheck(
            False, f"{hub} refuses {what}: HTTP {status}{form}; make a new one at {hub}/settings/tokens, and replace it"
        )
    why = f"HTTP {status}" if status else "no connection"
    return TokenCheck(not form, f"{what} has {'no ' if form else 'a '}valid form{form}; {hub} was not asked: {why}")


def _status(token: Token, url: str) -> int:
    """Return the status of a request with ``token``, or 0 without an answer. A redirect is not followed."""
    import requests  # not at the top: only this check of `doctor` needs it

    from weightcache._transfer.http_session import Bearer

    with requests.Session() as session:
        auth = Bearer(session, url, token.value, token.origin)
        try:
            return session.get(url, auth=auth, timeout=TIMEOUT, allow_redirects=False, stream=True).status_code
        except (requests.RequestException, OSError, ValueError):
            return 0
