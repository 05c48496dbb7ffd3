"""Load on one root: many processes, many threads, and cycles of everything with kills. Nothing is wrong, nothing grows.

Every process is a new interpreter, as in a container. Each function returns what it found wrong, one sentence each.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import random
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from support import blob, child, sha256, start_together
from weightcache import Manifest, ensure, prune
from weightcache._runtime.writer_identity import Writer
from weightcache._store import partial_directory

if TYPE_CHECKING:
    from origin import Origin

DOWNLOAD_RATE = 5e6  # bytes a second, so that a download takes a while
KILL_WITHIN = 0.3  # seconds
PATIENCE = 300  # seconds until a process counts as one that hangs

ROUNDS = 3  # of the cycles, at least, after the one that warms up


def wrong(paths: Mapping[str, Path], manifest: dict[str, Any]) -> Iterator[str]:
    """Yield each file that does not have the bytes of its pin."""
    for name, entry in manifest["checkpoints"].items():
        for inner, pin in entry.get("files", {"": entry}).items():
            if hashlib.sha256((paths[name] / inner).read_bytes()).hexdigest() != pin["sha256"]:
                yield f"{name}/{inner}".rstrip("/")


CHECK = f"""
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
{inspect.getsource(wrong)}
"""
ENSURE_ALL = f"""
{CHECK}
manifest = json.load(open(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
weights = ensure(manifest, root=sys.argv[2], progress=False)
fetched = sum(each.bytes_fetched for each in weights.report.values())
print(json.dumps([list(wrong(weights, manifest)), fetched]))
"""


def small_checkpoints(
    origin: Origin, count: int, seed: int, size: int = 30_000, rate: float | None = None
) -> dict[str, Any]:
    """Return a manifest of ``count`` checkpoints that ``origin`` serves, at ``rate`` bytes a second each.

    Every fifth is a directory.
    """
    checkpoints: dict[str, Any] = {}
    for number in range(count):
        data = blob(size + number, seed * 1000 + number)
        url = origin.url(f"/{seed}/{number}/weights.pt")
        origin.put(f"/{seed}/{number}/weights.pt", data, rate=rate)
        pin = {"sha256": sha256(data), "size": len(data)}
        if number % 5:
            checkpoints[f"model-{number}"] = {"urls": [url], "file": "weights.pt", **pin}
        else:
            checkpoints[f"model-{number}"] = {"urls": [url.rpartition("/")[0] + "/"], "files": {"weights.pt": pin}}
    return {"version": 1, "checkpoints": checkpoints}


def many_processes(folder: Path, origin: Origin, processes: int, checkpoints: int, seed: int = 0) -> list[str]:
    """Start processes together on one empty root; each wants every checkpoint."""
    manifest, root = small_checkpoints(origin, checkpoints, seed), folder / "root"
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest))
    size = sum(file.size or 0 for each in Manifest.load(manifest) for file in each.files)
    running = [child(ENSURE_ALL, str(path), str(root), stdin=subprocess.PIPE) for _ in range(processes)]
    start_together(running)
    problems, fetched = [], 0
    for number, process in enumerate(running):
        out, err = process.communicate(timeout=PATIENCE)
        if process.returncode:
            problems.append(f"process {number} failed: {err[-500:]}")
            continue
        wrong, count = json.loads(out)
        fetched += count
        problems += [f"process {number} got wrong bytes of {each}" for each in wrong]
    if fetched != size:
        problems.append(f"{fetched} bytes were fetched of {size}: not each file once")
    return problems + leftovers(root, manifest)


def many_threads(folder: Path, origin: Origin, threads: int, calls: int, seed: int = 0) -> list[str]:
    """Let threads hit a filled root again and again, and compare descriptors before and after.

    All get the same paths, whose files are hashed once all threads have ended.
    """
    manifest, root = small_checkpoints(origin, 10, seed), folder / "root"
    wanted = dict(ensure(manifest, root=root, progress=False))
    before, problems = _descriptors(), []
    together = threading.Barrier(threads)

    def work() -> None:
        together.wait()
        for _ in range(calls):
            found = ensure(manifest, root=root, progress=False)
            if dict(found) != wanted or found.report.bytes_fetched:
                problems.append(f"a thread got {found}")

    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(PATIENCE)
    problems += [f"{thread.name} hangs" for thread in running if thread.is_alive()]
    problems += [f"the threads got wrong bytes of {each}" for each in wrong(wanted, manifest)]
    if (after := _descriptors()) > before:
        problems.append(f"{after} descriptors are open, and {before} were before")
    return problems


CYCLE = f"""
{CHECK}
from weightcache import Manifest, prune, publish
action, path, root, made = sys.argv[1:]
manifest = json.load(open(path))
print("ready", flush=True)
sys.stdin.readline()
if action == "prune":
    prune(manifest, root=root, older_than=0, dry_run=False)
elif action == "publish":
    publish(made, name="trained", root=root)
else:
    weights = ensure(manifest, root=root, progress=False, rehash=action == "rehash")
    print(json.dumps(list(wrong(weights, manifest))))
"""
ACTIONS = ("ensure", "ensure", "ensure", "rehash", "prune", "publish")


class Cycles:
    """One root that versions come to and go from, in processes that are killed at random moments.

    Args:
        folder: An empty directory.
        origin: Serves three versions of the same checkpoints: an upgrade, a rollback and an upgrade.
        seed: Decides what is done, by which container, and when it is killed.
        checkpoints: How many there are.

    Attributes:
        done: How often each action ran to its end, and how often it was ``killed``.
        problems: What was wrong.
    """

    def __init__(self, folder: Path, origin: Origin, seed: int, checkpoints: int = 4) -> None:
        self._folder, self._root, self._chance = folder, folder / "root", random.Random(seed)
        self._manifests = [
            small_checkpoints(origin, checkpoints, seed * 3 + each, 300_000, DOWNLOAD_RATE) for each in range(3)
        ]
        self._paths = [folder / f"{number}.json" for number in range(3)]
        for path, manifest in zip(self._paths, self._manifests, strict=True):
            path.write_text(json.dumps(manifest))
        (folder / "made.bin").write_bytes(blob(300_000, seed))
        self.done: Counter[str] = Counter()
        self.problems: list[str] = []
        self._measured: list[dict[str, int]] = []

    def rounds(self, count: int, reached: Callable[[], bool]) -> int:
        """Run and clean, once to warm up and then until the limit is reached, and `ROUNDS` times in any case."""
        done = 0
        while done <= ROUNDS or not reached():
            self.run(count)
            self.clean()
            done += 1
        return done

    def run(self, count: int) -> None:
        """Do so many things, each in a process of its own; two thirds of them are killed."""
        for _ in range(count):
            action, container = self._chance.choice(ACTIONS), self._chance.randrange(4)
            kill = self._chance.random() < 2 / 3
            self._act(
                action,
                self._chance.choice(self._paths),
                container,
                self._chance.uniform(0, KILL_WITHIN) if kill else None,
            )

    def _act(self, action: str, manifest: Path, container: int, kill_after: float | None) -> None:
        env = {"MODAL_TASK_ID": f"ta-{container}"} if container else {}
        words = (action, str(manifest), str(self._root), str(self._folder / "made.bin"))
        process = child(CYCLE, *words, env=env, stdin=subprocess.PIPE)
        start_together([process])
        if kill_after is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(kill_after)
            process.kill()
        out, err = process.communicate(timeout=PATIENCE)
        if process.returncode == -signal.SIGKILL:
            self.done["killed"] += 1
            return
        self.done[action] += 1
        if process.returncode:
            self.problems.append(f"{action} failed: {err[-500:]}")
        elif out.strip():
            self.problems += [f"{action} returned wrong bytes of {each}" for each in json.loads(out)]

    def clean(self) -> None:
        """Ask for each version, delete all but one, and measure what is left: it must not be more than the first time.

        A partial that a killed process left is over then for its own container. For the others it is after a day, which
        passes at once.
        """
        for path in self._paths:
            self._act("ensure", path, 0, None)
        prune(self._manifests[0], root=self._root, older_than=0, dry_run=False)
        self.problems += self._partials_of_this_container()
        with patch.object(partial_directory, "STALE", -1.0):
            prune(self._manifests[0], root=self._root, older_than=0, dry_run=False)
        self.problems += leftovers(self._root, self._manifests[0])
        notes = len(list(Path(os.environ["TMPDIR"]).rglob("*")))
        files = len([each for each in self._root.rglob("*") if each.is_file()])
        self._measured.append({"files of the root": files, "notes in the temporary directory": notes})
        first, last = self._measured[0], self._measured[-1]
        self.problems += [
            f"{last[what]} {what}, and {first[what]} at first" for what in first if last[what] > first[what]
        ]

    def _partials_of_this_container(self) -> Iterator[str]:
        digests = {each.digest for manifest in self._manifests for each in Manifest.load(manifest)}
        for path in (self._root / ".weightcache/partial").iterdir():
            digest, _, text = path.name.partition(".")
            writer = Writer.parse(text)
            if digest in digests and writer and writer.is_here(str(self._root)):
                yield f"a partial of this container is left: {path}"


def leftovers(root: Path, manifest: dict[str, Any]) -> list[str]:
    """What a root holds beyond the checkpoints of a manifest, or does not hold."""
    checkpoints = list(Manifest.load(manifest))
    hidden = root / ".weightcache"
    partials = [str(each) for each in (hidden / "partial").rglob("*")]
    receipts = [each for each in (hidden / "receipts").rglob("*") if each.is_file()]
    wanted = {f"{each.name}/{each.version}/{file.path}": file.sha256 for each in checkpoints for file in each.files}
    found = {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and path.relative_to(root).parts[0] != ".weightcache"
    }
    problems = [f"a partial is left: {each}" for each in partials]
    problems += [f"{path} is {found.get(path)}" for path, pin in wanted.items() if found.get(path) != pin]
    problems += [f"{path} is left" for path in found if path not in wanted]
    if len(receipts) != len(checkpoints):
        problems.append(f"{len(receipts)} receipts for {len(checkpoints)} checkpoints")
    return problems


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
