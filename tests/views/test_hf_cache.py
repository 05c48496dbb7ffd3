"""The Hub's cache, as the real huggingface_hub and transformers read it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from origin import Origin
from support import blob, directory, lacking, one, toml_of
from weightcache import ManifestError, StorageError, UnknownCheckpointError, Weights, ensure
from weightcache._views import hf_cache

DINO, SAM = blob(3000, 1), blob(2000, 2)
FOLDER = {"config.json": b"{}", "deep/vocab.txt": b"a\nb\n"}
COMMIT, OTHER = "a" * 40, "b" * 40


def leftovers(folder: Path) -> list[Path]:
    """What was made aside and should not have stayed."""
    return [path for path in folder.rglob("*") if path.name.startswith(".weightcache-")]


# The Hub's cache. What is there is asked of the real huggingface_hub.


def on_the_hub(monkeypatch: pytest.MonkeyPatch, origin: Origin, repo: str, commit: str, files: dict[str, bytes]) -> str:
    """Let the origin be a Hub that has a repository, and return its ``hf://`` URL."""
    monkeypatch.setenv("HF_ENDPOINT", origin.url(""))
    for path, data in files.items():
        origin.put(f"/{repo}/resolve/{commit}/{path}", data)
    return f"hf://{repo}@{commit}"


def download(folder: Path, repo: str, path: str, **options: Any) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, path, cache_dir=folder, local_files_only=True, **options))


def snapshot(folder: Path, repo: str, **options: Any) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, cache_dir=folder, local_files_only=True, **options))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def bert(monkeypatch: pytest.MonkeyPatch, origin: Origin, root: Path) -> Weights:
    url = on_the_hub(monkeypatch, origin, "org/bert", COMMIT, FOLDER)
    return ensure(directory(FOLDER, url), root=root, progress=False)


def test_huggingface_hub_finds_what_is_published(bert: Weights, app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    monkeypatch.chdir(app)
    hub = bert.hf_cache("hub")
    assert hub == app / "hub"
    found = download(hub, "org/bert", "deep/vocab.txt")
    assert found == hub / f"models--org--bert/snapshots/{COMMIT}/deep/vocab.txt"
    assert found.resolve() == (bert["bert"] / "deep/vocab.txt").resolve()
    assert download(hub, "org/bert", "config.json", revision=COMMIT).read_bytes() == b"{}"
    assert files_of(snapshot(hub, "org/bert")) == FOLDER
    assert files_of(snapshot(hub, "org/bert", revision=COMMIT)) == FOLDER
    assert try_to_load_from_cache("org/bert", "other.json", cache_dir=hub) is None  # not known to be nowhere
    with pytest.raises(LocalEntryNotFoundError):
        download(hub, "org/bert", "other.json")
    scanned = scan_cache_dir(hub)
    assert scanned.warnings == []
    [repo] = scanned.repos
    [revision] = repo.revisions
    assert (repo.repo_id, repo.repo_type, revision.commit_hash, revision.refs) == (
        "org/bert",
        "model",
        COMMIT,
        {"main"},
    )
    assert revision.size_on_disk == sum(map(len, FOLDER.values()))


def inodes(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_second_call_changes_nothing(monkeypatch: pytest.MonkeyPatch, origin: Origin, root: Path, app: Path) -> None:
    files = {"a.json": b"{}", "deep/b.json": b"{}", "c": b"c"}  # two are equal, and so one blob
    manifest = directory(files, on_the_hub(monkeypatch, origin, "org/bert", COMMIT, files))
    ensure(manifest, root=root, progress=False).hf_cache(app)
    before = inodes(app)
    assert files_of(snapshot(app, "org/bert")) == files
    ensure(manifest, root=root, progress=False).hf_cache(app)
    assert inodes(app) == before


def test_by_what_names_and_paths_a_checkpoint_is_known(
    monkeypatch: pytest.MonkeyPatch, origin: Origin, root: Path, app: Path
) -> None:
    origin.put("/mirror", SAM)
    origin.put("/plain", DINO)
    unet = {"config.json": b"[]", "x/model.bin": b"m"}
    base = on_the_hub(monkeypatch, origin, "org/sdxl", COMMIT, {f"unet/{path}": data for path, data in unet.items()})
    manifest = one(SAM, origin.url("/mirror"), f"{base}/vae/my vae.pt", f"hf://gpt2@{OTHER}/vae.pt", name="vae")
    manifest["checkpoints"] |= directory(unet, f"{base}/unet", name="unet")["checkpoints"]
    manifest["checkpoints"] |= one(DINO, origin.url("/plain"), name="plain")["checkpoints"]
    weights = ensure(manifest, root=root, progress=False)
    assert weights["vae"].name == "weights.pt"
    hub = weights.hf_cache(app)
    expected = {"vae/my vae.pt": SAM, "unet/config.json": b"[]", "unet/x/model.bin": b"m"}
    assert files_of(snapshot(hub, "org/sdxl")) == expected
    assert download(hub, "gpt2", "vae.pt").read_bytes() == SAM
    assert sorted(os.listdir(hub)) == ["models--gpt2", "models--org--sdxl"]
    other = weights.hf_cache(app / "only", only=["vae"])
    assert files_of(snapshot(other, "org/sdxl")) == {"vae/my vae.pt": SAM}


def test_the_mirrors_of_one_checkpoint_may_be_two_commits_and_the_first_is_main(
    monkeypatch: pytest.MonkeyPatch, origin: Origin, root: Path, app: Path
) -> None:
    url = on_the_hub(monkeypatch, origin, "org/bert", OTHER, FOLDER)
    weights = ensure(directory(FOLDER, url, f"hf://org/bert@{COMMIT}"), root=root, progress=False)
    hub = weights.hf_cache(app)
    assert snapshot(hub, "org/bert").name == OTHER
    assert files_of(snapshot(hub, "org/bert", revision=COMMIT)) == FOLDER


def two_commits(monkeypatch: pytest.MonkeyPatch, origin: Origin) -> dict[str, Any]:
    manifest = directory(FOLDER, on_the_hub(monkeypatch, origin, "org/bert", COMMIT, FOLDER), name="old")
    new = {"config.json": b"{ }"}
    manifest["checkpoints"] |= directory(new, on_the_hub(monkeypatch, origin, "org/bert", OTHER, new), name="new")[
        "checkpoints"
    ]
    return manifest


def test_two_commits_of_one_repository(monkeypatch: pytest.MonkeyPatch, origin: Origin, root: Path, app: Path) -> None:
    weights = ensure(two_commits(monkeypatch, origin), root=root, progress=False)
    with pytest.raises(ManifestError, match="choose with only=") as caught:
        weights.hf_cache(app)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["checkpoints.new.urls"]
    assert os.listdir(app) == []
    weights.hf_cache(app, only=["old"])
    assert files_of(snapshot(app, "org/bert")) == FOLDER
    weights.hf_cache(app, only=["new"])  # a newer manifest: main moves, and the older snapshot stays
    assert files_of(snapshot(app, "org/bert")) == {"config.json": b"{ }"}
    assert files_of(snapshot(app, "org/bert", revision=COMMIT)) == FOLDER
    assert leftovers(app) == []


def test_a_reference_is_written_when_all_that_it_names_is_there(
    bert: Weights, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, seen = os.replace, []

    def replace(source: str, target: str) -> None:
        seen.append((Path(target).name, files_of(app / f"models--org--bert/snapshots/{COMMIT}")))
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    bert.hf_cache(app)
    assert seen[-1] == ("main", FOLDER)


def test_a_reference_is_whole_whenever_another_process_may_rename_it(app: Path) -> None:
    """Each line is a moment in which another one may: an empty reference names no snapshot."""
    path, seen = app / "made", set[str]()

    def trace(frame: Any, event: str, _argument: object) -> Any:
        if path.exists():
            seen.add(path.read_text())
        return trace

    before = sys.gettrace()  # coverage's
    sys.settrace(trace)
    try:
        hf_cache._write(str(path), COMMIT)
    finally:
        sys.settrace(before)
    assert path.read_text() == COMMIT
    assert seen <= {COMMIT}
    assert list(app.iterdir()) == [path]


def test_what_a_killed_process_left_of_a_reference_is_removed(
    bert: Weights, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.replace

    def killed(source: str, target: str) -> None:
        if "refs" in target or ".weightcache-" in target:
            raise SystemExit
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(SystemExit):
            bert.hf_cache(app)
    home = app / "models--org--bert"
    [left] = home.glob(".weightcache-*")
    left.rename(f"{left.with_suffix('')}.1")  # of another thread
    bert.hf_cache(app)
    assert sorted(each.name for each in home.iterdir()) == ["blobs", "refs", "snapshots"]


def test_what_has_no_place_in_the_cache(weights: Weights, manifest: dict[str, Any], root: Path, app: Path) -> None:
    def problems(only: Any = None) -> str:
        with pytest.raises(ManifestError) as caught:
            ensure(manifest, root=root).hf_cache(app, only=only)
        return str(caught.value)

    assert "checkpoints: none has hf://REPO@COMMIT" in problems()
    sam, dino = manifest["checkpoints"]["sam2"]["urls"], manifest["checkpoints"]["groundingdino"]["urls"]
    sam.append(f"hf://org/x@{COMMIT}/a.pt")
    assert "checkpoints.bert.urls: no hf://REPO@COMMIT" in problems(["sam2", "bert"])
    dino.append(f"hf://org/x@{COMMIT}/a.pt")
    assert f"org/x@{COMMIT}/a.pt another sha256" in problems()
    assert os.listdir(app) == []


def test_a_path_of_the_hub_is_literal_in_a_cache(origin: Origin, root: Path, app: Path) -> None:
    origin.put("/mirror", SAM)
    paths = ["%2e%2e/%2e%2e/evil.pt", "a b#c?d/~e+[f] é%20.pt"]
    manifest = one(SAM, origin.url("/mirror"), *(f"hf://org/x@{COMMIT}/{path}" for path in paths))
    cache = ensure(manifest, root=root, progress=False).hf_cache(app)
    assert files_of(snapshot(cache, "org/x")) == dict.fromkeys(paths, SAM)
    assert download(cache, "org/x", paths[1]).read_bytes() == SAM


def test_wrong_arguments_of_a_cache(bert: Weights, app: Path) -> None:
    with pytest.raises(UnknownCheckpointError, match="'other'; declared are: bert"):
        bert.hf_cache(app, only=["other"])
    with pytest.raises(TypeError, match="collection of names"):
        bert.hf_cache(app, only="bert")
    for wrong, error in ((3, TypeError), ("", ValueError)):
        with pytest.raises(error, match="directory must be a path"):
            bert.hf_cache(wrong)  # type: ignore[arg-type]
    (app / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot read .*Not a directory"):
        bert.hf_cache(app / "file")
    (app / "hub/models--org--bert").mkdir(parents=True)
    (app / "hub/models--org--bert/refs").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot read .*refs/main: Not a directory"):
        bert.hf_cache(app / "hub")


def test_a_reference_that_cannot_be_written(bert: Weights, app: Path, small_disk: Path) -> None:
    """Here its folder leads nowhere, and then to another disk, where no rename leads."""
    refs = app / "models--org--bert/refs"
    refs.parent.mkdir()
    for target, text in ((Path("nowhere"), "File exists"), (small_disk, "cross-device")):
        refs.symlink_to(target)
        with pytest.raises(StorageError, match=rf"cannot write .*refs/main: .*{text}") as caught:
            bert.hf_cache(app)
        assert "another path" in caught.value.hint
        refs.unlink()
    assert leftovers(app) == []


def real_cache(folder: Path, commit: str, files: dict[str, bytes]) -> None:
    """What huggingface_hub leaves after a download of ``org/bert``."""
    home = folder / "models--org--bert"
    for path, data in files.items():
        there, pointer = home / "blobs" / str(len(data)), home / "snapshots" / commit / path
        for parent in (there.parent, pointer.parent, home / "refs"):
            parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(data)
        pointer.symlink_to(os.path.relpath(there, pointer.parent))
    (home / "refs/main").write_text(commit)


def test_what_huggingface_hub_downloaded_is_left(bert: Weights, app: Path) -> None:
    real_cache(app, COMMIT, {"config.json": b"theirs", "README.md": b"read me"})
    before = inodes(app)
    bert.hf_cache(app)
    assert files_of(snapshot(app, "org/bert")) == {**FOLDER, "config.json": b"theirs", "README.md": b"read me"}
    after = inodes(app)
    assert {path: after[path] for path in before if not path.is_dir()} == {
        path: what for path, what in before.items() if not path.is_dir()
    }


def test_another_commit_that_huggingface_hub_downloaded_stays_main(bert: Weights, app: Path) -> None:
    real_cache(app, OTHER, {"config.json": b"theirs"})
    before = inodes(app)
    with pytest.raises(StorageError, match=f"name {COMMIT}: it names {OTHER}") as caught:
        bert.hf_cache(app)
    assert "/tmp/hub" in caught.value.hint
    assert inodes(app) == before
    assert files_of(snapshot(app, "org/bert")) == {"config.json": b"theirs"}


def test_what_leads_nowhere_is_mended(bert: Weights, app: Path) -> None:
    real_cache(app, COMMIT, {"config.json": b"theirs"})
    (app / "models--org--bert/blobs/6").unlink()
    (app / "models--org--bert/refs/main").write_text("")  # torn
    bert.hf_cache(app)
    assert files_of(snapshot(app, "org/bert")) == FOLDER


def test_links_of_ours_follow_the_manifest(
    bert: Weights, app: Path, origin: Origin, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another pin of the same commit, and another root."""
    bert.hf_cache(app)
    changed = {**FOLDER, "config.json": b"{  }"}
    manifest = directory(changed, on_the_hub(monkeypatch, origin, "org/bert", COMMIT, changed))
    weights = ensure(manifest, root=f"{root}-2", progress=False)
    weights.hf_cache(app)
    assert files_of(snapshot(app, "org/bert")) == changed
    assert download(app, "org/bert", "deep/vocab.txt").resolve() == (weights["bert"] / "deep/vocab.txt").resolve()


def test_hf_cache_rm_does_not_reach_the_volume(
    monkeypatch: pytest.MonkeyPatch, origin: Origin, root: Path, app: Path
) -> None:
    from huggingface_hub import scan_cache_dir

    weights = ensure(two_commits(monkeypatch, origin), root=root, progress=False)
    weights.hf_cache(app, only=["old"])
    weights.hf_cache(app, only=["new"])
    scan_cache_dir(app).delete_revisions(COMMIT).execute()  # one of two: its blobs go one by one
    assert not (app / f"models--org--bert/snapshots/{COMMIT}").exists()
    assert files_of(weights["old"]) == FOLDER
    scan_cache_dir(app).delete_revisions(OTHER).execute()
    assert os.listdir(app) == []
    assert files_of(weights["new"]) == {"config.json": b"{ }"}


# The real transformers, in a process of its own that may connect to nothing.

MAKE = """
import sys, torch
from transformers import BertConfig, BertModel, BertTokenizer
folder = sys.argv[1]
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "shirt", "##s"]
open(f"{folder}/vocab.txt", "w").write("\\n".join(words) + "\\n")
sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
torch.manual_seed(7)
model = BertModel(BertConfig(vocab_size=len(words), **sizes)).eval()
model.save_pretrained(folder)
tokenizer = BertTokenizer(f"{folder}/vocab.txt")
tokenizer.save_pretrained(folder)
"""

LOAD = """
import hashlib, json
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("org/tiny")
model = AutoModel.from_pretrained("org/tiny")
weights = {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in model.state_dict().items()}
print(json.dumps([tokenizer("red shirts")["input_ids"], weights]))
"""

NO_NETWORK = """
import socket
def refuse(*arguments, **options):
    with open({log!r}, "a") as stream:
        stream.write(repr(arguments) + chr(10))
    raise OSError("no network here")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


def needs_transformers() -> None:
    for name in ("torch", "transformers"):
        if find_spec(name) is None:
            lacking(f"{name} is not installed")


@pytest.mark.transformers
def test_from_pretrained_runs_unmodified_offline(
    monkeypatch: pytest.MonkeyPatch, origin: Origin, root: Path, app: Path, tmp_path: Path
) -> None:
    needs_transformers()
    (tmp_path / "made").mkdir()
    subprocess.run([sys.executable, "-c", MAKE, tmp_path / "made"], check=True, capture_output=True, timeout=200)
    files = files_of(tmp_path / "made")
    assert {"config.json", "model.safetensors", "tokenizer_config.json"} <= set(files)
    url = on_the_hub(monkeypatch, origin, "org/tiny", COMMIT, files)
    weights = ensure(directory(files, url, name="tiny"), root=root, progress=False)
    hub = weights.hf_cache(app / "hub")

    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(NO_NETWORK.format(log=str(tmp_path / "connected")))
    (app / "main.py").write_text(LOAD)
    offline = {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    env = {**os.environ, **offline, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "main.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=app, env=env, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    tokens, digests = json.loads(done.stdout)
    assert tokens == [2, 5, 6, 7, 3]
    assert digests == tensors_of(files["model.safetensors"])
    assert not (tmp_path / "connected").exists()


def tensors_of(data: bytes) -> dict[str, str]:
    """Return the sha256 of each tensor's bytes in a safetensors file, read without safetensors."""
    import hashlib

    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    body = data[8 + length :]
    offsets = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: hashlib.sha256(body[first:last]).hexdigest() for name, (first, last) in offsets.items()}


# The how-to.


def test_the_how_to_runs(
    monkeypatch: pytest.MonkeyPatch, manifest: dict[str, Any], origin: Origin, root: Path, app: Path
) -> None:
    page = Path(__file__).parents[2] / "docs/how-to/programs-with-fixed-folders.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) == 4
    manifest["checkpoints"]["sdxl"] = one(SAM, origin.url("/sam"))["checkpoints"]["sam2"]
    url = on_the_hub(monkeypatch, origin, "google-bert/bert-base-uncased", COMMIT, FOLDER)
    manifest["checkpoints"]["bert"]["urls"] = [url]
    toml_of(manifest, app / "weights.toml")
    prelude = "import os, modal\nfrom weightcache import ensure\nimage, volume = modal.Image.debian_slim(), None\n"
    program = "\n".join([prelude, *blocks, "print(os.environ['HF_HUB_CACHE'], os.environ['HF_HUB_OFFLINE'])"])
    program = program.replace("/vol/weights", str(root)).replace("/tmp/hub", str(app / "hub"))
    env = {**os.environ, "HOME": str(app)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=app, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(app / "hub"), "1"]
    assert (app / "data/weights/groundingdino_swint_ogc.pth").read_bytes() == DINO
    assert (app / "data/weights/sam2_hiera_large.pt").read_bytes() == SAM
    assert (app / "ComfyUI/models/checkpoints/sd_xl_base_1.0.safetensors").read_bytes() == SAM
    assert files_of(snapshot(app / "hub", "google-bert/bert-base-uncased")) == FOLDER
