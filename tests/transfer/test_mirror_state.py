"""What is learned of one mirror: in which way it gives a file, and how far it has come with it."""

from __future__ import annotations

from weightcache._transfer.mirror_state import Access, Delivery, Mirror
from weightcache._transfer.server_state import Server


def mirror() -> Mirror:
    return Mirror("http://h/a", Server("h", 24))


def test_a_mirror_that_ignores_ranges_is_never_asked_for_parts_again() -> None:
    each = mirror()
    assert each.parallel
    each.require_single()
    assert (each.has_ranges, each.parallel) == (True, False)
    each.require_whole()
    each.require_single()
    assert each.access is Access.WHOLE
    assert not each.uses_partial


def test_a_mirror_that_is_isolated_uses_nothing_of_the_partial() -> None:
    each = mirror()
    each.isolate()
    assert (each.has_ranges, each.parallel, each.uses_partial) == (True, False, False)


def test_a_response_takes_back_nothing() -> None:
    each = mirror()
    each.on_bytes()
    each.on_response(resumable=False)
    assert (each.delivery, each.has_delivered, each.access) == (Delivery.BYTES, True, Access.WHOLE)


def test_failures_of_one_epoch_count_once() -> None:
    each = mirror()
    epoch = each.failure_epoch
    assert each.on_failure(0, epoch)
    assert not each.on_failure(0, epoch)
    assert each.failures == 1
    assert each.on_failure(0, each.failure_epoch)
    assert (each.failures, each.is_failing) == (2, True)
    assert each.on_failure(1000, epoch)  # there is progress
    assert (each.failures, each.is_failing) == (1, False)


def test_a_pause_ends_with_the_last_one() -> None:
    each = mirror()
    each.pause()
    each.pause()
    each.resume()
    assert each.is_paused
    each.resume()
    assert not each.is_paused
