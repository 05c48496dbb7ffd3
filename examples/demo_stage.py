"""What the steps of demo.py share: the origin with stand-ins, manifests, worker processes and output."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from weightcache import ensure, verify

if TYPE_CHECKING:
    from collections.abc import Iterator

    from origin import Origin


VOLUME = Path("demo-volume")


RATE = 40e6  # bytes a second; slow enough for the bars to be seen


DINO, SAM, BERT = "groundingdino", "sam2-large", "bert-base-uncased"


BIG = {DINO: ("groundingdino_swint_ogc.pth", 65_000_000), SAM: ("sam2_hiera_large.pt", 85_000_000)}


SMALL = {"config.json": 570, "tokenizer.json": 466_062, "tokenizer_config.json": 48, "vocab.txt": 231_508}


class WrongError(Exception):
    """A step did not do what it says."""


def check(condition: object, otherwise: str) -> None:
    if not condition:
        raise WrongError(otherwise)


@dataclass
class Row:
    """One line of the table at the end."""

    step: str
    outcome: str
    fetched: int
    seconds: float
    waited: str = "nobody"


@dataclass
class Stage:
    """The origin and the stand-ins it serves, by checkpoint and file."""

    origin: Origin
    bodies: dict[str, dict[str, bytes]]

    def size(self, *names: str) -> int:
        return sum(len(body) for name in names or self.bodies for body in self.bodies[name].values())

    def manifest(self, path: Path, *names: str, mirrors: tuple[str, ...] = ("",)) -> Path:
        """Write a real manifest of these checkpoints (all, if none is named) and return its path."""
        lines = ["# Written by examples/demo.py; the port is that of one run.", "version = 1"]
        for name in names or self.bodies:
            files = self.bodies[name]
            paths = [f"{mirror}/{name}" if name == BERT else f"{mirror}/{next(iter(files))}" for mirror in mirrors]
            lines += ["", f"[checkpoints.{name}]"]
            lines += [f"urls = [{', '.join(json.dumps(self.origin.url(each)) for each in paths)}]"]
            if name == BERT:
                lines += [f"[checkpoints.{name}.files]"]
                lines += [
                    f'"{file}" = {{ sha256 = "{sha256(body).hexdigest()}", size = {len(body)} }}'
                    for file, body in files.items()
                ]
            else:
                (body,) = files.values()
                lines += [f'sha256 = "{sha256(body).hexdigest()}"', f"size = {len(body)}"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


def serve_stand_ins(origin: Origin) -> Stage:
    chance = random.Random(0)
    bodies = {name: {file: chance.randbytes(size)} for name, (file, size) in BIG.items()}
    bodies[BERT] = {file: chance.randbytes(size) for file, size in SMALL.items()}
    for name, files in bodies.items():
        for file, body in files.items():
            origin.put(f"/{name}/{file}" if name == BERT else f"/{file}", body, rate=RATE)
    return Stage(origin, bodies)


@contextmanager
def worker(manifest: Path, root: Path, *, shown: bool) -> Iterator[subprocess.Popen[str]]:
    """Another process that is about to call `ensure`; it begins when it is sent a line. Killed on the way out."""
    child = subprocess.Popen(
        [sys.executable, __file__, manifest, root, "shown" if shown else "silent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if shown else subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the demo, which ends its children itself
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def work(manifest: str, root: str, mode: str) -> None:
    """Call `ensure` as such a process, and print its report."""
    print("here", flush=True)
    sys.stdin.readline()
    weights = ensure(manifest, root=root, progress=None if mode == "shown" else False)
    report = weights.report
    outcomes = {name: each.outcome for name, each in report.items()}
    print(json.dumps([os.getpid(), outcomes, report.bytes_fetched, report.seconds, report.waited, report.waited_for]))


def start(child: subprocess.Popen[str]) -> None:
    assert child.stdin
    child.stdin.write("go\n")
    child.stdin.flush()


def answer(child: subprocess.Popen[str]) -> list:
    out, errors = child.communicate(timeout=120)
    check(child.returncode == 0, f"process {child.pid} exited with {child.returncode}\n{errors or ''}")
    return json.loads(out.splitlines()[-1])


def check_bytes(manifest: Path, root: Path) -> None:
    """Hash all that was published: what a step returned is what the manifest declares."""
    for each in verify(manifest, root=root):
        check(each.state == "ready", f"{each.name} is {each.state}: {each.detail}")


def mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def heading(text: str) -> None:
    print(f"\n{text}", flush=True)


def note(text: str) -> None:
    print(f"   {text}", flush=True)


def note_long(text: str) -> None:
    """Show text of any length, broken between words: URLs and digests stay whole."""
    for line in text.splitlines():
        inner = "     " + " " * (len(line) - len(line.lstrip()))
        print(
            textwrap.fill(
                line.strip(),
                78,
                initial_indent=inner,
                subsequent_indent=inner,
                break_long_words=False,
                break_on_hyphens=False,
            ),
            flush=True,
        )


class LogNotes(logging.Handler):
    """Shows what the library logs (warnings) among the notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note("logged:")
        note_long(record.getMessage())


def duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1e3 * seconds:.0f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.0f} µs"


if __name__ == "__main__":
    work(*sys.argv[1:4])
