"""A small part of `make campaign`, the same for the same seed, and what its parts promise."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from call_layer import Unsynced
from campaign import _shares
from campaign_table import Limit, Row, table
from crash_campaign import FATES, Left, Point, cut, cuts, sampled, torn

pytestmark = pytest.mark.crash

HERE = Path(__file__).resolve().parents[2]
FOLDERS = ("", "examples", "tests/shared", "tests/fakes", "tests/system", "tests/campaign")


def campaign(*words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """Run the campaign in an interpreter without threads, which may be forked."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(HERE / each) for each in FOLDERS)}
    script = ["-c", code] if code else [str(HERE / "tests/campaign/campaign.py")]
    return subprocess.run([sys.executable, *script, *words], env=env, capture_output=True, text=True, timeout=280)


def test_a_sample_of_the_campaign() -> None:
    done = campaign("--sample", "--seed", "0")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (\w+) \| (.*?) ?\| (\d+) \| (\d+) \|", done.stdout, re.M)
    assert {failed for *_, failed in rows} == {"0"}
    tried = {(kind, name): int(count) for kind, name, count, _ in rows}
    assert tried["crash", "link"] >= 10  # all of them
    assert sum(tried.values()) - tried["all", ""] == tried["all", ""] > 30


# A scenario that writes its file in two steps, and is right only if the file is empty, whole or not there.
TWO_STEPS = """
import io, json, os, sys, tempfile
from types import SimpleNamespace
from call_layer import CallLayer
from call_campaigns import CallCampaigns
from campaign_table import Limit
from crash_campaign import BrokenError, Point, crash, surveyed

hidden = io.open
folder = tempfile.mkdtemp()

def prepared(scenario):
    root = tempfile.mkdtemp(dir=folder) + "/root"
    os.mkdir(root)
    return root

def act(scenario, root):
    if scenario == "hidden":
        return hidden(f"{root}/file", "w").close()
    number = os.open(f"{root}/file", os.O_WRONLY | os.O_CREAT)
    os.write(number, b"abc")
    os.write(number, b"def")
    if scenario == "synced":
        os.fsync(number)
    os.rename(f"{root}/file", f"{root}/named")

def judge_crash(scenario, root, at_once):
    for name in os.listdir(root):
        if (found := open(f"{root}/{name}", "rb").read()) not in (b"", b"abcdef"):
            raise BrokenError(f"{name} has {found}")
    return False

def outcome(work):
    try:
        return work()
    except BrokenError as error:
        return str(error)

world = SimpleNamespace(prepared=prepared, act=act, judge_crash=judge_crash)
run = CallCampaigns(world, 0, ["steps"])
[row] = run.crash(Limit())
print(json.dumps({
    "failed": run.failures,
    "row": row[:4],
    "dirty": sorted(run.surveys["steps"].dirty),
    "all": CallCampaigns(world, 0, ["steps"]).torn(Limit())[0][2:],
    "first": CallCampaigns(world, 0, ["steps"], first=3).torn(Limit(most=1))[0][2:],
    "hidden": outcome(lambda: surveyed(world, "hidden")),
    "torn": outcome(lambda: crash(world, Point("steps", 4, True, ("half",)))),
    "synced": outcome(lambda: crash(world, Point("synced", 4, True, ("half",)))),
}))
"""


def test_a_file_that_is_written_in_two_steps_is_found() -> None:
    done = campaign(code=TWO_STEPS)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["failed"] == ["--repeat 'crash steps 2 after'", "--repeat 'crash steps 3 before'"]
    assert found["row"] == ["crash", "steps", 8, 2]
    assert found["dirty"] == [[2, True], [3, False], [3, True], [4, False], [4, True]]
    # Three fates of one file at three moments, and one at which nothing is unsynced; only `missing` is right.
    moments = "4 of 4 moments, 3 of them with files that are not synced (at most 1)"
    assert found["all"] == [9, 6, f"{moments}; 9 combinations of one or two, and 0 of 0 with more"]
    assert found["first"][0] == 0  # the last moment is the one without
    assert found["hidden"] == "hidden: the layer counts {}, and Python saw {'open': 1}"
    assert "named has b'a" in found["torn"]
    assert found["synced"].startswith("synced 4 after half: not tried, as its files were never there in 20 tries")


# A process that leaves three files and a view, which are not synced: how many differs from run to run.
THREE = """
import json, os, tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from call_campaigns import CallCampaigns
from campaign_table import Limit
from crash_campaign import BrokenError, Point, crash, tear_all
from weightcache._runtime.writer_identity import note_path

folder, runs = tempfile.mkdtemp(), []

def prepared(scenario):
    root = tempfile.mkdtemp(dir=folder) + "/root"
    os.mkdir(root)
    runs.append(root)
    return root

def act(scenario, root):
    Path(note_path(root, "holder")).write_text("kept")
    for name in "abc"[: 2 if scenario == "fewer" and len(runs) < 3 else 3]:
        number = os.open(f"{root}/{name}", os.O_WRONLY | os.O_CREAT)
        os.write(number, b"0123")
    os.link(f"{root}/a", f"{root}/other")
    os.symlink(f"{root}/a", f"{root}/view")
    os.utime(f"{root}/a", (5, 5))
    os.mkdir(f"{root}/end")

def judge_crash(scenario, root, at_once):
    found = [Path(root, name).read_bytes() for name in "abc"]
    with open(f"{folder}/seen", "a") as stream:
        print(found, file=stream)
    if Path(root, "other").read_bytes() != found[0] or Path(root, "view").read_bytes() != found[0]:
        raise BrokenError("another name of a file has other bytes")
    if Path(note_path(root, "holder")).read_text() != "kept" or os.path.exists(f"{root}/left"):
        raise BrokenError("what a judge did is seen by the next one")
    if found[0] == b"0123" and os.stat(f"{root}/a").st_mtime != 5:
        raise BrokenError("the time of a file is lost")
    os.mkdir(f"{root}/left")
    os.unlink(note_path(root, "holder"))
    return False

world = SimpleNamespace(prepared=prepared, act=act, judge_crash=judge_crash)
done = tear_all(world, Point("three", 11, True), 0)
print(json.dumps({
    "counts": done[:4],
    "broken": [text for _, text in done.broken],
    "seen": len({*open(f"{folder}/seen")}),
    "left": os.listdir(folder),
    "again": str(crash(world, Point("fewer", 11, True, ("kept", "kept", "half")))),
    "runs": len(runs),
}))
"""


def test_each_combination_is_tried_on_a_copy_of_what_one_process_left() -> None:
    done = campaign(code=THREE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["counts"] == [3, 36, 20, 27]  # three fates of each: nine alone, 27 in pairs, and 27 of all three
    assert found["broken"] == []
    assert found["seen"] == 56  # no two are the same
    assert found["left"] == ["seen"]
    assert found["again"].startswith("Crash(call=")
    assert found["runs"] == 3  # a process that left two files only is killed again


def test_a_point_fits_only_the_files_that_it_names() -> None:
    left = Left("open", [(Path("a"), {"zero": b""}), (Path("b"), {"zero": b"", "half": b"1"})])
    assert left.fits(("kept", "half"))
    assert not left.fits(("half", "kept"))
    assert not left.fits(("zero",))
    assert not left.fits(("zero", "zero", "kept"))


# The second of the cases lets an `OSError` out, and the fourth ends the child if another one came before it.
TOGETHER = """
import json, os, tempfile
from types import SimpleNamespace
from error_campaign import attempted_together
from errno_injection import Case, Done

folder, before = tempfile.mkdtemp(), []

def prepared(scenario):
    return tempfile.mkdtemp(dir=folder) + "/root"

def act(scenario, root):
    if scenario == "ends" and before:
        os._exit(3)
    before.append(scenario)
    try:
        os.mkdir(root)
    except OSError:
        if scenario == "loose":
            raise
    return Done(None, [])

world = SimpleNamespace(prepared=prepared, act=act, judge=lambda scenario, root: None)
names = ["caught", "loose", "caught", "ends", "caught"]
found = attempted_together(world, [Case(name, "mkdir", "EIO", 1) for name in names])
print(json.dumps([str(each) for each in found]))
"""


def test_cases_that_share_a_child_are_judged_one_by_one() -> None:
    done = campaign(code=TOGETHER)
    assert done.returncode == 0, done.stderr
    first, loose, *others = json.loads(done.stdout)
    ok = "Outcome(said='ok', calls=1, text='')"
    assert [first, *others] == [ok] * 4
    assert "not ours" in loose
    assert "Input/output error" in loose


def test_points_and_what_they_leave() -> None:
    point = Point("file", 3, after=True)
    assert Point.parse(str(point)) == point
    assert torn(point, []) == []
    found = torn(point, [FATES, ("zero", "half")])
    assert len(found) == 14  # five fates of one file and three of the other, less the one where all is there
    assert Point.parse(str(found[5])) == found[5]
    assert sampled([point] * 3, 5, 0) == [point] * 3


def test_only_fates_that_leave_different_bytes_are_tried() -> None:
    assert cuts(b"data", Unsynced(0, [(0, 4, b"")])) == {"missing": b"", "zero": b"\0\0\0\0", "half": b"da\0\0"}
    assert [*cuts(b"data", Unsynced(4, [(0, 4, b"\0\0\0\0")]))] == [
        "missing",
        "half",
    ]  # as `zero`: it was allocated before
    assert [*cuts(b"datamore", Unsynced(4, [(0, 4, b"atad"), (4, 4, b"")]))] == list(FATES)
    assert cuts(b"\0\0\0\0", Unsynced(4, [(0, 4, b"")])) == {}  # no byte changes
    assert cuts(b"", Unsynced(4, [(0, 4, b"data")])) == {}  # it was made empty later


@pytest.mark.parametrize(
    ("fate", "left"), [("missing", b"AA"), ("zero", b"AA\0\0\0\0"), ("old", b"AA\0\0\0\0"), ("half", b"AAbb\0\0")]
)
def test_what_a_power_cut_takes(fate: str, left: bytes) -> None:
    assert cut(b"AAbbbb", Unsynced(2, [(2, 4, b"")]), fate) == left


def test_an_unknown_campaign_is_named() -> None:
    done = campaign("--only", "torn,nothing")
    assert done.returncode == 2
    assert "nothing is not a campaign; there are crash, torn, error," in done.stderr


def test_what_a_campaign_leaves_of_its_share_goes_to_the_next_ones() -> None:
    first, second, third = _shares(6000.0, 3)
    assert first <= 2000.0 < second <= 3000.0 < third <= 6000.0
    assert list(_shares(0.0, 2)) == [0.0, 0.0]


def test_the_table_adds_up_and_a_limit_ends() -> None:
    text = table([Row("crash", "file", 3, 0, ""), Row("torn", "2 scenarios", 4, 1, "")])
    assert text.endswith("| all | | 7 | 1 | |")
    assert Limit(most=2).reached(2)
    assert not Limit(most=2).reached(1)
    assert Limit(until=0.0).reached(0)
