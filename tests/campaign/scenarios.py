"""What the library does in each scenario of the campaign: those of `errno_injection`, and more, from a real origin."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from errno_injection import BrokenError, Done, Volume, World
from weightcache import Tag, delete_tag, ensure, prune, publish, set_tag, status, tags
from weightcache._engine.adopt import adopt, finish_moves
from weightcache._engine.existing_weights import find_weights
from weightcache._runtime.writer_identity import note_path
from weightcache._store.layout import Layout

# Name → what happens in it, in words.
SCENARIOS = {
    "file": "`ensure` downloads one file",
    "directory": "`ensure` downloads a directory",
    "cold": "`ensure` downloads three checkpoints, two files of which are equal",
    "resume": "`ensure` continues what two killed downloads left",
    "adopt": "`ensure` adopts complete files without a receipt",
    "copy": "`ensure` copies from a checkpoint of another name",
    "heal": "`ensure(rehash=True)` heals a wrong and a missing file",
    "prune": "`prune` deletes what no manifest declares",
    "prune_tags": "`prune` where tags keep versions",
    "publish": "`publish` of a directory",
    "tags": "`publish(tag=)`, `set_tag` and `delete_tag`",
    "link": "`Weights.link`",
    "hf_cache": "`Weights.hf_cache`",
    "move": "`weightcache adopt --move`",
}
_PRUNES = ("prune", "prune_tags")
_STEADY = ("lock", "gate", "unpushed")  # notes about a root that the container's own disk keeps


class Scenarios(World):
    """The scenarios, and what must be true after each of them."""

    def __init__(self, folder: str, url: str = "") -> None:
        super().__init__(folder, url=url)
        self.copied: dict[str, Any] = {
            "checkpoints": {"twin": {**self.manifest["checkpoints"]["a"], "urls": []}},
        }

    def _begin(self, scenario: str, root: str) -> None:
        if scenario in ("file", "directory", "move"):
            return
        if scenario in ("tags", "prune_tags", "tag_reads"):
            for path in ("shared", "large"):
                publish(f"{self.folder}/source/{path}", name="tagged", root=root, tag="newest", keep=2)
            publish(f"{self.folder}/source/shared", name="tagged", root=root, tag="old")
        super()._begin(scenario, root)

    def prepared(self, scenario: str) -> str:
        root = super().prepared(scenario)
        if scenario == "move":
            shutil.copytree(f"{self.folder}/source/d", f"{os.path.dirname(root)}/taken")
        return root

    def act(self, scenario: str, root: str) -> Done:
        volume, result = Volume(root), None
        shared: dict[str, Any] = {"root": root, "volume": volume, "lease": None, "progress": False}
        if scenario in ("file", "directory"):
            result = ensure(self.manifest, **shared, only=["a" if scenario == "file" else "d"])
        elif scenario == "copy":
            result = ensure(self.copied, **shared)
        elif scenario == "tags":
            source = f"{self.folder}/source/d/x"
            result = publish(source, name="tagged", root=root, volume=volume, tag="newest", keep=2)
            set_tag(Tag("tagged", "old"), result.digest, root=root, volume=volume)
            delete_tag(Tag("tagged", "old"), root=root, volume=volume)
        elif scenario == "move":
            path = f"{os.path.dirname(root)}/taken"
            finish_moves(path)
            result = find_weights(path, "d", Layout(root))
            for found in result:
                adopt(found, Layout(root), volume, move=True)
        elif scenario == "prune_tags":
            result = prune(self.other, root=root, volume=volume, dry_run=False, older_than=0)
        elif scenario == "tag_reads":
            tag = Tag("tagged")
            [path] = ensure(tag, root=root, progress=False).values()
            result = path, tags(root=root), [each.state for each in status(tag, root=root)]
        else:
            return super().act(scenario, root)
        return Done(result, volume.open)

    def judge_crash(self, scenario: str, root: str, *, at_once: bool) -> bool:
        """Check what a killed process left; return whether a prune had to remove something of it.

        Args:
            scenario: What was killed.
            root: The root that it left.
            at_once: Whether a plain `ensure` comes first, and not the same call again.

        Raises:
            BrokenError: A promise is broken.
        """
        if at_once:
            self._only_right_files(root, *([self.rotten] if scenario == "heal" else []))
            weights = ensure(self.manifest, root=root, volume=Volume(root), lease=None, progress=False)
            if scenario != "heal" and weights["a"].read_bytes() != self.large:
                raise BrokenError("wrong bytes")
        if scenario in _PRUNES and at_once:  # what it withdrew is there again, and stays
            left = os.listdir(f"{root}/.weightcache/partial")
        else:
            left = self._judged_again(scenario, root)
        prune(self.manifest, Tag("tagged"), root=root, dry_run=False)
        self._nothing_is_left(root)
        return bool(left)

    def _judged_again(self, scenario: str, root: str) -> list[str]:
        self._only_right_files(root, *([self.rotten] if scenario == "heal" else []))
        if scenario not in ("heal", *_PRUNES):
            self._receipts_have_data(root)
        if scenario in _PRUNES:
            self.act(scenario, root)
            ensure(self.manifest, root=root, progress=False)
        left = os.listdir(f"{root}/.weightcache/partial") if os.path.isdir(f"{root}/.weightcache/partial") else []
        self.judge("cold" if scenario in _PRUNES else scenario, root)
        self._views_lead_to_weights(scenario, root)
        return left

    def _views_lead_to_weights(self, scenario: str, root: str) -> None:
        beside = os.path.dirname(root)
        paths = {
            "link": (f"{beside}/links/d/x", f"{beside}/links/x/a"),
            "hf_cache": (f"{beside}/hub/models--org--name/snapshots/{'a' * 40}/x",),
            "move": (f"{beside}/taken/x", f"{beside}/taken/sub/empty", f"{beside}/taken/shared"),
        }
        for path in paths.get(scenario, ()):
            if not self.is_right(path):
                raise BrokenError(f"{path} has wrong bytes")
        if scenario == "hf_cache" and Path(f"{beside}/hub/models--org--name/refs/main").read_text() != "a" * 40:
            raise BrokenError("the reference of the Hub cache is wrong")
        if scenario in ("tags", "prune_tags"):
            [path] = ensure(Tag("tagged"), root=root, progress=False).values()
            if path.read_bytes() != (self.small if scenario == "tags" else self.large):
                raise BrokenError("the tag stands for another version")

    def _nothing_is_left(self, root: str) -> None:
        """Check for files that no later call removes: in the root, beside it, and among the container's notes."""
        odd = os.listdir(f"{root}/.weightcache/partial")
        for folder, folders, names in os.walk(os.path.dirname(root)):
            known = ".weightcache" if folder == root else ""
            odd += [f"{folder}/{each}" for each in (*folders, *names) if ".weightcache" in each and each != known]
        notes, key = os.path.split(note_path(root, ""))
        odd += [each for each in os.listdir(notes) if each.startswith(key) and not each.endswith(_STEADY)]
        if odd:
            raise BrokenError(f"left behind: {odd}")
