"""`adopt`: weights that another program downloaded become a root, and nothing of them is lost or changed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from control_plane import ControlPlane
from hub import File, Hub, git_oid
from support import blob, sha256
from volume_model import play_links
from weightcache import Manifest, ensure

DATA = blob(300_001)
FILES: dict[str, Any] = {
    "config.json": b"{}\n",
    "model.safetensors": File(DATA, lfs=True),
    "sub/model.safetensors": File(b"s" * 100, lfs=True),
}


def downloaded(hub: Hub, cache: Path, name: str = "acme/bert", revision: str = "main") -> Path:
    """A repository in a cache, by the Hub's own client."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, cache_dir=cache, endpoint=hub.url))


def seen(top: Path) -> dict[str, tuple[int, int, object]]:
    """Every file and link below a directory: inode, modification time, and bytes or target."""
    return {
        str(path.relative_to(top)): (
            path.lstat().st_ino,
            path.lstat().st_mtime_ns,
            os.readlink(path) if path.is_symlink() else path.read_bytes(),
        )
        for path in sorted(top.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def adopted(run: Any, *words: Any) -> str:
    code, out, err = run("adopt", *words)
    assert code == 0, err
    Path("weights.toml").write_text(out)
    return str(err)


def hit(root: Path) -> Any:
    weights = ensure("weights.toml", root=root, offline=True)
    assert {each.outcome for each in weights.report.values()} == {"hit"}
    return weights


def test_a_hub_cache_becomes_a_root_without_a_copy(run: Any, hub: Hub, root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    commit = hub.push("acme/bert", "main", FILES)
    other = hub.push("gpt2", "main", {"config.json": b"[]"})
    for name in ("acme/bert", "gpt2"):
        downloaded(hub, cache, name)
    (cache / "models--acme--bert" / "blobs" / "x.incomplete").write_bytes(b"x")
    before, requests = seen(cache), len(hub.seen)
    err = adopted(run, cache, "--root", root)
    assert "acme--bert: 3 file(s) linked (0.3 MB), at " in err
    manifest = Manifest.load("weights.toml")
    assert [each.urls for each in manifest] == [(f"hf://acme/bert@{commit}",), (f"hf://gpt2@{other}",)]
    weights = hit(root)
    for path in ("config.json", "model.safetensors", "sub/model.safetensors"):
        source = cache / "models--acme--bert" / "snapshots" / commit / path
        assert (weights["acme--bert"] / path).samefile(source)
        assert not (weights["acme--bert"] / path).is_symlink()
    assert seen(cache) == before
    assert len(hub.seen) == requests
    assert "3 file(s) linked" in adopted(run, cache, "--root", root)  # once more: the same
    shutil.rmtree(cache)
    assert (weights["acme--bert"] / "model.safetensors").read_bytes() == DATA
    fresh = ensure("weights.toml", root=tmp_path / "elsewhere", progress=False)  # the printed URLs deliver the same
    assert (fresh["acme--bert"] / "model.safetensors").read_bytes() == DATA


def test_where_there_are_no_hard_links_files_are_copied_or_moved(
    run: Any, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", os.link)  # restored afterwards
    play_links(tmp_path, 1)
    hub.push("acme/bert", "main", FILES)
    home = tmp_path / "volume"  # the cache is in the root, as on a Volume
    snapshot = downloaded(hub, home / "hub")
    before = seen(home)
    assert "3 file(s) copied" in adopted(run, home, "--root", home)
    assert {path: each for path, each in seen(home).items() if path.startswith("hub/")} == before
    shutil.rmtree(home / "acme--bert")
    shutil.rmtree(home / ".weightcache")
    inodes = {path: os.stat(snapshot / path).st_ino for path in ("config.json", "model.safetensors")}
    assert "3 file(s) moved" in adopted(run, home / "hub", "--root", home, "--move")
    weights = hit(home)
    for path, inode in inodes.items():
        assert (weights["acme--bert"] / path).lstat().st_ino == inode
        assert (snapshot / path).samefile(weights["acme--bert"] / path)
    moved = home.rename(tmp_path / "mounted elsewhere")  # links are relative
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = Path(
        subprocess.check_output(
            [
                sys.executable,
                "-c",
                "import huggingface_hub as h, sys; print(h.snapshot_download('acme/bert', cache_dir=sys.argv[1]))",
                str(moved / "hub"),
            ],
            text=True,
            env={**os.environ},
        ).strip()
    )
    assert (path / "model.safetensors").read_bytes() == DATA
    assert "3 file(s) moved" in adopted(run, moved / "hub", "--root", moved, "--move")


def test_a_move_that_was_interrupted_goes_on(run: Any, hub: Hub, root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    hub.push("acme/bert", "main", FILES)
    snapshot = downloaded(hub, tmp_path / "hub")
    replace, calls = os.replace, list[str]()

    def interrupted(source: Any, target: Any, **more: Any) -> None:
        if str(target).startswith(str(tmp_path / "hub")):
            calls.append(str(target))
            if len(calls) == 2:
                raise KeyboardInterrupt
        replace(source, target, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        assert run("adopt", snapshot, "--root", root, "--move")[0] == 130
    assert {path: (snapshot / path).exists() for path in FILES} == dict.fromkeys(FILES, True)  # moved, or not yet
    moved = [(snapshot / path).resolve() for path in FILES if (snapshot / path).resolve().is_relative_to(root)]
    assert 0 < len(moved) < 3
    [waiting, *_] = [real for path in FILES if not (real := (snapshot / path).resolve()).is_relative_to(root)]
    (waiting.parent / f".{waiting.name}.weightcache").symlink_to("of a process that was killed before the move")
    adopted(run, snapshot, "--root", root, "--move")
    weights = hit(root)
    # As if the process had been killed between the two renames:
    blob_path = (snapshot / "model.safetensors").parent / os.readlink(snapshot / "model.safetensors")
    for source in (snapshot, tmp_path / "hub"):
        blob_path.rename(blob_path.with_name(f".{blob_path.name}.weightcache"))
        assert not (snapshot / "model.safetensors").exists()
        assert "acme--bert: 3 file(s) moved (" in adopted(run, source, "--root", root, "--move")
        assert (snapshot / "model.safetensors").samefile(weights["acme--bert"] / "model.safetensors")
    (snapshot / ".config.json.weightcache").symlink_to("before the first of them")
    adopted(run, tmp_path / "hub", "--root", root, "--move")
    assert not list(tmp_path.rglob(".*.weightcache"))


def test_copies_instead_of_links_a_local_dir_and_plain_files(run: Any, hub: Hub, root: Path, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    commit = hub.push("acme/bert", "main", FILES)
    snapshot = downloaded(hub, tmp_path / "links")
    copies = tmp_path / "copies" / "models--acme--bert" / "snapshots" / commit
    shutil.copytree(snapshot, copies)  # links become files, as where the file system has no links
    assert "3 file(s) linked" in adopted(run, tmp_path / "copies", "--root", root)
    assert Manifest.load("weights.toml")["acme--bert"].urls == (f"hf://acme/bert@{commit}",)
    local = tmp_path / "my bert"
    snapshot_download("acme/bert", local_dir=local, endpoint=hub.url)
    (local / ".hidden").write_bytes(b"h")
    before = seen(local)
    err = adopted(run, local, "--root", root)
    assert f"from commit {commit}; no file names the repository: give it with --repo" in err
    found = Manifest.load("weights.toml")["my-bert"]
    assert (found.urls, [file.path for file in found.files]) == ((), [".hidden", *sorted(FILES)])
    assert seen(local) == before
    (tmp_path / "sam.pt").write_bytes(DATA[1:])
    adopted(run, tmp_path / "sam.pt", "--root", root)
    assert hit(root)["sam"].samefile(tmp_path / "sam.pt")
    [row] = json.loads(run("adopt", tmp_path / "sam.pt", "segmenter", "--root", root, "--json")[1])["checkpoints"]
    assert (row["name"], row["linked"], row["digest"]) == ("segmenter", 1, sha256(DATA[1:]))
    again = json.loads(run("adopt", tmp_path / "sam.pt", "segmenter", "--root", root, "--move", "--json")[1])[
        "checkpoints"
    ]
    assert again == [row]  # it is ready, so nothing is moved


def test_a_local_dir_with_its_repository(run: Any, hub: Hub, root: Path, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    commit = hub.push("acme/bert", "main", FILES)
    local = tmp_path / "mine"
    snapshot_download("acme/bert", local_dir=local, endpoint=hub.url)

    def refused(why: str, repository: str, path: Path = local) -> None:
        code, out, err = run("adopt", path, "--repo", repository, "--root", root)
        assert (code, out, why in err) == (2, "", True), err

    for repository in ("acme/bert", f"acme/bert@{commit}"):  # the second time, all is there already
        adopted(run, local, "--repo", repository, "--root", root)
        assert Manifest.load("weights.toml")["acme--bert"].urls == (f"hf://acme/bert@{commit}",)
    assert hit(root)["acme--bert"].is_dir()
    ensure("weights.toml", root=tmp_path / "elsewhere", progress=False)  # from the URL
    for bad in ("", "a/b/c", "acme/bert@main", "hf://acme/bert", "acme bert", f"acme/bert@{commit}/config.json"):
        refused("--repo must be ORG/NAME", bad)
    refused(f"no file of commit {'0' * 40}; its files are of {commit}", f"acme/bert@{'0' * 40}")
    (local / "own.bin").write_bytes(b"x")
    refused("'own.bin' is not recorded as a file of hf://acme/bert", "acme/bert")
    (local / "own.bin").unlink()
    (local / "config.json").write_text("[]\n")
    refused("'config.json' is damaged: the Hub calls its content", "acme/bert")
    (local / "config.json").write_bytes(FILES["config.json"])
    record = local / ".cache/huggingface/download/config.json.metadata"
    record.write_text(record.read_text().replace(commit, "1" * 40))
    refused(f"files of several commits, {', '.join(sorted((commit, '1' * 40)))}", "acme/bert")
    refused("'config.json' is not recorded", f"acme/bert@{commit}")
    (tmp_path / "plain").mkdir()
    refused("holds no records of `hf download --local-dir`", "acme/bert", tmp_path / "plain")
    refused("which names its repositories: leave out --repo", "acme/bert", downloaded(hub, tmp_path / "cache"))


def test_which_snapshot_of_a_repository(run: Any, hub: Hub, root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    first = hub.push("acme/bert", "main", FILES)
    downloaded(hub, cache)
    second = hub.push("acme/bert", "main", {"config.json": b"[]"})
    downloaded(hub, cache)
    err = adopted(run, cache, "--root", root)
    assert f"1 other snapshot(s) are not adopted: {cache}/models--acme--bert/snapshots/{first}" in err
    assert Manifest.load("weights.toml")["acme--bert"].urls == (f"hf://acme/bert@{second}",)
    adopted(run, cache / "models--acme--bert" / "snapshots" / first, "old", "--root", root)
    assert Manifest.load("weights.toml")["old"].urls == (f"hf://acme/bert@{first}",)
    (cache / "models--acme--bert" / "refs" / "main").write_text("../../x")
    code, _, err = run("adopt", cache, "--root", root)
    assert (code, "refs/main names no snapshot; give the path of one of them" in err) == (2, True)


def test_a_damaged_cache_is_not_adopted_under_the_hubs_name(run: Any, hub: Hub, root: Path, tmp_path: Path) -> None:
    hub.push("acme/bert", "main", FILES)
    snapshot = downloaded(hub, tmp_path / "hub")
    for path, name in (("model.safetensors", sha256(DATA)), ("config.json", git_oid(b"{}\n"))):
        real = (snapshot / path).resolve()
        good = real.read_bytes()
        real.write_bytes(good[:-1] + b"?")
        code, out, err = run("adopt", tmp_path / "hub", "--root", root, *(["--move"] if path == "config.json" else []))
        assert (code, out, f"'{path}' is damaged: the Hub calls its content {name}" in err) == (2, "", True), err
        assert not list(root.glob("acme*"))
        real.write_bytes(good)
    (tmp_path / "secret").write_bytes(b"s")
    (snapshot / "sub" / "x.json").symlink_to(tmp_path / "secret")
    code, _, err = run("adopt", tmp_path / "hub", "--root", root, "--move")
    assert (code, f"'sub/x.json' is a link to {tmp_path}/secret, outside of its repository" in err) == (2, True), err
    assert not list(root.glob("acme*"))
    (snapshot / "sub" / "x.json").unlink()
    real.unlink()
    code, _, err = run("adopt", tmp_path / "hub", "--root", root)
    assert (code, "is a symbolic link to nothing" in err) == (2, True), err


@pytest.mark.parametrize(
    ("path", "words", "said"),
    [
        ("none", [], "does not exist"),
        ("root", [], "is the root; give the path of a Hub cache"),
        ("..", [], "contains the root"),
        ("hub", ["one"], "holds 2 repositories; give the path of one of them"),
        ("file.pt", ["../x"], "a name is 1 to 100"),
        ("empty", [], "is empty"),
        ("root", ["--env", "e"], "--env needs --volume"),
    ],
)
def test_what_cannot_be_adopted(path: str, words: list[str], said: str, run: Any) -> None:
    for name in ("root", "empty", "hub/models--a--b/snapshots/" + "a" * 40, "hub/models--a--c/snapshots/" + "a" * 40):
        Path(name).mkdir(parents=True)
    Path("file.pt").write_bytes(DATA)
    code, out, err = run("adopt", path, *words, "--root", "root")
    assert (code, out, said in err) == (2, "", True), err


@pytest.mark.parametrize("name", ["samefile", "listdir"])
def test_what_cannot_be_read_is_named(
    name: str, run: Any, hub: Hub, root: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """After the files are moved, or before they are found."""

    def fails(path: str, *_: str) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)

    hub.push("acme/bert", "main", FILES)
    downloaded(hub, tmp_path / "hub")
    with monkeypatch.context() as patch:
        patch.setattr(os.path if name == "samefile" else os, name, fails)
        code, _, err = run("adopt", tmp_path / "hub", "--move", "--root", root)
    assert code == 5
    assert "cannot read" in err
    assert "call it again" in err
    adopted(run, tmp_path / "hub", "--move", "--root", root)
    assert hit(root)["acme--bert"].is_dir()


def test_a_move_to_another_file_system_changes_nothing(run: Any, small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(DATA)
    code, _, err = run("adopt", tmp_path / "a.pt", "--root", small_disk / "root", "--move")
    assert (code, "on different file systems" in err, (tmp_path / "a.pt").read_bytes() == DATA) == (5, True, True)
    assert "1 file(s) copied" in adopted(run, tmp_path / "a.pt", "--root", small_disk / "root")


@pytest.mark.parametrize("path", ["mine", "mine/model.bin"])
def test_a_move_takes_no_file_that_only_a_link_leads_to(path: str, run: Any, root: Path, tmp_path: Path) -> None:
    """The link comes with a download; the file may be a key of the user."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    key = tmp_path / "home" / "key"
    key.parent.mkdir()
    key.write_bytes(DATA)
    (tmp_path / "mine" / "model.bin").symlink_to(key)
    code, out, err = run("adopt", tmp_path / path, "--move", "--root", root)
    assert (code, out, f"a link leads to {str(key)!r}" in err) == (2, "", True), err
    assert (key.is_symlink(), root.exists() and [each for each in root.iterdir() if each.name != ".weightcache"]) in (
        (False, False),
        (False, []),
    )
    adopted(run, tmp_path / path, "--root", root)  # a link or a copy takes nothing away
    assert (key.is_symlink(), key.read_bytes() == DATA) == (False, True)


def test_a_link_within_the_adopted_directory_is_moved(run: Any, root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "blobs").mkdir(parents=True)
    (tmp_path / "mine" / "blobs" / "x").write_bytes(DATA)
    (tmp_path / "mine" / "model.bin").symlink_to("blobs/x")
    (tmp_path / "named").symlink_to("mine")
    adopted(run, tmp_path / "named", "--move", "--root", root)
    assert (tmp_path / "mine" / "blobs" / "x").resolve().is_relative_to(root)


def test_a_file_of_a_snapshot_is_moved(run: Any, hub: Hub, root: Path, tmp_path: Path) -> None:
    hub.push("acme/bert", "main", FILES)
    snapshot = downloaded(hub, tmp_path / "hub")
    assert "1 file(s) moved" in adopted(run, snapshot / "sub" / "model.safetensors", "--move", "--root", root)
    assert (snapshot / "sub" / "model.safetensors").resolve().is_relative_to(root)


def test_a_second_snapshot_takes_no_file_from_the_first(run: Any, hub: Hub, root: Path, tmp_path: Path) -> None:
    """Both link to the same blob, which the first move has replaced by a link to the published file."""
    hub.push("acme/bert", "main", FILES)
    first = downloaded(hub, tmp_path / "hub")
    hub.push("acme/bert", "main", {"config.json": b"[]"})
    second = downloaded(hub, tmp_path / "hub")
    adopted(run, first, "one", "--move", "--root", root)
    one = hit(root)["one"]
    assert "1 file(s) moved" in (err := adopted(run, second, "two", "--move", "--root", root)), err
    assert hit(root)["two"].is_dir()
    assert {path: (one / path).is_symlink() for path in FILES} == dict.fromkeys(FILES, False)


def test_what_a_move_left_aside_is_put_in_place_within_the_adopted_directory_alone(
    run: Any, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.bin").symlink_to(tmp_path / "home" / "gone")
    aside = tmp_path / "home" / ".gone.weightcache"
    aside.parent.mkdir()
    aside.symlink_to("of another program")
    assert run("adopt", tmp_path / "mine", "--move", "--root", root)[0] == 2  # it leads nowhere
    assert [each.name for each in aside.parent.iterdir()] == [aside.name]


def test_a_pipe_in_a_hub_cache_holds_nobody_up(run: Any, hub: Hub, root: Path, tmp_path: Path) -> None:
    hub.push("acme/bert", "main", FILES)
    reference = downloaded(hub, tmp_path / "hub").parent.parent / "refs" / "main"
    reference.unlink()
    os.mkfifo(reference)
    assert "3 file(s) linked" in adopted(run, tmp_path / "hub", "--root", root)  # the only snapshot


@pytest.mark.parametrize("kind", ["pipe", "link", "long", "locked"])
def test_records_of_a_local_dir_that_are_none(
    kind: str, run: Any, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = tmp_path / "mine" / ".cache" / "huggingface" / "download"
    records.mkdir(parents=True)
    (tmp_path / "mine" / "a.bin").write_bytes(DATA)
    record, commit, open_file = records / "a.bin.metadata", "a" * 40, os.open
    if kind == "pipe":
        os.mkfifo(record)
    elif kind == "link":
        (tmp_path / "record").write_text(f"{commit}\n{sha256(DATA)}\n")
        record.symlink_to(tmp_path / "record")
    else:
        record.write_text(f"{' ' * 5000 if kind == 'long' else ''}{commit}\n{sha256(DATA)}\n")

    def locked(path: Any, *words: Any, **options: Any) -> int:
        if os.fspath(path) == str(record):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return open_file(path, *words, **options)

    if kind == "locked":
        monkeypatch.setattr(os, "open", locked)
    code, _, err = run("adopt", tmp_path / "mine", "--repo", "acme/bert", "--root", root)
    expected = (5, f"cannot read {record}") if kind == "locked" else (2, "holds no records")
    assert (code, expected[1] in err) == (expected[0], True), err


@pytest.mark.parametrize("version", [1, 2])
def test_on_a_volume(version: int, plane: ControlPlane, run: Any, hub: Hub, tmp_path: Path) -> None:
    commit = hub.push("acme/bert", "main", FILES)
    cache = tmp_path / "cache"
    downloaded(hub, cache)
    volume = plane.volumes[plane.volume("models", version)]
    for path in cache.rglob("*"):
        inner = f"hf/hub/{path.relative_to(cache)}"
        if path.is_symlink():
            volume.files[inner] = os.readlink(path)
        elif path.is_file():
            volume.put(inner, path)
    before = {path: volume.read(path) for path in volume.files if "/blobs/" in path}

    def tool(*words: str) -> tuple[int, str, str]:
        done = plane.client("-m", "weightcache", *words, "--volume", "models", directory=Path.cwd())
        return done.returncode, done.stdout, done.stderr

    code, out, err = tool("adopt", "hf", *(["--move"] if version == 1 else []))
    assert code == 0, err
    assert ("3 file(s) moved" if version == 1 else "file(s) ") in err
    Path("weights.toml").write_text(out)
    [bert] = Manifest.load("weights.toml")
    assert bert.urls == (f"hf://acme/bert@{commit}",)
    assert tool("status")[:2] == (0, f"acme--bert  ready  0.3 MB  /mnt/weights/acme--bert/{bert.version}\n")
    assert volume.read(f"acme--bert/{bert.version}/model.safetensors") == DATA
    if version == 2:
        assert {path: volume.read(path) for path in before} == before
    else:
        blob = f"hf/hub/models--acme--bert/blobs/{sha256(DATA)}"
        assert volume.files[blob] == f"../../../../acme--bert/{bert.version}/model.safetensors"
    code, _, err = tool("adopt", "../../etc/passwd")
    assert (code, "leads out of the Volume" in err) == (2, True)
