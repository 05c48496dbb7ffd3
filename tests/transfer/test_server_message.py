"""A server's message is compared with the secrets of the request, in time that neither of them makes long."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from weightcache._transfer.server_message import MOST_SECRETS, PART, reason, safe


class Counted(set[str]):
    """Secrets that count how often all of them are gone through."""

    rounds = 0

    def __iter__(self) -> Iterator[str]:
        self.rounds += 1
        return super().__iter__()


def message(text: Any) -> bytes:
    return json.dumps({"error": text}).encode()


def rounds(body: bytes) -> int:
    secrets = Counted({f"{number:06}" for number in range(1000)})
    assert reason(body, secrets)
    return secrets.rounds


def test_each_secret_is_looked_at_once_however_many_words_and_texts_there_are() -> None:
    assert rounds(message("z")) == rounds(message("z " * 1600)) == rounds(message({"code": "a", "message": "b c d"}))


def test_of_more_secrets_than_are_compared_nothing_is_shown() -> None:
    """A mirror chooses the query of its redirect, so the token of the user may be among any number of secrets."""
    token = "hf_Qwertyuiop"
    many = {token, "x" * MOST_SECRETS}
    assert reason(message(f"the key {token} is wrong"), many) == ""
    assert reason(message("anything"), many) == ""
    assert safe(f"the key {token[:PART]} is wrong", many) == ""
    assert reason(message("anything"), {token, "x" * (MOST_SECRETS - len(token))}) == "anything"


def test_each_part_of_each_secret_is_found() -> None:
    random_of = random.Random(7)
    for _ in range(2000):
        secrets = {"".join(random_of.choices("abc", k=random_of.randint(1, 9))) for _ in range(3)}
        word = "".join(random_of.choices("abc", k=random_of.randint(1, 12)))
        parts = {each[at : at + PART] for each in secrets for at in range(max(1, len(each) - PART + 1))}
        hidden = word in secrets or any(len(part) >= 4 and part in word for part in parts)
        assert safe(word, secrets) == ("…" if hidden else word), (word, secrets)
