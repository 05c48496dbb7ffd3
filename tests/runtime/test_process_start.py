"""When a process began, as the kernel says it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from weightcache._runtime import process_start as module
from weightcache._runtime.process_start import process_age, process_start

CODE = """
import time
from weightcache._runtime.process_start import process_age
began = time.monotonic()
first = process_age()
time.sleep(0.05)
print(first, process_age() - first, time.monotonic() - began)
"""


def test_the_age_of_a_new_process() -> None:
    answer = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    first, more, passed = map(float, answer.stdout.split())
    assert 0 < first < 60
    assert 0.05 <= more <= passed


@pytest.mark.parametrize("said", [None, 0])
def test_a_kernel_that_does_not_say(monkeypatch: pytest.MonkeyPatch, said: int | None) -> None:
    monkeypatch.setattr(module, "process_start", lambda pid: said)
    assert process_age() is None


def test_the_start_of_a_process() -> None:
    assert process_start(os.getpid())
    assert process_start(2**22 + 1) is None
