"""A call that must import the engine and has no free descriptor raises the library's own error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import asyncio, errno, os, resource, sys
import weightcache
root, data = sys.argv[1:]
manifest = weightcache.Manifest.load(
    {"checkpoints": {"sam2": {"urls": [f"file://{data}"], "sha256": "0" * 64}}}
)
calls = {
    "ensure": lambda: weightcache.ensure(manifest, root=root, progress=False),
    "status": lambda: weightcache.status(manifest, root=root),
    "verify": lambda: weightcache.verify(manifest, root=root),
    "prune": lambda: weightcache.prune(manifest, root=root),
    "publish": lambda: weightcache.publish(data, name="made", root=root),
}
loop = asyncio.new_event_loop()  # made before the limit: it needs descriptors of its own
calls["aensure"] = lambda: loop.run_until_complete(weightcache.aensure(manifest, root=root, progress=False))
calls["recheck"] = calls["status"]  # imports the locks, to inspect again under one
lowest = os.dup(0)
os.close(lowest)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
for name, call in calls.items():
    if name == "recheck":
        import weightcache._engine.status
    assert "weightcache._coordination.lock" not in sys.modules
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        call()
    except weightcache.StorageError as error:
        print(name, error.errno == errno.EMFILE, "ulimit -n" in error.hint)
    except BaseException as error:
        print(name, "raised", repr(error))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
"""


def test_a_first_miss_without_a_free_descriptor(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"data")
    (tmp_path / "root").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "root"), str(tmp_path / "data")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [
        f"{name} True True" for name in ("ensure", "status", "verify", "prune", "publish", "aensure", "recheck")
    ], done.stdout + done.stderr
