"""`Weights.link`: links for programs with fixed folders."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from origin import Origin
from support import blob, child, finish, forbidden, one, site_hooks, start_together, toml_of
from weightcache import ManifestError, StorageError, UnknownCheckpointError, Weights, ensure
from weightcache._views import symlinks

DINO, SAM = blob(3000, 1), blob(2000, 2)


COMMIT, OTHER = "a" * 40, "b" * 40


def leftovers(folder: Path) -> list[Path]:
    """What was made aside and should not have stayed."""
    return [path for path in folder.rglob("*") if path.name.startswith(".weightcache-")]


PROGRAM = """
import os
print(os.path.getsize("data/weights/groundingdino_swint_ogc.pth"))
print(len(open("data/weights/sam2_hiera_large.pt", "rb").read()), sorted(os.listdir("data/weights")))
print(open("data/weights/bert-base-uncased/deep/vocab.txt").read().split())
"""


def test_a_program_with_fixed_folders_runs_unmodified(
    manifest: dict[str, Any], root: Path, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (app / "main.py").write_text(PROGRAM)
    monkeypatch.chdir(app)
    for outcome in ("downloaded", "hit"):
        weights = ensure(manifest, root=root, progress=False)
        assert {each.outcome for each in weights.report.values()} == {outcome}
        made = weights.link(
            {
                "sam2": "data/weights/sam2_hiera_large.pt",
                "groundingdino": Path("data/weights/groundingdino_swint_ogc.pth"),
                "bert": "data/weights/bert-base-uncased/",
            }
        )
        assert made == {
            "sam2": app / "data/weights/sam2_hiera_large.pt",
            "groundingdino": app / "data/weights/groundingdino_swint_ogc.pth",
            "bert": app / "data/weights/bert-base-uncased",
        }
        assert {name: made[name].readlink() for name in made} == dict(weights)
    done = subprocess.run([sys.executable, "main.py"], capture_output=True, text=True, cwd=app, check=True)
    assert done.stdout.splitlines() == [
        "3000",
        "2000 ['bert-base-uncased', 'groundingdino_swint_ogc.pth', 'sam2_hiera_large.pt']",
        "['a', 'b']",
    ]


def test_links_after_a_hit_import_only_the_standard_library(
    manifest: dict[str, Any], root: Path, app: Path, weights: Weights
) -> None:
    manifest["checkpoints"]["bert"]["urls"] = [f"hf://org/bert@{COMMIT}"]
    path = toml_of(manifest, app / "weights.toml")
    code = """
    weights = ensure(sys.argv[1], root=sys.argv[2])
    weights.link({"sam2": "sam2.pt"})
    weights.hf_cache("hub")
    print(json.dumps(sorted(sys.modules)))
    """
    prelude = "import json, sys\nfrom weightcache import ensure\n"
    command = [sys.executable, "-c", prelude + textwrap.dedent(code), path, root]
    done = subprocess.run(command, capture_output=True, text=True, cwd=app, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    foreign = {name for name in loaded if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert foreign <= {"weightcache", "tomli", "coverage", "a1_coverage", "sitecustomize"} | site_hooks()
    assert not {"dataclasses", "logging", "ssl", "tempfile"} & (loaded - site_hooks())


def test_home_is_expanded(weights: Weights, app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(app))
    assert weights.link({"sam2": "~/models/sam2.pt"}) == {"sam2": app / "models/sam2.pt"}
    assert (app / "models/sam2.pt").read_bytes() == SAM


def test_what_is_right_is_left_as_it_is(weights: Weights, app: Path) -> None:
    weights.link({"sam2": app / "x/sam2.pt"})
    before = (app / "x/sam2.pt").lstat(), (app / "x").stat().st_mtime_ns
    weights.link({"sam2": app / "x/sam2.pt"})
    assert ((app / "x/sam2.pt").lstat(), (app / "x").stat().st_mtime_ns) == before


def second_version(origin: Origin, root: Path) -> Weights:
    data = blob(500, 3)
    origin.put("/new", data)
    return ensure(one(data, origin.url("/new")), root=root, progress=False)


def test_another_version_takes_the_place_of_the_older_one_by_rename(
    weights: Weights, origin: Origin, root: Path, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, newer, seen, rename = app / "sam2.pt", second_version(origin, root), [], os.replace

    def replace(source: str, target: str) -> None:
        seen.append(path.read_bytes())  # what a reader finds at the last moment before
        rename(source, target)
        seen.append(path.read_bytes())

    weights.link({"sam2": path})
    monkeypatch.setattr(os, "replace", replace)
    newer.link({"sam2": path})
    assert seen == [SAM, blob(500, 3)]
    assert os.listdir(app) == ["sam2.pt"]


def test_a_link_into_a_root_that_is_gone_is_replaced(weights: Weights, app: Path) -> None:
    (app / "sam2.pt").symlink_to(f"/vol/of/yesterday/sam2/{'0' * 16}/weights.pt")
    weights.link({"sam2": app / "sam2.pt"})
    assert (app / "sam2.pt").read_bytes() == SAM


TOGGLE = """
old, new = ensure(sys.argv[1], root=sys.argv[3]), ensure(sys.argv[2], root=sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(100):
    old.link({"sam2": "w/sam2.pt"})
    new.link({"sam2": "w/sam2.pt"})
"""


def test_eight_processes_at_once_and_a_reader(
    weights: Weights, manifest: dict[str, Any], origin: Origin, root: Path, app: Path
) -> None:
    second_version(origin, root)
    newer = one(blob(500, 3), origin.url("/new"))
    paths = toml_of(manifest, app / "old.toml"), toml_of(newer, app / "new.toml")
    processes = [child(TOGGLE, *map(str, (*paths, root)), cwd=app, stdin=subprocess.PIPE) for _ in range(8)]
    weights.link({"sam2": app / "w/sam2.pt"})
    start_together(processes)
    while any(process.poll() is None for process in processes):
        assert (app / "w/sam2.pt").read_bytes() in (SAM, blob(500, 3))
    for process in processes:
        finish(process)
    assert os.listdir(app / "w") == ["sam2.pt"]


def test_eight_processes_that_make_the_first_link(
    weights: Weights, manifest: dict[str, Any], root: Path, app: Path
) -> None:
    manifest["checkpoints"]["bert"]["urls"].append(f"hf://org/bert@{COMMIT}")
    path = toml_of(manifest, app / "weights.toml")
    code = """
    weights = ensure(sys.argv[1], root=sys.argv[2])
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(50):
        weights.link({"sam2": f"{number}/deep/sam2.pt"})
        weights.hf_cache(f"{number}/hub")
        assert os.path.getsize(f"{number}/deep/sam2.pt") == 2000
        assert open(f"{number}/hub/models--org--bert/refs/main").read() == "a" * 40
    """
    processes = [child(code, str(path), str(root), cwd=app, stdin=subprocess.PIPE) for _ in range(8)]
    start_together(processes)
    for process in processes:
        finish(process)
    assert leftovers(app) == []


OBSTACLES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a file": (lambda path: path.write_bytes(b"mine"), "a file is there", "remove it"),
    "a directory": (lambda path: path.mkdir(), "a directory is there", "name the link itself"),
    "a link": (lambda path: path.symlink_to("elsewhere.pt"), "a link to elsewhere.pt is there", "remove it"),
}


@pytest.mark.parametrize(("put", "what", "hint"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_is_somebody_elses_is_not_replaced(put: Any, what: str, hint: str, weights: Weights, app: Path) -> None:
    put(app / "sam2.pt")
    before = (app / "sam2.pt").lstat()
    with pytest.raises(StorageError, match=f"sam2.pt: {what}") as caught:
        weights.link({"groundingdino": app / "dino.pth", "sam2": app / "sam2.pt"})
    assert hint in caught.value.hint
    assert caught.value.path == str(app / "sam2.pt")
    assert (app / "sam2.pt").lstat() == before
    assert os.listdir(app) == ["sam2.pt"]  # nothing was linked before all were checked


def test_a_file_that_comes_meanwhile_is_not_replaced(
    weights: Weights, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.symlink

    def symlink(target: str, path: str) -> None:
        (app / "sam2.pt").write_bytes(b"mine")
        make(target, path)

    monkeypatch.setattr(os, "symlink", symlink)
    with pytest.raises(StorageError, match="a file is there"):
        weights.link({"sam2": app / "sam2.pt"})
    assert (app / "sam2.pt").read_bytes() == b"mine"


def refused(weights: Weights, path: Path, where: str) -> None:
    with pytest.raises(StorageError, match=where) as caught:
        weights.link({"sam2": path / "sam2.pt"})
    assert "mount the Volume elsewhere" in caught.value.hint
    with pytest.raises(StorageError, match=where):
        weights.hf_cache(path / "hub")


def test_no_link_in_the_root(weights: Weights, manifest: dict[str, Any], root: Path, app: Path) -> None:
    manifest["checkpoints"]["bert"]["urls"] = [f"hf://org/bert@{COMMIT}"]
    before = sorted(root.rglob("*"))
    (app / "data").symlink_to(root)
    (app / "cache").mkdir()
    (app / "cache/hub").symlink_to(root)
    (app / "other").symlink_to(app / "data")
    by_link = ensure(manifest, root=app / "other", progress=False)
    for each in (ensure(manifest, root=root), by_link):
        refused(each, root, "inside the root")
        refused(each, root / "new", "inside the root")
        refused(each, app / "data", "inside the root")
        refused(each, app / "data/new/deep", "inside the root")
        with pytest.raises(StorageError, match="inside the root"):
            each.hf_cache(app / "cache/hub")
    assert sorted(root.rglob("*")) == before
    weights.link({"sam2": f"{root}-beside/sam2.pt"})


def test_no_link_on_any_modal_volume(
    manifest: dict[str, Any], tmp_path: Path, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount path is a symlink there; the root may be a directory below it, and there may be another Volume."""
    monkeypatch.setattr(symlinks, "MODAL_VOLUMES", f"{os.path.realpath(tmp_path)}/volumes/")
    for name in ("vo-1", "vo-2"):
        (tmp_path / "volumes" / name).mkdir(parents=True)
    (app / "weights").symlink_to(tmp_path / "volumes/vo-1")
    (app / "cache").symlink_to(tmp_path / "volumes/vo-2")
    manifest["checkpoints"]["bert"]["urls"].append(f"hf://org/bert@{COMMIT}")
    weights = ensure(manifest, root=app / "weights/below", progress=False)
    refused(weights, app / "weights", "on a Modal Volume")
    refused(weights, app / "weights/beside/deep", "on a Modal Volume")
    refused(weights, app / "cache", "on a Modal Volume")
    weights.link({"sam2": app / "sam2.pt"})
    assert (app / "sam2.pt").readlink() == weights["sam2"]  # by the mount path: what it resolves to may change
    assert os.listdir(tmp_path / "volumes/vo-1") == ["below"]


def test_wrong_arguments(weights: Weights, app: Path) -> None:
    (app / "same").symlink_to(app)
    with pytest.raises(UnknownCheckpointError, match=r"'sam3'; declared are: groundingdino, sam2, bert"):
        weights.link({"sam2": app / "a", "sam3": app / "b"})
    with pytest.raises(ValueError, match="the same path as"):
        weights.link({"sam2": app / "a", "bert": app / "same/a"})
    with pytest.raises(ValueError, match=r"sam2 is to be linked at .*a/b, a path below that of bert"):
        weights.link({"sam2": app / "a/b", "bert": app / "a"})
    wrong: list[tuple[Any, type[Exception], str]] = [
        (["sam2"], TypeError, "must map names to paths"),
        ({"sam2": b"x"}, TypeError, "the path of sam2 must be a path, not bytes"),
        ({"sam2": None}, TypeError, "not NoneType"),
        ({"sam2": ""}, ValueError, "must be a path, got ''"),
        ({"sam2": "a\0b"}, ValueError, "must be a path"),
    ]
    for value, error, text in wrong:
        with pytest.raises(error, match=text):
            weights.link(value)
    assert os.listdir(app) == ["same"]
    assert weights.link({}) == {}


def test_a_parent_that_is_a_file(weights: Weights, app: Path) -> None:
    (app / "data").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot link .*data/sam2.pt: File exists") as caught:
        weights.link({"sam2": app / "data/sam2.pt"})
    assert caught.value.errno == errno.EEXIST
    assert "the container's own disk" in caught.value.hint


@pytest.fixture
def disk_of_few_inodes(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "few"
    path.mkdir()
    options = ["-o", "size=1m,nr_inodes=3"]
    made = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", path], capture_output=True, check=False)
    if made.returncode:
        forbidden(f"cannot mount a tmpfs: {made.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_disk_that_is_full_or_read_only(
    weights: Weights, origin: Origin, root: Path, disk_of_few_inodes: Path
) -> None:
    disk, newer = disk_of_few_inodes, second_version(origin, root)
    weights.link({"sam2": disk / "sam2.pt"})
    (disk / "x").touch()
    for each, name in ((weights, "other.pt"), (newer, "sam2.pt")):
        with pytest.raises(StorageError, match="the disk is full") as caught:
            each.link({"sam2": disk / name})
        assert caught.value.errno == errno.ENOSPC
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(StorageError, match="Read-only file system") as caught:
        newer.link({"sam2": disk / "sam2.pt"})
    assert "another path" in caught.value.hint
    weights.link({"sam2": disk / "sam2.pt"})  # it is right, so nothing need be written
    assert sorted(os.listdir(disk)) == ["sam2.pt", "x"]


def test_weights_made_by_hand(app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(app)  # which is no root, though no root is known
    (tmp_path / "x").write_bytes(b"x")
    weights = Weights({"x": str(tmp_path / "x")})
    assert weights.link({"x": app / "x"})["x"].read_bytes() == b"x"
    with pytest.raises(ManifestError, match="none has hf://"):
        weights.hf_cache(app / "hub")
