"""Apps on the control plane of the tests, by the real client: class parameters, logs, build functions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from control_plane import ControlPlane

pytestmark = pytest.mark.usefixtures("namespaces")


def run(plane: ControlPlane, folder: Path, code: str, command: str = "run", *, returns: int = 0) -> str:
    """Run or deploy an app, and return what the client showed."""
    (folder / "app.py").write_text(code)
    done = plane.client("-m", "modal", command, str(folder / "app.py"))
    assert done.returncode == returns, done.stdout + done.stderr
    return done.stdout + done.stderr


PARAMETERS = """
import modal
from weightcache._runtime.container_timeout import modal_time_limit

app = modal.App("parameters")


@app.cls(image=modal.Image.debian_slim().add_local_python_source("weightcache"), timeout=77, startup_timeout=700)
class Adapter:
    name: str = modal.parameter()
    rank: int = modal.parameter(default=8)

    @modal.enter()
    def load(self):
        self.loaded = f"{self.name}/{self.rank}"
        self.start = modal_time_limit()

    @modal.method()
    def shown(self):
        return self.loaded, self.start.argument, 0 < self.start.seconds < 700, tuple(modal_time_limit())


@app.local_entrypoint()
def main():
    print([Adapter(name="a").shown.remote(), Adapter(name="b", rank=2).shown.remote()])
"""


def test_parameters_of_a_class_and_its_time_limits(plane: ControlPlane, tmp_path: Path) -> None:
    limits = ("startup_timeout", True, (77, "timeout", 0.0))
    assert str([("a/8", *limits), ("b/2", *limits)]) in run(plane, tmp_path, PARAMETERS)
    assert len(plane.containers) == 2


LOGS = """
import modal

inner, outer = modal.App("inner"), modal.App("outer")
image = modal.Image.debian_slim()


@inner.function(image=image, serialized=True)
def short():
    print("said by inner", flush=True)


@outer.cls(image=image, serialized=True)
class Long:
    @modal.method()
    def shown(self):
        print("said by outer", flush=True)

    @modal.exit()
    def bye(self):
        print("said at the end", flush=True)


with modal.enable_output(), outer.run():
    with inner.run():
        short.remote()
    Long().shown.remote()
"""


def test_a_log_outlives_its_app_and_ends_no_other(plane: ControlPlane, tmp_path: Path) -> None:
    (tmp_path / "logs.py").write_text(LOGS)
    done = plane.client(str(tmp_path / "logs.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"said .*", done.stdout + done.stderr) == ["said by inner", "said by outer", "said at the end"]


BUILD = """
import modal

app = modal.App("built")
volume = modal.Volume.from_name("w", create_if_missing=True)
secret = modal.Secret.from_dict({{"TOKEN": "x"}})


def fill(text):
    import os
    print("building", open("/root/copied").read(), os.environ["TOKEN"], flush=True)
    if text == "wrong":
        raise ValueError("this build is wrong")
    with open("/data/text", "w") as stream:
        stream.write(text)


image = (
    modal.Image.debian_slim()
    .add_local_file({copied!r}, "/root/copied", copy=True)
    .run_function(fill, args=({text!r},), volumes={{"/data": volume}}, secrets=[secret])
    .env({{"AFTER": "yes"}})
)


@app.function(image=image, volumes={{"/data": volume}})
def shown():
    import os
    return open("/data/text").read(), open("/root/copied").read(), os.environ["AFTER"], "TOKEN" in os.environ


@app.local_entrypoint()
def main():
    print(shown.remote())
"""


def test_a_build_function_runs_once_for_each_of_its_arguments(plane: ControlPlane, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    copied.write_text("a copy")

    def shown(text: str, *, returns: int = 0) -> str:
        return run(plane, tmp_path, BUILD.format(copied=str(copied), text=text), returns=returns)

    said = shown("first")
    assert "building a copy x" in said
    assert "('first', 'a copy', 'yes', False)" in said
    said = shown("first")
    assert "building" not in said
    assert "('first'" in said
    assert "('second'" in shown("second")
    assert "this build is wrong" in shown("wrong", returns=1)
    copied.write_text("another copy")  # an earlier step
    assert "building another copy x" in shown("second")
