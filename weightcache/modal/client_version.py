"""Which versions of Modal's client this library works with."""

from __future__ import annotations

import re

from weightcache.errors import VolumeError

OLDEST = (1, 5)  # pyproject.toml says it too; `make test` runs the tests of Modal with 1.5.0 and with the newest


def check_client_version(version: object) -> None:
    """Check ``modal.__version__``, before a method that an old client lacks is an ``AttributeError``.

    Raises:
        VolumeError: It is too old.
    """
    numbers = re.match(r"(\d+)\.(\d+)", str(version))
    if numbers and tuple(map(int, numbers.groups())) < OLDEST:
        raise VolumeError(
            f"modal {version} is installed, and weightcache needs modal {'.'.join(map(str, OLDEST))} or newer",
            hint="pip install --upgrade modal",
            operation="open",
        )
