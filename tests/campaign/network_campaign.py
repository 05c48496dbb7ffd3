"""Let `ensure` download from servers that answer wrongly in all ways that `network_answers` has, and judge each run.

    make campaign ONLY=network BUDGET=60

`campaign.py --repeat 'network 0 17'` does one run again, and prints its script and what came of it.
"""

from __future__ import annotations

import importlib
import os
import pickle
import pkgutil
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import weightcache
from campaign_table import Limit, Row, silent
from network_answers import GOOD, LONGEST_WAIT, STALL, Served
from network_script import BACKOFF, BLOCK, CALM, PART, REFUSAL, TRIES, Plan
from origin import Origin
from support import directory, one, partials, sha256, visible
from weightcache._runtime import tuning_constants

HANG = 60.0  # seconds beyond a run's budget after which it counts as one that does not end
SLACK = 10.0  # seconds beyond twice the budget that a busy machine may add
ENDS = CALM + SLACK  # seconds until what a run left counts as left: a connection may wait for its timeout
TOKEN = "secret-of-the-campaign"


@dataclass
class Watch:
    """What is seen of a run from inside the library."""

    received: int = 0  # bytes, after decoding
    end: dict[str, int] = field(default_factory=dict)  # by partial, offset after the last byte that was written
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Outcome:
    """What came of one run."""

    number: int
    plan: Plan
    problems: list[str]
    error: BaseException | None = None
    seconds: float = 0.0
    requests: int = 0
    received: int = 0

    @property
    def size(self) -> int:
        return sum(map(len, self.plan.files.values()))

    @property
    def budget(self) -> float:
        return self.plan.budget(self.requests)

    @property
    def kind(self) -> str:
        return type(self.error).__name__ if self.error else "right"


@contextmanager
def small_blocks(watch: Callable[[], Watch]) -> Iterator[None]:
    """Let blocks be small, so that small files have many, and see what is read and written."""
    for found in pkgutil.walk_packages(weightcache.__path__, "weightcache."):
        if found.name.split(".")[1] in ("_transfer", "_store"):
            importlib.import_module(found.name)
    named = {"BLOCK": (1 << 20, BLOCK), "PART": (8 << 20, PART)}
    places = [
        (module, name, value)
        for each, module in list(sys.modules.items())
        if each.startswith(("weightcache._transfer.", "weightcache._store."))
        for name, value in named.items()
        if getattr(module, name, None) == value[0]
    ]
    from weightcache._store.partial_file import PartialFile
    from weightcache._transfer.file_response import HttpBody

    read, write = HttpBody.read_into, PartialFile.write

    def counted(self: HttpBody, view: memoryview) -> int:
        count = read(self, view)
        with watch().lock:
            watch().received += count
        return count

    def measured(self: PartialFile, block: int, data: memoryview) -> None:
        with watch().lock:
            watch().end[self.path] = max(watch().end.get(self.path, 0), block * BLOCK + len(data))
        write(self, block, data)

    try:
        HttpBody.read_into, PartialFile.write = counted, measured  # type: ignore[method-assign]
        for module, name, value in places:
            setattr(module, name, value[1])
        yield
    finally:
        HttpBody.read_into, PartialFile.write = read, write  # type: ignore[method-assign]
        for module, name, value in places:
            setattr(module, name, value[0])


def settings_for(plan: Plan) -> tuning_constants.Settings:
    """Short waits; with several connections, they are used at once."""
    stall = STALL if plan.stalls else CALM
    return replace(
        tuning_constants.DEFAULT,
        tries=TRIES,
        backoff=BACKOFF / 2,
        backoff_max=BACKOFF,
        retry_after_max=LONGEST_WAIT,
        refusal_timeout=REFUSAL,
        connect_timeout=CALM,
        stall_timeout=stall,
        slow_window=stall,
        slow_window_bytes=1000,
        connections=plan.connections,
        slow_after=0.0005 if plan.connections > 1 else 60.0,
        fast_rate=1e12,
        stalled_after=0.1,
        hedge_bytes=8 * BLOCK,
        hedge_min_age=0.05,
        hedge_min_gain=0.05,
        hedge_usual=0.5,
    )


class Network:
    """Two servers, and one run after another on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.origins = (Origin(), Origin(host="127.0.0.2"))
        self.watch = Watch()

    @contextmanager
    def running(self) -> Iterator[Network]:
        before = tuning_constants.DEFAULT
        os.environ["CAMPAIGN_TOKEN"] = TOKEN
        try:
            with self.origins[0], self.origins[1], small_blocks(lambda: self.watch):
                yield self
        finally:
            tuning_constants.DEFAULT = before
            del os.environ["CAMPAIGN_TOKEN"]

    def run(self, plan: Plan, number: int = 0) -> Outcome:
        """Do one run and judge it; then let the servers be good, and judge the next call."""
        root = self.folder / f"r{number}"
        outcome = Outcome(number, plan, [])
        served, urls = self._serve(plan, number)
        manifest = _manifest(plan, urls)
        tuning_constants.DEFAULT = settings_for(plan)
        before = _descriptors()
        self.watch = Watch()
        try:
            weights = self._ensure(outcome, manifest, root)
            if weights is not None or outcome.error is not None:
                self._judge(outcome, weights, root)
                self._judge_end(outcome, before)
                self._judge_next(outcome, served, manifest, root)
        finally:
            for each in served:
                each.over.set()
            for origin in self.origins:
                origin.files.clear()
                origin.requests.clear()
            shutil.rmtree(root, ignore_errors=True)
        return outcome

    def _serve(self, plan: Plan, number: int) -> tuple[list[Served], list[str]]:
        served, urls = list[Served](), list[str]()
        for mirror, scripts in enumerate(plan.mirrors):
            origin, other = self.origins[mirror], self.origins[1 - mirror]
            for name, script in scripts.items():
                path = f"/{number}/{mirror}/{name}"
                data = plan.files[name]
                each = Served(data, list(script.moves), script.tail, script.policy, other.url(f"/away{path}"))
                served.append(each)
                origin.put(path, data, always=each)
                other.put(f"/away{path}", data)
            folder = origin.url(f"/{number}/{mirror}/")
            urls.append(folder if len(plan.files) > 1 else f"{folder}{next(iter(plan.files))}")
        return served, urls

    def _ensure(self, outcome: Outcome, manifest: Any, root: Path) -> weightcache.Weights | None:
        """Call `ensure` in a thread, which is left alone if it does not end."""
        found: list[weightcache.Weights] = []

        def work() -> None:
            try:
                found.append(weightcache.ensure(manifest, root=root, progress=False, patience=outcome.plan.patience))
            except BaseException as error:
                outcome.error = error

        thread, began = threading.Thread(target=work, daemon=True), time.monotonic()
        thread.start()
        thread.join(2 * outcome.plan.budget(outcome.plan.requests) + HANG)
        outcome.seconds = time.monotonic() - began
        outcome.requests = sum(len(origin.requests) for origin in self.origins)
        outcome.received = self.watch.received
        if thread.is_alive():
            outcome.problems.append(f"it does not end: it ran for {outcome.seconds:.0f} s")
            return None
        return found[0] if found else None

    def _judge(self, outcome: Outcome, weights: weightcache.Weights | None, root: Path) -> None:
        plan, problems, error = outcome.plan, outcome.problems, outcome.error
        if weights is not None:
            problems += _wrong_files(weights, plan)
        elif not isinstance(error, (weightcache.DownloadError, weightcache.IntegrityError)):
            problems.append(f"{type(error).__name__} is not the error of a download: {error}")
        else:
            problems += _unclear(error)
            if plan.delivers:
                problems.append(f"a mirror delivers, and it failed: {error}")
            if len(plan.files) == 1 and visible(root):
                problems.append(f"it failed, and published {visible(root)}")
        if outcome.requests > plan.requests:
            problems.append(f"{outcome.requests} requests, and at most {plan.requests} were expected")
        if outcome.seconds > 2 * outcome.budget + SLACK:
            problems.append(f"it took {outcome.seconds:.1f} s, and {outcome.budget:.1f} s were expected at most")
        longest = max(map(len, plan.files.values()))
        if plan.declared and (most := max(self.watch.end.values(), default=0)) > longest:
            problems.append(f"{most} bytes were written of a file of {longest}")
        if plan.declared and outcome.received > (limit := received_limit(plan, outcome.requests)):
            problems.append(f"{outcome.received} bytes were received, and at most {limit} were expected")
        for number, origin in enumerate(self.origins):
            for request in list(origin.requests):
                if TOKEN in request.headers.get("Authorization", "") and "/away" in request.path:
                    problems.append(f"server {number} got the token after a redirect from another host")

    def _judge_end(self, outcome: Outcome, before: set[str]) -> None:
        """See that no thread and no descriptor is left."""
        for origin in self.origins:
            for each in list(origin.files.values()):
                if isinstance(each.always, Served):
                    each.always.over.set()
        ends = time.monotonic() + ENDS
        left: list[str] = []
        while time.monotonic() < ends:
            left = [each.name for each in threading.enumerate() if each.name.startswith("weightcache")]
            left += sorted(_descriptors() - before)
            if not left:
                return
            time.sleep(0.002)
        outcome.problems.append(f"left behind: {left}")

    def _judge_next(self, outcome: Outcome, served: list[Served], manifest: Any, root: Path) -> None:
        """Let all servers be good: the next call must end right, and use or remove what is there."""
        for each in served:
            each.moves, each.tail, each.policy, each.over = [], None, GOOD, threading.Event()
        again = Outcome(outcome.number, outcome.plan, [])
        self.watch = Watch()
        weights = self._ensure(again, manifest, root)
        outcome.problems += [f"next call: {each}" for each in again.problems]
        if weights is None:
            outcome.problems.append(f"the next call fails: {again.error!r}")
            return
        outcome.problems += [f"next call: {each}" for each in _wrong_files(weights, outcome.plan)]
        if again.received > 2 * outcome.size + settings_for(outcome.plan).hedge_bytes:
            outcome.problems.append(f"the next call received {again.received} bytes of {outcome.size}")
        if left := partials(root):
            outcome.problems.append(f"partials are left after the next call: {left}")


def received_limit(plan: Plan, requests: int) -> int:
    """The most bytes that a run may receive: each answer is read no further than one byte beyond the declared size."""
    return sum((len(data) + 1) for data in plan.files.values()) * max(1, requests)


def _manifest(plan: Plan, urls: list[str]) -> dict[str, Any]:
    if len(plan.files) > 1:
        manifest = directory(plan.files, *urls, name="model")
        for pin in manifest["checkpoints"]["model"]["files"].values():
            if not plan.declared:
                del pin["size"]
    else:
        manifest = one(next(iter(plan.files.values())), *urls, name="model", size=plan.declared)
    if plan.auth:
        manifest["checkpoints"]["model"]["auth"] = "CAMPAIGN_TOKEN"
    return manifest


def _wrong_files(weights: weightcache.Weights, plan: Plan) -> list[str]:
    path = weights["model"]
    found = {name: path / name if len(plan.files) > 1 else path for name in plan.files}
    return [
        f"wrong bytes in {name}"
        for name, data in plan.files.items()
        if sha256(found[name].read_bytes()) != sha256(data)
    ]


def _unclear(error: weightcache.DownloadError) -> list[str]:
    """Why a message is not clear: it says which file of which checkpoint, what each mirror did, and what to do."""
    text, problems = str(error), list[str]()
    if "checkpoint model" not in text or not error.attempts or not error.hint:
        problems.append(f"the error says too little: {text!r}")
    if TOKEN in text or "Traceback" in text or not all(each.isprintable() or each == "\n" for each in text):
        problems.append(f"the error says too much: {text!r}")
    if str(pickle.loads(pickle.dumps(error))) != text:
        problems.append("the error changes when it is pickled")
    return problems


def _descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@contextmanager
def network(folder: str | Path | None = None) -> Iterator[Network]:
    """Servers, and a folder for the roots; in memory, if the machine has such a place."""
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with silent(), tempfile.TemporaryDirectory(dir=folder or shared) as path:
        before, tempfile.tempdir = tempfile.tempdir, path  # the notes of thousands of roots would slow every miss down
        try:
            with Network(Path(path)).running() as found:
                yield found
        finally:
            tempfile.tempdir = before


def summary(outcomes: list[Outcome]) -> str:
    """What the runs came to: how they ended, and the worst of them against what is possible and what is allowed."""
    ends = Counter(each.kind for each in outcomes)
    right = [each for each in outcomes if each.error is None and each.plan.best >= 0.1]
    ratios = sorted((each.seconds / each.plan.best, each.number) for each in right) or [(0.0, 0)]
    budget = max((each.seconds / each.budget, each.number) for each in outcomes)
    requests = max((each.requests / each.plan.requests, each.number) for each in outcomes)
    sizes = [(each.received / each.size, each.number) for each in outcomes if each.plan.declared and each.size > BLOCK]
    size = max(sizes, default=(0.0, 0))
    words = ", ".join(f"{count} {kind}" for kind, count in ends.most_common())
    return (
        f"{words}; {ratios[len(ratios) // 2][0]:.1f} times the best possible time in the median and "
        f"{ratios[-1][0]:.1f} at most (of {len(right)} runs of 0.1 s or more); at most {100 * budget[0]:.0f} % of the "
        f"time and {100 * requests[0]:.0f} % of the requests that are allowed, and {size[0]:.1f} times the declared "
        f"size received (runs {ratios[-1][1]}, {budget[1]}, {requests[1]}, {size[1]})"
    )


def rows(
    seed: int, seconds: float, most: int = sys.maxsize, folder: str | Path | None = None
) -> tuple[list[Row], list[str]]:
    """Do runs for so many seconds, or so many of them; return a line of the table, and how to repeat what failed.

    A run that exceeds the exact limit of time is done again: what another process took from it, it has now.
    """
    limit, outcomes, slow = Limit(time.monotonic() + seconds, most), list[Outcome](), Counter[str]()
    with network(folder) as net:
        while not outcomes or not limit.reached(len(outcomes)):
            number = len(outcomes)
            done = net.run(Plan.draw(seed, number), number)
            if done.seconds > done.budget and not done.problems:
                slow["once"] += 1
                done = net.run(Plan.draw(seed, number), number)
                if done.seconds > done.budget:
                    slow["twice"] += 1
                    print(f"SLOW network {seed} {number}: {done.seconds:.1f} s of {done.budget:.1f} s", file=sys.stderr)
            outcomes.append(done)
    failed = [each for each in outcomes if each.problems]
    for each in failed:
        line = f"network {seed} {each.number}: {'; '.join(each.problems)}"
        print(f"FAILED {line}\n{each.plan}", file=sys.stderr, flush=True)
    lines = [f"network {seed} {each.number}" for each in failed]
    note = f"{summary(outcomes)}; {slow['once']} exceeded the limit of time, {slow['twice']} of them again at once"
    return [Row("network", "servers", len(outcomes), len(failed), note)], lines


def repeat(text: str) -> str:
    """Do the run ``SEED NUMBER`` again; return its script and what came of it."""
    seed, number = map(int, text.split())
    with network() as net:
        outcome = net.run(Plan.draw(seed, number), number)
    what = f"{outcome.kind} in {outcome.seconds:.2f} s, {outcome.requests} requests: {outcome.error}"
    return "\n".join([str(outcome.plan), what, *(outcome.problems or ["as promised"])])
