"""`delete_tag`: what is gone, what stays, and what another container publishes meanwhile."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from noting_volume import Volume
from support import sha256
from tagging import ONE, TAG, TWO, Make
from weightcache import NotCachedError, StorageError, Tag, VolumeError, delete_tag, ensure, prune, set_tag, tags
from weightcache._runtime import tuning_constants

NAME = "tag newest of tagger"


def versions(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob("tagger/*/*"))


def test_a_tag_goes_for_every_container_and_its_versions_stay(container: Make) -> None:
    here, there = container(), container()
    first = here.publish(ONE)
    here.publish(TWO, keep=1)
    set_tag(Tag("tagger", "stable"), first.version, root=here.root, volume=here)
    assert there.serve() == TWO
    files = delete_tag(TAG, root=there.root, volume=there)
    assert [path.parent for path in files] == [there.root / ".weightcache/tags/tagger/newest"] * 2
    assert [path.stem.rpartition("-")[2] for path in files] == [sha256(TWO), sha256(ONE)]
    for each in (here, container()):
        with pytest.raises(NotCachedError, match=f"the {NAME} has no publication"):
            each.serve()
        assert each.serve(Tag("tagger", "stable", poll=0)) == ONE
        assert len(versions(each.root)) == 2
    doomed = prune(TAG, root=here.root, volume=here, older_than=0, dry_run=False)
    assert [path.name for path in doomed] == [sha256(TWO)[:16]]
    assert here.publish(TWO).digest == sha256(TWO)  # the name is free again, and what keep= said is gone
    assert container().serve() == TWO
    assert [each.keep for each in tags(root=here.root) if each.tag == TAG] == [None]


# Its calls are reload, commit, reload: a publication is deleted if it is committed before the first.
DELETING = [(moment, moment > 1) for moment in range(1, 5)]
# The fifth call of a publisher commits the publication: a deletion takes it along if it begins after that.
PUBLISHING = [(moment, moment < 6) for moment in range(1, 8)]


@pytest.mark.parametrize(
    ("interrupted", "moment", "stays"),
    [("delete", *each) for each in DELETING] + [("publish", *each) for each in PUBLISHING],
)
def test_what_another_container_publishes_meanwhile(
    interrupted: str, moment: int, stays: bool, container: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """At every moment of either: the version is there, and both orders of the two calls are all that can be seen."""
    deleting, training = container(), container()
    training.publish(ONE)
    deleting.reload()
    calls = [lambda: delete_tag(TAG, root=deleting.root, volume=deleting), lambda: training.publish(TWO)]
    if interrupted == "publish":
        calls.reverse()
    mine, other = calls
    acting = deleting if interrupted == "delete" else training
    acting.before = {acting.calls + moment: other}
    with caplog.at_level(logging.WARNING, "weightcache"):
        mine()
    came_last = bool(acting.before)
    assert came_last is ((interrupted, moment) in {("delete", 4), ("publish", 7)})
    if came_last:
        other()
    view = container()
    assert (view.root / "tagger" / sha256(TWO)[:16] / "model.bin").read_bytes() == TWO
    assert [each.checkpoint.digest for each in tags(root=view.root)] == ([sha256(TWO)] if stays else [])
    assert (f"the {NAME} still exists" in caplog.text) is (interrupted == "delete" and moment in (2, 3))


def test_a_tag_that_does_not_exist(container: Make) -> None:
    here = container()
    here.publish(ONE)
    with pytest.raises(NotCachedError, match=f"published there: {NAME}"):
        delete_tag(Tag("tagger", "newset"), root=here.root, volume=here)
    with pytest.raises(TypeError, match="tag must be a Tag, not str"):
        delete_tag("newest", root=here.root)  # type: ignore[arg-type]
    assert here.serve() == ONE


def test_a_torn_publication_can_be_deleted(container: Make) -> None:
    here = container()
    here.publish(ONE)
    [path] = here.root.glob(".weightcache/tags/*/*/*.json")
    path.write_text("{")
    with pytest.raises(StorageError, match="torn"):
        ensure(TAG, root=here.root)
    assert delete_tag(TAG, root=here.root) == [path]
    assert here.publish(ONE).digest == sha256(ONE)
    assert here.serve() == ONE


def test_a_volume_that_fails(container: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_constants, "DEFAULT", replace(tuning_constants.DEFAULT, volume_backoff=()))
    here = container()
    here.publish(ONE)
    with (here.root / "log.txt").open("w"), pytest.raises(VolumeError, match=f"{NAME} was not deleted: reload of the"):
        delete_tag(TAG, root=here.root, volume=here)
    assert container().serve() == ONE
    with pytest.raises(VolumeError, match="in this container only: commit of the volume failed") as caught:
        delete_tag(TAG, root=here.root, volume=Volume(here.root, commit=1))
    assert caught.value.operation == "commit"
    here.view.commit()
    with pytest.raises(NotCachedError):
        container().serve()
