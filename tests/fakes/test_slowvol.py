"""The volume that benchmarks measure on (benchmarks/slowvol): its bytes, its fetches, and that it never stays mounted.

No test looks at a clock. Where readers must be caught waiting, the latency is a minute, and the volume is closed over
their heads.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import mmap
import os
import random
import select
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import slowvol
from slowvol import SlowVolume
from support import blob, forbidden, lacking, sha256, until

BLOCK = 1 << 20
BLOCKS = 6
DATA = blob((BLOCKS - 1) * BLOCK + 12_345)  # the last block is a short one
SHA256 = sha256(DATA)  # compared instead of DATA, since pytest takes minutes to show how megabytes differ
MINUTE = 60.0  # seconds; not more, since a killed process that reads ends when its read does
FAST = {"block": BLOCK, "latency": 0.0, "stream": math.inf, "total": math.inf}


@pytest.fixture(scope="module", autouse=True)
def mountable() -> None:
    if reason := slowvol.available():
        (lacking if "not installed" in reason else forbidden)(f"no slow volume here: {reason}")


@pytest.fixture(scope="module")
def backing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backing")
    (folder / "models" / "deep").mkdir(parents=True)
    (folder / "models" / "weights.pt").write_bytes(DATA)
    (folder / "models" / "empty").touch()
    (folder / "models" / "weights.pt").chmod(0o640)
    (folder / "current.pt").symlink_to("models/weights.pt")
    os.link(folder / "models" / "weights.pt", folder / "models" / "deep" / "again.pt")
    return folder


@pytest.fixture
def volume(backing: Path) -> Iterator[SlowVolume]:
    with SlowVolume(backing, **FAST) as mounted:
        yield mounted


@pytest.fixture
def weights(volume: SlowVolume) -> Path:
    return volume.path / "models" / "weights.pt"


def mounted(path: Path) -> bool:
    return f" {path} " in Path("/proc/self/mountinfo").read_text()


def digest(path: Path) -> str:
    return sha256(path.read_bytes())


def pread(path: Path, size: int, at: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, size, at)
    finally:
        os.close(fd)


def ended(pid: int) -> int:
    """Return a descriptor that becomes readable when this process is gone."""
    return os.pidfd_open(pid)


def wait_for_end(descriptor: int) -> None:
    assert select.select([descriptor], [], [], 60)[0], "it still runs after a minute"
    os.close(descriptor)


# --- bytes ---


def test_a_whole_read(weights: Path) -> None:
    assert digest(weights) == SHA256


def test_reads_at_random_offsets(weights: Path) -> None:
    chance = random.Random(1)
    with open(weights, "rb") as stream:
        for _ in range(300):
            at, size = chance.randrange(len(DATA) + 1000), chance.choice([1, 100, 5000, 300_000, 3 * BLOCK])
            assert sha256(os.pread(stream.fileno(), size, at)) == sha256(DATA[at : at + size])


def test_reads_of_a_mapping(weights: Path) -> None:
    with open(weights, "rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        for at in random.Random(2).sample(range(len(DATA)), 300):
            assert mapping[at] == DATA[at]
        assert sha256(mapping[:]) == SHA256


def test_reads_past_the_page_cache(weights: Path) -> None:
    fd = os.open(weights, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 2 * BLOCK) as room:  # aligned to a page
        try:
            for at in range(0, len(DATA), 2 * BLOCK):
                size = os.preadv(fd, [room], at)
                assert sha256(room[:size]) == sha256(DATA[at : at + 2 * BLOCK])
        finally:
            os.close(fd)


def test_many_readers_at_once(volume: SlowVolume, weights: Path) -> None:
    wrong: list[int] = []

    def read(number: int) -> None:
        offsets = random.Random(number).sample(range(0, len(DATA), 50_000), 40)
        wrong.extend(at for at in offsets if pread(weights, 50_000, at) != DATA[at : at + 50_000])

    threads = [threading.Thread(target=read, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert volume.stats()["blocks_fetched"] == BLOCKS
    assert volume.stats()["max_streams"] <= 2  # of one read over a boundary: nothing takes any time here


def test_the_tree_is_that_of_the_backing_directory(volume: SlowVolume, backing: Path) -> None:
    there = {path.relative_to(backing) for path in backing.rglob("*")}
    assert {path.relative_to(volume.path) for path in volume.path.rglob("*")} == there
    for path in there:
        seen, real = (volume.path / path).lstat(), (backing / path).lstat()
        for field in ("st_mode", "st_size", "st_ino", "st_nlink", "st_uid", "st_gid", "st_mtime_ns"):
            assert getattr(seen, field) == getattr(real, field), (path, field)
    assert (volume.path / "current.pt").readlink() == Path("models/weights.pt")
    assert digest(volume.path / "current.pt") == SHA256
    assert (volume.path / "models" / "empty").read_bytes() == b""
    assert os.statvfs(volume.path).f_blocks == os.statvfs(backing).f_blocks
    with pytest.raises(FileNotFoundError):
        (volume.path / "models" / "missing").stat()
    with pytest.raises(FileNotFoundError):
        (volume.path / "models" / "missing").open()


CHANGES: dict[str, Callable[[Path], Any]] = {
    "write": lambda root: os.open(root / "current.pt", os.O_WRONLY),
    "read and write": lambda root: os.open(root / "current.pt", os.O_RDWR),
    "write the counters": lambda root: os.open(root / ".slowvol" / "stats", os.O_WRONLY),
    "create": lambda root: os.open(root / "new", os.O_WRONLY | os.O_CREAT),
    "truncate": lambda root: os.truncate(root / "current.pt", 0),
    "unlink": lambda root: os.unlink(root / "current.pt"),
    "rename": lambda root: os.rename(root / "models", root / "renamed"),
    "mkdir": lambda root: os.mkdir(root / "new"),
    "rmdir": lambda root: os.rmdir(root / "models" / "deep"),
    "symlink": lambda root: os.symlink("models", root / "new"),
    "link": lambda root: os.link(root / "models" / "weights.pt", root / "new"),
    "chmod": lambda root: os.chmod(root / "models", 0o700),
    "utime": lambda root: os.utime(root / "models"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nothing_can_be_changed(volume: SlowVolume, change: Callable[[Path], Any]) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011  # its number is what matters
        change(volume.path)
    assert caught.value.errno == errno.EROFS


# --- fetches ---


def test_one_byte_fetches_its_block_and_no_other(volume: SlowVolume, weights: Path) -> None:
    assert pread(weights, 1, 2 * BLOCK) == DATA[2 * BLOCK : 2 * BLOCK + 1]
    told = volume.stats()
    assert (told["blocks_fetched"], told["bytes_fetched"]) == (1, BLOCK)
    assert pread(weights, 1, len(DATA) - 1) == DATA[-1:]
    told = volume.stats()
    assert (told["blocks_fetched"], told["bytes_fetched"]) == (2, BLOCK + len(DATA) % BLOCK)
    assert pread(weights, 1, 2 * BLOCK + BLOCK // 2) == DATA[2 * BLOCK + BLOCK // 2 :][:1]
    assert volume.stats()["blocks_fetched"] == 2


def test_one_byte_of_a_mapping_fetches_its_block_and_no_other(volume: SlowVolume, weights: Path) -> None:
    with open(weights, "rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        assert volume.stats()["blocks_fetched"] == 0
        assert mapping[3 * BLOCK + BLOCK // 2] == DATA[3 * BLOCK + BLOCK // 2]
        assert volume.stats()["blocks_fetched"] == 1


def test_metadata_fetches_nothing(volume: SlowVolume, weights: Path) -> None:
    list(volume.path.rglob("*"))
    with open(weights, "rb") as stream:
        assert os.fstat(stream.fileno()).st_size == len(DATA)
    told = volume.stats()
    assert (told["blocks_fetched"], told["reads"], told["opens"]) == (0, 0, 1)


class Stuck:
    """Readers, each at one offset, of a volume whose blocks take a minute."""

    def __init__(self, backing: Path, offsets: list[int]) -> None:
        self.volume = SlowVolume(backing, **{**FAST, "latency": MINUTE})
        self.failures: list[int | None] = []
        self.threads = [threading.Thread(target=self.read, args=(at,), daemon=True) for at in offsets]

    def read(self, at: int) -> None:
        try:
            pread(self.volume.path / "models" / "weights.pt", 1, at)
        except OSError as error:
            self.failures.append(error.errno)

    def __enter__(self) -> dict[str, float]:
        self.volume.__enter__()
        for thread in self.threads:
            thread.start()
        try:
            until(lambda: self.volume.stats()["reads"] == len(self.threads))
            return self.volume.stats()
        except BaseException:
            self.volume.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.volume.close()
        for thread in self.threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self.threads)
        assert set(self.failures) <= {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}
        assert len(self.failures) == len(self.threads)


def test_two_readers_of_one_block_wait_for_one_fetch(backing: Path) -> None:
    with Stuck(backing, [0, BLOCK // 2]) as told:
        assert (told["waits"], told["blocks_fetched"], told["max_streams"]) == (2, 1, 1)


def test_readers_of_several_blocks_wait_for_as_many_streams(backing: Path) -> None:
    with Stuck(backing, [number * BLOCK for number in range(BLOCKS)]) as told:
        assert (told["waits"], told["blocks_fetched"], told["max_streams"]) == (BLOCKS, BLOCKS, BLOCKS)


def test_forty_reads_wait_at_once_and_a_directory_is_listed_meanwhile(backing: Path) -> None:
    stuck = Stuck(backing, [number * (128 << 10) for number in range(40)])
    with stuck as told:
        assert told["waits"] == 40
        assert sorted(os.listdir(stuck.volume.path)) == ["current.pt", "models"]
        assert (stuck.volume.path / "models" / "empty").read_bytes() == b""


@pytest.mark.parametrize(
    ("parameters", "seconds"),
    [
        ({"latency": 0.025}, 0.025),
        ({"stream": 50e6}, BLOCK / 50e6),
        ({"latency": 0.01, "stream": 50e6}, 0.01 + BLOCK / 50e6),
        ({"total": 50e6}, BLOCK / 50e6),
        ({"latency": 0.01, "stream": 200e6, "total": 50e6}, 0.01 + BLOCK / 50e6),
    ],
    ids=str,
)
def test_a_block_takes_the_latency_and_its_bytes_at_the_slower_rate(
    parameters: dict[str, float], seconds: float, backing: Path
) -> None:
    with SlowVolume(backing, **{**FAST, **parameters}) as volume:
        assert pread(volume.path / "current.pt", 1, 0) == DATA[:1]
        assert volume.stats()["wait_seconds"] == pytest.approx(seconds, abs=2e-6)


def test_two_blocks_at_once_share_the_line_and_not_a_stream(backing: Path) -> None:
    def wait(**parameters: float) -> float:
        with SlowVolume(backing, **{**FAST, **parameters}) as volume, mmap.mmap(-1, 8192) as room:
            fd = os.open(volume.path / "current.pt", os.O_RDONLY | os.O_DIRECT)
            assert os.preadv(fd, [room], BLOCK - 4096) == 8192  # one request over the boundary of two blocks
            os.close(fd)
            told = volume.stats()
        assert (told["reads"], told["blocks_fetched"], told["max_streams"]) == (1, 2, 2)
        return told["wait_seconds"]

    assert wait(latency=0.01, stream=50e6) == pytest.approx(0.01 + BLOCK / 50e6, abs=2e-6)
    assert wait(latency=0.01, total=50e6) == pytest.approx(0.01 + 2 * BLOCK / 50e6, abs=2e-6)


def test_what_was_fetched_stays_until_it_is_evicted(volume: SlowVolume, weights: Path) -> None:
    assert digest(weights) == SHA256
    volume.reset()
    assert digest(weights) == SHA256
    told = volume.stats()
    assert (told["blocks_fetched"], told["reads"], told["opens"]) == (0, 0, 1)
    volume.evict()
    assert digest(weights) == SHA256
    told = volume.stats()
    assert (told["blocks_fetched"], told["bytes_fetched"]) == (BLOCKS, len(DATA))
    assert told["bytes_read"] == len(DATA)


def test_eviction_reaches_files_that_are_open_and_mapped(volume: SlowVolume, weights: Path) -> None:
    with open(weights, "rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        assert sha256(mapping[:]) == SHA256
        volume.evict()
        volume.reset()
        assert sha256(mapping[:BLOCK]) == sha256(DATA[:BLOCK])
        assert volume.stats()["blocks_fetched"] >= 1
        assert sha256(os.pread(stream.fileno(), len(DATA), 0)) == SHA256
        assert volume.stats()["blocks_fetched"] == BLOCKS


def test_eviction_reaches_every_path_of_a_file(volume: SlowVolume, weights: Path) -> None:
    paths = [weights, volume.path / "models" / "deep" / "again.pt"]
    for path in paths:
        assert digest(path) == SHA256
    volume.evict()
    volume.reset()
    for path in paths:
        assert digest(path) == SHA256
    assert volume.stats()["bytes_read"] == 2 * len(DATA)


@pytest.mark.parametrize(
    ("cache", "read", "fetched"), [("pages", 0, 0), ("blocks", len(DATA), 0), ("nothing", len(DATA), BLOCKS)]
)
def test_what_is_kept_when_a_file_is_opened_again(cache: str, read: int, fetched: int, backing: Path) -> None:
    with SlowVolume(backing, **FAST, cache=cache) as volume:
        path = volume.path / "models" / "weights.pt"
        assert digest(path) == SHA256
        assert volume.stats()["blocks_fetched"] == BLOCKS
        volume.reset()
        assert digest(path) == SHA256
        told = volume.stats()
        assert (told["bytes_read"], told["blocks_fetched"]) == (read, fetched)


def test_the_counters_are_a_file_of_the_volume(volume: SlowVolume, weights: Path) -> None:
    assert digest(weights) == SHA256
    path = volume.path / ".slowvol" / "stats"
    told = json.loads(subprocess.run(["cat", path], check=True, capture_output=True).stdout)
    names = "blocks_fetched bytes_fetched reads bytes_read waits wait_seconds max_streams opens cpu_seconds"
    assert list(told) == names.split()
    assert (told["opens"], told["bytes_read"]) == (1, len(DATA))
    assert told["cpu_seconds"] > 0
    assert stat.S_ISREG(path.stat().st_mode)
    assert ".slowvol" not in os.listdir(volume.path)
    volume.reset()
    told = volume.stats()
    assert told.pop("cpu_seconds") < 60
    assert set(told.values()) == {0}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sets the read-ahead")
def test_the_kernel_reads_ahead_as_far_as_it_was_told(backing: Path) -> None:
    with SlowVolume(backing, **FAST, readahead=1 << 20) as volume:
        device = volume.path.stat().st_dev
        limit = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        assert int(limit.read_text()) == 1024


# --- it never stays ---


def test_it_is_gone_after_the_block_even_where_a_file_is_open(backing: Path) -> None:
    with SlowVolume(backing, **FAST) as volume:
        fd = os.open(volume.path / "current.pt", os.O_RDONLY)
        assert mounted(volume.path)
    assert not mounted(volume.path)
    assert not volume.path.exists()
    with pytest.raises(OSError, match="not connected"):
        os.close(fd)
    assert volume._daemon.returncode == 0  # it ended by itself, and was not killed
    volume.close()  # a second time does nothing


def test_it_is_gone_after_an_exception(backing: Path) -> None:
    with pytest.raises(ZeroDivisionError), SlowVolume(backing, **FAST) as volume:
        raise ZeroDivisionError
    assert not mounted(volume.path)


def test_it_outlives_the_thread_that_mounted_it(backing: Path) -> None:
    volume = SlowVolume(backing, **FAST)
    thread = threading.Thread(target=volume.__enter__)
    thread.start()
    thread.join()
    try:
        assert digest(volume.path / "current.pt") == SHA256
        volume.evict()
        assert digest(volume.path / "current.pt") == SHA256
    finally:
        volume.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_no_signal_to_its_process_leaves_a_mount(number: signal.Signals, backing: Path) -> None:
    with SlowVolume(backing, **FAST) as volume:
        end = ended(volume._daemon.pid)
        os.kill(volume._daemon.pid, number)
        wait_for_end(end)
        assert mounted(volume.path) == (number == signal.SIGKILL)
    assert not mounted(volume.path)


def test_an_order_to_a_process_that_was_killed_says_so(backing: Path) -> None:
    with SlowVolume(backing, **FAST) as volume:
        end = ended(volume._daemon.pid)
        volume._daemon.kill()
        wait_for_end(end)
        with pytest.raises(RuntimeError, match="ended with -9"):
            volume.evict()


def test_unmounting_it_by_hand_ends_its_process(backing: Path) -> None:
    with SlowVolume(backing, **FAST) as volume:
        end = ended(volume._daemon.pid)
        command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        subprocess.run([*command, volume.path], check=True)
        wait_for_end(end)
    assert not volume.path.exists()


PARENT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from slowvol import SlowVolume
volume = SlowVolume(sys.argv[2])
volume.__enter__()
"""


@contextlib.contextmanager
def parent(backing: Path, code: str) -> Iterator[tuple[subprocess.Popen[str], Path, int]]:
    """Start a process that mounts a volume and then does ``code``; yield it, the mount, and the end of its daemon."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT + textwrap.dedent(code), Path(slowvol.__file__).parents[1], backing],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        path, daemon = process.stdout.readline().split()
        yield process, Path(path), ended(int(daemon))
    finally:
        process.kill()
        process.communicate()


def test_it_is_gone_when_its_parent_was_killed(backing: Path) -> None:
    code = "print(volume.path, volume._daemon.pid, flush=True); signal.pause()"
    with parent(backing, code) as (process, path, end):
        fd = os.open(path / "current.pt", os.O_RDONLY)
        assert os.pread(fd, 1, 0) == DATA[:1]
        process.kill()
        wait_for_end(end)
        assert not mounted(path)
        with pytest.raises(OSError, match="not connected"):
            os.close(fd)


def test_it_is_gone_when_its_parent_was_killed_and_a_child_of_that_lives_on(backing: Path) -> None:
    # The child holds the daemon's standard input open, so its end is not what tells of the parent's.
    code = """
    told = f"{volume.path} {volume._daemon.pid}"
    if os.fork() == 0:
        print(told, flush=True)
        sys.stdin.read()
        os._exit(0)
    signal.pause()
    """
    with parent(backing, code) as (process, path, end):
        process.kill()
        wait_for_end(end)
        assert not mounted(path)


def test_it_is_gone_when_its_process_ends_without_closing_it(backing: Path) -> None:
    code = "print(volume.path, volume._daemon.pid, flush=True); sys.stdin.read()"
    with parent(backing, code) as (process, path, end):
        process.communicate(timeout=60)
        assert process.returncode == 0
        wait_for_end(end)
        assert not mounted(path)
        assert not path.exists()


# --- where it cannot run ---


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slowvol, "BINARIES", tmp_path / "binaries")
    monkeypatch.setenv("PKG_CONFIG_LIBDIR", str(tmp_path))
    with pytest.raises(slowvol.UnavailableError, match="libfuse3-dev is not installed"):
        slowvol.build()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(slowvol.UnavailableError, match="cc is not installed"):
        slowvol.build()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up what mounting needs")
def test_where_mounting_is_not_permitted_it_says_so(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import slowvol; print(slowvol.available())"
    told = subprocess.run(
        ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-c", code, Path(slowvol.__file__).parents[1]],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert "not permitted" in told.stdout
    assert list(tmp_path.glob("slowvol-*")) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"block": 0},
        {"latency": -1.0},
        {"stream": 0.0},
        {"total": -1.0},
        {"total": math.nan},
        {"cache": "all"},
        {"readahead": 1000},
    ],
    ids=str,
)
def test_an_argument_out_of_its_range_is_refused(wrong: dict[str, Any], backing: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SlowVolume(backing, **wrong)
