"""What one call of `ensure` asks for, as one value that a miss hands down."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

from weightcache._runtime.cancel import Cancel

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from weightcache._coordination.kv import LeaseSource
    from weightcache._coordination.volume import Volume
    from weightcache._transfer.progress import ProgressCallback


@dataclass(frozen=True, kw_only=True)
class EnsureOptions:
    """The arguments of `ensure` that a miss needs; see there for what each means, and for its unit.

    Attributes:
        cancel: Ends the call early. Only `aensure` sets it.
        local_sources: By sha256, the path on this machine of bytes to publish. They are copied instead of fetched.
        may_link: Whether those may be hard-linked instead, because nothing writes to them any more.
    """

    volume: Volume | None = None
    lease: LeaseSource = "auto"
    offline: bool = False
    rehash: bool = False
    wait: float = 300.0
    patience: float = 180.0
    progress: bool | ProgressCallback | None = None
    dry_run: bool = False
    time_limit: float | None = None
    cancel: Cancel = field(default_factory=Cancel)
    local_sources: Mapping[str, str] = field(default_factory=dict)
    may_link: bool = False


class CommonArguments(TypedDict, total=False):
    """The keyword arguments that `ensure` and `WeightVolume.ensure` share, but ``dry_run``; for type checkers."""

    lease: LeaseSource
    only: Collection[str] | None
    offline: bool
    rehash: bool
    wait: float
    patience: float
    progress: bool | ProgressCallback | None
    time_limit: float | None


class EnsureArguments(CommonArguments, total=False):
    """The keyword arguments of `ensure`, but ``root`` and ``dry_run``; for type checkers."""

    volume: Volume | None
