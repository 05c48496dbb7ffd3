"""The verbs on a Volume: ``--volume``, ``push``, and what ``doctor`` finds out about one."""

from __future__ import annotations

import io
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from grpclib import Status

import weightcache
from command_line import run
from control_plane import ControlPlane
from hub import Hub, pointer
from origin import Origin
from origin import status as answer
from output_schema import checked
from support import blob, directory, one, sha256, toml_of
from weightcache import Manifest
from weightcache._environment import VOLUME_FLAGS
from weightcache.cli import modal_app, probe_volume_behavior
from weightcache.cli import push as pushing
from weightcache.cli.commands import COMMANDS
from weightcache.cli.main import main_in_container
from weightcache.cli.parser import build_parser
from weightcache.modal.image import to_toml

pytestmark = pytest.mark.usefixtures("namespaces")

DATA = blob(200_000)


@pytest.fixture
def manifest(origin: Origin, tmp_path: Path) -> Path:
    origin.put("/a", DATA)
    return toml_of(one(DATA, origin.url("/a")), tmp_path / "weights.toml")


def tool(plane: ControlPlane, *words: Any, stdin: str = "", **environment: str) -> tuple[int, str, str]:
    """Run the command line as its own process: modal keeps one client for each."""
    done = plane.client("-m", "weightcache", *map(str, words), directory=Path.cwd(), stdin=stdin, **environment)
    return done.returncode, done.stdout, done.stderr


# usage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("status", "--volume", "v", "--root", "/x"), "--root is a directory of this machine"),
        (("status", "--env", "e"), "--env needs --volume"),
        (("ensure", "--secret", "s", "--root", "/x"), "--secret needs --volume"),
        (("ensure", "--create", "--root", "/x"), "--create needs --volume"),
        (("doctor", "--probe"), "--probe needs --volume"),
        (("push", "--root", "/x"), "--volume"),
        (("push", "--volume", "v"), "no root"),
        (("ensure", "--volume", "v", "--version", "3"), "invalid choice"),
    ],
)
def test_bad_usage(
    words: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEIGHTCACHE_ROOT", raising=False)
    code, _, err = run(capsys, *words)
    assert (code, problem in err) == (2, True), err


def test_what_is_wrong_here_is_said_before_modal_is_asked(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "modal", None)
    assert run(capsys, "status", "--volume", "v", "-m", tmp_path / "no.toml")[0] == 2
    assert run(capsys, "status", "--volume", "v", "-m", manifest, "unknown")[0] == 2
    for words in (("status",), ("doctor",), ("doctor", "--probe"), ("push", "--root", tmp_path)):
        code, out, err = run(capsys, *words, "--volume", "v", "-m", manifest)
        assert code == 5
        assert "pip install 'weightcache[modal]'" in out + err


def container_argv(words: list[str], **replaced: Any) -> list[str]:
    options = build_parser(COMMANDS).parse_args(words)
    command = next(command for command in COMMANDS if command.name == options.verb)
    return command.container_argv(options, {"root": "/mnt/weights", **replaced})


def test_the_argv_of_the_container() -> None:
    words = ["ensure", "a", "b", "--volume", "v", "--json", "--rehash", "--wait", "7", "--secret", "s"]
    argv = ["ensure", "a", "b", "--manifest=/etc/m.toml", "--root=/mnt/weights", "--json"]
    assert container_argv(words, manifest="/etc/m.toml") == [*argv, "--rehash", "--wait=7.0", "--patience=180.0"]
    words = ["prune", "--volume", "v", "-m", "x", "-m", "y", "--yes", "--older-than", "0"]
    argv = ["prune", "--manifest=/1", "--manifest=/2", "--root=/mnt/weights", "--yes", "--older-than=0.0"]
    assert container_argv(words, manifest=["/1", "/2"]) == argv
    assert container_argv(["bench", "--volume", "v"]) == ["bench", "--root=/mnt/weights", "--size=2000"]


class Recorder:
    """A Volume that counts."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def commit(self) -> None:
        self.calls.append("commit")

    def reload(self) -> None:
        self.calls.append("reload")


def test_the_container_commits_and_answers(manifest: Path, root: Path, tmp_path: Path) -> None:
    volume: Any = Recorder()
    where = ["-m", str(manifest), "--root", str(root)]
    code, said, heard = main_in_container(volume, ["ensure", "--json", "-q", *where], True)
    assert (code, heard) == (0, "")
    assert json.loads(said)["checkpoints"][0]["outcome"] == "downloaded"
    assert volume.calls == ["reload", "commit", "commit"]
    lines = main_in_container(volume, ["status", *where], True, 60)[1].splitlines()  # for a terminal of 60 columns
    assert len(lines) == 1
    assert len(lines[0]) <= 60
    assert "…" in lines[0]
    assert "committed" not in main_in_container(volume, ["ensure", *where], True)[2]
    assert main_in_container(volume, ["status", "nonsense", *where], True)[0] == 2
    assert main_in_container(volume, ["nonsense"], True)[0] == 2
    other = toml_of(one(b"other"), tmp_path / "other.toml")
    volume.calls.clear()
    words = ["prune", "--yes", "--older-than", "0", "-m", str(other), "--root", str(root)]
    assert main_in_container(volume, words, False)[:2] == (0, f"deleted  {root}/sam2/{sha256(DATA)[:16]}\n")
    assert volume.calls == ["reload", "commit", "reload", "commit"]


# what cannot be had --------------------------------------------------------------------------------------------


def test_a_volume_that_is_not_there(plane: ControlPlane, manifest: Path) -> None:
    for verb in ("ensure", "status", "verify", "prune"):
        code, out, err = tool(plane, verb, "--volume", "absent", "-m", manifest, "--json")
        assert code == 5
        assert json.loads(out)["error"] == "VolumeError"
        assert "cannot open Volume absent" in err
        assert "--create" in err
    assert plane.requests("FunctionCreate") == []


def test_a_volume_of_another_version(plane: ControlPlane, manifest: Path, root: Path) -> None:
    assert tool(plane, "push", "--volume", "v", "--create", "-m", manifest, "--root", root)[0] == 1
    code, _, err = tool(plane, "ensure", "--volume", "v", "--version", "2", "-m", manifest)
    assert code == 5
    assert "version v1, not v2" in err
    assert "leave out --version" in err
    assert plane.requests("FunctionCreate") == []


def test_a_name_that_no_volume_can_have(plane: ControlPlane, manifest: Path) -> None:
    for words in (("ensure",), ("status",), ("ensure", "--version", "2")):
        code, _, err = tool(plane, *words, "--volume", "a/b", "-m", manifest)
        assert code == 5
        assert "Invalid Volume name: 'a/b'" in err
        assert "hint: correct --volume: `modal volume list` shows the existing names" in err
        assert "version" not in err


def test_a_gated_repository_without_a_token(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)  # of the containers
        hub.create("org/gated", gated=True)
        commit = hub.push("org/gated", "main", {"x.bin": DATA})
        path = tmp_path / "weights.toml"
        path.write_text(to_toml(Manifest.load(one(DATA, f"hf://org/gated@{commit}/x.bin"))))
        code, _, err = tool(plane, "ensure", "--volume", "v", "--create", "-m", path, "-q")
    assert code == 3
    assert f"accept its licence at {hub.url}/org/gated" in err
    assert (
        "use the token of that account in HF_TOKEN of a Modal Secret, which --secret NAME of the command names" in err
    )


def test_what_is_missing_offline_on_a_volume(plane: ControlPlane, manifest: Path) -> None:
    plane.volume("v")
    code, _, err = tool(plane, "ensure", "--offline", "--volume", "v", "-m", manifest, "-q")
    assert code == 1
    assert "hint: run `weightcache ensure sam2 --volume v` with this manifest (-m)" in err


def test_an_expired_token(plane: ControlPlane, manifest: Path) -> None:
    plane.fail("VolumeGetOrCreate", Status.UNAUTHENTICATED, "Token validation failed", times=9)
    code, _, err = tool(plane, "ensure", "--volume", "v", "-m", manifest)
    assert code == 5
    assert "Modal refuses the credentials (Token validation failed)" in err
    assert "run `modal setup`" in err
    assert plane.requests("FunctionCreate") == []


def test_no_credentials(plane: ControlPlane, manifest: Path) -> None:
    code, _, err = tool(plane, "status", "--volume", "v", "-m", manifest, MODAL_TOKEN_ID="", MODAL_TOKEN_SECRET="")
    assert code == 5
    assert "there are no Modal credentials on this machine" in err
    assert "modal setup" in err


def test_what_modal_raises_is_told_with_what_to_do() -> None:
    import modal

    raised = modal.exception
    for error, said, hint in (
        (raised.AuthError("Token expired"), "refuses the credentials (Token expired)", "modal setup"),
        (raised.NotFoundError("nope"), "cannot open it: nope", "look"),
        (raised.PermissionDeniedError("no"), "cannot open it: no", "workspace's owner"),
        (raised.ConnectionError("no route"), "no route", "network"),
        (raised.ResourceExhaustedError("quota"), "quota", "Modal's message"),
        (raised.FunctionTimeoutError(""), "FunctionTimeoutError", "are kept"),
    ):
        with pytest.raises(weightcache.VolumeError) as caught, modal_app.translated("open it", missing="look here"):
            raise error
        assert said in str(caught.value)
        assert hint in caught.value.hint


# the verbs on a Volume -----------------------------------------------------------------------------------------


def test_the_verbs_on_a_volume(plane: ControlPlane, origin: Origin, manifest: Path, tmp_path: Path) -> None:
    other = toml_of(one(b"other"), tmp_path / "other.toml")
    path = f"/mnt/weights/sam2/{sha256(DATA)[:16]}/weights.pt"
    where = ("--volume", "v", "-m", manifest)
    code, out, err = tool(plane, "ensure", *where, "--create", "--json")
    assert code == 0, err
    [row] = json.loads(out)["checkpoints"]
    assert (row["outcome"], row["path"], row["bytes_fetched"]) == ("downloaded", path, len(DATA))
    assert "weightcache: 0.2 MB of 1 file(s)" in err  # from the container's log
    code, out, err = tool(plane, "ensure", *where, "sam2", "--quiet", "--offline")
    assert (code, out.split()[:2]) == (0, ["sam2", "hit"])
    assert tool(plane, "status", *where)[:2] == (0, f"sam2  ready  0.2 MB  {path}\n")
    assert json.loads(tool(plane, "verify", *where, "--json")[1])["checkpoints"][0]["state"] == "ready"
    told = json.loads(tool(plane, "bench", "--volume", "v", "--size", 10, "--json")[1])
    assert (told["root"], told["bytes"]) == ("/mnt/weights", len(DATA))
    both = ("--volume", "v", "-m", other, "-m", manifest, "--older-than", 0)
    assert tool(plane, "prune", *both)[:2] == (0, "nothing to delete\n")
    gone = ("--volume", "v", "-m", other, "--older-than", 0)
    assert tool(plane, "prune", *gone)[:2] == (0, f"would delete  {path.rpartition('/')[0]}\n")
    assert tool(plane, "prune", *gone, "--yes")[:2] == (0, f"deleted  {path.rpartition('/')[0]}\n")
    code, out, _ = tool(plane, "status", *where)
    assert (code, out.split()[:2]) == (1, ["sam2", "missing"])
    origin.files["/a"].always = answer(404)
    code, out, err = tool(plane, "ensure", *where, "--json", "--quiet")
    assert (code, json.loads(out)["error"]) == (3, "DownloadError")
    assert "HTTP 404" in err


def test_what_the_container_is_given(plane: ControlPlane, origin: Origin, manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(DATA)
    code, _, err = tool(plane, "ensure", "--volume", "v", "--create", "-m", manifest, "-q")
    assert code == 0, err
    function = plane.requests("FunctionCreate")[-1].function
    [mount] = function.volume_mounts
    assert (mount.mount_path, mount.read_only) == ("/mnt/weights", False)
    assert (function.resources.milli_cpu, function.resources.memory_mb) == (2000, 2048)
    assert function.resources.gpu_config.count == 0
    assert function.timeout_secs == 6 * 3600
    assert function.autoscaler_settings.min_containers == 0
    assert [plane._secrets[each] for each in function.secret_ids] == [{VOLUME_FLAGS: "--volume v"}]  # for its hints
    files = {file.filename: file.sha256_hex for each in plane.requests("MountGetOrCreate") for file in each.files}
    assert files["/etc/weightcache/manifest-0.toml"] == sha256(manifest.read_bytes())
    assert "/root/weightcache/_api.py" in files
    assert sha256(DATA) not in files.values()


def test_secrets(plane: ControlPlane, tmp_path: Path, origin: Origin) -> None:
    origin.put("/a", DATA)
    path = tmp_path / "weights.toml"
    path.write_text(to_toml(Manifest.load(one(DATA, origin.url("/a"), auth="HF_TOKEN"))))
    where = ("--volume", "v", "--create", "-m", path, "-q")
    code, _, err = tool(plane, "ensure", *where)
    assert code == 3
    assert "no --secret is given, and the manifest names HF_TOKEN" in err
    assert "hint: add --secret NAME to the command: a Modal Secret that holds HF_TOKEN" in err
    asked = len(plane.requests("FunctionCreate"))
    code, _, err = tool(plane, "ensure", *where, "--secret", "absent-secret")
    assert code == 5
    assert "cannot open Secret absent-secret" in err
    assert "modal secret list" in err
    assert len(plane.requests("FunctionCreate")) == asked


# push ----------------------------------------------------------------------------------------------------------


FILES = {"config.json": b"{}", "onnx/model.bin": blob(50_000, seed=2)}


def listed(plane: ControlPlane, volume: str) -> list[str]:
    """Return what the Volume holds, as ``modal volume ls`` lists it in a process of its own."""
    code = (
        "import modal, sys\n"
        "for each in modal.Volume.from_name(sys.argv[1]).listdir('/', recursive=True):\n"
        "    if each.type.name == 'FILE': print(each.path.lstrip('/'))\n"
    )
    done = plane.client("-c", code, volume)
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.split())


@pytest.mark.parametrize("version", [1, 2])
def test_push(plane: ControlPlane, manifest: Path, root: Path, tmp_path: Path, version: int) -> None:
    merged = one(DATA)
    merged["checkpoints"].update(directory(FILES)["checkpoints"])
    merged["checkpoints"].update(one(b"never here", name="absent")["checkpoints"])
    everything = toml_of(merged, tmp_path / "all.toml")
    loaded = Manifest.load(everything)
    weightcache.ensure(manifest, root=root, progress=False)
    for path, data in FILES.items():  # complete, and nobody has verified it yet
        place = root / "bert" / loaded["bert"].version / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    where = ("--volume", "v", "-m", everything, "--root", root)
    code, out, err = tool(plane, "push", *where, "--create", "--version", version, "--json")
    assert code == 1
    outcomes = {row["name"]: (row["outcome"], row["bytes"]) for row in checked(out)["checkpoints"]}
    assert outcomes == {"sam2": ("uploaded", 200_000), "bert": ("uploaded", 50_002), "absent": ("missing", 0)}
    assert "0.3 MB in all to Volume v" in err
    assert err.index("in all to Volume") < err.index("sam2: uploaded")
    expected = [
        *(f"{name}/{loaded[name].version}/{file.path}" for name in ("sam2", "bert") for file in loaded[name].files),
        *(f".weightcache/receipts/{name}/{loaded[name].digest}.json" for name in ("sam2", "bert")),
    ]
    assert listed(plane, "v") == sorted(expected)
    rpc = f"VolumePutFiles{'2' if version == 2 else ''}"
    told = [[getattr(file, "filename", "") or file.path for file in put.files] for put in plane.requests(rpc)]
    told = [[name.lstrip("/") for name in names] for names in told]
    receipts = [[name.startswith(".weightcache/receipts/") for name in names] for names in told]
    assert all(all(each) or not any(each) for each in receipts)  # never a receipt in one upload with data
    for name in ("sam2", "bert"):
        last = max(index for index, names in enumerate(told) if any(each.startswith(f"{name}/") for each in names))
        assert last < min(index for index, names in enumerate(told) if any(f"/{name}/" in each for each in names))
    code, out, _ = tool(plane, "push", "bert", "sam2", *where)
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [["sam2", "there"], ["bert", "there"]]
    assert len(plane.requests(rpc)) == len(told)


def test_push_never_uploads_wrong_bytes(plane: ControlPlane, manifest: Path, root: Path) -> None:
    path = weightcache.ensure(manifest, root=root, progress=False)["sam2"]
    path.write_bytes(bytes(len(DATA)))
    code, out, err = tool(plane, "push", "--volume", "v", "--create", "-m", manifest, "--root", root)
    assert (code, out.split()[:2]) == (1, ["sam2", "missing"])
    assert "sam2 is damaged here" in err
    assert listed(plane, "v") == []


def test_push_warns_of_a_pointer_that_is_pinned(plane: ControlPlane, root: Path, tmp_path: Path) -> None:
    pointed = pointer(sha256(DATA), len(DATA))
    source = tmp_path / "w.pt"
    source.write_bytes(pointed)
    declared = toml_of(one(pointed, f"file://{source}"), tmp_path / "pointer.toml")
    weightcache.ensure(declared, root=root, progress=False)
    code, _, err = tool(plane, "push", "--volume", "v", "--create", "-m", declared, "--root", root)
    assert code == 0
    assert "sam2: weights.pt is a Git LFS pointer instead of the file" in err


def test_much_needs_a_yes(
    plane: ControlPlane, manifest: Path, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weightcache.ensure(manifest, root=root, progress=False)
    uploaded: list[str] = []
    monkeypatch.setattr(pushing, "CONFIRM_ABOVE", 100)
    monkeypatch.setattr(pushing, "connect", lambda options: None)
    monkeypatch.setattr(pushing, "_is_there", lambda volume, checkpoint: False)
    monkeypatch.setattr(pushing, "_upload", lambda volume, layout, checkpoint, sizes: uploaded.append(checkpoint.name))
    where = ("--volume", "v", "-m", manifest, "--root", root)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, _, err = run(capsys, "push", *where)
    assert (code, "give --yes" in err, uploaded) == (2, True, [])
    assert "0.2 MB to /sam2/" in err
    terminal = io.StringIO("n\ny\n")
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    assert (run(capsys, "push", *where)[0], uploaded) == (2, [])
    assert (run(capsys, "push", *where)[0], uploaded) == (0, ["sam2"])
    assert (run(capsys, "push", "--yes", *where)[0], uploaded) == (0, ["sam2", "sam2"])


# doctor --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_doctor_tells_the_version(plane: ControlPlane, manifest: Path, root: Path, version: int) -> None:
    words = ("--volume", "v", "--create", "--version", version, "-m", manifest, "--root", root)
    assert tool(plane, "push", *words)[0] == 1
    code, out, _ = tool(plane, "doctor", "--volume", "v", "--json")
    [finding] = json.loads(out)["findings"]
    assert (code, finding["check"], finding["ok"]) == (0, "modal", True)
    assert finding["text"].endswith(f", version {version}")
    code, out, _ = tool(plane, "doctor", "--volume", "absent")
    assert code == 5
    assert "FAIL  modal  cannot open Volume absent" in out
    assert "modal" in tool(plane, "doctor", "--volume", "v", "-m", manifest, "--root", root)[1]


def test_the_probes_answer_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a plain directory, where two containers are two threads, and a reload fails as Modal's does."""

    class Volume(Recorder):
        def reload(self) -> None:
            if Path.cwd() == tmp_path / folder:
                raise RuntimeError("there are open files preventing the operation: cwd is inside volume")

        def listdir(self, path: str) -> list[Any]:
            raise PermissionError(1, "not from here")

    volume: Any = Volume()
    folder = ".weightcache/probe-0"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(modal_app, "MOUNT", str(tmp_path))
    monkeypatch.setattr(probe_volume_behavior, "KEEP_FOR", 1.0)
    monkeypatch.setattr(probe_volume_behavior, "WAIT_FOR", 20.0)
    seen: list[dict[str, Any]] = []
    watcher = threading.Thread(target=lambda: seen.append(probe_volume_behavior.watch(volume, f"{folder}/seen")))
    watcher.start()
    try:
        found = probe_volume_behavior.write(volume, folder)
    finally:
        watcher.join()
    assert found["flock_within_one_container"]["excludes"] == "True"
    assert found["hard_link"] == {"link": "ok", "commit": "ok", "links_before": 2, "links_after": 2, "kept": True}
    assert found["mtime_and_inode"]["mtime_after"] == 1_000_000_000_123_456_789
    reloads = found["reload_with"]
    assert reloads.pop("working_directory").startswith("RuntimeError: there are open files")
    assert reloads.pop("uncommitted_file_is_kept") == "True"
    assert set(reloads.values()) == {"ok"}
    assert found["open_writer"]["fsynced"] == {
        "commit": "ok",
        "bytes_committed": "PermissionError: [Errno 1] not from here",
    }
    listing = "PermissionError EPERM: not from here"
    assert found["empty_directory"] == {
        "commit": "ok",
        "reload": "ok",
        "kept_here": True,
        "listing": listing,
        "listed": False,
    }
    assert "on_the_volume" in found["sandbox"]
    bounds = [each["ahead_of_the_other_clock_at_most"] for each in (found, *seen)]
    assert [type(bound) for bound in bounds] == [float, float]
    assert seen[0]["counts_seen"][-1] == 200
    assert not (tmp_path / folder).exists()
    assert probe_volume_behavior.read_only(volume, folder)["write"] == "ok"
    assert list((tmp_path / ".weightcache").iterdir()) == []
    assert probe_volume_behavior._answers(lambda: {}["lost"]) == {"broke": "KeyError: 'lost'"}
    json.dumps([found, seen])


def test_the_bound_of_a_clock_is_the_time_since_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clock").write_text("1000.5")
    monkeypatch.setattr(probe_volume_behavior.time, "time", lambda: 1003.75)
    assert probe_volume_behavior._since(tmp_path / "clock") == 3.25


def test_a_writer_compares_clocks_before_it_asks_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    volume: Any = Recorder()
    monkeypatch.setattr(modal_app, "MOUNT", str(tmp_path))
    monkeypatch.setattr(probe_volume_behavior, "_publish_at_once", lambda *_: asked.append("clock"))
    monkeypatch.setattr(probe_volume_behavior, "_mount", lambda: asked.append("mount"))
    probe_volume_behavior.write(volume, "probe")
    assert asked == ["clock", "mount"]


def test_a_watcher_that_cannot_write_still_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    volume: Any = Recorder()
    monkeypatch.setattr(modal_app, "MOUNT", str(tmp_path))
    monkeypatch.setattr(probe_volume_behavior, "WAIT_FOR", 0.1)
    monkeypatch.setattr(Path, "write_text", refuse)
    (tmp_path / "probe").mkdir()
    assert probe_volume_behavior.watch(volume, "probe/seen")["counts_seen"] == []


def test_doctor_probes(plane: ControlPlane, manifest: Path, root: Path) -> None:
    assert tool(plane, "push", "--volume", "v", "--create", "-m", manifest, "--root", root)[0] == 1
    code, out, err = tool(plane, "doctor", "--volume", "v", "--probe")
    assert code == 0, err
    told = checked(out)
    assert (told["volume_version"], told["weightcache"]) == (1, weightcache.__version__)
    assert set(told["answers"]) == {
        "mount",
        "flock_within_one_container",
        "hard_link",
        "mtime_and_inode",
        "reload_with",
        "open_writer",
        "empty_directory",
        "sandbox",
        "ahead_of_the_other_clock_at_most",
        "visibility_of_one_commit",
        "read_only",
        "commit_outside_a_container",
    }
    assert "EROFS" in told["answers"]["read_only"]["write"]
    assert "broke" not in out
    assert listed(plane, "v") == []
