"""`WeightVolume.fill`: the weights are downloaded while the image is built, by the real client and entrypoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from grpclib import Status

from control_plane import ControlPlane
from origin import Origin
from support import blob, one, sha256, toml_of
from weightcache.errors import UnknownCheckpointError
from weightcache.modal import WeightVolume

pytestmark = pytest.mark.usefixtures("namespaces")

DATA = blob(100_000)

APP = """
import modal
from weightcache.modal import WeightVolume

app = modal.App("filled")
cache = WeightVolume("weights.toml", name="fashion-models", path="/root/data/weights")
image = cache.fill(modal.Image.debian_slim().pip_install("torch"), secrets=[{secrets}])
image = image.env({{"AFTER": "1"}}).add_local_file(__file__, "/x")


@app.function(image=image, volumes=cache.mounts, startup_timeout=900)
def outcome():
    return {{name: report.outcome for name, report in cache.ensure(progress=False).report.items()}}


@app.local_entrypoint()
def main():
    print("shown", outcome.remote())
"""


class App:
    """An app of its own directory, which the real client deploys and runs."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.plane, self.folder = plane, folder
        folder.mkdir()
        self.write(APP.format(secrets=""))

    def write(self, code: str) -> None:
        (self.folder / "app.py").write_text(code)

    def declare(self, manifest: dict[str, Any]) -> None:
        toml_of(manifest, self.folder / "weights.toml")

    def client(self, command: str, *, code: int = 0) -> str:
        done = self.plane.client("-m", "modal", command, str(self.folder / "app.py"))
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def builds(self) -> int:
        """How many containers a build started."""
        built = {id(image.builder) for image in self.plane._images.values() if image.builder}
        return len(built)


@pytest.fixture
def app(plane: ControlPlane, tmp_path: Path, origin: Origin) -> App:
    origin.put("/a", DATA)
    app = App(plane, tmp_path / "app")
    app.declare(one(DATA, origin.url("/a")))
    return app


def committed(plane: ControlPlane) -> dict[str, bytes]:
    [volume] = plane.volumes.values()
    return {path: volume.read(path) for path in volume.files if not path.startswith(".weightcache/")}


def test_after_a_deployment_the_first_container_makes_no_request(app: App, origin: Origin) -> None:
    said = app.client("deploy")
    assert "weightcache: sam2: downloaded" in said
    assert app.builds() == 1
    assert committed(app.plane) == {f"sam2/{sha256(DATA)[:16]}/weights.pt": DATA}
    requests = len(origin.requests)
    origin.__exit__()
    assert "shown {'sam2': 'hit'}" in app.client("run")
    assert len(origin.requests) == requests
    assert app.builds() == 1
    _, container = app.plane.containers
    assert "DictGetOrCreate" not in container.calls


def test_only_a_change_of_what_is_declared_downloads_again(app: App, origin: Origin) -> None:
    app.client("deploy")
    manifest = app.folder / "weights.toml"
    manifest.write_text(manifest.read_text() + "\n# a comment\n")
    app.client("deploy")
    assert app.builds() == 1
    newer = blob(50_000, seed=1)
    origin.put("/b", newer)
    app.declare(one(newer, origin.url("/b")))
    assert "sam2: downloaded" in app.client("deploy")
    assert app.builds() == 2
    assert sorted(committed(app.plane).values(), key=len) == [newer, DATA]
    app.write(APP.format(secrets="").replace('"fashion-models"', '"other-models"'))
    app.client("deploy")
    assert app.builds() == 3  # another Volume is empty


def test_a_volume_that_was_emptied_is_filled_by_the_container_or_by_force(app: App) -> None:
    app.client("deploy")
    [volume] = app.plane.volumes.values()
    volume.files.clear()
    assert "shown {'sam2': 'downloaded'}" in app.client("run")
    volume.files.clear()
    app.write(APP.format(secrets="").replace("secrets=", "force_build=True, secrets="))
    assert "sam2: downloaded" in app.client("deploy")
    assert list(committed(app.plane).values()) == [DATA]


def test_a_token_comes_from_a_secret_and_stays_there(app: App, origin: Origin) -> None:
    app.declare(one(DATA, origin.url("/a")))
    manifest = app.folder / "weights.toml"
    manifest.write_text(manifest.read_text() + '\nauth = "ACME_TOKEN"\n')
    said = app.client("deploy", code=1)
    assert "ACME_TOKEN" in said
    assert app.plane.requests("AppPublish") == []  # the failed build stopped the deployment
    app.plane.secret("acme", ACME_TOKEN="hush-hush")
    app.write(APP.format(secrets='modal.Secret.from_name("acme")'))
    said = app.client("deploy")
    assert {each.headers.get("Authorization") for each in origin.requests} == {"Bearer hush-hush"}
    definitions = b"".join(each.SerializeToString() for each in app.plane.requests("ImageGetOrCreate"))
    assert "hush-hush" not in said
    assert b"hush-hush" not in definitions


def test_a_commit_that_fails_fails_the_deployment(app: App) -> None:
    app.plane.fail("VolumeCommit", Status.FAILED_PRECONDITION, "no", times=100)
    said = app.client("deploy", code=1)
    assert "did not take the weights" in said
    assert app.plane.requests("AppPublish") == []
    app.plane.recover("VolumeCommit")
    assert "sam2: " in app.client("deploy")  # a failed step runs again


def test_files_that_are_added_at_start_come_after_it(app: App) -> None:
    app.write(APP.format(secrets="").replace('.pip_install("torch")', '.add_local_file(__file__, "/y")'))
    assert "copy=True" in app.client("deploy", code=1)
    assert app.builds() == 0


def test_two_volumes_are_filled_by_one_image_each_with_its_settings(app: App, origin: Origin) -> None:
    other = blob(3000, seed=2)
    origin.put("/other", other)
    toml_of(one(other, origin.url("/other"), name="lama"), app.folder / "other.toml")
    second = 'WeightVolume("other.toml", name="other-models", path="/root/data/other")'
    first = f"{second}.fill(modal.Image.debian_slim(), timeout=7200, cpu=4.0, memory=512, only=['lama'])"
    app.write(APP.format(secrets="").replace("modal.Image.debian_slim()", first))
    app.client("deploy")
    step, default, _ = (each.function for each in app.plane.requests("FunctionCreate"))
    assert (step.timeout_secs, step.resources.milli_cpu, step.resources.memory_mb) == (7200, 4000, 512)
    assert (default.timeout_secs, default.resources.milli_cpu, default.resources.memory_mb) == (3600, 2000, 2048)
    assert [each.volume_mounts[0].mount_path for each in (step, default)] == ["/root/data/other", "/root/data/weights"]
    held = {each.name: [path for path in each.files if path[0] != "."] for each in app.plane.volumes.values()}
    assert {name: len(files) for name, files in held.items()} == {"fashion-models": 1, "other-models": 1}


def test_mistakes_are_found_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    import modal

    cache = WeightVolume(one(DATA), name="v", path="/w")
    image = modal.Image.debian_slim()
    with pytest.raises(UnknownCheckpointError, match="lama"):
        cache.fill(image, only=["lama"])
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    assert cache.fill(image) is image  # a container has the image


class Steps:
    """An image that records the build functions that are added to it."""

    def __init__(self) -> None:
        self.arguments: list[str] = []

    def run_function(self, function: Any, *, args: tuple[str], **options: Any) -> Steps:
        self.arguments += args
        return self

    def __getattr__(self, name: str) -> Any:
        return lambda *words, **options: self


def arguments(**options: Any) -> str:
    steps = Steps()
    WeightVolume(one(DATA, "https://h.example/a"), name="v", path="/w").fill(steps, **options)  # type: ignore[arg-type]
    [found] = steps.arguments
    return found


def test_each_environment_has_a_volume_to_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODAL_ENVIRONMENT", "staging")  # `modal deploy --env` sets it before it imports the app
    staging = arguments()
    assert arguments() == staging  # the same text in each deployment
    monkeypatch.setenv("MODAL_ENVIRONMENT", "main")
    assert arguments() != staging
    assert arguments(only=["sam2"]) != arguments()
    assert arguments(timeout=7, secrets=[]) == arguments()
