"""The push campaign: `weightcache push` ends at a call, and the Volume holds nothing that a container takes wrongly.

The client is Modal's real one; `control_plane` plays the server. What the client sends is counted besides the calls
that change a file system: a process can end before a request, and before its answer.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from campaign_table import Limit, Row
from control_plane import ControlPlane
from errno_injection import BrokenError
from local_folder import local_folder
from support import blob, sha256, toml_of
from weightcache import Manifest, WeightCacheError, ensure
from weightcache._store.layout import receipt_path, version_path

FILES = {"a": {"a.bin": blob(70_001, 1)}, "d": {"x": blob(9000, 2), "sub/y": blob(3, 3)}}
# What the Volume has: nothing, receipts beside files of wrong sizes, or wrong files of right sizes and no receipt.
BEGINNINGS = ("empty", "damaged", "stale")
SIGKILL = -9


class Push(NamedTuple):
    """A push onto a Volume, and the call that it does not survive."""

    beginning: str
    version: int  # of the Volume
    call: int = 0
    after: bool = False

    def __str__(self) -> str:
        return f"push {self.beginning} {self.version} {self.call} {'after' if self.after else 'before'}"

    @classmethod
    def parse(cls, text: str) -> Push:
        beginning, version, call, when = text.split()
        return cls(beginning, int(version), int(call), when == "after")


class PushWorld:
    """A root that has everything, a control plane, and the process that pushes."""

    def __init__(self, folder: Path, plane: ControlPlane) -> None:
        self._plane, self._folder = plane, folder
        for name, files in FILES.items():
            for path, data in files.items():
                target = folder / "source" / name / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
        pins = {path: {"sha256": sha256(data), "size": len(data)} for path, data in FILES["d"].items()}
        data = FILES["a"]["a.bin"]
        entry = {
            "urls": [f"file://{folder}/source/a/a.bin"],
            "file": "a.bin",
            "sha256": sha256(data),
            "size": len(data),
        }
        self._manifest = {"checkpoints": {"a": entry, "d": {"urls": [f"file://{folder}/source/d"], "files": pins}}}
        toml_of(self._manifest, folder / "weights.toml")
        ensure(self._manifest, root=folder / "root", progress=False)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("push_process.py"))],
            env=plane.outside(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._count = 0

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)

    def _push(self, volume: str, point: Push) -> dict[str, Any]:
        words = ["push", "--volume", volume, "-m", str(self._folder / "weights.toml")]
        words += ["--root", str(self._folder / "root"), "--version", str(point.version), "--create"]
        assert self._process.stdin
        assert self._process.stdout
        print(
            json.dumps({"words": words, "at": point.call, "after": point.after}), file=self._process.stdin, flush=True
        )
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        if answer["code"] not in (0, SIGKILL):
            raise BrokenError(f"push ended with {answer['code']}: {answer['text']}")
        return answer

    def _volume(self, point: Push) -> tuple[str, str]:
        """Return the name and the id of a Volume as a push finds it."""
        self._count += 1
        name = f"volume-{self._count}"
        made = self._plane.volume(name, point.version)
        volume = self._plane.volumes[made]
        for each in Manifest.load(self._manifest) if point.beginning != "empty" else ():
            for file in each.files:
                size = 5 if point.beginning == "damaged" else file.size or 0
                volume.put(f"{version_path(each.name, each.digest)}/{file.path}", bytes(size))
            if point.beginning == "damaged":
                files = {file.path: {"sha256": file.sha256, "size": file.size} for file in each.files}
                receipt = {"format": 1, "name": each.name, "digest": each.digest, "files": files}
                volume.put(receipt_path(each.name, each.digest), json.dumps(receipt).encode())
        return name, made

    def attempt(self, point: Push) -> str:
        """Let a push end at a point, and check what containers make of the Volume then; return what it ended at.

        Raises:
            BrokenError: A promise is broken.
        """
        name, made = self._volume(point)
        ended = self._push(name, point)
        self._containers_are_right(made, must_hit=ended["code"] == 0)
        if self._push(name, point._replace(call=0))["code"]:
            raise BrokenError("a fresh push did not end")
        self._containers_are_right(made, must_hit=True)
        return str(ended["text"] if ended["code"] else "")

    def calls(self, point: Push) -> int:
        """Return how many calls a push makes."""
        return int(self._push(self._volume(point)[0], point)["calls"])

    def _containers_are_right(self, volume: str, *, must_hit: bool) -> None:
        """Let a new container ask without a network, for each checkpoint, and then with it."""
        root = self._plane.view(volume).root
        for name in FILES:
            try:
                found = ensure(self._manifest, root=root, only=[name], offline=True, progress=False)
            except WeightCacheError as error:
                if must_hit:
                    raise BrokenError(f"{name} was pushed, and is not there: {error}") from error
                continue
            self._bytes_are_right(found)
            if must_hit and found.report[name].outcome != "hit":
                raise BrokenError(f"{name} was pushed, and is {found.report[name].outcome}")
        self._bytes_are_right(ensure(self._manifest, root=root, progress=False))

    def _bytes_are_right(self, found: Mapping[str, Path]) -> None:
        for name, path in found.items():
            for inner, data in FILES[name].items():
                if (path if path.is_file() else path / inner).read_bytes() != data:
                    raise BrokenError(f"{path} has wrong bytes")


@contextmanager
def push_world() -> Iterator[PushWorld]:
    with local_folder("push-") as folder, ControlPlane(folder / "plane") as plane:
        world = PushWorld(folder, plane)
        try:
            yield world
        finally:
            world.close()


def rows(seed: int, seconds: float) -> tuple[list[Row], list[str]]:
    """Try the points of each push, in an order that the seed decides, until the time is over."""
    limit, failures = Limit(until=time.monotonic() + seconds), list[str]()
    tried, failed = Counter[Push](), Counter[Push]()
    with push_world() as world:
        calls = {push: world.calls(push) for push in (Push(each, version) for each in BEGINNINGS for version in (1, 2))}
        points = [
            push._replace(call=call + 1, after=after)
            for push, number in calls.items()
            for call in range(number)
            for after in (False, True)
        ]
        random.Random(seed).shuffle(points)
        for index, point in enumerate(points):
            if limit.reached(index):
                break
            push = Push(point.beginning, point.version)
            tried[push] += 1
            try:
                world.attempt(point)
            except BrokenError as error:
                failed[push] += 1
                failures.append(f"--repeat '{point}'")
                print(f"FAILED {point}: {error}", file=sys.stderr, flush=True)
    return [
        Row(
            "push",
            f"{push.beginning} Volume, version {push.version}",
            tried[push],
            failed[push],
            f"{number} calls, before and after each",
        )
        for push, number in calls.items()
    ], failures


def repeat(text: str) -> str:
    """Try one point again; return the name of the call at which the push ended."""
    with push_world() as world:
        return world.attempt(Push.parse(text))
