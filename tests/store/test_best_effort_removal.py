"""What is removed, and that no link leads the removal to another place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from weightcache._runtime import owned_descriptors
from weightcache._store import best_effort_removal
from weightcache._store.best_effort_removal import remove_tree


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file outside of what is removed."""
    path = tmp_path / "elsewhere" / "precious"
    path.parent.mkdir()
    path.write_bytes(b"x")
    return path


def test_a_tree_goes_and_what_its_links_name_stays(tmp_path: Path, precious: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep" / "deeper").mkdir(parents=True)
    (tree / "deep" / "file").write_bytes(b"x")
    (tree / "deep" / "link").symlink_to(precious.parent)
    remove_tree(str(tree))
    remove_tree(str(tree))  # nothing is there
    assert not tree.exists()
    assert precious.exists()


@pytest.mark.parametrize("follows", [False, True], ids=["as on Linux", "as in gVisor"])
def test_a_link_that_cannot_be_removed_is_not_followed(
    follows: bool, tmp_path: Path, precious: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GVisor opens the directory that a link names, whatever O_NOFOLLOW says, if O_DIRECTORY is there too."""
    link, unlink, opening = tmp_path / "link", os.unlink, os.open
    link.symlink_to(precious.parent)

    def forbidden(path: str, **options: int) -> None:
        if path == str(link):
            raise PermissionError(1, "Operation not permitted")
        unlink(path, **options)

    def following(path: str, flags: int, mode: int) -> int:
        return opening(path, flags & ~os.O_NOFOLLOW if follows else flags, mode)

    monkeypatch.setattr(best_effort_removal.os, "unlink", forbidden)
    monkeypatch.setattr(owned_descriptors.os, "open", following)
    remove_tree(str(link))
    assert precious.exists()
    assert link.is_symlink()
