"""Several writers on one root, stopped at every call: every seed holds the invariants, and planted bugs are found."""

from __future__ import annotations

import os

import pytest

from root_simulation import BrokenRootError, simulate_root
from weightcache._engine.checkpoint_task import CheckpointTask
from weightcache._engine.execute_plan import Installer
from weightcache._store import file_operations, journal, partial_directory, partial_file
from weightcache._store.journal import Journal
from weightcache._store.partial_file import PartialFile, VanishedError
from weightcache.manifest import File

SEEDS = 150


def test_every_seed_holds() -> None:
    deaths = 0
    for seed in range(SEEDS):
        try:
            deaths += simulate_root(seed).deaths  # it raises where an invariant breaks
        except BaseException as error:
            raise AssertionError(f"{error}; again with: python tests/simulation/simulate.py --seed {seed}") from error
    assert deaths > SEEDS / 10  # else nobody was killed in the middle


def test_a_seed_replays_exactly() -> None:
    def trace(seed: int) -> list[str]:
        world = simulate_root(seed)
        return [line.replace(world.root, "") for line in world.trace]

    for seed in range(10):
        assert trace(seed) == trace(seed)
    assert trace(1) != trace(2)


def found(limit: int = 1000, *, mistakes: bool | None = None) -> str:
    """Return the first broken invariant of ``limit`` seeds."""
    for seed in range(limit):
        try:
            simulate_root(seed, mistakes)
        except BrokenRootError as error:
            return str(error)
    raise AssertionError(f"not found in {limit} seeds")


def _links_the_partial(self: Installer, needs: list[tuple[CheckpointTask, File]], verified: PartialFile) -> None:
    """Links the other places to the partial's own file, and renames that one last."""
    for task, file in [*needs[1:], needs[0]]:
        source = verified.path
        if (task, file) != needs[0]:
            source = f"{verified.path}.copy"
            if not file_operations.link_or_copy(verified.path, source, file.sha256, lambda: None):
                raise VanishedError(source)
        file_operations.publish_file(self.layout, task.checkpoint, file, source)
        task.placed(file, verified.size)
        if not task.missing:
            task.installed("downloaded")


def _finishes_what_has_two_names(self: PartialFile, size: int) -> None:
    os.ftruncate(self._data.number, size)
    self.size = size
    self.close()


def test_a_partial_that_shares_its_bytes_with_a_place_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Installer, "_publish_for_all", _links_the_partial)
    monkeypatch.setattr(partial_file, "_is_exclusively_ours", os.path.isfile)
    monkeypatch.setattr(PartialFile, "seal", _finishes_what_has_two_names)
    assert found(mistakes=False).startswith("G1")


def test_each_of_the_two_safeguards_holds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with another name is not written to, whoever made that name."""
    monkeypatch.setattr(Installer, "_publish_for_all", _links_the_partial)
    for seed in range(SEEDS):
        simulate_root(seed)


def test_writing_on_in_a_living_writers_file_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_file, "_is_exclusively_ours", os.path.isfile)
    assert found(mistakes=True).startswith("G1")


def test_a_seal_that_trusts_a_file_system_without_leases_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_file, "in_modal_container", lambda: True)
    assert found(mistakes=True).startswith("G1")


class TrustsEveryLine(Journal):
    def __init__(self, path: str) -> None:
        super().__init__(path)
        for line in journal._text(path).split(b"\n")[:-1]:
            fields = line.decode("ascii", "replace").split(" ")
            if fields[0] in ("opened", "wiped"):
                self.opened = max(self.opened, len(fields[1]))


def test_a_journal_that_is_believed_to_be_whole_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_directory, "Journal", TrustsEveryLine)
    assert found().startswith("G5: IndexError")


def test_publishing_before_the_hash_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def unverified(self: PartialFile, size: int) -> None:
        self.size = size
        os.pwrite(self._data.number, b"?", 0)
        self.close()

    monkeypatch.setattr(PartialFile, "seal", unverified)
    assert found().startswith("G1")
