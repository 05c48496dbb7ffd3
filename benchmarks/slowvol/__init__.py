"""A simulated network volume for benchmarks: a FUSE file system over a directory.

    with SlowVolume("/dev/shm/weights", latency=0.010, stream=150e6) as volume:
        read(volume.path / "weights.pt")
        volume.stats()["blocks_fetched"]
        volume.evict()

``README.md`` describes what it models, and what it does not.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("slowvol.c")
BINARIES = Path(__file__).parents[2] / ".cache"
COMPILER = ("cc", "-O2", "-Wall", "-Wextra", "-Werror")
CACHES = ("pages", "blocks", "nothing")
CANNOT_MOUNT = 3  # slowvol's exit status
PATIENCE = 10.0  # seconds for the daemon to end


class UnavailableError(Exception):
    """This machine cannot run it; the message says what is missing or forbidden."""


def build() -> Path:
    """Compile ``slowvol.c``, once for each version of it, and return the program.

    Raises:
        UnavailableError: The compiler, pkg-config or libfuse3's headers are not installed.
        subprocess.CalledProcessError: It does not compile.
    """
    name = hashlib.sha256(SOURCE.read_bytes() + " ".join(COMPILER).encode()).hexdigest()[:16]
    program = BINARIES / f"slowvol-{name}"
    if program.exists():
        return program
    for needed in (COMPILER[0], "pkg-config"):
        if not shutil.which(needed):
            raise UnavailableError(f"{needed} is not installed")
    library = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=False)
    if library.returncode:
        raise UnavailableError("libfuse3-dev is not installed: pkg-config does not know fuse3")
    BINARIES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BINARIES) as folder:  # renamed when it is whole: two may compile at once
        made = Path(folder, "slowvol")
        subprocess.run([*COMPILER, "-o", made, SOURCE, *library.stdout.split(), "-lm"], check=True)
        made.replace(program)
    return program


@functools.cache
def available() -> str | None:
    """Return why no slow volume can be mounted here, or None: it was tried."""
    try:
        with tempfile.TemporaryDirectory() as empty, SlowVolume(empty):
            return None
    except UnavailableError as error:
        return str(error)


class SlowVolume:
    """A directory that is read through a simulated network; mounted while the ``with`` block runs.

    Args:
        backing: The directory. It must not change meanwhile, and should lie in memory: its own disk is not modelled.
        block: Bytes that are fetched together.
        latency: Seconds from asking for a block to its first byte.
        stream: Bytes a second of one fetch; ``math.inf`` for no limit.
        total: Bytes a second of all fetches together; ``math.inf`` for no limit.
        cache: What is kept of a file when it is opened again. ``"pages"``: the blocks that were fetched, and the
            kernel's pages; ``"blocks"``: the blocks alone; ``"nothing"``: neither.
        readahead: Bytes that the kernel reads ahead of a reader, a multiple of 4096. The default is the kernel's own;
            only root can have another one.

    Raises:
        ValueError: An argument is out of its range.
    """

    path: Path
    """Where it is mounted."""

    def __init__(
        self,
        backing: str | os.PathLike[str],
        *,
        block: int = 8 << 20,
        latency: float = 0.010,
        stream: float = 150e6,
        total: float = 1.2e9,
        cache: str = "pages",
        readahead: int = 128 << 10,
    ) -> None:
        if not (block > 0 and latency >= 0 and stream > 0 and total > 0):
            raise ValueError(f"{block=}, {latency=}, {stream=}, {total=}: want more than 0, or a latency of 0")
        if cache not in CACHES:
            raise ValueError(f"{cache=}: want one of {', '.join(CACHES)}")
        if readahead < 0 or readahead % 4096:
            raise ValueError(f"{readahead=}: want a multiple of 4096")
        self._backing = Path(backing).resolve(strict=True)
        self._arguments = [str(each) for each in (block, latency, stream, total, cache)]
        self._readahead = readahead

    def __enter__(self) -> SlowVolume:
        """Mount it.

        Raises:
            UnavailableError: It cannot be compiled or mounted here.
            OSError: ``readahead`` cannot be set: this is not root, or /sys is read-only.
        """
        program = build()
        self.path = Path(tempfile.mkdtemp(prefix="slowvol-"))
        # In a session of its own, Ctrl-C does not take the files from under a reader that still handles it.
        self._daemon = subprocess.Popen(
            [program, self._backing, self.path, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(self.close)
        try:
            self._expect("ready")
            self._read_ahead()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmount it, also where files in it are open; a second time does nothing."""
        atexit.unregister(self.close)
        try:
            self._daemon.communicate(timeout=PATIENCE)  # the end of its input ends it, and it unmounts
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.communicate()
        if self._daemon.returncode < 0:  # killed: the mount is still there, without anybody behind it
            unmount = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
            subprocess.run([*unmount, self.path], stderr=subprocess.DEVNULL, check=False)
        with contextlib.suppress(FileNotFoundError):
            self.path.rmdir()

    def evict(self) -> None:
        """Forget all blocks and all pages of the kernel's cache: what is read next comes from the network.

        Call it while nobody reads.

        Raises:
            RuntimeError: Its process has ended.
        """
        self._order("e")

    def reset(self) -> None:
        """Set all counters to 0."""
        self._order("r")

    def stats(self) -> dict[str, float]:
        """Return the counters since the last reset; ``README.md`` says what each one counts.

        Every process finds them in the volume's ``.slowvol/stats``, which no listing shows.
        """
        told: dict[str, float] = json.loads((self.path / ".slowvol" / "stats").read_text(encoding="ascii"))
        return told

    def _order(self, command: str) -> None:
        assert self._daemon.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended, and what follows says how
            self._daemon.stdin.write(command)
            self._daemon.stdin.flush()
        self._expect("done")

    def _expect(self, answer: str) -> None:
        assert self._daemon.stdout
        if self._daemon.stdout.readline() == f"{answer}\n":
            return
        _, complaint = self._daemon.communicate()
        if self._daemon.returncode == CANNOT_MOUNT:
            raise UnavailableError(complaint.strip())
        raise RuntimeError(f"slowvol ended with {self._daemon.returncode}: {complaint.strip()}")

    def _read_ahead(self) -> None:
        """Set the kernel's read-ahead of this mount, if it is not what is wanted."""
        device = self.path.stat().st_dev  # after this the mount has its final value, which would replace ours
        limit = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        if int(limit.read_text(encoding="ascii")) != self._readahead >> 10:
            limit.write_text(f"{self._readahead >> 10}\n", encoding="ascii")
