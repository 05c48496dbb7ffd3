"""Show the main use of the library on this machine, without the internet: `make demo`.

An origin on loopback serves stand-ins of the fashion-crop checkpoints, with the names and the layout of
``fashion_crop/weights.toml`` and other bytes. Each step says what it shows and checks it; if anything is otherwise,
the demo says what, and exits with 1. What it leaves in ``./demo-volume`` is there to be looked at.

With ``WEIGHTS=real`` it does the first step alone, with the real manifest and the network.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

from demo_stage import (
    BERT,
    BIG,
    DINO,
    RATE,
    SAM,
    VOLUME,
    LogNotes,
    Row,
    Stage,
    WrongError,
    answer,
    check,
    check_bytes,
    duration,
    heading,
    mb,
    note,
    note_long,
    serve_stand_ins,
    start,
    worker,
)
from origin import Origin
from weightcache import DownloadError, IntegrityError, Manifest, WeightCacheError, Weights, ensure, status

REAL_MANIFEST = Path(__file__).parent / "fashion_crop" / "weights.toml"
PROCESSES = 8
IN_FLIGHT = 4 << 20  # at a kill: sent by the origin and not yet in the journal (a block of 1 MiB, socket buffers)


ONE_HIT = """\
import sys, time
began = time.perf_counter()
from weightcache import ensure
weights = ensure(sys.argv[1], root=sys.argv[2])
print(time.perf_counter() - began, *(report.outcome for report in weights.report.values()))
"""


# What the steps share: an origin, stand-ins, manifests, and processes of one's own.


# The steps.


def cold(manifest: Manifest | Path, root: Path) -> Weights:
    weights = ensure(manifest, root=root)
    width = max(map(len, weights))
    for name, report in weights.report.items():
        note(f"{name:{width}}  {report.outcome:10}  {mb(report.bytes_fetched):>9}  {report.seconds:5.1f} s")
    return weights


def step_cold(stage: Stage) -> Row:
    heading("1. Miss: an empty root; everything is downloaded, hashed and published")
    root = VOLUME / "1-cold"
    manifest = stage.manifest(VOLUME / "weights.toml")
    report = cold(manifest, root).report
    outcomes = {each.outcome for each in report.values()}
    check(outcomes == {"downloaded"}, f"the outcomes are {outcomes}")
    check(report.bytes_fetched == stage.size(), f"{report.bytes_fetched} bytes were fetched, of {stage.size()}")
    check_bytes(manifest, root)
    return Row("1 cold", "downloaded", report.bytes_fetched, report.seconds)


def step_killed(stage: Stage) -> list[Row]:
    heading("2. Killed: SIGKILL ends a process half-way; the next process resumes")
    root, (file, size) = VOLUME / "2-killed", BIG[SAM]
    manifest = stage.manifest(VOLUME / "2-killed.toml", SAM)
    origin, resource = stage.origin, stage.origin.files[f"/{file}"]
    before, began = origin.sent(), time.monotonic()
    with worker(manifest, root, shown=True) as victim:
        busy: list[int] = []  # connections at work when it is killed: each may lose a block and what its socket holds

        def kill_half_way(sent: int) -> None:
            if sent - before >= size // 2 and victim.returncode is None and not busy:
                busy.append(origin.busy())
                victim.send_signal(signal.SIGKILL)

        resource.on_sent = kill_half_way
        start(victim)
        victim.wait(timeout=120)
        resource.on_sent = None
    seconds = time.monotonic() - began
    if sys.stderr.isatty():
        print(file=sys.stderr)  # the victim's bar has no end
    check(victim.returncode == -signal.SIGKILL, f"the victim exited with {victim.returncode}")
    first = origin.sent() - before
    (seen,) = status(manifest, root=root)
    note(f"process {victim.pid} was killed after {mb(first)} of {mb(size)}")
    note(f"status now: {seen.state} ({seen.detail}); nothing is published")
    check(seen.state == "partial" and not seen.path.exists(), f"after the kill {SAM} is {seen.state}")
    with worker(manifest, root, shown=True) as successor:
        start(successor)
        pid, outcomes, second, took, _, _ = answer(successor)
    note(
        f"process {pid} fetched {mb(second)}, {first + second - size:,} bytes of it twice "
        f"({busy[0]} connections): {outcomes[SAM]}"
    )
    check(outcomes == {SAM: "resumed"}, f"the successor's outcome is {outcomes}")
    check(
        second < size and first + second - size <= busy[0] * IN_FLIGHT,
        f"the successor fetched {second} bytes of {size}",
    )
    check_bytes(manifest, root)
    return [Row("2 killed", "SIGKILL", first, seconds), Row("  successor", "resumed", second, took)]


def step_hit(stage: Stage) -> list[Row]:
    heading("3. Hit: all files exist; no network, no lock, no hashing")
    manifest, root = VOLUME / "weights.toml", VOLUME / "1-cold"
    requests = stage.origin.gets()
    times = []
    for _ in range(5):
        command = [sys.executable, "-c", ONE_HIT, manifest, root]
        seconds, *outcomes = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
        check(set(outcomes) == {"hit"}, f"the outcomes are {outcomes}")
        times.append(float(seconds))
    fresh = statistics.median(times)
    note(f"a fresh process, `import weightcache` included: {duration(fresh)}")
    loaded, calls = Manifest.load(manifest), 1000
    began = time.perf_counter()
    for _ in range(calls):
        ensure(loaded, root=root)
    again = (time.perf_counter() - began) / calls
    note(f"the same call again in one process, with a Manifest: {duration(again)}")
    check(stage.origin.gets() == requests, "a hit asked the origin")
    return [Row("3 hit, fresh process", "hit", 0, fresh), Row("  hit, again", "hit", 0, again)]


def step_herd(stage: Stage) -> Row:
    heading(f"4. Herd: {PROCESSES} processes at once on one empty root, one download")
    root, manifest = VOLUME / "4-herd", stage.manifest(VOLUME / "4-herd.toml")
    requests, sent = stage.origin.gets(), stage.origin.sent()
    with ExitStack() as stack:
        children = [stack.enter_context(worker(manifest, root, shown=False)) for _ in range(PROCESSES)]
        for child in children:
            assert child.stdout
            check(child.stdout.readline() == "here\n", f"process {child.pid} did not start")
        began = time.monotonic()
        for child in children:
            start(child)
        told = sorted((answer(child) for child in children), key=lambda each: each[4])
        seconds = time.monotonic() - began
    for pid, outcomes, fetched, _, waited, waited_for in told:
        (outcome,) = set(outcomes.values())
        whom = f"{waited:.1f} s for {waited_for.partition(' (')[0]}" if waited_for else "for nobody"
        note(f"process {pid:<7} {outcome:10} {mb(fetched):>9} fetched, waited {whom}")
    requests, sent = stage.origin.gets() - requests, stage.origin.sent() - sent
    files = sum(map(len, stage.bodies.values()))
    note(f"the origin counted {requests} requests for {files} files, {mb(sent)} of {mb(stage.size())}")
    check(sum(fetched for _, _, fetched, *_ in told) == stage.size(), "something was downloaded twice")
    check([set(each[1].values()) for each in told].count({"downloaded"}) == 1, "not just one process downloaded")
    loaders = {each[0] for each in told if each[2]}
    check(len(loaders) == 1, f"processes {loaders} fetched bytes")
    check_bytes(manifest, root)
    waiters = [each[4] for each in told if each[5]]
    check(len(waiters) == PROCESSES - 1, f"{len(waiters)} processes waited")
    return Row(f"4 herd of {PROCESSES}", "1 downloaded", sent, seconds, f"{len(waiters)}, for {max(waiters):.1f} s")


def step_flipped(stage: Stage) -> list[Row]:
    heading("5. Flipped: the first mirror serves one wrong byte; the second one is right")
    file, size = BIG[DINO]
    body = stage.bodies[DINO][file]
    wrong = body[: size // 3] + bytes([body[size // 3] ^ 0x10]) + body[size // 3 + 1 :]
    stage.origin.put(f"/flipped/{file}", wrong)
    stage.origin.put(f"/mirror/{file}", body)

    root = VOLUME / "5-flipped"
    manifest = stage.manifest(VOLUME / "5-flipped.toml", DINO, mirrors=("/flipped",))
    sent, began = stage.origin.sent(), time.monotonic()
    try:
        ensure(manifest, root=root, progress=False)
    except IntegrityError as error:
        refused = Row("5 flipped byte", "refused", stage.origin.sent() - sent, time.monotonic() - began)
        note("without another mirror, IntegrityError:")
        note_long(str(error))
        check(error.expected == sha256(body).hexdigest(), "the error expects another digest")
        check(error.actual == sha256(wrong).hexdigest(), "the error names another digest")
    else:
        raise WrongError("a flipped byte was not refused")
    (seen,) = status(manifest, root=root)
    check(not seen.path.exists(), f"{seen.path} was published")

    root = VOLUME / "5-mirrored"
    manifest = stage.manifest(VOLUME / "5-mirrored.toml", DINO, mirrors=("/flipped", "/mirror"))
    report = ensure(manifest, root=root, progress=False).report
    told = report[DINO]
    note(f"with a mirror: {told.outcome}, {mb(told.bytes_fetched)} from both, verified from")
    note_long(", ".join(told.sources))
    check(told.outcome == "downloaded", f"the outcome is {told.outcome}")
    check(told.sources == (stage.origin.url(f"/mirror/{file}"),), f"the bytes came from {told.sources}")
    check(told.bytes_fetched == 2 * size, f"{told.bytes_fetched} bytes were fetched, not twice {size}")
    check_bytes(manifest, root)
    return [refused, Row("  with a mirror", told.outcome, told.bytes_fetched, report.seconds)]


def table(rows: list[Row]) -> None:
    heading("What happened")
    print(f"   {'step':22} {'outcome':14} {'fetched':>9} {'time':>9}   waited for")
    for row in rows:
        told = f"{row.step:22} {row.outcome:14} {mb(row.fetched):>9} {duration(row.seconds):>9}"
        print(f"   {told}   {row.waited}")


def demo() -> None:
    if VOLUME.exists():
        for path in VOLUME.iterdir():
            if path.name != "real":  # gigabytes, and a root like any other: it goes on where it was
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    print("Stand-ins of the fashion-crop checkpoints, from an origin on loopback", flush=True)
    print(f"at {RATE / 1e6:.0f} MB/s a connection; roots and manifests lie in ./{VOLUME}/", flush=True)
    began = time.monotonic()
    with Origin() as origin:
        stage = serve_stand_ins(origin)
        rows = [step_cold(stage), *step_killed(stage), *step_hit(stage), step_herd(stage), *step_flipped(stage)]
    table(rows)
    print(f"\nEvery claim above was checked; {time.monotonic() - began:.0f} s in all.")


def real() -> None:
    heading("Cold: the real fashion-crop checkpoints, from the network")
    real = Manifest(Manifest.load(REAL_MANIFEST).select([DINO, SAM, BERT]))  # and none of the smaller segmenters
    weights = cold(real, VOLUME / "real")
    for name, path in weights.items():
        note(f"{name}: {path}")


def main() -> int:
    logging.getLogger("weightcache").addHandler(LogNotes())
    try:
        real() if os.environ.get("WEIGHTS") == "real" else demo()
    except WrongError as error:
        print(f"\nWrong: {error}", file=sys.stderr)
        return 1
    except WeightCacheError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        return 3 if isinstance(error, DownloadError) and os.environ.get("WEIGHTS") == "real" else 1
    except KeyboardInterrupt:
        print("\ninterrupted; `make demo` begins again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
