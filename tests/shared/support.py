"""What several tests need: bytes, manifests, child processes, and the policy for what a machine lacks."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import weightcache
from weightcache._runtime import tuning_constants

if TYPE_CHECKING:
    from collections.abc import Callable

MB = 1_000_000


def blob(size: int, seed: int = 0) -> bytes:
    """Bytes that no compression shortens, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def one(data: bytes, *urls: str, name: str = "sam2", size: bool = True, **more: Any) -> dict[str, Any]:
    """A manifest of one single-file checkpoint."""
    entry: dict[str, Any] = {"urls": list(urls), "sha256": sha256(data), "file": "weights.pt", **more}
    if size:
        entry["size"] = len(data)
    return {"version": 1, "checkpoints": {name: entry}}


def directory(files: dict[str, bytes], *urls: str, name: str = "bert") -> dict[str, Any]:
    """A manifest of one directory checkpoint."""
    pins = {path: {"sha256": sha256(data), "size": len(data)} for path, data in files.items()}
    return {"version": 1, "checkpoints": {name: {"urls": list(urls), "files": pins}}}


def toml_of(manifest: dict[str, Any], path: Path) -> Path:
    lines = ["version = 1"]
    for name, table in manifest["checkpoints"].items():
        lines.append(f"[checkpoints.{name}]\nurls = {json.dumps(table['urls'])}")
        if "files" in table:
            lines.append(f"[checkpoints.{name}.files]")
            lines += [
                f'"{file}" = {{ sha256 = "{pin["sha256"]}", size = {pin["size"]} }}'
                for file, pin in table["files"].items()
            ]
        else:
            lines.append(f'sha256 = "{table["sha256"]}"\nsize = {table["size"]}\nfile = "{table["file"]}"')
    path.write_text("\n".join(lines))
    return path


def change_settings(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Change some `Settings` for one test."""
    monkeypatch.setattr("weightcache._runtime.tuning_constants.DEFAULT", replace(tuning_constants.DEFAULT, **changes))


def quiet(manifest: Any, root: Path, **options: Any) -> weightcache.Weights:
    """Call `ensure` and print nothing."""
    return weightcache.ensure(manifest, root=root, progress=False, **options)


def visible(root: Path) -> list[str]:
    """Every file of the root outside `.weightcache/`."""
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and path.relative_to(root).parts[0] != ".weightcache"
    )


def partials(root: Path) -> list[Path]:
    folder = root / ".weightcache" / "partial"
    return sorted(folder.iterdir()) if folder.is_dir() else []


PRELUDE = """
import json, logging, os, sys
from dataclasses import replace
from weightcache._runtime import tuning_constants as settings
from weightcache import ensure
settings.DEFAULT = replace(settings.DEFAULT, backoff=0.01, refusal_timeout=0.0, volume_backoff=(0.01, 0.01))
"""


def child(code: str, *argv: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start a Python process with short waits; its code finds its arguments in ``sys.argv[1:]``."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *argv],
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# Each name is a call after which the process is killed: the step is done, and nothing after it. A process for each
# step, forked from one that has imported what it needs: a new interpreter would cost more than the work.
STEPS = """
import importlib, pkgutil, shutil, weightcache
for each in pkgutil.walk_packages(weightcache.__path__, "weightcache."):
    if each.name.split(".")[1] not in ("__main__", "cli", "modal", "torch"):
        importlib.import_module(each.name)
count, steps, root = 1, 0, ""
def stepping(module, name):
    real = getattr(module, name)
    def step(*arguments, **options):
        global steps
        result = real(*arguments, **options)
        ours = any(str(a).startswith(root) for a in arguments if isinstance(a, str))
        if ours or name in ("pwrite", "write", "fsync", "ftruncate"):
            steps += 1
            if steps == count:
                os.kill(os.getpid(), 9)
        return result
    setattr(module, name, step)
class Volume:
    def commit(self): os.stat(root); os.fsync(os.open("/", os.O_RDONLY))
    reload = commit
def kill_after_every_step(work, stride):
    global count, root
    for name in ("makedirs", "open", "pwrite", "write", "fsync", "ftruncate", "replace", "rename", "unlink", "link"):
        stepping(os, name)
    while True:
        root = f"{sys.argv[2]}/r{count}"
        process = os.fork()
        if not process:
            return work()
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if code != -9:
            print(count)
            sys.exit(code)
        count += stride
"""


def kill_after_every_step(work: str, argument: str, folder: Path, stride: int = 1) -> list[tuple[int, Path]]:
    """Return each step after which a process was killed that did ``work``, and the root that it left.

    ``work`` is an expression with ``sys.argv[1]`` (the argument), ``root`` and ``Volume()``.
    """
    code = f"{STEPS}\nkill_after_every_step(lambda: {work}, {stride})"
    whole = int(finish(child(code, argument, str(folder))))  # the first that ended before its step
    return [(step, folder / f"r{step}") for step in range(1, whole, stride)]


def site_hooks() -> set[str]:
    """What an interpreter of this environment loads before any code of ours (.pth files)."""
    code = "import json, sys; print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def until(true: Callable[[], bool]) -> None:
    """Look until it is true, and leave the processor to others in between."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it is not so after 30 s"
        time.sleep(0.002)


def start_together(processes: list[subprocess.Popen[str]]) -> None:
    """Wait until each child says ``ready``, and only then let any of them go on: they wait for a line."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a child that must succeed, and return what it printed."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def in_gvisor() -> bool:
    """Whether the kernel is that of gVisor, the sandbox that Modal uses: each of its builds names this version."""
    return os.uname().version == "#1 SMP Sun Jan 10 15:06:54 PST 2016"


def skip_in_gvisor(why: str) -> None:
    """Skip a test in gVisor whose own means gVisor does not have; what the library needs is no reason."""
    if in_gvisor():
        forbidden(f"in gVisor: {why}")


def lacking(what: str) -> Any:
    """Skip a user's test for what the machine does not have and could install; in CI that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}: must be there in CI")
    return forbidden(what)


def forbidden(what: str) -> Any:
    """Skip a test for what this kernel does not permit, which no installation changes."""
    pytest.skip(what)
    raise AssertionError
