"""What `pin` may take from a URL that the app does not choose: hosts, bytes and files.

A refusal is a `ManifestError`, so that an app can return it to the sender of a request. It is never a `DownloadError`,
which says that a host or the network failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from weightcache.errors import ManifestError, redacted

if TYPE_CHECKING:
    from collections.abc import Callable

    from .unpinned_entries import Draft

_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True)
class Bounds:
    """What may be taken. The default, for commands that a user types, has no bound.

    Attributes:
        max_bytes: Bytes of all files of a checkpoint; ``None`` for any number.
        max_files: Its files; ``None`` for any number.
        max_listed: Entries of a repository that are listed in search of them; ``None`` for any number.
        hosts: Hosts of ``http`` and ``https`` URLs, with their port if it is not the usual one; ``None`` for any host.
    """

    max_bytes: int | None = None
    max_files: int | None = None
    max_listed: int | None = None
    hosts: frozenset[str] | None = None

    def allows(self, url: str) -> bool:
        """Whether an ``http`` or ``https`` URL names one of the hosts."""
        if self.hosts is None:
            return True
        try:
            scheme, host = urlsplit(url)[:2]
        except ValueError:  # such as http://[
            return False
        return host.lower().removesuffix(_PORTS.get(scheme, "-")) in self.hosts

    def check_files(self, draft: Draft) -> None:
        """Refuse a draft of too many files, or of files that are too large together.

        Raises:
            ManifestError: It exceeds a bound.
        """
        if self.max_files is not None and len(draft.pins) > self.max_files:
            raise refusal(
                draft.urls[0],
                [f"{len(draft.pins):,} files are selected, and max_files is {self.max_files:,}"],
                "select fewer files with include= or exclude=, or raise max_files",
            )
        self.limit(draft)(0)

    def limit(self, draft: Draft, path: str = "") -> Callable[[int], None]:
        """Return a function that takes the bytes of the file at ``path`` and refuses more than may still be taken."""
        others = sum(pin.size or 0 for each, pin in draft.pins.items() if each != path)

        def check(count: int) -> None:
            if self.max_bytes is not None and others + count > self.max_bytes:
                raise refusal(
                    draft.urls[0],
                    [f"{path or 'its files'}: {others + count:,} bytes or more, and max_bytes is {self.max_bytes:,}"],
                    "select fewer files with include= or exclude=, or raise max_bytes",
                )

        return check

    def check_listed(self, url: str, count: int) -> None:
        """Refuse a repository of too many entries.

        Raises:
            ManifestError: It has more than ``max_listed``.
        """
        if self.max_listed is not None and count > self.max_listed:
            raise refusal(
                url,
                [f"the repository has more than {self.max_listed:,} files and directories"],
                "pin it with `weightcache add`, which has no such bound",
            )


UNBOUNDED = Bounds()


def refusal(url: str, problems: list[str], hint: str) -> ManifestError:
    """Return the error of a URL that is not pinned, because it is invalid or exceeds a bound."""
    error = ManifestError(redacted(url), problems)
    error.hint = f"nothing was pinned; {hint}"
    return error
