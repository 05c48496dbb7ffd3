"""What `prune` keeps for tags, what a rollback finds, and a manifest that is kept on the Volume."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from support import sha256
from tagging import ONE, TAG, THREE, TWO, Container, Make
from weightcache import (
    Checkpoint,
    Manifest,
    NotCachedError,
    Tag,
    aensure,
    ensure,
    prune,
    publish,
    set_tag,
    status,
    tags,
)

# prune and rollback --------------------------------------------------------------------------------------------


def test_prune_keeps_what_the_last_publication_says(container: Make) -> None:
    here = container()
    first, second, third = (here.publish(data) for data in (ONE, TWO, THREE))
    assert here.prune() == []  # nobody said how many
    set_tag(TAG, first.version, root=here.root, volume=here, keep=2)
    doomed = here.prune()
    assert doomed[0] == f"tagger/{second.version}"
    assert [path.split("/")[1] for path in doomed[1:]] == ["tags", "tags"]  # of the second, and the first one's first
    assert here.prune(dry_run=False) == doomed
    assert [each.checkpoint for each in tags(root=here.root)] == [first, third]
    assert container().serve() == ONE
    here.publish(TWO)  # still 2
    assert here.prune()[0] == f"tagger/{third.version}"


def test_prune_spares_what_lost_its_tag_lately(container: Make) -> None:
    here = container()
    first = here.publish(ONE)
    here.publish(TWO, keep=1)
    receipt = here.root / ".weightcache/receipts/tagger" / f"{first.digest}.json"
    receipt.write_text(receipt.read_text().replace('"verified": "20', '"verified": "19'))
    assert prune(TAG, root=here.root, older_than=60) == []  # a container may still load it
    assert here.prune()[0] == f"tagger/{first.version}"


def test_prune_knows_every_tag_of_the_root(container: Make) -> None:
    here = container()
    first = here.publish(ONE, keep=1)
    set_tag(Tag("tagger", "stable"), first.version, root=here.root)
    here.publish(TWO)
    assert [path.rpartition("/")[0] for path in here.prune()] == [".weightcache/tags/tagger/newest"]


@pytest.mark.parametrize("prune_is_interrupted", [True, False])
@pytest.mark.parametrize("moment", range(1, 7))
def test_a_rollback_that_a_prune_of_another_container_meets(
    moment: int, prune_is_interrupted: bool, container: Make
) -> None:
    """At every moment of either: the tag stands for a version that is there, or `set_tag` said that it is gone."""
    cleaning, serving = container(), container()
    old = cleaning.publish(ONE, keep=1)
    cleaning.publish(TWO)
    serving.reload()
    refused: list[Exception] = []

    def roll_back() -> None:
        try:
            set_tag(TAG, old.version, root=serving.root, volume=serving)
        except NotCachedError as error:
            refused.append(error)

    def clean() -> None:
        cleaning.prune(dry_run=False)

    interrupted, other = (cleaning, roll_back) if prune_is_interrupted else (serving, clean)
    interrupted.before = {interrupted.calls + moment: other}
    (clean if prune_is_interrupted else roll_back)()
    if interrupted.before:  # it made fewer calls
        other()
    if not refused:
        assert container().serve() == ONE


def test_a_prune_that_was_killed_and_a_tag_that_came_back(container: Make) -> None:
    here = container()
    old = here.publish(ONE, keep=1)
    here.publish(TWO)
    receipt = here.root / ".weightcache/receipts/tagger" / f"{old.digest}.json"
    receipt.rename(receipt.with_suffix(".pruning"))
    here.publish(ONE)  # it is adopted: the receipt is there again
    assert here.prune(dry_run=False)[0].startswith("tagger/")
    receipt.rename(receipt.with_suffix(".pruning"))
    assert all(not path.startswith(f"tagger/{old.version}") for path in here.prune())
    here.prune(dry_run=False)
    assert container().serve() == ONE


@pytest.mark.parametrize("version", ["", "0" * 16, "7442e4e9", "../x"])
def test_a_version_that_is_not_there(version: str, container: Make) -> None:
    here = container()
    checkpoint = here.publish(ONE)
    with pytest.raises(NotCachedError, match=f"there are: {checkpoint.version}"):
        set_tag(TAG, version, root=here.root, volume=here)
    assert len(tags(root=here.root)) == 1


@pytest.mark.parametrize("moment", range(1, 6))
def test_a_version_that_is_tagged_again_while_a_prune_deletes_it(moment: int, container: Make) -> None:
    """Both containers have no lock in common. A prune that has begun to delete loses the version to its last commit."""
    first, cleaning, training = container(), container(), container()
    source = training.folder / "model.bin"
    source.write_bytes(ONE)
    checkpoint = publish(source, name="tagger", root=first.root, volume=first)
    training.reload()
    cleaning.before = {cleaning.calls + moment: lambda: training.publish(ONE)}  # reload, commit, reload, commit
    cleaning.prune(dry_run=False)
    if cleaning.before:
        training.publish(ONE)
    late = container()
    [found] = status(Manifest([checkpoint]), root=late.root)
    assert found.state == ("damaged" if moment == 4 else "ready")  # never a file with other bytes
    late.publish(ONE)
    assert container().serve() == ONE


@pytest.mark.parametrize("source_is_on_the_volume", [False, True])
def test_a_version_that_is_published_again_after_a_prune_elsewhere(
    source_is_on_the_volume: bool, container: Make
) -> None:
    """Without a tag. The second container still sees the files that the prune deleted."""
    cleaning, training = container(), container()
    source = training.root / "runs/model.bin" if source_is_on_the_volume else training.folder / "model.bin"
    checkpoint = _publish_untagged(training, source)
    cleaning.reload()
    prune(Manifest([]), root=cleaning.root, volume=cleaning, older_than=0, dry_run=False)
    assert (training.root / checkpoint.name).exists()
    source.unlink()
    _publish_untagged(training, source)
    late = container()
    assert [each.state for each in status(Manifest([checkpoint]), root=late.root)] == ["ready"]


def _publish_untagged(container: Container, source: Path) -> Checkpoint:
    source.parent.mkdir(exist_ok=True)
    source.write_bytes(ONE)  # no commit has taken it
    return publish(source, name="tagger", root=container.root, volume=container)


# a manifest that is kept on the Volume --------------------------------------------------------------------------


def test_a_manifest_on_the_volume_is_read_after_a_reload(container: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightcache._engine.tags.POLL", 0.0)
    training, serving = container(), container()

    def declare(data: bytes) -> None:
        checkpoint = training.publish(data)
        (training.root / "weights.toml").write_text(str(checkpoint))
        training.commit()

    for data in (ONE, TWO):
        declare(data)
        for call in (ensure, lambda *a, **o: asyncio.run(aensure(*a, **o))):
            weights = call(serving.root / "weights.toml", root=serving.root, volume=serving, lease=None)
            assert weights["tagger"].read_bytes() == data
    monkeypatch.setattr("weightcache._engine.tags.POLL", 1000.0)
    calls = serving.calls
    declare(THREE)
    assert ensure(serving.root / "weights.toml", root=serving.root, volume=serving)["tagger"].read_bytes() == TWO
    assert serving.calls == calls


def test_prune_reads_a_manifest_on_the_volume_after_its_reload(container: Make) -> None:
    training, cleaning = container(), container()
    source = training.folder / "model.bin"
    for data in (ONE, TWO):
        source.write_bytes(data)
        checkpoint = publish(source, name="tagger", root=training.root, volume=training)
        (training.root / "weights.toml").write_text(str(checkpoint))
        training.commit()
        if data == ONE:
            cleaning.reload()
    # The manifest that the cleaning container sees before its reload declares the first one.
    prune(cleaning.root / "weights.toml", root=cleaning.root, volume=cleaning, older_than=0, dry_run=False)
    assert [path.parent.name for path in cleaning.root.glob("tagger/*/*")] == [sha256(TWO)[:16]]
