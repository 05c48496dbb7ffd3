"""The suite itself: a test that interrupts a process works wherever the suite was started from."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import child, finish


def test_a_child_of_a_test_can_be_interrupted() -> None:
    said = finish(child("import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"))
    assert said == "True\n"


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "xdist"])
def test_the_suite_takes_no_ignored_interrupt_over(tmp_path: Path, workers: list[str]) -> None:
    """As a shell starts what it puts into the background."""
    repository = Path(__file__).parents[2]
    code = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    )
    here = f"{Path(__file__)}::{test_a_child_of_a_test_can_be_interrupted.__name__}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *workers, here]
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=repository, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout


def test_the_library_leaves_an_ignored_interrupt_ignored(tmp_path: Path) -> None:
    """A program that its starter protects from Ctrl-C stays protected: nothing in here sets a handler."""
    code = """
    import hashlib, signal
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source = sys.argv[2]
    with open(source, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    entry = {"urls": ["file://" + source], "sha256": digest}
    ensure({"version": 1, "checkpoints": {"a": entry}}, root=sys.argv[1], progress=False)
    os.kill(os.getpid(), signal.SIGINT)
    print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
    """
    source = tmp_path / "weights.pt"
    source.write_bytes(b"x" * 1000)
    assert finish(child(code, str(tmp_path / "root"), str(source))) == "True\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
