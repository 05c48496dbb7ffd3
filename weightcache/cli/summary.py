"""The last line of ``weightcache ensure``: what was fetched, from where, how fast, and what the next start finds."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from weightcache._coordination.mount_check import mounted_volume
from weightcache._environment import in_modal_container
from weightcache._size_text import rate_text, size_text
from weightcache.manifest.urls import resolved_url

from .output import counted, listed

if TYPE_CHECKING:
    from weightcache import Report

_NEXT = "the next start is a hit"
_IN_WORDS = {"hit": "found ready", "waited": "installed by another process", "resumed": "downloaded"}


def summary(report: Report, root: str, seconds: float, *, has_volume: bool) -> str:
    """Return one line about an `ensure` that succeeded.

    Args:
        report: What it did.
        root: The root.
        seconds: How long it took.
        has_volume: Whether `ensure` had a Volume to commit to.
    """
    ready = f"{counted(len(report), 'checkpoint')} ready"
    outcomes = [each.outcome for each in report.values()]
    if set(outcomes) <= {"hit"}:
        return f"{ready}: {'all hits' if len(report) > 1 else 'a hit'}, {duration(seconds)}"
    fetched = [each for each in report.values() if each.bytes_fetched]
    others = [each.outcome for each in report.values() if not each.bytes_fetched]
    parts = [f"{others.count(each)} {_IN_WORDS.get(each, each)}" for each in dict.fromkeys(others)]
    if fetched:
        hosts = dict.fromkeys(_host(url) for each in fetched for url in each.sources)
        origin = f" from {listed([*hosts])}" if hosts else ""
        rate = rate_text(report.bytes_fetched / max(seconds - report.waited, 1e-6))
        done = f"{size_text(report.bytes_fetched)} fetched{origin} in {duration(seconds)} ({rate})"
        work = ", ".join([*parts, done])
    else:
        work = f"{', '.join(parts)} in {duration(seconds)}"
    return f"{ready}: {work}{_after(report, root, has_volume=has_volume)}"


def duration(seconds: float) -> str:
    """Return a duration as in "0.8 ms" or "12.3 s"."""
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.1 else f"{seconds:.1f} s"


def _after(report: Report, root: str, *, has_volume: bool) -> str:
    """Return what became of the result: whether it was committed, and what the next start finds."""
    if report.committed:
        return f", committed; {_NEXT}"
    if report.committed is False:
        return ", not committed: the commit failed, and no other container has it; run this again"
    if has_volume:
        return f", nothing to commit; {_NEXT}"
    if mounted_volume(root):
        return ", not committed: no other container has it before a commit"
    if in_modal_container():
        return ", on no Volume: it is lost when this container stops"
    return f"; {_NEXT}"


def _host(url: str) -> str:
    """Return the host of a URL, with its port if it has one."""
    return urlsplit(resolved_url(url, "")).netloc.rpartition("@")[2] or "this machine"
