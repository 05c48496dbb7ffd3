"""What a deployment of the example asks of Modal, through the real client.

Here is neither torch nor FastAPI in its way: it is deployed from a machine that has modal and weightcache.
tests/example/test_app.py runs what is deployed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from modal_proto import api_pb2 as pb

import cost
from control_plane import ControlPlane
from origin import Origin, status
from support import sha256
from weightcache import Manifest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion_crop"


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path / "plane") as plane:
        plane.secret("fashion-api-keys", FASHION_API_KEY="let me in")
        yield plane


def deploy(plane: ControlPlane, **options: str) -> subprocess.CompletedProcess[str]:
    return plane.client("-m", "modal", "deploy", str(EXAMPLE / "app.py"), **options)


def deployed(plane: ControlPlane, **options: str) -> dict[str, Any]:
    """Return what is asked for each function, by its name. With a GPU it stands in another place."""
    done = deploy(plane, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    functions = [each.function for each in plane.requests("FunctionCreate")]
    return {each.function_name: each for each in functions}


def built(plane: ControlPlane) -> list[str]:
    return [line for each in plane.requests("ImageGetOrCreate") for line in each.image.dockerfile_commands]


def autoscaler(function: Any) -> dict[str, int]:
    return {field.name: value for field, value in function.autoscaler_settings.ListFields()}


@pytest.mark.parametrize("option", "ABCD")
def test_what_every_option_has(plane: ControlPlane, option: str) -> None:
    function = deployed(plane, FASHION_OPTION=option)["FashionCrop.*"]
    assert set(function.method_definitions) == {"crop", "web"}
    web = function.method_definitions["web"].webhook_config
    assert (web.type, web.requires_proxy_auth) == (pb.WEBHOOK_TYPE_ASGI_APP, False)
    assert (function.resources.milli_cpu, function.resources.memory_mb) == (2000, 16384)
    assert (function.timeout_secs, function.startup_timeout_secs) == (600, 900)
    assert (function.max_concurrent_inputs, function.target_concurrent_inputs) == (8, 2)
    [volume] = plane.requests("VolumeGetOrCreate")
    [mount] = function.volume_mounts
    assert (volume.deployment_name, mount.mount_path, mount.read_only) == (
        "fashion-models",
        "/root/data/weights",
        False,
    )
    named = [each for each in plane.requests("SecretGetOrCreate") if each.deployment_name]
    assert [(each.deployment_name, list(each.required_keys)) for each in named] == [
        ("fashion-api-keys", ["FASHION_API_KEY"])
    ]
    assert len(function.secret_ids) == 1


def test_a_container_gets_more_requests_than_photos_may_wait(plane: ControlPlane) -> None:
    """Else its own queue is never full, and neither its page nor /healthz answers while photos wait."""
    [waiting] = re.findall(r"max_queue=(\d+)", (EXAMPLE / "app.py").read_text())
    function = deployed(plane)["FashionCrop.*"]
    assert 1 + int(waiting) < function.max_concurrent_inputs


OPTIONS = {
    "A": {"scaledown_window": 60},
    "B": {"min_containers": 1},
    "C": {"scaledown_window": 900},
    "D": {"scaledown_window": 60},
}


@pytest.mark.parametrize(("option", "expected"), OPTIONS.items())
def test_what_an_option_changes(plane: ControlPlane, option: str, expected: dict[str, int]) -> None:
    functions = deployed(plane, FASHION_OPTION=option)
    function = functions.pop("FashionCrop.*")
    assert functions == {}
    assert autoscaler(function) == {"max_containers": 4, **expected}
    assert function.checkpointing_enabled is (option == "D")
    assert function.resources.gpu_config.count == 0
    assert f"ENV FASHION_OPTION={option}" in built(plane)


def pinging(plane: ControlPlane) -> Any:
    done = plane.client("-m", "modal", "deploy", str(EXAMPLE / "ping.py"), FASHION_URL="http://there/")
    assert done.returncode == 0, done.stdout + done.stderr
    return plane.requests("FunctionCreate")[-1].function


def test_the_ping_of_option_c(plane: ControlPlane) -> None:
    app = deployed(plane, FASHION_OPTION="C")["FashionCrop.*"]
    ping = pinging(plane)
    minutes = int(ping.schedule.cron.cron_string.split()[0].removeprefix("*/"))
    assert ping.schedule.cron.timezone
    # Else it pays for starts, and not for being awake.
    assert minutes * 60 < app.autoscaler_settings.scaledown_window
    assert (ping.resources.milli_cpu, list(ping.volume_mounts), list(ping.secret_ids)) == (0, [], [])
    assert ping.image_id != app.image_id
    assert "ENV FASHION_URL=http://there" in built(plane)


def test_a_ping_needs_to_know_where(plane: ControlPlane) -> None:
    done = plane.client("-m", "modal", "deploy", str(EXAMPLE / "ping.py"), FASHION_URL="")
    assert done.returncode == 1
    assert "FASHION_URL is not set: make it the URL that" in " ".join(done.stderr.split())


def test_what_docs_cost_counts_with(plane: ControlPlane) -> None:
    counted = cost.App()
    asleep = deployed(plane)["FashionCrop.*"]
    awake = deployed(plane, FASHION_OPTION="C")["FashionCrop.*"]
    ping = pinging(plane)
    assert asleep.resources.milli_cpu == counted.cores * 1000
    assert asleep.resources.memory_mb == counted.memory * 1024
    assert asleep.autoscaler_settings.scaledown_window == counted.idle
    assert awake.autoscaler_settings.scaledown_window == counted.idle_pinged
    assert ping.autoscaler_settings.scaledown_window == 2
    minutes, hours, *_, days = ping.schedule.cron.cron_string.split()
    first, last = map(int, hours.split("-"))
    assert minutes == f"*/{counted.ping_every // 60}"
    assert (last - first + 1, days) == (counted.ping_hours, "1-5")


def ping_step() -> str:
    """Return what the workflow runs, out of its indentation."""
    text = (EXAMPLE / "ping.yml").read_text()
    return textwrap.dedent(text.split("run: |\n")[1])


@pytest.mark.parametrize(("code", "expected"), [(200, 0), (503, 22)])
def test_the_ping_from_github(origin: Origin, code: int, expected: int) -> None:
    origin.put("/healthz", b"", faults=[status(code)])
    environment = {**os.environ, "FASHION_URL": origin.url("/")}
    done = subprocess.run(["bash", "-e", "-c", ping_step()], env=environment, capture_output=True, text=True)
    assert done.returncode == expected, done.stderr
    assert [each.path for each in origin.requests] == ["/healthz"]


def test_the_ping_from_github_needs_to_know_where(origin: Origin) -> None:
    environment = {**os.environ, "FASHION_URL": ""}
    done = subprocess.run(["bash", "-e", "-c", ping_step()], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "FASHION_URL: is not set: make it a variable of this repository" in done.stderr


def test_the_ping_from_github_comes_in_time(plane: ControlPlane) -> None:
    [minutes] = re.findall(r'cron: "\*/(\d+) ', (EXAMPLE / "ping.yml").read_text())
    window = deployed(plane, FASHION_OPTION="C")["FashionCrop.*"].autoscaler_settings.scaledown_window
    assert 2 * int(minutes) * 60 < window  # even if one does not come


@pytest.mark.parametrize("option", "BD")
def test_a_gpu(plane: ControlPlane, option: str) -> None:
    function = deployed(plane, FASHION_OPTION=option, FASHION_GPU="L4")["FashionCrop.*"]
    assert (function.resources.gpu_config.gpu_type, function.resources.gpu_config.count) == ("L4", 1)
    assert autoscaler(function) == {"max_containers": 4, **OPTIONS[option]}
    assert function.checkpointing_enabled is (option == "D")
    assert "ENV FASHION_GPU=L4" in built(plane)
    assert not any("whl/cpu" in line for line in built(plane))


@pytest.mark.parametrize(("chosen", "gets"), [("", "large"), ("tiny", "tiny")])
def test_a_segmenter_reaches_the_container(plane: ControlPlane, chosen: str, gets: str) -> None:
    deployed(plane, FASHION_SEGMENTER=chosen)
    assert f"ENV FASHION_SEGMENTER={gets}" in built(plane)


def test_every_segmenter_is_in_the_manifest() -> None:
    [values] = re.findall(r'"FASHION_SEGMENTER": (\[.*?\])', (EXAMPLE / "app.py").read_text())
    declared = [checkpoint.name for checkpoint in Manifest.load(EXAMPLE / "weights.toml")]
    assert sorted(declared) == sorted(
        ["groundingdino", "bert-base-uncased", *(f"sam2-{each}" for each in json.loads(values))]
    )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"FASHION_OPTION": "E"}, "FASHION_OPTION must be one of A, B, C, D, got 'E'"),
        ({"FASHION_OPTION": "a"}, "FASHION_OPTION must be one of A, B, C, D, got 'a'"),
        (
            {"FASHION_SEGMENTER": "huge"},
            "FASHION_SEGMENTER must be one of large, base-plus, small, tiny, got 'huge': see README.md",
        ),
    ],
)
def test_what_is_no_option_is_refused(plane: ControlPlane, options: dict[str, str], problem: str) -> None:
    done = deploy(plane, **options)
    assert done.returncode == 1
    assert problem in " ".join(done.stderr.split())
    assert plane.requests("AppCreate") == []


def test_a_secret_that_is_not_there_is_named(tmp_path: Path) -> None:
    with ControlPlane(tmp_path / "plane") as plane:
        done = deploy(plane)
    assert done.returncode == 1
    assert "fashion-api-keys" in done.stderr


def test_the_image(plane: ControlPlane) -> None:
    """Code and packages, and no weights: nothing of it lies where the Volume is mounted."""
    deployed(plane)
    installs = [line.split(" --compile-bytecode ")[1] for line in built(plane) if "uv pip install" in line]
    assert installs == [
        "--index-url https://download.pytorch.org/whl/cpu torch==2.13.0 torchvision==0.28.0",
        "--requirements /.uv/0/requirements.txt",
        "--no-deps --no-build-isolation --requirements /.uv/0/requirements-without-dependencies.txt",
    ]
    assert not any("data/weights" in line for line in built(plane))
    mounted = {file.filename: file for each in plane.requests("MountGetOrCreate") for file in each.files}
    [manifest] = [file for name, file in mounted.items() if name.startswith("/etc/weightcache/fashion-models-")]
    assert manifest.sha256_hex == sha256((EXAMPLE / "weights.toml").read_bytes())
    here = {name for name in mounted if name.startswith("/root/fashion_crop/")}
    patterns = ("*.py", "models/*.py", "web/*.py", "web/page/*")
    kept = [path for pattern in patterns for path in EXAMPLE.glob(pattern)]
    unwanted = {"app.py", "ping.py", "web/serve.py"}
    names = {path.relative_to(EXAMPLE).as_posix() for path in kept if path.is_file()} - unwanted
    assert here == {f"/root/fashion_crop/{name}" for name in names}
    assert {"/root/app.py", "/root/fashion_crop/web/page/sample.jpg"} <= set(mounted)
    assert not any(name.startswith("/root/data") for name in mounted)


def test_the_app_is_as_short_as_the_readme_says() -> None:
    [limit] = re.findall(r"whole idea in under (\d+) lines", (EXAMPLE / "README.md").read_text())
    assert len((EXAMPLE / "app.py").read_text().splitlines()) < int(limit)


def test_deploying_it_imports_nothing_that_it_serves() -> None:
    code = f"""
import runpy, sys
runpy.run_path({str(EXAMPLE / "app.py")!r})
print([each for each in ("torch", "numpy", "fastapi", "PIL", "fashion_crop.web.service") if each in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    assert done.stdout == "[]\n"


def test_the_volume_is_read_before_anything_is_imported(tmp_path: Path) -> None:
    package = tmp_path / "fashion_crop" / "models"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import app, gc\n"
        "print('imported while', type(app.reading).__name__, 'reads and', gc.isenabled() and 'collects' or 'waits')\n"
    )
    environment = {**os.environ, "MODAL_IS_REMOTE": "1", "PYTHONPATH": f"{EXAMPLE}:{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", "import app"], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("imported while Prefetch reads and waits\n", 0), done.stderr
