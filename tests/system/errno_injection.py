"""Let system calls fail, one after the other, in everything that the library does; or one of them again.

python tests/system/errno_injection.py --seconds 600
python tests/system/errno_injection.py --case 'cold fsync EIO 2'

A case is a scenario, a call, an error, and the how-manieth call fails; a last ``+`` lets all later ones fail too. The
calls of Python's are replaced in this process. With ``--strace`` the kernel itself is made to fail, in a process of its
own: that reaches what is called from C, and takes ten times as long.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import faulthandler
import fcntl
import hashlib
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from success_check import WrongSuccessError, check_success
from weightcache import WeightCacheError, ensure, prune, publish, status, verify
from weightcache._runtime import tuning_constants
from weightcache._runtime.writer_identity import Writer, container_id
from weightcache._store.partial_directory import BLOCK, block_checksum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ERRORS = (
    "ENOSPC EIO ESTALE EDQUOT EROFS EMFILE EACCES EINTR EAGAIN ENOENT ENOTDIR ETIMEDOUT ENOMEM EPERM".split()  # noqa: SIM905
)
# What each call is called by Python. `start` is a thread, which fails in its own way; `short` writes a part only.
CALLS: dict[str, list[tuple[Any, str]]] = {
    "open": [(os, "open"), (builtins, "open")],
    "mkdir": [(os, "mkdir")],
    "rename": [(os, "rename"), (os, "replace")],
    "unlink": [(os, "unlink"), (os, "remove")],
    "rmdir": [(os, "rmdir")],
    "link": [(os, "link")],
    "symlink": [(os, "symlink")],
    "readlink": [(os, "readlink")],
    "write": [(os, "write"), (os, "pwrite")],
    "short": [(os, "write"), (os, "pwrite")],
    "fsync": [(os, "fsync"), (os, "fdatasync")],
    "truncate": [(os, "ftruncate")],
    "read": [(os, "read"), (os, "readv"), (os, "pread"), (os, "preadv")],
    "stat": [(os, "stat"), (os, "lstat"), (os, "fstat")],
    "list": [(os, "listdir"), (os, "scandir")],
    "seek": [(os, "lseek")],
    "flock": [(fcntl, "flock")],
    "fcntl": [(fcntl, "fcntl")],
    "close": [(os, "close")],
    "start": [(threading.Thread, "start")],
}
SYSTEM_CALLS = [
    "openat",
    "mkdir",
    "rename",
    "unlink",
    "unlinkat",
    "rmdir",
    "link",
    "symlink",
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "ftruncate",
    "read",
    "pread64",
    "readv",
    "newfstatat",
    "fstat",
    "getdents64",
    "readlink",
    "flock",
    "close",
    "lseek",
    "clone3",
    "socket",
    "fcntl",
]


HANG = 60.0  # seconds
W, T, R = TypeVar("W"), TypeVar("T"), TypeVar("R")


class BrokenError(Exception):
    """A promise is broken."""


class Case(NamedTuple):
    """One fault in one scenario."""

    scenario: str
    call: str
    error: str
    when: int
    lasting: bool = False

    def __str__(self) -> str:
        return f"{self.scenario} {self.call} {self.error} {self.when}{'+' * self.lasting}"

    @classmethod
    def parse(cls, text: str) -> Case:
        scenario, call, error, when = text.split()
        return cls(scenario, call, error, int(when.rstrip("+")), when.endswith("+"))


class Done(NamedTuple):
    """What a scenario returned, and what was open in the root at a commit or reload."""

    result: Any
    open: list[str]


class Volume:
    """Commits and reloads nothing, and notes what is open in the root then."""

    def __init__(self, root: str) -> None:
        self.root, self.open = root, list[str]()

    def commit(self) -> None:
        self.open += open_in(self.root)

    reload = commit


def open_in(root: str) -> list[str]:
    """Return what this process has open in a root, or for ``/`` all that it has open, sockets among it."""
    found = []
    for number in _listdir("/proc/self/fd"):
        try:
            target = _readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if root == "/" and not target.startswith("/proc/"):
            found.append(target.partition(":[")[0])  # of a socket or pipe without its number
        elif target.startswith(f"{root}/"):
            found.append(target)
    return found


_listdir, _readlink, _dup, _os_close = os.listdir, os.readlink, os.dup, os.close  # as they are without a fault


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class World:
    """Where the scenarios happen, and what must be true after each of them."""

    def __init__(self, folder: str, name: str = "case", url: str = "") -> None:
        self.folder, self.name = folder, name
        dice = random.Random(1)
        self.large, self.small, self.shared = (
            dice.randbytes(2 * BLOCK + 5),
            dice.randbytes(70_001),
            dice.randbytes(9000),
        )
        by_name = {"a.bin": self.large, "large": self.large, "a": self.large, "s": self.shared, "shared": self.shared}
        self._by_name = {**by_name, "x": self.small, "empty": b""}
        for path, data in {
            "large": self.large,
            "shared": self.shared,
            "d/x": self.small,
            "d/sub/empty": b"",
            "d/shared": self.shared,
        }.items():
            target = Path(folder, "source", path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        url = url or f"file://{folder}/source"
        pins = {path: {"sha256": digest(data), "size": len(data)} for path, data in self.directory().items()}
        self.manifest: dict[str, Any] = {
            "checkpoints": {
                "a": {"urls": [f"{url}/large"], "file": "a.bin", "sha256": digest(self.large), "size": len(self.large)},
                "s": {"urls": [f"{url}/shared"], "file": "s", "sha256": digest(self.shared)},
                "d": {"urls": [f"{url}/d"], "files": pins},
            }
        }
        hub = f"hf://org/name@{'a' * 40}"
        self.of_hub = {"checkpoints": {"d": {"urls": [hub], "files": pins}}}
        self.other = {"checkpoints": {"other": {"urls": [], "file": "other", "sha256": "0" * 64}}}
        self._templates: dict[str, str] = {}
        self.rotten = self.large[:7] + bytes([self.large[7] ^ 1]) + self.large[8:]

    def directory(self) -> dict[str, bytes]:
        """Return the files of the checkpoint ``d``."""
        return {"x": self.small, "sub/empty": b"", "shared": self.shared}

    # How each scenario begins.

    def _begin(self, scenario: str, root: str) -> None:
        if scenario in ("cold", "publish"):
            return
        ensure(self.manifest, root=root, progress=False)
        if scenario in ("resume", "status"):
            self._interrupted(root)
        if scenario in ("adopt", "verify"):
            shutil.rmtree(f"{root}/.weightcache/receipts")
        if scenario == "heal":
            [version] = os.listdir(f"{root}/d")
            os.unlink(f"{root}/d/{version}/x")
            Path(f"{root}/a/{digest(self.large)[:16]}/a.bin").write_bytes(self.rotten)

    def _interrupted(self, root: str) -> None:
        """Leave what two writers left that died: each has a block that the other one lacks."""
        shutil.rmtree(f"{root}/a")
        shutil.rmtree(f"{root}/.weightcache/receipts/a")
        for number in (0, 1):
            writer = Writer(container_id(root), 999_999 - number, 1, f"0000000{number}")
            partial = Path(f"{root}/.weightcache/partial/{digest(self.large)}.{writer}")
            partial.mkdir()
            block = self.large[number * BLOCK : (number + 1) * BLOCK]
            (partial / digest(self.large)).write_bytes(self.large)
            (partial / "journal").write_text(
                f"opened {time.time():.0f}\n{digest(self.large)} {number} {BLOCK} {block_checksum(block):08x}\n"
            )

    def prepared(self, scenario: str) -> str:
        """Return a root as the scenario begins with."""
        if scenario not in self._templates:
            self._templates[scenario] = f"{self.folder}/{self.name}-templates/{scenario}"
            self._begin(scenario, self._templates[scenario])
        root = f"{tempfile.mkdtemp(dir=self.folder, prefix=f'{self.name}-')}/root"  # another one in each process
        if os.path.isdir(self._templates[scenario]):
            shutil.copytree(self._templates[scenario], root)
        return root

    # What happens in each.

    def act(self, scenario: str, root: str) -> Done:
        """Do it."""
        volume, beside, result = Volume(root), os.path.dirname(root), None
        shared: dict[str, Any] = {"root": root, "volume": volume, "lease": None, "progress": False}
        if scenario in ("cold", "resume", "adopt"):
            result = ensure(self.manifest, **shared)
        elif scenario == "heal":
            result = ensure(self.manifest, **shared, rehash=True)
        elif scenario == "prune":
            result = prune(self.other, root=root, volume=volume, dry_run=False, older_than=0)
        elif scenario == "publish":
            result = publish(f"{self.folder}/source/d", name="d", root=root, volume=volume)
        elif scenario == "link":
            result = ensure(self.manifest, root=root, progress=False)
            result.link({"a": f"{beside}/links/x/a", "d": f"{beside}/links/d"})
        elif scenario == "hf_cache":
            result = ensure(self.of_hub, root=root, progress=False)
            result.hf_cache(f"{beside}/hub")
        elif scenario == "status":
            result = status(self.manifest, root=root)
        else:
            result = verify(self.manifest, root=root)
        return Done(result, volume.open)

    # What must be true afterwards.

    def judge(self, scenario: str, root: str) -> None:
        """Look at what a scenario left, end it without a fault, and look again.

        Raises:
            BrokenError: A promise is broken.
        """
        self._only_right_files(root, *([self.rotten] if scenario == "heal" else []))
        if scenario not in ("heal", "prune", "prune_tags"):  # where a receipt is withdrawn first
            self._receipts_have_data(root)
        self.act(scenario, root)
        if scenario == "prune" and (left := [name for _, _, names in os.walk(root) for name in names]):
            raise BrokenError(f"prune left {left}")
        weights = ensure(self.manifest, root=root, progress=False)
        self._only_right_files(root)
        if bad := [each for each in verify(self.manifest, root=root) if each.state != "ready"]:
            raise BrokenError(f"not ready: {bad}")
        if weights["a"].read_bytes() != self.large:
            raise BrokenError("wrong bytes")
        prune(self.manifest, root=root, dry_run=False)  # what could not be removed, and is not noticed by a hit
        # Where the container's own disk failed, a writer could not know which container it is in: swept after a day.
        if left := [name for name in os.listdir(f"{root}/.weightcache/partial") if f".{container_id(root)}-" in name]:
            raise BrokenError(f"partials are left: {left}")
        for folder, folders, names in os.walk(os.path.dirname(root)):
            if folder != root and (odd := [name for name in [*names, *folders] if name.startswith(".weightcache-")]):
                raise BrokenError(f"left in {folder}: {odd}")

    def is_right(self, path: str, *also: bytes) -> bool:
        """Whether a file has the content that belongs to its name, or one of ``also``."""
        data = Path(path).read_bytes()  # to compare is many times as fast as to hash
        return data in (self._by_name[os.path.basename(path)], *also)

    def _only_right_files(self, root: str, *also: bytes) -> None:
        for folder, folders, names in os.walk(root):
            if folder == root and ".weightcache" in folders:
                folders.remove(".weightcache")
            for name in names:
                if not self.is_right(f"{folder}/{name}", *also):
                    raise BrokenError(f"visible, and not right: {folder}/{name}")

    def _receipts_have_data(self, root: str) -> None:
        for folder, _, names in os.walk(f"{root}/.weightcache/receipts"):
            for name in names:
                if not name.endswith(".json"):
                    continue
                receipt = json.loads(Path(folder, name).read_text())
                for path in receipt["files"]:
                    if not os.path.exists(f"{root}/{receipt['name']}/{receipt['digest'][:16]}/{path}"):
                        raise BrokenError(f"a receipt without data: {folder}/{name} and {path}")


SCENARIOS = ("cold", "resume", "adopt", "heal", "prune", "publish", "link", "hf_cache", "status", "verify")


@contextmanager
def failing(case: Case) -> Iterator[list[int]]:
    """Let a call fail; yields a list with one entry, how many calls there were."""
    calls, lock = [0], threading.Lock()
    number = getattr(errno, case.error, 0)

    def is_hit() -> bool:
        with lock:
            calls[0] += 1
            return calls[0] == case.when or (case.lasting and calls[0] > case.when)

    def replaced(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            # What lasts is that no lock is granted. No file system refuses each release, and filelock would leak then.
            if (case.call == "flock" and case.lasting and args[1] == fcntl.LOCK_UN) or not is_hit():
                return real(*args, **kwargs)
            if case.call == "start":
                raise RuntimeError("can't start new thread")
            if case.call == "short":
                return real(args[0], memoryview(args[1])[: max(1, len(args[1]) // 2)], *args[2:])
            if case.call == "close":
                real(*args)
            raise OSError(number, os.strerror(number), *(each for each in args[:1] if isinstance(each, str)))

        return call

    kept = [(place, name, getattr(place, name)) for place, name in CALLS[case.call]]
    try:
        for place, name, real in kept:
            setattr(place, name, replaced(real))
        yield calls
    finally:
        for place, name, real in kept:
            setattr(place, name, real)


class Outcome(NamedTuple):
    """What came of one case: the error's class or ``ok``, and how many calls there were."""

    said: str
    calls: int
    text: str = ""


def attempt(world: World, case: Case) -> Outcome:
    """Run one case in this process.

    Raises:
        BrokenError: A promise is broken.
    """
    root = world.prepared(case.scenario)
    said, text, problem, done, before = "ok", "", "", Done(None, []), open_in("/")
    with failing(case) as calls:
        try:
            done = world.act(case.scenario, root)
        except WeightCacheError as error:
            said, text = type(error).__name__, str(error)
            if not (str(error.args[0]).strip() and error.hint):
                problem = f"the error does not say what to do: {text!r}"
        except BaseException:
            problem = f"an exception that is not ours: {traceback.format_exc()[-1500:]}"
    for thread in threading.enumerate():
        if thread.name.startswith("weightcache"):
            thread.join(5)
    if not problem and (left := [each.name for each in threading.enumerate() if each.name.startswith("weightcache")]):
        problem = f"threads are left: {left}"
    if not problem and (left := list((Counter(open_in("/")) - Counter(before)).elements()) or done.open):
        problem = f"open: {left}"
    if problem:
        raise BrokenError(problem)
    if said == "ok":
        try:
            check_success(world, case, root, done.result)
        except WrongSuccessError as error:
            raise BrokenError(str(error)) from None
    if calls[0] >= case.when:
        world.judge(case.scenario, root)
    shutil.rmtree(os.path.dirname(root), ignore_errors=True)
    return Outcome(said, calls[0], text)


def returned(work: Callable[[W, T], R], world: W, item: T) -> R | BrokenError:
    """Return what ``work`` returns, or the `BrokenError` that it raises."""
    try:
        return work(world, item)
    except BrokenError as error:
        return error


def short_waits() -> None:
    """Do not wait long before another try."""
    tuning_constants.DEFAULT = replace(
        tuning_constants.DEFAULT, tries=2, backoff=0.001, backoff_max=0.002, volume_backoff=(0.0, 0.0), lock_poll=0.005
    )


@contextmanager
def world_here() -> Iterator[World]:
    """Make a world in a folder of its own, with short waits and a container-local directory of its own."""
    kept = tuning_constants.DEFAULT, os.environ.get("TMPDIR")
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where fsync costs nothing
    with tempfile.TemporaryDirectory(prefix="errno-", dir=in_memory) as folder:
        os.mkdir(f"{folder}/local")
        short_waits()
        os.environ["TMPDIR"], tempfile.tempdir = f"{folder}/local", None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                yield World(folder)
        finally:
            tuning_constants.DEFAULT, local = kept
            os.environ.pop("TMPDIR")
            if local is not None:
                os.environ["TMPDIR"] = local
            tempfile.tempdir = None


def drawn(dice: random.Random) -> Case:
    """Draw a case."""
    call = dice.choice(list(CALLS))
    when = dice.choice((*range(1, 13), 15, 20, 25, 30, 40, 60))
    error = dice.choice(ERRORS)
    lasting = dice.random() < 0.3 and call != "close" and error != "EINTR"  # which Python itself tries again
    return Case(dice.choice(SCENARIOS), call, error, when, lasting)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=Case.parse, help="only this one")
    parser.add_argument("--strace", action="store_true", help="let the kernel fail")
    parser.add_argument("--verbose", action="store_true", help="print each case before it is run")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    began, count, broken, dice = time.monotonic(), 0, 0, random.Random(options.seed)
    with ExitStack() as stack:
        world, run = stack.enter_context(world_here()), attempt
        if options.strace:
            from errno_strace import Traced

            run = stack.enter_context(Traced(world)).attempt
        while time.monotonic() - began < options.seconds:
            case = options.case or drawn(dice)
            if options.strace and not options.case:
                case = case._replace(call=dice.choice(SYSTEM_CALLS))
            count += 1
            faulthandler.dump_traceback_later(HANG, file=sys.stdout, exit=True)
            if options.verbose:
                print(case, flush=True)
            try:
                outcome = run(world, case)
            except BaseException as error:
                broken += 1
                print(f"{case}: {type(error).__name__}: {error}", flush=True)
                if not isinstance(error, Exception):
                    raise
            else:
                if options.case:
                    print(f"{case}: {outcome}")
            if options.case:
                break
    faulthandler.cancel_dump_traceback_later()
    print(f"{count} cases in {time.monotonic() - began:.0f} s, {broken} broken")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
