"""Load by one process that goes on and on, as a server does: what it holds must not become more."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from load import CHECK, PATIENCE, leftovers, small_checkpoints
from support import blob, child

if TYPE_CHECKING:
    from pathlib import Path

    from origin import Origin

OBJECTS = 1000  # blocks of memory that Python itself may have more then: about 120 are usual
WARM_UP = 20  # steps of one process until its memory is measured
GROWTH = 4 << 20  # bytes of memory that it may take more after any number of steps

STEADY = f"""
{CHECK}
import gc, threading
from weightcache import publish, prune
path, root, made, count, warm_up, leak = sys.argv[1:]
manifests = json.load(open(path))
held, problems = [], set()
def measured():
    gc.collect()
    with open("/proc/self/status") as stream:
        memory = next(int(line.split()[1]) * 1024 for line in stream if line.startswith("VmRSS:"))
    descriptors = len(os.listdir("/proc/self/fd"))
    objects, threads = sys.getallocatedblocks(), threading.active_count()
    return dict(memory=memory, objects=objects, descriptors=descriptors, threads=threads)
def step(number):
    manifest = manifests[number % len(manifests)]
    ensure(manifest, root=root, progress=False)
    weights = ensure(manifest, root=root, progress=False, rehash=number % 3 == 0)
    problems.update(wrong(weights, manifest))
    publish(made, name="trained", root=root)
    prune(manifest, root=root, older_than=0, dry_run=False)
    exec(leak)
for number in range(int(count)):
    if number == int(warm_up):
        before = measured()
    step(number)
print(json.dumps([sorted(problems), before, measured()]))
"""


def one_process(folder: Path, origin: Origin, steps: int, seed: int = 0, leak: str = "") -> tuple[list[str], int]:
    """Let one process download, hit, rehash, publish and prune; return what is wrong, and how much memory it took more.

    After `WARM_UP` steps, its memory may grow by `GROWTH` and `OBJECTS`, and its descriptors and threads not at all. A
    test gives a ``leak``: a statement that each step ends with.
    """
    path, made = folder / "manifests.json", folder / "made.bin"
    manifests = [small_checkpoints(origin, 4, seed * 2 + each + 500) for each in range(2)]
    path.write_text(json.dumps(manifests))
    made.write_bytes(blob(300_000, seed))
    words = (str(path), str(folder / "root"), str(made), str(WARM_UP + steps), str(WARM_UP), leak)
    process = child(STEADY, *words, env={"MALLOC_ARENA_MAX": "1"})  # an arena for each thread is no growth
    out, err = process.communicate(timeout=PATIENCE)
    if process.returncode:
        return [f"it failed: {err[-500:]}"], 0
    found, before, after = json.loads(out)
    problems = [f"it got wrong bytes of {each}" for each in found]
    for what, allowed in (("memory", GROWTH), ("objects", OBJECTS), ("descriptors", 0), ("threads", 0)):
        if after[what] > before[what] + allowed:
            problems.append(f"{what} grew from {before[what]} to {after[what]} in {steps} steps")
    return problems + leftovers(folder / "root", manifests[(WARM_UP + steps - 1) % 2]), after["memory"] - before[
        "memory"
    ]
