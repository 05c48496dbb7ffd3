"""A command line in a terminal of a given width, and what that terminal shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from typing import Any, NamedTuple

ESCAPE = re.compile(r"\x1b\[([0-9;?]*)([a-zA-Z])")


class Shown(NamedTuple):
    """What a command printed: its exit code, and the text, with the escape sequences still in it."""

    code: int
    text: str

    @property
    def lines(self) -> list[str]:
        """The lines that stay, without what a carriage return overwrote, and without bars."""
        plain = ESCAPE.sub("", self.text).replace("\r\n", "\n").replace("\r\r", "\r")
        lines = [each.rpartition("\r")[2] for each in plain.split("\n")]
        return [line for line in lines if line.strip() and "%|" not in line and "B/s]" not in line]

    @property
    def escapes(self) -> set[str]:
        """The last letters of the escape sequences: ``m`` sets a colour."""
        return {letter for _, letter in ESCAPE.findall(self.text)}


def in_terminal(*words: Any, columns: int = 80, **env: str) -> Shown:
    """Run ``weightcache`` in a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    command = [sys.executable, "-m", "weightcache", *map(str, words)]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**variables, "TERM": "xterm-256color", **env}
    )
    os.close(theirs)
    chunks = []
    try:
        while chunk := os.read(ours, 1 << 16):
            chunks.append(chunk)
    except OSError:  # the last process closed the terminal
        pass
    finally:
        os.close(ours)
    return Shown(process.wait(60), b"".join(chunks).decode())


def piped(*words: Any, **env: str) -> tuple[int, str, str]:
    """Run ``weightcache`` with pipes; return its exit code, stdout and stderr."""
    command = [sys.executable, "-m", "weightcache", *map(str, words)]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, **env}, timeout=120)
    return done.returncode, done.stdout.decode(), done.stderr.decode()
