"""Fixtures: a server that anybody may ask, and one that wants a key."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fakes import fake_backend
from service_requests import KEY
from serving import Client, serving


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serving(fake_backend()) as client:
        yield client


@pytest.fixture(scope="module")
def keyed() -> Iterator[Client]:
    with serving(fake_backend(), api_key=f" {KEY}\n") as client:  # as out of a file
        yield client
